import dataclasses
import itertools
import re
import types
import weakref
from concurrent.futures import Future

import jax
import numpy as np
import pytest

from mvg_jax.data.task import Turn
from mvg_jax.env.episode import Stop
from mvg_jax.env.protocol import render_turn
from mvg_jax.errors import RunError
from mvg_jax.frames import full_frame
from mvg_jax.models.attention import PLAIN, Kernels
from mvg_jax.rl.learner import LearnerShapes, make_batch
from mvg_jax.rollout.engine import Engine
from mvg_jax.rollout.lanes import Flight, first_to_land
from mvg_jax.rollout.policies import GuidedPolicy, SampledPolicy, ScriptedPolicy
from mvg_jax.rollout.sampling import row_keys, token_uniform
from mvg_jax.rollout.scheduler import Phases, World, rollout
from mvg_jax.rollout.slots import NONE
from mvg_jax.tools import ToolCall, ViewFormat, observation_text, render_views
from mvg_jax.tools.spec import OK_FLIP, OK_ZOOM
from mvg_jax.trajectory import ENVIRONMENT, MODEL, Trajectories
from tests import tiny_world
from tests.tiny_world import ANSWER, ENDLESS, LETTERS, ONE, PROTOCOL, TWO, VOCABULARY, flip, plain_logprobs, play, zoom

TASKS = (tiny_world.task(0), tiny_world.task(1))
CALLS = ([ONE], [TWO], [flip(0)], [zoom((0, 0, 300, 300))])  # the first turn of each of four rows


def scripted(script, world: World | None = None, tasks=TASKS):
    world = world or tiny_world.world(len(tasks))
    phases = Phases()
    policy = ScriptedPolicy(PROTOCOL, script, world.shapes.turn_tokens)
    return *rollout(world, policy, world.prepare(tasks, tools_on=True), phases), phases


def drawn(trajectories: Trajectories, first_turn: int) -> np.ndarray:
    """bool [B, L]: the tokens that the model drew, which are those from first_turn on."""
    return trajectories.loss_mask_BxL & (trajectories.turn_BxL >= first_turn)


# ---- scripts ---------------------------------------------------------------------------------------------------------


def test_a_script_comes_back_as_the_ledgers_text():
    last = [flip(0), zoom((0, 0, 500, 500), image=1), Turn("So.", "x")]
    script = [[ONE, ANSWER], [TWO, flip(2), ANSWER], [ANSWER], last]
    t, episodes, _ = scripted(script)
    assert episodes.stop_B.tolist() == [Stop.ANSWER] * 4
    assert episodes.answers == ("calcified", "calcified", "calcified", "x")
    for b, turns in enumerate(script):
        texts = []
        for number in range(len(turns)):
            ids = t.tokens_BxL[b, (t.origin_BxL[b] == MODEL) & (t.turn_BxL[b] == number)]
            assert ids[-1] == VOCABULARY.end_of_turn
            texts.append(PROTOCOL.decode(ids))
        assert texts == [render_turn(turn) for turn in turns]
    assert (t.logprob_BxL == 0).all()
    assert t.view_count_B.tolist() == [1, 3, 0, 2]


def test_observations_follow_the_calls_in_tokens_and_pixels():
    t, episodes, _ = scripted([[TWO, flip(2), ANSWER], [ONE, ANSWER], [ANSWER], [ANSWER]])
    for number, count, code in ((0, 2, OK_ZOOM), (1, 1, OK_FLIP)):
        told = t.tokens_BxL[0, (t.origin_BxL[0] == ENVIRONMENT) & (t.turn_BxL[0] == number)]
        assert told.tolist() == list(PROTOCOL.observation_ids(count, observation_text(code, count)))
    assert re.fullmatch("M+ E+ I{4} E+ I{4} E+ M+ E+ I{4} E+ M+".replace(" ", ""), t.picture(0))
    # Views are those that the episode's frames show, rendered by themselves.
    prompts = tiny_world.world(2).prepare(TASKS, tools_on=True)
    frames = jax.tree.map(lambda x: x[0, 1:4], episodes.frames)
    shown = render_views(prompts.sources, np.zeros(3, np.int32), frames, tiny_world.VIEW)
    np.testing.assert_array_equal(t.views_BxNxSxSx3[0], shown)
    np.testing.assert_array_equal(t.views_BxNxSxSx3[0, 2], t.views_BxNxSxSx3[0, 1, :, ::-1])
    whole = jax.tree.map(lambda x: x[None], full_frame(32, 40, (-160.0, 240.0), 0))
    shown = render_views(prompts.sources, np.ones(1, np.int32), whole, tiny_world.VIEW)
    np.testing.assert_array_equal(t.prompt_views_PxNxSxSx3[1], shown)


def test_views_need_not_be_square():
    world = dataclasses.replace(tiny_world.world(2), view=ViewFormat(8, 20, "bicubic"))
    t, episodes, _ = scripted([[TWO, flip(2), ANSWER]] * 4, world)
    assert t.prompt_views_PxNxSxSx3.shape == (2, 1, 8, 20, 3)
    assert t.views_BxNxSxSx3.shape == (4, 3, 8, 20, 3)
    frames = jax.tree.map(lambda x: x[3, 1:4], episodes.frames)
    shown = render_views(world.prepare(TASKS, tools_on=True).sources, np.ones(3, np.int32), frames, world.view)
    np.testing.assert_array_equal(t.views_BxNxSxSx3[3], shown)
    shapes = LearnerShapes(microbatches=1, suffix_lengths=(120,), view_batches=(12,))
    batch = make_batch(t, np.zeros(4, np.float32), np.ones(4, np.float32), shapes)
    np.testing.assert_array_equal(batch.views[0, batch.view_index[0, 3]], shown)


def test_a_script_that_is_over_cuts_its_row_off():
    _, episodes, _ = scripted([[ONE], [ONE, ANSWER], [], [ANSWER]])
    assert episodes.stop_B.tolist() == [Stop.MAX_TOKENS, Stop.ANSWER, Stop.MAX_TOKENS, Stop.ANSWER]


def test_limits_end_rows():
    wrong = Turn("", ToolCall("no_such_tool", {}))
    t, episodes, _ = scripted([[ONE, ONE, ONE], [TWO, TWO, ANSWER], [wrong, wrong, ANSWER], [ANSWER]])
    assert episodes.stop_B.tolist() == [Stop.MAX_TURNS, Stop.MAX_IMAGES, Stop.ANSWER, Stop.ANSWER]
    assert t.view_count_B.tolist() == [2, 2, 0, 0]
    assert [record.error for record in episodes.records[2]] == ["E2", "E2", None]
    # The turn that a limit ended is kept, and no observation comes after it.
    assert t.origin_BxL[0, t.length_B[0] - 1] == t.origin_BxL[1, t.length_B[1] - 1] == MODEL


def test_a_row_ends_when_the_next_turn_would_not_fit_its_cache():
    world = tiny_world.world(2)
    world = dataclasses.replace(world, shapes=dataclasses.replace(world.shapes, suffix_length=16 + 16 + 24))
    t, episodes, _ = scripted([[ONE, ANSWER], [TWO, ANSWER], [ONE, ONE, ANSWER], [ANSWER]], world)
    assert episodes.stop_B.tolist() == [Stop.ANSWER, Stop.MAX_TOKENS, Stop.MAX_TOKENS, Stop.ANSWER]
    assert t.tokens_BxL.shape == (4, 56)
    assert t.view_count_B.tolist() == [1, 0, 1, 0]


def test_a_scripted_turn_too_long_is_refused():
    with pytest.raises(ValueError, match=r"does not fit rollout.turn_tokens=24"):
        scripted([[Turn("word " * 30, "x")], [ANSWER], [ANSWER], [ANSWER]])


def test_tasks_that_do_not_fit_the_shapes_are_refused():
    world = tiny_world.world(2)
    with pytest.raises(ValueError, match="1 tasks for 2 prompts"):
        world.prepare(TASKS[:1], tools_on=True)
    with pytest.raises(RunError, match=r"task long: \d+ prompt tokens and 1 images do not fit 40 and 1"):
        world.prepare([TASKS[0], dataclasses.replace(TASKS[1], id="long", question="word " * 40)], tools_on=True)
    with pytest.raises(RunError, match="and 2 images do not fit"):
        world.prepare([TASKS[0], dataclasses.replace(TASKS[1], images=TASKS[1].images * 2)], tools_on=True)


def test_tools_off_leaves_them_out_of_the_prompt():
    world = tiny_world.world(2)
    on, off = (world.prepare(TASKS, tools_on=tools_on) for tools_on in (True, False))
    assert (off.length < on.length).all()
    assert off.tokens[0, : off.length[0]].tolist() == PROTOCOL.prompt_ids(TASKS[0], tools_on=False)
    assert (off.tokens[0, off.length[0] :] == VOCABULARY.pad).all()


# ---- the model speaks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [None, CALLS], ids=["alone", "after calls"])
def test_recorded_log_probs_are_those_of_a_plain_pass_over_the_ledger(script):
    """After calls with one and two views, error observations, turns of all lengths, rows that ended before others."""
    t, episodes, _ = play(TASKS, script=script, temperature=0.8)
    assert t.view_count_B.tolist() == ([1, 2, 1, 1] if script else [0] * 4)
    assert "E1" in {record.error for records in episodes.records for record in records}
    assert t.turn_BxL.max() == 2
    expected = plain_logprobs(t, 0.8, LETTERS)
    expected = np.take_along_axis(expected, t.tokens_BxL[..., None], axis=2)[..., 0]
    sampled = drawn(t, first_turn=1 if script else 0)
    assert sampled.sum() > 20
    np.testing.assert_allclose(t.logprob_BxL[sampled], expected[sampled], atol=1e-4)
    assert (t.logprob_BxL[~sampled] == 0).all()


def test_each_token_is_drawn_by_the_noise_of_its_own_place():
    """Every draw can be made again from the ledger: a plain pass's distribution, the uniform of the token's name."""
    seed, step = 5, 6
    t, _, _ = play(TASKS, script=CALLS, seed=seed, step=step)
    cumulative = np.cumsum(np.exp(plain_logprobs(t, 1.0, LETTERS)), axis=-1)
    names = row_keys(seed, step, [task.id for task in TASKS for _ in range(2)], np.array([0, 1, 0, 1]))
    for row, place in np.argwhere(drawn(t, first_turn=1)):
        uniform = float(token_uniform(names[row], place))
        assert t.tokens_BxL[row, place] == np.argmax(cumulative[row, place] > uniform)


def test_greedy_rows_take_the_likeliest_token_of_a_plain_pass():
    t, _, _ = play(TASKS, script=CALLS, temperature=0.0)
    likeliest = plain_logprobs(t, 1.0, LETTERS).argmax(axis=-1)
    sampled = drawn(t, first_turn=1)
    np.testing.assert_array_equal(t.tokens_BxL[sampled], likeliest[sampled])


def test_rows_without_a_script_speak_for_themselves():
    t, episodes, _ = play(TASKS, script=[[ONE], [], [TWO], []])
    alone, _, _ = play(TASKS)
    assert t.view_count_B.tolist() == [1, 0, 2, 0]
    for row in (1, 3):
        assert len(episodes.records[row]) > 1
        np.testing.assert_array_equal(t.tokens_BxL[row], alone.tokens_BxL[row])
        np.testing.assert_allclose(t.logprob_BxL[row], alone.logprob_BxL[row], atol=1e-5)
    expected = np.take_along_axis(plain_logprobs(t, 1.0, LETTERS), t.tokens_BxL[..., None], axis=2)[..., 0]
    sampled = drawn(t, first_turn=1)
    np.testing.assert_allclose(t.logprob_BxL[sampled], expected[sampled], atol=1e-4)


def test_samples_do_not_depend_on_the_order_or_size_of_the_batch():
    base, _, _ = play(TASKS, script=CALLS)
    assert len({tuple(row) for row in base.tokens_BxL.tolist()}) == 4

    def compare(other: Trajectories, rows: list[int]) -> None:
        np.testing.assert_array_equal(other.tokens_BxL[rows], base.tokens_BxL)
        np.testing.assert_array_equal(other.views_BxNxSxSx3[rows], base.views_BxNxSxSx3)
        np.testing.assert_allclose(other.logprob_BxL[rows], base.logprob_BxL, atol=1e-5)

    swapped, _, _ = play(TASKS[::-1], script=[*CALLS[2:], *CALLS[:2]])
    compare(swapped, [2, 3, 0, 1])
    # Twice as many prompts: another task, and one of the two again under further sample indices, as padding is.
    script = [[TWO], [TWO], *CALLS[2:], [ONE], [ONE], *CALLS[:2]]
    wider, _, _ = play(
        [tiny_world.task(7), TASKS[1], TASKS[0], TASKS[0]], script=script, sample_B=np.array([0, 1, 0, 1, 2, 3, 0, 1])
    )
    compare(wider, [6, 7, 2, 3])
    assert (wider.tokens_BxL[4] != wider.tokens_BxL[6]).any()


@pytest.mark.parametrize("other", [{"seed": 1}, {"step": 1}, {"sample_B": np.array([2, 3, 2, 3])}])
def test_samples_depend_on_the_name_of_their_noise(other):
    base, _, _ = play(TASKS)
    again, _, _ = play(TASKS)
    changed, _, _ = play(TASKS, **other)
    np.testing.assert_array_equal(again.tokens_BxL, base.tokens_BxL)
    np.testing.assert_array_equal(again.logprob_BxL, base.logprob_BxL)
    assert (changed.tokens_BxL != base.tokens_BxL).any(axis=1).all()


def test_a_turn_that_never_ends_is_cut_off():
    t, episodes, _ = play(TASKS, banned_V=ENDLESS)
    assert episodes.stop_B.tolist() == [Stop.MAX_TOKENS] * 4
    assert t.length_B.tolist() == [24] * 4
    assert t.loss_mask_BxL[:, :24].all()
    assert not np.isin(t.tokens_BxL[:, :24], np.flatnonzero(ENDLESS)).any()


class Counting:
    """A policy, and how many batches of turns it gave."""

    def __init__(self, policy):
        self._policy, self.batches = policy, 0

    def begin(self, *args):
        self._policy.begin(*args)

    def turns(self, phases):
        turns = self._policy.turns(phases)
        self.batches += turns is not None
        return turns

    def observe(self, *args):
        self._policy.observe(*args)


def test_host_reads():
    """What decode drew; of every batch of turns what the tools returned and the views that they made; the prompts' views."""
    world, phases = tiny_world.world(2), Phases()
    policy = Counting(sampled(LETTERS))
    _, episodes = rollout(world, policy, world.prepare(TASKS, tools_on=True), phases)
    assert not any(record.views for records in episodes.records for record in records)
    assert policy.batches >= max(len(records) for records in episodes.records)
    assert phases.host_reads == 1 + phases.counts["decode_calls"] + policy.batches
    assert phases.counts["decode_calls"] >= policy.batches
    for script, reads in (([[ANSWER]] * 4, 1), ([[ONE, ANSWER], [ANSWER]] * 2, 3)):
        _, _, phases = scripted(script)
        assert phases.host_reads == 1 + reads
        assert {"host", "tools"} <= set(phases.seconds)


def test_the_host_is_alone_while_nothing_else_runs(monkeypatch):
    clock = itertools.count()  # a second each time that somebody looks
    watch = types.SimpleNamespace(perf_counter=lambda: float(next(clock)))
    monkeypatch.setattr("mvg_jax.rollout.scheduler.time", watch)
    phases = Phases()
    with phases.whole():  # looks at 0, and 1 for its phase
        phases.resume()  # 2: a lane's model works
        assert phases.alone == 2.0
        phases.resume()  # another's
        phases.rest()
        phases.rest()  # 3: nobody's
        phases.resume()  # 4
        assert phases.alone == 3.0
        phases.rest()  # 5
    assert phases.alone == 5.0  # 6 is the phase's end
    first = next(clock)
    _, _, phases = tiny_world.play(TASKS, banned_V=LETTERS)
    assert 0.0 < phases.alone < next(clock) - first


# ---- slots -----------------------------------------------------------------------------------------------------------

MANY = tuple(tiny_world.task(i) for i in range(8))


def slotted(slots: int, tasks=MANY, **changes) -> World:
    """Four rows of each task in so many slots."""
    world = tiny_world.world(len(tasks), 4)
    pool = min(-(-slots // 4) + 1, len(tasks))
    shapes = dataclasses.replace(
        world.shapes,
        decode_slots=(slots,),
        slots=slots,
        pool=pool,
        prefill_prompts=2,
        extend_rows=(2, 4),
        encode_batches=(8,),
    )
    return dataclasses.replace(world, shapes=dataclasses.replace(shapes, **changes))


def play_in_slots(world: World, script=None, kernels: Kernels = PLAIN, engine: Engine | None = None):
    engine = engine or engine_of(world, kernels)
    policy = sampled(LETTERS, rows=world.shapes.rows, group=4, engine=engine)
    if script is not None:
        policy = GuidedPolicy(ScriptedPolicy(PROTOCOL, script, world.shapes.turn_tokens), policy, 2)
    phases = Phases()
    return *rollout(world, policy, world.prepare(MANY, tools_on=True), phases), phases


def engine_of(world: World, kernels: Kernels = PLAIN) -> Engine:
    return Engine(tiny_world.model()[0], world.shapes, VOCABULARY.end_of_turn, LETTERS, kernels=kernels)


def sampled(banned_V, rows: int = 4, group: int = 2, engine: Engine | None = None) -> SampledPolicy:
    engine = engine or tiny_world.engine(2, banned_V)
    sample_B = np.arange(rows) % group
    return SampledPolicy(
        engine, engine.weights(tiny_world.model()[1]), seed=3, step=0, sample_B=sample_B, temperature_B=np.ones(rows)
    )


@pytest.fixture(scope="module")
def at_once():
    """All 32 rows seated from the start; after calls of all sorts in the first two turns."""
    return play_in_slots(slotted(32), SCRIPT)


SCRIPT = ([ONE], [TWO, flip(0)], [], [flip(0), zoom((0, 0, 300, 300))], [ANSWER], [ONE, ANSWER], [], [TWO]) * 4


@pytest.mark.parametrize(
    ("slots", "changes"),
    [
        (4, {}),
        (7, {"idle": 1.0, "decode_slots": (3, 7), "decode_lengths": (30, 60, 120)}),
        (7, {"idle": 0.01, "lanes": 2}),
        (32, {"decode_tokens": 5, "lanes": 3, "decode_slots": (8, 16, 32)}),
    ],
    ids=["4", "7, all wait, cache cut", "7 in each of two lanes", "32 in each of three lanes, short calls, rows moved"],
)
def test_samples_do_not_depend_on_slots_or_schedule(at_once, slots, changes):
    t, episodes, phases = play_in_slots(slotted(slots, **changes), SCRIPT)
    expected, expected_episodes, _ = at_once
    np.testing.assert_array_equal(t.tokens_BxL, expected.tokens_BxL)
    np.testing.assert_array_equal(t.origin_BxL, expected.origin_BxL)
    np.testing.assert_array_equal(t.turn_BxL, expected.turn_BxL)
    np.testing.assert_array_equal(t.views_BxNxSxSx3, expected.views_BxNxSxSx3)
    np.testing.assert_allclose(t.logprob_BxL, expected.logprob_BxL, atol=1e-5)
    np.testing.assert_array_equal(episodes.stop_B, expected_episodes.stop_B)
    assert episodes.records == expected_episodes.records
    drawn_tokens = phases.counts["tokens/queued"] + phases.counts["tokens/drain"]
    assert drawn_tokens == (t.logprob_BxL < 0).sum() > 300


@pytest.mark.parametrize("lanes", [1, 2])
def test_lanes_are_in_flight_together(monkeypatch, lanes):
    """Where rows of all prompts go on after their scripts; and where those of every second prompt are over before."""
    in_flight = []
    launch = SampledPolicy._launch

    def watched(self, *args):
        launch(self, *args)
        in_flight.append(sum(lane.flight is not None for lane in self._lanes))

    monkeypatch.setattr(SampledPolicy, "_launch", watched)
    played = [play_in_slots(slotted(8, lanes=lanes), script) for script in (SCRIPT, ([[ANSWER]] * 4 + [[]] * 4) * 4)]
    assert max(in_flight) == lanes
    half, _, _ = played[1]
    spoken_B = (half.logprob_BxL < 0).any(axis=1)
    assert spoken_B.tolist() == ([False] * 4 + [True] * 4) * 4


def test_any_lane_may_be_served_first(monkeypatch):
    """Bit for bit the same, and as much is computed."""
    world, rng, served = slotted(4, lanes=3), np.random.default_rng(0), []

    def any_of(lanes):
        served.append(int(rng.integers(len(lanes))))
        return lanes[served[-1]]

    engine = engine_of(world)
    expected, _, phases = play_in_slots(world, engine=engine)
    monkeypatch.setattr("mvg_jax.rollout.policies.first_to_land", any_of)
    t, _, others = play_in_slots(world, engine=engine)
    assert len(served) > 20
    assert set(served) == {0, 1, 2}
    for field in ("tokens_BxL", "logprob_BxL", "turn_BxL", "prompt_views_PxNxSxSx3", "views_BxNxSxSx3"):
        np.testing.assert_array_equal(getattr(t, field), getattr(expected, field))
    for name in ("positions", "decode_calls", "decode_steps"):
        assert others.counts[name] == phases.counts[name]


def test_the_lane_that_has_drawn_first_lands_first():
    pending, done = Future(), Future()
    done.set_result(None)
    lane = lambda fetched: types.SimpleNamespace(flight=Flight(None, False, fetched))
    lanes = [lane(pending), lane(done)]
    assert first_to_land(lanes) is lanes[1]
    without_threads = [lane(None), lane(None)]
    assert first_to_land(without_threads) is without_threads[0]


def test_a_lane_holds_the_features_of_one_batch():
    """Of what was encoded before, nothing stays on the device while decode runs."""
    world, held = slotted(4, lanes=2), []
    engine = engine_of(world)
    encode, decode = engine.encode, engine.decode

    def watched(*arguments):
        features = encode(*arguments)
        held.append(weakref.ref(features))
        return features

    def launched(*arguments, **length):
        alive.append(sum(one() is not None for one in held))
        return decode(*arguments, **length)

    alive: list[int] = []
    engine.encode, engine.decode = watched, launched
    play_in_slots(world, SCRIPT, engine=engine)
    assert len(held) > 8
    assert 1 <= max(alive) <= 3  # one of each lane, and one that is about to be taken


@pytest.mark.parametrize("lanes", [1, 2])
def test_an_error_in_a_lane_is_raised(lanes):
    world = slotted(4, lanes=lanes)
    engine = engine_of(world)

    def full(*_):
        raise MemoryError("no room for prompts")

    engine.prefill = full
    with pytest.raises(MemoryError, match="no room for prompts"):
        play_in_slots(world, engine=engine)


def test_weights_that_are_no_numbers_are_one_clear_error(monkeypatch):
    graph, params = tiny_world.model()
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), params)
    monkeypatch.setattr(tiny_world, "model", lambda: (graph, broken))
    with pytest.raises(RunError, match="log-probabilities are no numbers"):
        play(TASKS)


def test_first_views_are_made_once_and_when_they_are_needed():
    prompts, asked = slotted(4).prepare(MANY, tools_on=True), []
    make = prompts.views._make
    prompts.views._make = lambda prompt_n: asked.append(prompt_n.tolist()) or make(prompt_n)
    two = np.asarray(prompts.views.of(np.array([5, NONE], np.int32)))
    whole = prompts.views.to_host(Phases())
    assert asked == [[5, NONE], [0, 1], [2, 3], [4, 6], [7, NONE]]
    frames = jax.tree.map(lambda x: x[:, 0], prompts.episodes.frames)
    expected = render_views(prompts.sources, np.arange(8, dtype=np.int32), frames, tiny_world.VIEW)
    np.testing.assert_array_equal(whole[:, 0], expected)
    np.testing.assert_array_equal(two[0], whole[5])
    assert not two[1].any()
    assert whole[5].any()


def test_samples_do_not_depend_on_the_kernel(at_once):
    world = slotted(7, decode_lengths=(40, 120))
    t, _, _ = play_in_slots(world, SCRIPT, Kernels(decode_kernel="pallas"))
    expected, _, _ = at_once
    np.testing.assert_array_equal(t.tokens_BxL, expected.tokens_BxL)
    np.testing.assert_allclose(t.logprob_BxL, expected.logprob_BxL, atol=1e-5)


def test_rows_in_slots_are_those_of_a_plain_pass(at_once):
    t, _, _ = at_once
    some = slice(4, 8)  # the rows of the second task
    names = [f.name for f in dataclasses.fields(t) if isinstance(getattr(t, f.name), np.ndarray)]
    part = {name: getattr(t, name)[1:2] if name.startswith("prompt") else getattr(t, name)[some] for name in names}
    t = dataclasses.replace(t, **part)
    expected = np.take_along_axis(plain_logprobs(t, 1.0, LETTERS), t.tokens_BxL[..., None], axis=2)[..., 0]
    mask = t.logprob_BxL < 0
    assert mask.sum() > 20
    np.testing.assert_allclose(t.logprob_BxL[mask], expected[mask], atol=1e-4)
