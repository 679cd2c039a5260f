"""What a config cannot ask for is said before anything starts."""

import dataclasses
import importlib

import jax
import pytest
from flax import nnx

from configs import tiny
from mvg_jax import config as configs
from mvg_jax.data import phantom
from mvg_jax.errors import RunError
from mvg_jax.experiment import Experiment, build, learner_shapes, policy_learner, random_shape, rollout_shapes
from mvg_jax.mesh import make_mesh
from mvg_jax.models.axes import check_tensor_axis
from mvg_jax.models.internvl import InternVL
from mvg_jax.rl.vision import draw_part, draw_view
from tests.volume_files import write_volume


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return build(configs.from_dict(tiny.get_config().to_dict()))[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"microbatches": 3}, r"config\.grpo\.learner\.microbatches 3 does not divide 16 prompts"),
        ({"microbatches": 0}, r"config\.grpo\.learner\.microbatches 0"),
        ({"view_batches": (128, 383)}, r"config\.grpo\.learner\.view_batches \(128, 383\): a batch may need 384"),
        ({"view_batches": ()}, r"config\.grpo\.learner\.view_batches"),
        ({"suffix_lengths": (80, 127)}, r"config\.grpo\.learner\.suffix_lengths \(80, 127\): a batch may need 128"),
    ],
)
def test_bucket_tables_of_the_update_must_hold_the_worst_case(experiment, fields, message):
    c = experiment.config
    grpo = dataclasses.replace(c.grpo, learner=dataclasses.replace(c.grpo.learner, **fields))
    changed = dataclasses.replace(experiment, config=dataclasses.replace(c, grpo=grpo))
    with pytest.raises(RunError, match=message):
        changed.grpo_stage(None)
    assert experiment.grpo_stage(None).shapes.microbatches == 1


def test_a_volume_brings_its_own_lessons(experiment, tmp_path):
    write_volume(tmp_path / "volume", about={"view": 64})
    c = dataclasses.replace(experiment.config, data=configs.Data(sets=("volume",), root=str(tmp_path)))
    changed = dataclasses.replace(experiment, config=c)
    lessons, stage = changed.tasks.lessons(), changed.vision_stage()
    assert lessons.classes == ("", "liver", "kidney", "cord", "nodule")
    assert (stage.classes, stage.findings, stage.alike, stage.draw) == (5, (1, 2, 3, 4), (), draw_part)
    phantoms = experiment.vision_stage()
    assert phantoms.classes == len(phantom.CLASSES)
    assert [phantom.CLASSES[i] for i in phantoms.alike] == list(phantom.PATTERN_LABEL.values())
    assert phantoms.draw is draw_view


REAL = ("internvl3_1b", "internvl3_8b", "qwen2_5_vl_7b", "qwen3_vl_4b", "qwen3_vl_8b")


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("options", [None, "lora", "fsdp=8", "lora,fsdp=4,tp=2", "dp=2,fsdp=2,tp=2"])
def test_ready_experiments_fit_their_meshes(name, options):
    get_config = importlib.import_module(f"configs.{name}").get_config
    config = configs.from_dict(get_config(options).to_dict())
    lora = options is not None and "lora" in options
    assert (config.model.lora.rank > 0) == (config.model.dtype == "bfloat16") == lora
    shape = random_shape(config.model.shape)
    check_tensor_axis(config.mesh.tensor, shape.text)
    with jax.set_mesh(make_mesh(dataclasses.asdict(config.mesh))):
        shapes = rollout_shapes(config, config.rollout.prompts, config.rollout.group)
        learner_shapes(config.grpo.learner, shapes, "grpo.learner")
        rollout_shapes(config, config.eval.prompts, 1)
    assert shapes.observation_lengths[-1] >= 2 * (shape.tokens_per_image + 2)
    assert config.env.max_images == 1 + 2 * (config.env.max_turns - 1)


def test_lanes_share_rows_slots_and_pool():
    def shapes(**rollout):
        config = configs.from_dict({"rollout": {"group": 4, "prefill_prompts": 8, "extend_rows": (4,), **rollout}})
        return rollout_shapes(config, 10, 4)

    whole = shapes(lanes=3)
    assert (whole.lanes, whole.rows, whole.slots, whole.pool, whole.prefill_prompts) == (3, 40, 16, 4, 4)
    assert shapes(lanes=2).pool == 5  # all of a lane's prompts
    few = shapes(lanes=2, slots=9, pool=5)
    assert (few.slots, few.pool, few.decode_slots) == (5, 3, (5,))
    many = shapes(lanes=40)
    assert (many.lanes, many.slots, many.pool) == (10, 4, 1)
    with pytest.raises(RunError, match="lanes"):
        shapes(lanes=0)


@pytest.mark.parametrize("options", ["fsdp", "fsdp=0", "fsdp=x", "lora=1", "zero=3"])
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError, match="there are lora, dp=N, fsdp=N and tp=N"):
        importlib.import_module("configs.qwen3_vl_4b").get_config(options)


def test_settings_that_would_train_nothing_are_refused(experiment):
    c = experiment.config
    half = dataclasses.replace(c, model=dataclasses.replace(c.model, dtype="bfloat16"))
    with pytest.raises(RunError, match=r"config\.model\.dtype bfloat16 rounds"):
        policy_learner(half, experiment.graph, experiment.banned_V)
    params = nnx.eval_shape(lambda: nnx.state(InternVL(experiment.model, nnx.Rngs(0))))
    for names, message in (
        (("vision_towr",), r"\['vision_towr'\], which no module"),
        (("vision_tower", "multi_modal_projector", "language_model"), "nothing is left to train"),
    ):
        frozen = dataclasses.replace(c.grpo, learner=dataclasses.replace(c.grpo.learner, freeze=names))
        learner = policy_learner(dataclasses.replace(c, grpo=frozen), experiment.graph, experiment.banned_V)
        with pytest.raises(RunError, match=message):
            learner.init(params)
