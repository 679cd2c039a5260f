"""Episodes: limits, stop reasons, observations, and rows that do not know of each other."""

import jax
import numpy as np
import pytest

from mvg_jax.data.task import Turn
from mvg_jax.env.episode import Limits, Stop, finish_step, plan_step, reset, step
from mvg_jax.env.protocol import FORMAT_TEXT, parse_turn, render_turn
from mvg_jax.frames import Frame
from mvg_jax.tools.spec import ToolCall, apply_tools

LIMITS = Limits(max_turns=4, max_images=4, max_errors=3)
ANSWER = render_turn(Turn("so", "calcified"))
WINDOW = render_turn(Turn("look", ToolCall("window_level_tool", {"center": 40, "width": 50, "img_idx": 0})))


def zoom_text(box, image=0):
    return render_turn(Turn("look", ToolCall("image_zoom_in_tool", {"bbox_2d": box, "img_idx": image})))


LEFT = zoom_text([0, 0, 500, 1000])
TWO = zoom_text([[0, 0, 500, 500], [500, 500, 1000, 1000]])


@pytest.fixture
def play(protocol, tiny):
    """Plays one script a row; returns the episodes and every step's result."""

    def run(scripts, limits=LIMITS, tasks=None):
        tasks = tasks if tasks is not None else [tiny.task(i) for i in range(len(scripts))]
        act, episodes, results = tiny.act(tasks), reset(tasks, limits), []
        while episodes.running_B.any():
            running = episodes.running_B
            texts = [script[len(results)] if go else "" for script, go in zip(scripts, running, strict=True)]
            episodes, result = step(protocol, act, episodes, texts, tiny.width)
            results.append(result)
        return episodes, results

    return run


@pytest.mark.parametrize(
    ("script", "stop", "errors", "images"),
    [
        ([ANSWER], Stop.ANSWER, [None], 1),
        ([LEFT, ANSWER], Stop.ANSWER, [None, None], 2),
        ([TWO, zoom_text([0, 0, 500, 500], image=2), ANSWER], Stop.ANSWER, [None] * 3, 4),
        (["junk", ANSWER], Stop.ANSWER, ["E1", None], 1),
        (["junk", "junk", ANSWER], Stop.ANSWER, ["E1", "E1", None], 1),
        (["junk", "junk", "junk"], Stop.VOID, ["E1"] * 3, 1),
        (["junk", "junk", LEFT, "junk"], Stop.MAX_TURNS, ["E1", "E1", None, "E1"], 2),
        ([LEFT, "junk", "junk", "junk"], Stop.VOID, [None, "E1", "E1", "E1"], 2),
        ([LEFT, LEFT, LEFT, LEFT], Stop.MAX_TURNS, [None] * 4, 4),
        ([LEFT, LEFT, LEFT, ANSWER], Stop.ANSWER, [None] * 4, 4),
        ([TWO, TWO], Stop.MAX_IMAGES, [None] * 2, 3),
        ([TWO, LEFT, LEFT], Stop.MAX_IMAGES, [None] * 3, 4),
        ([render_turn(Turn("", ToolCall("x", {}))), ANSWER], Stop.ANSWER, ["E2", None], 1),
        ([render_turn(Turn("", ToolCall("image_zoom_in_tool", {}))), ANSWER], Stop.ANSWER, ["E3", None], 1),
        ([zoom_text([9, 9, 1, 1]), ANSWER], Stop.ANSWER, ["E4", None], 1),
        ([zoom_text([0, 0, 9, 9], image=1), ANSWER], Stop.ANSWER, ["E4", None], 1),
        ([zoom_text([9, 9, 1, 1])] * 4, Stop.MAX_TURNS, ["E4"] * 4, 1),
    ],
)
def test_stops_errors_and_images(play, script, stop, errors, images):
    episodes, results = play([script])
    assert episodes.stop_B.tolist() == [stop]
    assert [record.error for record in episodes.records[0]] == errors
    assert episodes.images_B.tolist() == [images]
    assert sum(record.views for record in episodes.records[0]) == images - 1
    assert episodes.answers == ("calcified" if stop == Stop.ANSWER else None,)
    assert results[-1].length_B.tolist() == [0], "a row that has ended gets no observation"
    for result, error in zip(results[:-1], errors, strict=False):
        assert result.texts[0].startswith(f"{error}: ") == (error is not None)


def test_observations_are_those_of_the_protocol(play, protocol, tiny):
    _, results = play([[TWO, ANSWER], ["junk", ANSWER], [WINDOW, ANSWER], [ANSWER]])
    first = results[0]
    assert first.texts == ("Zoomed views.", f"E1: {FORMAT_TEXT}", "Windowed view.", "")
    assert first.count_B.tolist() == [2, 0, 1, 0]
    assert first.observation_ids.shape == (4, tiny.width)
    for b in range(3):
        wanted = protocol.observation_ids(int(first.count_B[b]), first.texts[b])
        assert tuple(first.observation_ids[b, : first.length_B[b]]) == wanted
    padding = np.arange(tiny.width) >= first.length_B[:, None]
    assert (first.observation_ids[padding] == protocol.vocabulary.pad).all()
    assert isinstance(first.views, jax.Array)
    assert first.views.shape == (4, 2, tiny.size, tiny.size, 3)
    shown = np.asarray(first.views).reshape(4, 2, -1).max(-1) > 0
    assert shown.tolist() == [[True, True], [False, False], [True, False], [False, False]]


def test_frames_follow_the_calls(play):
    episodes, _ = play([[TWO, zoom_text([500, 500, 1000, 1000], image=2), ANSWER], [WINDOW, ANSWER]])
    affine = episodes.frames.affine[0]
    np.testing.assert_allclose(affine[1], [[20, 0, 0], [0, 16, 0]], atol=1e-4)
    np.testing.assert_allclose(affine[2], [[20, 0, 20], [0, 16, 16]], atol=1e-4)
    np.testing.assert_allclose(affine[3], [[10, 0, 30], [0, 8, 24]], atol=1e-4)
    np.testing.assert_allclose(episodes.frames.window[1, :2], [[-160, 240], [15, 65]], atol=1e-4)
    assert [(r.first_image, r.views) for r in episodes.records[0]] == [(1, 2), (3, 1), (4, 0)]


def test_a_row_is_the_same_alone_and_in_any_batch(play, tiny):
    scripts = [[TWO, LEFT, ANSWER], ["junk", "junk", "junk"], [WINDOW, TWO, ANSWER], [ANSWER], [TWO, TWO], [LEFT] * 4]
    tasks = [tiny.task(i) for i in range(len(scripts))]
    together, results = play(scripts, tasks=tasks)
    for b, script in enumerate(scripts):
        alone, own = play([script], tasks=[tasks[b]])
        row = together.row(b)
        assert (row.stop_B, row.images_B, row.answers) == (alone.stop_B, alone.images_B, alone.answers)
        assert row.records == alone.records
        jax.tree.map(np.testing.assert_array_equal, row.frames, alone.frames)
        for mine, all_rows in zip(own, results, strict=False):
            assert mine.texts[0] == all_rows.texts[b]
            np.testing.assert_array_equal(mine.observation_ids[0], all_rows.observation_ids[b])
            np.testing.assert_array_equal(mine.views[0, : mine.count_B[0]], all_rows.views[b, : mine.count_B[0]])


def test_step_leaves_its_input_alone_and_stopped_rows_as_they_are(protocol, tiny):
    tasks = [tiny.task(0), tiny.task(1)]
    act, before = tiny.act(tasks), reset(tasks, LIMITS)
    kept = jax.tree.map(np.copy, before.frames)
    middle, _ = step(protocol, act, before, [LEFT, ANSWER], tiny.width)
    after, _ = step(protocol, act, middle, [LEFT, LEFT], tiny.width)
    jax.tree.map(np.testing.assert_array_equal, before.frames, kept)
    assert before.images_B.tolist() == [1, 1]
    assert before.records == ((), ())
    assert after.images_B.tolist() == [3, 1]
    assert after.records[1] == middle.records[1]
    assert after.answers == (None, "calcified")


def one_step(protocol, tiny, turns, outside=None, room=None, width=None):
    tasks = [tiny.task(i) for i in range(len(turns))]
    plan = plan_step([tiny.registry] * len(turns), reset(tasks, LIMITS), turns, outside)
    result = jax.device_get(tiny.act(tasks)(plan.frames, plan.args))
    return finish_step(protocol, plan, result, width if width is not None else tiny.width, room)


def test_stops_from_outside(protocol, tiny):
    turns = [None, None, parse_turn(LEFT)]
    outside = np.array([Stop.MAX_TOKENS, Stop.VOID, Stop.RUNNING], np.int32)
    episodes, result = one_step(protocol, tiny, turns, outside)
    assert episodes.stop_B.tolist() == [Stop.MAX_TOKENS, Stop.VOID, Stop.RUNNING]
    assert result.length_B.tolist()[:2] == [0, 0]
    assert [len(records) for records in episodes.records] == [1, 1, 1]
    assert episodes.answers == (None, None, None)
    for bad in ([Stop.RUNNING] * 3, [Stop.MAX_TOKENS] * 3, [Stop.MAX_TURNS, Stop.VOID, Stop.RUNNING]):
        with pytest.raises(ValueError, match="outside stop"):
            one_step(protocol, tiny, turns, np.array(bad, np.int32))


def test_no_room_for_the_observation_ends_the_row_without_its_images(protocol, tiny):
    need = len(protocol.observation_ids(1, "Zoomed view."))
    turn = parse_turn(LEFT)
    episodes, result = one_step(protocol, tiny, [turn, turn], room=np.array([need - 1, need]))
    assert episodes.stop_B.tolist() == [Stop.MAX_TOKENS, Stop.RUNNING]
    assert result.stop_B.tolist() == episodes.stop_B.tolist()
    assert result.count_B.tolist() == [0, 1]
    assert result.length_B.tolist() == [0, need]
    assert episodes.images_B.tolist() == [1, 2]
    with pytest.raises(ValueError, match="bucket"):
        one_step(protocol, tiny, [turn], width=need - 1)


def test_several_prompt_images(protocol, tiny):
    image = tiny.task().images[0]
    task = tiny.task(images=(image, image))
    episodes = reset([task], LIMITS)
    assert episodes.images_B.tolist() == [2]
    assert episodes.frames.source[0, :2].tolist() == [0, 1]
    episodes, _ = step(protocol, tiny.act([task]), episodes, [zoom_text([0, 0, 500, 500], image=1)], tiny.width)
    assert episodes.frames.source[0, 2] == 1
    for count in (0, 5):
        with pytest.raises(ValueError, match="images"):
            reset([tiny.task(images=(image,) * count)], LIMITS)


@pytest.mark.parametrize("bad", [(0, 1, 1), (1, 0, 1), (1, 1, -1)])
def test_limits_are_positive(bad):
    with pytest.raises(ValueError, match="at least 1"):
        Limits(*bad)


def test_one_program_for_all_steps(play, tiny):
    play([[TWO, LEFT, ANSWER], [ANSWER]])
    compiled = apply_tools._cache_size()
    play([["junk", WINDOW, zoom_text([100, 100, 300, 300], image=1), ANSWER], [LEFT, LEFT, LEFT, LEFT]])
    assert apply_tools._cache_size() == compiled


def test_frames_are_plain_numpy(play):
    episodes, _ = play([[LEFT, ANSWER]])
    assert isinstance(episodes.frames, Frame)
    assert all(isinstance(x, np.ndarray) for x in episodes.frames)


def test_a_turn_too_many_is_an_error(tiny):
    episodes = reset([tiny.task()], LIMITS)
    with pytest.raises(ValueError, match="2 turns, 1 lists of tools, 1 stops for 1 rows"):
        plan_step([tiny.registry], episodes, [Turn("", "yes"), Turn("", "no")])
