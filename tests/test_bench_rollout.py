"""The benchmark's arithmetic by hand, and its fixed work played for real on a model of two layers."""

import dataclasses
import json

import bench_rollout
import jax
import numpy as np
import pytest
import rollout_floors
import rollout_work
from flax import nnx
from rollout_baselines import check_transformers, requests
from rollout_work import Work

from configs import tiny
from mvg_jax import config as configs
from mvg_jax import plan
from mvg_jax.env.episode import Stop
from mvg_jax.errors import RunError
from mvg_jax.models import config as model_shapes
from mvg_jax.models.config import SHAPES, TextConfig
from mvg_jax.models.hf import FAMILIES
from mvg_jax.models.vlm import ShapesOnly
from mvg_jax.rollout.scheduler import Phases, rollout
from mvg_jax.trajectory import ENVIRONMENT, MODEL, Ledger
from tests import tiny_world

IMAGE, E = 9, 2


def conversations():
    """Two prompts of 4 and 3 tokens (one image), two rows each: turns of 3 and 1, 2 and 1, 1, 2 tokens; observations of 4 and 3."""
    prompts = np.array([[1, IMAGE, IMAGE, 2], [IMAGE, IMAGE, 3, 0]], np.int32)
    views = lambda *shape: np.zeros((*shape, 2, 2, 3), np.uint8)
    ledger = Ledger(prompts, np.array([4, 3], np.int32), 4, 8, (1, 2, 2, 3), IMAGE, E)
    count = lambda *numbers: np.array(numbers, np.int32)
    words, rows, turn = np.full((4, 4), 5, np.int32), np.arange(4), np.zeros(4, np.int8)
    ledger.append(rows, words, count(3, 2, 1, 2), MODEL, turn)
    observed = words.copy()
    observed[:2, :2] = IMAGE
    ledger.append(rows, observed, count(4, 3, 0, 0), ENVIRONMENT, turn)
    ledger.append_views(rows, views(4, 1), count(1, 1, 0, 0))
    ledger.append(rows, words, count(1, 1, 0, 0), MODEL, turn + 1)
    return ledger.close(views(2, 1))


def test_load_counts_each_token_once():
    # Contexts of drawn tokens: 4 5 6 | 11 in row 0, 4 5 | 9 in row 1, 3 in row 2, 3 4 in row 3; of given ones 7 8 9 10, 6 7 8.
    work = rollout_floors.load(conversations(), slots=4)
    assert work.images == 2 + 2
    assert (work.prefill, work.prefill_attended) == (3 + 2, (1 + 2 + 3) + (1 + 2))
    assert (work.extend, work.extend_attended) == (4 + 3, 34 + 21)
    assert (work.decode, work.decode_attended) == (10, 26 + 18 + 3 + 7)
    assert work.observations == 1
    assert work.own_read == (0 + 1 + 2 + 7) + (0 + 1 + 5) + 0 + (0 + 1)
    assert work.prefix_read == 4 * 4 + 3 * 2
    assert work.positions == 7 + (7 + 5 + 0 + 1)


@pytest.mark.parametrize(("slots", "steps"), [(4, 4), (2, 5), (1, 10)])
def test_steps_are_bounded_by_slots_and_by_the_longest_row(slots, steps):
    assert rollout_floors.load(conversations(), slots).steps == steps


def test_costs_by_hand():
    text = TextConfig(
        vocab_size=10,
        hidden_size=4,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=3,
        head_dim=2,
    )
    model = dataclasses.replace(tiny_world.CONFIG, text=text)
    work = rollout_floors.load(conversations(), slots=4)
    layer = 4 * 4 + 2 * (4 * 2) + 4 * 4 + 3 * 4 * 3
    assert rollout_floors.layer_parameters(text) == layer
    found = rollout_floors.costs(model, work, itemsize=2, vision_bytes=100.0)
    position = 2 * 2 * 1 * 2 * 2  # keys and values of two layers, one head of two numbers of two bytes
    assert found["prefill"] == (2 * 5 * 2 * layer + 4 * 2 * 4 * 9, 2 * 2 * layer + 5 * position)
    assert found["extend"] == (2 * 7 * 2 * layer + 4 * 2 * 4 * 55, 2 * 2 * layer + 7 * position)
    assert found["decode"] == (
        2 * 10 * (2 * layer + 40) + 4 * 2 * 4 * 54,
        4 * (2 * layer + 40) * 2 + (17 + 22) * position,
    )
    assert found["encode"].bytes == 100
    assert rollout_floors.Cost(flops=6.0, bytes=8.0).seconds(rollout_floors.Rates(bandwidth=4.0, flops=2.0)) == 3.0
    assert rollout_floors.Cost(flops=2.0, bytes=8.0).seconds(rollout_floors.Rates(bandwidth=4.0, flops=2.0)) == 2.0


@pytest.mark.parametrize("name", ["internvl3_1b", "qwen2_5_vl_7b", "qwen3_vl_8b"])
def test_flops_are_those_that_xla_counts(name):
    """Of one view, and of a prompt of 64 tokens. XLA also counts norms, activations and the half of the attention that is masked."""
    model = model_shapes.with_tokens(SHAPES[name](), 512, 5)
    model = plan.with_depth(model, *plan.least_depth(model))
    graph, params = nnx.split(nnx.eval_shape(lambda: FAMILIES[model.model_type].model(model, ShapesOnly(0))))

    def counted(run, shape, dtype) -> float:
        found = jax.jit(run).lower(params, jax.ShapeDtypeStruct(shape, dtype)).cost_analysis()
        return found["flops"]

    views = counted(lambda params, x: nnx.merge(graph, params).encode_images(x), (1, *model.view_size, 3), np.uint8)
    assert 1.0 <= views / rollout_floors.image_flops(model) < 1.25

    def decode(params, tokens_1xT):
        made = nnx.merge(graph, params)
        positions, _ = made.positions(tokens_1xT, np.array([64]), np.array([0]))
        return made.decode(made.language_model.embed_tokens(tokens_1xT), positions)

    work = rollout_floors.Load(*np.zeros(len(rollout_floors.Load._fields), int))
    work = work._replace(prefill=64, prefill_attended=64 * 65 // 2)
    tokens = counted(decode, (1, 64), np.int32)
    assert 1.0 <= tokens / rollout_floors.costs(model, work, 2, 0.0)["prefill"].flops < 1.05


def test_requests_are_histories_padded_on_the_left():
    first, second = requests(conversations(), pad=0)
    assert first.tokens.tolist() == [[1, 9, 9, 2], [1, 9, 9, 2], [0, 9, 9, 3], [0, 9, 9, 3]]
    assert first.mask.tolist() == [[1, 1, 1, 1]] * 2 + [[0, 1, 1, 1]] * 2
    assert (first.row.tolist(), first.images.tolist(), first.new_tokens) == ([0, 1, 2, 3], [1] * 4, 3)
    assert second.tokens.tolist() == [[1, 9, 9, 2, 5, 5, 5, 9, 9, 5, 5], [0, 0, 1, 9, 9, 2, 5, 5, 9, 9, 5]]
    assert (second.row.tolist(), second.images.tolist(), second.new_tokens) == ([0, 1], [2, 2], 1)


# ---- fixed work, played -------------------------------------------------------------------------------------------------

WORK = Work(rows=4, group=2, turns=3, images=2, prompt_tokens=61, observation_tokens=37, turn_tokens=5)


def small_config() -> configs.Config:
    c = tiny.get_config()
    c.model.checkpoint, c.model.tokenizer = "", "asset:tiny_internvl"
    return configs.from_dict(c.to_dict())


@pytest.fixture(scope="module")
def setting():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "tiny", lambda: tiny_world.CONFIG)
        return rollout_work.fixed(small_config(), WORK)


@pytest.fixture(scope="module")
def played(setting):
    return rollout(setting.world, setting.policy(), setting.world.prepare(setting.tasks, True), Phases())


def test_fixed_work_has_exactly_its_lengths(setting, played):
    t, episodes = played
    assert t.prompt_length_P.tolist() == [61, 61]
    assert (t.prompts_PxL == t.image_token_id).sum(axis=1).tolist() == [tiny_world.E] * 2
    for turn in range(3):
        own_BxL = t.turn_BxL == turn
        assert ((t.origin_BxL == MODEL) & own_BxL).sum(axis=1).tolist() == [5] * 4
        assert ((t.origin_BxL == ENVIRONMENT) & own_BxL).sum(axis=1).tolist() == [37 if turn < 2 else 0] * 4
    assert t.view_count_B.tolist() == [4] * 4
    assert not (t.tokens_BxL[t.loss_mask_BxL] == setting.experiment.protocol.vocabulary.end_of_turn).any()
    assert episodes.stop_B.tolist() == [Stop.MAX_TURNS] * 4
    assert [[record.views for record in records] for records in episodes.records] == [[2, 2, 0]] * 4
    assert not any(record.error for records in episodes.records for record in records)
    # The views are real zooms of the prompt's image: one for each box, here the same one.
    assert (t.views_BxNxSxSx3[:, 0] == t.views_BxNxSxSx3[:, 1]).all()
    assert t.views_BxNxSxSx3[0, 0].std() > 1
    assert (t.views_BxNxSxSx3[0, 0] != t.prompt_views_PxNxSxSx3[0, 0]).any()


def test_reprefill_says_what_ours_says(setting):
    """Each turn's likeliest words, from whole histories and from a cache that lives on."""
    config = setting.experiment.config
    config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, temperature=0.0))
    greedy = setting._replace(experiment=dataclasses.replace(setting.experiment, config=config))
    ours, theirs = (
        rollout(greedy.world, policy, greedy.world.prepare(greedy.tasks, True), Phases())[0]
        for policy in (greedy.policy(), bench_rollout.reprefill_of(greedy)())
    )
    assert (ours.tokens_BxL == theirs.tokens_BxL).all()
    assert len(np.unique(ours.tokens_BxL[ours.loss_mask_BxL])) > 3


def test_figures(setting, monkeypatch):
    monkeypatch.setattr(bench_rollout, "measured_rates", lambda dtype: rollout_floors.Rates(1e10, 1e11))
    figures = bench_rollout.measure(setting, runs=1, against=("reprefill",))
    expected = {f"{kind}/{phase}" for kind in ("seconds", "floor", "floor_share") for phase in rollout_floors.PHASES}
    expected |= {"tokens_per_second", "trajectories_per_second", "ratio/reprefill", "slot_occupancy", "goodput"}
    expected |= {"compiles_after_warmup", "warmup_seconds", "kv_bytes", "host_share", "seconds/tools", "seconds/host"}
    assert expected <= set(figures)
    assert all(isinstance(value, int | float) for value in json.loads(json.dumps(figures)).values())
    assert figures["sampled_tokens"] == 4 * 3 * 5
    assert figures["slot_occupancy"] == 1.0
    assert 0.9 < figures["goodput"] <= 1.0
    assert figures["compiles_after_warmup"] == 0
    # Keys and values of 2 layers, 2 heads of 8 float32: 2 prompts of 61 tokens, 4 rows of 3 turns and 2 observations.
    assert figures["kv_bytes"] == 2 * 2 * 2 * 8 * 4 * (2 * 61 + 4 * (3 * 5 + 2 * 37))


def test_natural_lengths(monkeypatch):
    """The config's own tasks; an untrained model says nothing that parses, and its turns end by chance or at their limit."""
    monkeypatch.setitem(SHAPES, "tiny", lambda: tiny_world.CONFIG)
    natural = rollout_work.natural(small_config(), rows=4, group=2)
    assert [task.dataset for task in natural.tasks] == ["phantom"] * 2
    played = bench_rollout.play(natural, natural.policy(), block=True)
    work = rollout_floors.load(played.trajectories, slots=4)
    figures = bench_rollout.of_ours(natural, work, [played])
    assert figures["rows"] == 4
    assert figures["sampled_tokens"] == played.trajectories.loss_mask_BxL.sum()
    assert 0 < figures["goodput"] < 1
    assert 0 < figures["slot_occupancy"] <= 1


def test_smaller_views_of_a_checkpoint():
    """The embedded model sees 64 px with 8 px patches, four of them a token."""
    experiment, stored = rollout_work.load(configs.from_dict(tiny.get_config().to_dict()), 32)
    assert experiment.model.view_size == (32, 32)
    assert experiment.protocol.tokens_per_image == 4
    encode = lambda params, views: nnx.merge(experiment.graph, params).encode_images(views)
    features = jax.eval_shape(encode, stored, jax.ShapeDtypeStruct((3, 32, 32, 3), np.uint8))
    assert features.shape == (3, 4, 128)
    with pytest.raises(RunError, match="--view_side=40: a multiple of 16, at most 32"):
        rollout_work.with_view_side(experiment.model, 40)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt_tokens": 20}, "--prompt_tokens=20: at least"),
        ({"observation_tokens": 17}, "--observation_tokens=17: at least 22, of which images take 12"),
    ],
)
def test_lengths_that_cannot_be_are_refused(setting, changes, words):
    protocol, task = setting.experiment.protocol, setting.tasks[0]
    plain = dataclasses.replace(protocol, marks=tiny_world.PROTOCOL.marks)
    with pytest.raises(RunError, match=words):
        rollout_work.filled(plain, dataclasses.replace(WORK, **changes), task)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"rows": 6, "group": 4}, "--rows=6"), ({"turns": 0}, "--turns=0"), ({"images": 3}, "--images=3")],
)
def test_work_that_makes_no_sense_is_refused(changes, words):
    with pytest.raises(RunError, match=words):
        dataclasses.replace(WORK, **changes)


def test_what_is_missing_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunError, match="needs torch and transformers: pip install torch transformers"):
        check_transformers()
