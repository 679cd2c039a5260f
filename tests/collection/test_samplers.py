"""Who speaks: text play equals the token-level turn loop, and a candidate depends on its task and sample index only."""

import dataclasses
import threading

import numpy as np
import pytest

from mvg_jax.collection.converse import Table, play
from mvg_jax.collection.samplers import RolloutSampler, TextSampler, expert_speaks, measure, model_speaks
from mvg_jax.data.phantom import PhantomSource
from mvg_jax.data.task import Task, Turn
from mvg_jax.env.episode import Stop
from mvg_jax.env.protocol import error_text, render_turn
from mvg_jax.errors import RunError
from mvg_jax.models.axes import place
from mvg_jax.rollout.policies import ScriptedPolicy
from mvg_jax.rollout.scheduler import Phases, rollout
from mvg_jax.tools import ToolCall
from tests import tiny_world
from tests.tiny_world import ANSWER, LETTERS, LIMITS, ONE, PROTOCOL, TWO, VIEW, flip, zoom

TABLE = Table(PROTOCOL.registry, LIMITS, VIEW, (32, 40), 1)
UNKNOWN = Turn("", ToolCall("no_tool", {}))


class Script:
    """Says its turns one after the other; remembers what it was told."""

    name = "script"

    def __init__(self, *turns):
        self.turns, self.told = turns, []

    def speak(self, conversation):
        self.told.append(conversation)
        turn = self.turns[len(conversation.exchanges)]
        return render_turn(turn) if isinstance(turn, Turn) else turn


SCRIPTS = [
    (ANSWER,),
    (ONE, ANSWER),
    (TWO, zoom((100, 100, 900, 900), image=2), ANSWER),
    (TWO, flip(1), ANSWER),
    (UNKNOWN, zoom((5, 5, 1, 1)), ANSWER),
    (ONE, ONE, ONE),
    (TWO, TWO, ANSWER),
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_episode_in_text_equals_the_turn_loop(script):
    world, tasks = tiny_world.world(2), [tiny_world.task(0), tiny_world.task(1)]
    policy = ScriptedPolicy(PROTOCOL, [script] * 4, 24)
    trajectories, batch = rollout(world, policy, world.prepare(tasks, True), Phases())
    speaker = Script(*script)
    alone, texts = play(TABLE, speaker, tasks[1], 0, True)
    expected = batch.row(2)
    assert alone.records == expected.records
    assert alone.stop_B == expected.stop_B
    assert alone.images_B == expected.images_B
    held = int(alone.images_B[0])
    for ours, theirs in zip(alone.frames, expected.frames, strict=True):
        assert np.array_equal(ours[0, :held], theirs[0, :held])
    # what the speaker saw is what the model sees
    seen = [speaker.told[-1].views, *(exchange.views for exchange in speaker.told[-1].exchanges)]
    seen = np.concatenate(seen)
    rendered = np.concatenate([trajectories.prompt_views_PxNxSxSx3[1], trajectories.views_BxNxSxSx3[2]])
    assert np.array_equal(seen, rendered[: len(seen)])
    # and the tokens are counted as the ledger counts them
    written, fits = measure(PROTOCOL, world.shapes, alone, texts, True)
    assert written == trajectories.loss_mask_BxL[2].sum()
    assert fits


def test_texts_and_reasons_for_no_turn():
    episodes, texts = play(TABLE, Script(UNKNOWN, TWO, ANSWER), tiny_world.task(0), 0, True)
    assert texts == (error_text("E2", "Unknown tool."), "Zoomed views.", "")
    for stop in (Stop.MAX_TOKENS, Stop.VOID):
        episodes, texts = play(TABLE, Script(ONE, stop), tiny_world.task(0), 0, True)
        assert (Stop(episodes.stop_B[0]), texts) == (stop, ("Zoomed view.", ""))
    malformed = play(TABLE, Script(*[Turn("", "x")] * 3), tiny_world.task(0), 0, True)[0]
    assert malformed.answers == ("x",)


def test_without_tools_none_is_there():
    speaker = Script(ONE, ANSWER)
    episodes, texts = play(TABLE, speaker, tiny_world.task(0), 0, False)
    assert texts == (error_text("E2", "Unknown tool."), "")
    assert not speaker.told[0].tools_on
    assert episodes.images_B == 1


def test_what_does_not_fit_the_student_is_said():
    """By the rule of the turn loop, which ends a row when an observation would leave no room for a turn."""
    world, tasks = tiny_world.world(2), [tiny_world.task(0), tiny_world.task(1)]
    episodes, texts = play(TABLE, Script(TWO, ANSWER), tasks[0], 0, True)
    ends = []
    for suffix_length in range(60, 80):
        shapes = dataclasses.replace(world.shapes, suffix_length=suffix_length)
        small = dataclasses.replace(world, shapes=shapes)
        policy = ScriptedPolicy(PROTOCOL, [(TWO, ANSWER)] * 4, 24)
        _, batch = rollout(small, policy, small.prepare(tasks, True), Phases())
        ends.append(Stop(batch.stop_B[0]))
        assert measure(PROTOCOL, shapes, episodes, texts, True)[1] == (ends[-1] == Stop.ANSWER)
    assert set(ends) == {Stop.ANSWER, Stop.MAX_TOKENS}
    for shapes in (
        dataclasses.replace(world.shapes, turn_tokens=24 - 1),  # the longest turn takes 24
        dataclasses.replace(world.shapes, prompt_length=10),
    ):
        assert not measure(PROTOCOL, shapes, episodes, texts, True)[1]


def same(a, b):
    """Whether two candidates are equal in all but the arrays of their task."""
    plain = lambda c: {f.name: getattr(c.played, f.name) for f in dataclasses.fields(c.played) if f.name != "task"}
    frames = all(np.array_equal(x, y) for x, y in zip(a.frames, b.frames, strict=True))
    return plain(a) == plain(b) and a.played.task.id == b.played.task.id and frames and a.fits == b.fits


def test_our_model_says_the_same_whatever_is_sampled_beside_it():
    world, engine = tiny_world.world(2), tiny_world.engine(2, LETTERS)
    params = place(tiny_world.model()[1])

    def make(seed, temperature=1.0, top_k=0):
        speak = model_speaks(engine, params, temperature=temperature, seed=seed, top_k=top_k)
        return RolloutSampler(world, "tiny", speak)

    tasks = [tiny_world.task(i) for i in range(3)]
    groups = list(make(0).sample(tasks, True))
    assert [[c.played.task.id for c in group] for group in groups] == [[t.id] * 2 for t in tasks]
    assert [[c.played.sample for c in group] for group in groups] == [[0, 1]] * 3
    assert all(c.played.tokens > 0 and c.played.source == "tiny" for group in groups for c in group)
    alone = list(make(0).sample(tasks[2:], True))
    assert all(same(a, b) for a, b in zip(alone[0], groups[2], strict=True))
    other = list(make(1).sample(tasks[2:], True))
    assert not all(same(a, b) for a, b in zip(other[0], groups[2], strict=True))
    likeliest = [
        next(make(seed, temperature, top_k).sample(tasks[:1], True))
        for temperature, seed, top_k in ((0.0, 0, 0), (1.0, 0, 1), (1.0, 1, 1))
    ]
    assert all(same(a, b) for group in likeliest[1:] for a, b in zip(likeliest[0], group, strict=True))
    assert not all(same(a, b) for a, b in zip(likeliest[0], groups[0], strict=True))
    # an untrained model writes no turn: it is told so each time it may go on
    for candidate in groups[0]:
        assert len(candidate.played.texts) == len(candidate.played.records)
        codes = [record.error for record in candidate.played.records]
        for text, code in zip(candidate.played.texts, codes, strict=True):
            assert text == "" or text.startswith(f"{code}: ")
    off = list(make(0).sample(tasks[:1], False))
    assert not off[0][0].played.tools_on


def test_text_is_sampled_in_threads_and_comes_in_order():
    gate = threading.Barrier(4, timeout=20)

    class Slow(Script):
        def speak(self, conversation):
            gate.wait()  # passes only when four speak at once
            return super().speak(conversation)

    sampler = TextSampler(Slow(ANSWER), TABLE, PROTOCOL, tiny_world.world(2).shapes, 2, 4)
    tasks = [tiny_world.task(i) for i in range(4)]
    groups = list(sampler.sample(tasks, True))
    sampler.close()
    assert [[(c.played.task.id, c.played.sample) for c in group] for group in groups] == [
        [(task.id, 0), (task.id, 1)] for task in tasks
    ]
    assert groups[0][0].played.terms["accuracy"] == 1.0


def test_an_error_in_a_thread_ends_the_sampling():
    class Broken(Script):
        def speak(self, conversation):
            raise RunError("no more")

    sampler = TextSampler(Broken(), TABLE, PROTOCOL, tiny_world.world(2).shapes, 1, 2)
    with pytest.raises(RunError, match="no more"):
        list(sampler.sample([tiny_world.task(0)], True))
    sampler.close()


def expert(turn_tokens: int, decisions=None) -> RolloutSampler:
    """Two prompts of two rows at a time."""
    world = tiny_world.world(2)
    shapes = dataclasses.replace(world.shapes, turn_tokens=turn_tokens, prompt_length=120, suffix_length=400)
    protocol = dataclasses.replace(PROTOCOL, registry=tiny_world.default_registry(None))
    world = dataclasses.replace(world, protocol=protocol, image_size=(512, 512, 1), shapes=shapes)
    return RolloutSampler(world, "expert", expert_speaks(protocol, turn_tokens, decisions or {"right": 1.0}, 0))


def test_the_expert_answers_rightly_and_knows_some_data_sets_only():
    tasks = [PhantomSource("train", 16)[i] for i in range(11)]
    groups = list(expert(120).sample(tasks, True))
    for task, group in zip(tasks, groups, strict=True):
        for sample, candidate in enumerate(group):
            played = candidate.played
            assert (played.task.id, played.sample, played.source) == (task.id, sample, "expert")
            assert (played.stop, played.records[-1].turn.action) == (Stop.ANSWER, task.answer)
            called = [record.call.name for record in played.records if record.call]
            assert called == [call.name for call in task.chain]
            assert candidate.fits
            assert all(text for text, record in zip(played.texts, played.records, strict=True) if record.call)
    assert any(task.chain for task in tasks)
    alone = list(expert(120).sample(tasks[10:], True))
    assert all(same(a, b) for a, b in zip(alone[0], groups[10], strict=True))
    for group in expert(120, {"right": 0.5, "direct": 0.5}).sample(tasks, False):
        assert all(len(candidate.played.records) == 1 for candidate in group)
    with pytest.raises(RunError, match="no scripted expert for noise"):
        list(expert(120).sample([tiny_world.task(0)], True))


def test_what_of_the_expert_does_not_fit_is_said():
    tasks = [PhantomSource("train", 4)[i] for i in range(2)]
    for group in expert(5).sample(tasks, True):
        assert [(candidate.fits, candidate.played.stop) for candidate in group] == [(False, Stop.MAX_TOKENS)] * 2


def test_many_images_in_one_question():
    two: Task = dataclasses.replace(tiny_world.task(0), images=tiny_world.task(0).images + tiny_world.task(1).images)
    speaker = Script(flip(1), ANSWER)
    episodes, _ = play(dataclasses.replace(TABLE, images=2), speaker, two, 0, True)
    assert speaker.told[0].views.shape == (2, 16, 16, 3)
    assert episodes.records[0][0].first_image == 2
    assert np.array_equal(speaker.told[1].exchanges[0].views[0], speaker.told[0].views[1][:, ::-1])
