import dataclasses
import json

import pytest

from mvg_jax.config import Config, Learner, Mixture, Optimizer, Rollout, from_dict, to_json
from mvg_jax.errors import RunError


def test_defaults_come_back_from_plain_values():
    assert from_dict({}) == Config()
    assert from_dict(dataclasses.asdict(Config())) == Config()
    assert from_dict(json.loads(to_json(Config()))) == Config()


def test_values_reach_their_place_at_any_depth():
    config = from_dict({
        "stages": ["sft", "grpo"],
        "env": {"rewards": {"accuracy": 2}, "tools": ["image_flip_tool"]},
        "grpo": {
            "steps": 5,
            "optimizer": {"learning_rate": 1},
            "learner": {"freeze": ["vision_tower"], "suffix_lengths": [8]},
        },
    })  # fmt: skip
    assert config.stages == ("sft", "grpo")
    assert config.env.rewards == {"accuracy": 2.0}
    assert type(config.env.rewards["accuracy"]) is type(config.grpo.optimizer.learning_rate) is float
    assert config.grpo.learner == Learner(suffix_lengths=(8,), freeze=("vision_tower",))
    assert config.grpo.optimizer == Optimizer(learning_rate=1.0)
    assert config.sft == Config().sft
    assert from_dict(dataclasses.asdict(config)) == config


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"sede": 1}, r"unknown key config\.sede; config has checkpoint, .*seed"),
        ({"grpo": {"optimizer": {"lr": 1.0}}}, r"unknown key config\.grpo\.optimizer\.lr; .*learning_rate"),
        ({"model": {"compute_dtype": "int8"}}, r"config\.model\.compute_dtype 'int8': use one of float32, bfloat16"),
        ({"stages": ["vision"], "mesh": {"fsdp": 2}}, r"'vision' runs on one device; config\.mesh is .*fsdp=2"),
        ({"seed": 1.5}, r"config\.seed must be int, not 1\.5"),
        ({"seed": True}, r"config\.seed must be int, not True"),
        ({"seed": "1"}, r"config\.seed must be int, not '1'"),
        ({"seed": -1}, r"config\.seed -1: from 0"),
        ({"checkpoint": {"every": 0}}, r"config\.checkpoint: every and keep are at least 1"),
        ({"checkpoint": {"keep": 0}}, r"config\.checkpoint: every and keep are at least 1"),
        ({"rollout": {"prompts": 0}}, r"config\.rollout: prompts and group are at least 1"),
        ({"rollout": {"temperature": -1.0}}, r"config\.rollout: .*temperature at least 0"),
        ({"eval": {"prompts": 0}}, r"config\.eval: prompts and tasks are at least 1"),
        ({"eval": {"temperature": -0.5}}, r"config\.eval: .*temperature at least 0"),
        ({"seed": None}, r"config\.seed must be int, not None"),
        ({"data": {"shuffle": 1}}, r"config\.data\.shuffle must be bool, not 1"),
        ({"rollout": {"temperature": "hot"}}, r"config\.rollout\.temperature must be float, not 'hot'"),
        ({"eval": {"top_k": -1}}, r"config\.eval: top_k -1 and top_p 1\.0 filter .*top_k at least 0"),
        ({"eval": {"top_p": 0.0}}, r"config\.eval: .*top_p 0\.0 .*0 < top_p <= 1"),
        ({"collect": {"top_p": 1.5}}, r"config\.collect: .*top_p 1\.5"),
        ({"collect": {"top_k": 5, "endpoint": {"url": "http://h/v1"}}}, r"config\.collect\.top_k 5: a chat endpoint"),
        ({"rollout": {"top_k": 5}}, r"unknown key config\.rollout\.top_k"),
        ({"rollout": {"temperature": True}}, r"config\.rollout\.temperature must be float, not True"),
        ({"rollout": {"encode_batches": 8}}, r"config\.rollout\.encode_batches must be tuple.*, not 8"),
        ({"rollout": {"encode_batches": [8, "16"]}}, r"config\.rollout\.encode_batches must be int, not '16'"),
        ({"env": {"tools": "image_flip_tool"}}, r"config\.env\.tools must be tuple.*, not 'image_flip_tool'"),
        ({"env": {"rewards": ["accuracy"]}}, r"config\.env\.rewards must be dict.*, not \['accuracy'\]"),
        ({"env": {"rewards": {"accuracy": "1"}}}, r"config\.env\.rewards\.accuracy must be float, not '1'"),
        ({"grpo": 3}, r"config\.grpo must be a group of values, not 3"),
        ({"grpo": {"ratio": "word"}}, r"config\.grpo\.ratio 'word': use 'token' or 'sequence'"),
        ({"grpo": {"advantage_scale": "max"}}, r"config\.grpo\.advantage_scale 'max': use 'std' or 'none'"),
        ({"grpo": {"clip_low": 1.5}}, r"config\.grpo: 0 < clip_low < 1"),
        ({"grpo": {"kl": -1.0}}, r"config\.grpo: .* kl >= 0"),
        ({"stages": []}, r"config\.stages \(\): name one or more"),
        ({"stages": ["grpo", "dpo"]}, r"config\.stages .*'dpo'.*: name one or more of 'vision', 'sft', 'grpo'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(values, what):
    with pytest.raises(RunError, match=what):
        from_dict(values)


def test_json_tells_configs_apart():
    """A workdir is claimed by this text: any other config must read differently."""
    values = ({}, {"seed": 1}, {"grpo": {"kl": 0.1}}, {"env": {"rewards": {"accuracy": 0.5}}})
    assert len({to_json(from_dict(value)) for value in values}) == 4
    assert to_json(from_dict({"env": {"rewards": {"format": 1, "accuracy": 2}}})) == to_json(
        from_dict({"env": {"rewards": {"accuracy": 2, "format": 1}}})
    )


def test_a_curriculum_is_a_tuple_of_mixtures():
    given = lambda mixture: {"data": {"curriculum": (mixture,)}}
    found = from_dict(given({"first": 10, "sets": ("phantom_fundus=2", "phantom")})).data.curriculum
    assert found == (Mixture(10, ("phantom_fundus=2", "phantom")),)
    with pytest.raises(RunError, match=r"unknown key config\.data\.curriculum\.set"):
        from_dict(given({"first": 10, "set": ("phantom",)}))
    with pytest.raises(RunError, match="name at least one data set"):
        from_dict(given({"first": 10, "sets": ()}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suffix_length": 20, "turn_tokens": 28}, "suffix_length 20: a turn alone takes 28"),
        ({"extend_rows": ()}, "extend_rows"),
        ({"encode_batches": (0, 4)}, "encode_batches"),
        ({"decode_slots": (0,)}, "decode_slots"),
        ({"idle": 0.0}, "idle"),
    ],
)
def test_rollout_tables_that_cannot_work_are_refused(change, message):
    with pytest.raises(RunError, match=rf"config\.rollout.*{message}"):
        Rollout(**change)
