import collections
import itertools

import jax
import numpy as np
import pytest

from mvg_jax.data.phantom import (
    CLASSES,
    CONTROLS,
    FINDINGS,
    KINDS,
    PhantomCloseUps,
    PhantomLessons,
    PhantomSource,
    all_questions,
    cases,
    certificate,
    render,
)
from mvg_jax.data.phantom.patterns import PATTERN_LABEL
from mvg_jax.data.phantom.questions import OPTIONS, SHARES
from mvg_jax.data.phantom.scene import IMAGE_SIDE, LABEL, SIDE, lesion_blob
from mvg_jax.data.phantom.source import PAIRS, SPLITS
from mvg_jax.data.phantom.views import BONE_WINDOW, DEFAULT_WINDOW, VIEW, grey, sample, weights

SAMPLE = 200


@pytest.fixture(scope="module")
def tasks():
    source = PhantomSource("val", SAMPLE)
    return [source[i] for i in range(SAMPLE)]


def hounsfield(task):
    image = task.images[0]
    return image.pixels.astype(np.float64) * image.slope + image.intercept


def overview(hu, window=DEFAULT_WINDOW):
    d = certificate.CT_OVERVIEW.whole()
    return grey(d @ hu @ d.T, window)


def chain_views(task, hu):
    """What the minimal chain shows, before rounding."""
    (call,) = task.chain
    if call.name == "window_level_tool":
        return [overview(hu, BONE_WINDOW)]
    at = call.arguments["bbox_2d"]
    at = at if isinstance(at[0], list) else [at]
    pixels = [[v * SIDE / 1000 for v in box] for box in at]
    axes = [(weights(SIDE, y1, y2, VIEW), weights(SIDE, x1, x2, VIEW)) for x1, y1, x2, y2 in pixels]
    return [grey(sample(hu, wy, wx), DEFAULT_WINDOW) for wy, wx in axes]


def test_an_item_is_a_function_of_split_and_index(tasks):
    again = PhantomSource("val", 4, first=6)[1]
    assert again.id == "phantom/val/00000007"
    np.testing.assert_array_equal(again.images[0].pixels, tasks[7].images[0].pixels)
    assert (again.question, again.answer, again.boxes, again.chain) == (
        tasks[7].question, tasks[7].answer, tasks[7].boxes, tasks[7].chain,
    )  # fmt: skip
    assert again.images[0].pixels.dtype == np.uint16
    assert again.images[0].pixels.shape == (SIDE, SIDE)


def test_splits_are_disjoint_and_ranges_are_checked(tasks):
    seeds = sorted(SPLITS.values())
    assert all(b - a >= PAIRS for a, b in itertools.pairwise(seeds))
    other = PhantomSource("test", 2)[0]
    assert not np.array_equal(other.images[0].pixels, tasks[0].images[0].pixels)
    PhantomSource("train", 2, first=2 * PAIRS - 2)
    with pytest.raises(ValueError, match="not within"):
        PhantomSource("train", 2, first=2 * PAIRS - 1)
    with pytest.raises(ValueError, match="none of"):
        PhantomSource("dev", 1)
    with pytest.raises(IndexError):
        PhantomSource("train", 2)[2]


def test_twins_differ_in_the_answer_and_not_in_the_overview(tasks):
    seen = collections.Counter()
    for a, b in zip(tasks[::2], tasks[1::2], strict=True):
        assert (a.kind, a.question, a.options) == (b.kind, b.question, b.options)
        assert a.answer != b.answer
        assert {a.answer, b.answer} <= set(a.options)
        if a.kind in CONTROLS:
            assert a.chain == b.chain == ()
            assert a.certificate == {}
            assert np.abs(overview(hounsfield(a)) - overview(hounsfield(b))).max() > 15  # the answer can be seen
            continue
        seen[a.kind] += 1
        places = [[box.xyxy for box in task.boxes] for task in (a, b)]  # labels say what is in a lesion
        assert (places[0], a.chain, a.certificate) == (places[1], b.chain, b.certificate)
        assert (
            np.abs(overview(hounsfield(a)) - overview(hounsfield(b))).max() < 0.3
        )  # grey levels; raw values are rounded
        views = zip(chain_views(a, hounsfield(a)), chain_views(b, hounsfield(b)), strict=True)
        assert max(np.abs(va - vb).max() for va, vb in views) > 25
    assert set(seen) == set(KINDS) - set(CONTROLS)


def test_every_item_carries_a_certificate_that_holds(tasks):
    needing = [task for task in tasks if task.needs_tool]
    assert len(needing) > SAMPLE / 2
    for task in needing:
        assert task.certificate["dprime_overview"] <= 0.5
        assert task.certificate["dprime_tool"] >= 4.0


def test_a_pattern_that_shows_in_the_overview_is_refused(monkeypatch):
    pair = next(p for p in range(100) if cases.draw_case(p)[0].kind == "attribute")
    case, _ = cases.draw_case(pair)
    honest = render.add_pattern

    def brighter(hu, lesion):
        honest(hu, lesion)
        if lesion.pattern == "calcified":
            hu[int(lesion.y) - 4 : int(lesion.y) + 4, int(lesion.x) - 4 : int(lesion.x) + 4] += 20

    monkeypatch.setattr(render, "add_pattern", brighter)
    assert cases.prove(case).certificate["dprime_overview"] > certificate.LIMIT_OVERVIEW


def test_an_ideal_observer_needs_the_tool(tasks):
    """Matched filter on rounded views with fresh noise, two alternatives: chance on the overview, never wrong after."""
    for kind in ("attribute", "window"):
        pair = next(i for i in range(0, SAMPLE, 2) if tasks[i].kind == kind)
        case, _ = cases.draw_case(SPLITS["val"] + pair // 2)
        clean = []
        for answer in case.twins:
            hu = render.render_anatomy(case.variants[answer])
            render.add_findings(hu, case.variants[answer], case.anatomy)
            clean.append(hu)

        def look(hu, task=tasks[pair]):
            return overview(hu), np.stack(chain_views(task, hu))

        filters = [b - a for a, b in zip(*(look(hu) for hu in clean), strict=True)]
        middles = [(a + b) / 2 for a, b in zip(*(look(hu) for hu in clean), strict=True)]
        right = np.zeros(2)
        trials = 24
        for k in range(trials):
            truth = k % 2
            noisy = render.expose(clean[truth].copy(), 1000 + k).astype(np.float64) + render.INTERCEPT
            for j, (view, template, middle) in enumerate(zip(look(noisy), filters, middles, strict=True)):
                right[j] += (np.sum((np.rint(view) - middle) * template) > 0) == truth
        assert right[1] == trials
        assert right[0] <= 0.8 * trials  # 24 guesses exceed this with probability < 0.002


def draw_questions(count):
    drawn = []
    for pair in range(count):
        rng = cases.pair_rng(pair)
        drawn.append(cases.sample_case(rng, cases.sample_kind(rng)))
    return drawn


def test_kinds_have_their_shares_and_no_answer_is_favoured():
    drawn = draw_questions(1200)
    kinds = collections.Counter(case.kind for case in drawn)
    for kind, share in SHARES.items():
        assert abs(kinds[kind] / len(drawn) - share) < 4 * np.sqrt(share * (1 - share) / len(drawn))
    answers, first = collections.defaultdict(collections.Counter), collections.defaultdict(collections.Counter)
    for case in drawn:
        assert case.question in all_questions()
        answers[case.kind, case.question].update(case.twins)
        first[case.kind][case.twins[0]] += 1
    for (kind, _), count in answers.items():
        chance, total = 1 / len(OPTIONS[kind]), sum(count.values())
        assert max(count.values()) / total <= chance + max(0.02, 3.5 * np.sqrt(chance * (1 - chance) / total))
        if len(OPTIONS[kind]) == 2:
            assert set(count.values()) == {total // 2}
    for kind, count in first.items():  # nor does an even index say anything
        chance, total = 1 / len(OPTIONS[kind]), sum(count.values())
        assert max(count.values()) / total <= chance + 3.5 * np.sqrt(chance * (1 - chance) / total)


def test_lesions_lie_in_their_organs():
    for case in draw_questions(60):
        for scene in case.variants.values():
            labels = np.zeros((SIDE, SIDE), np.uint8)
            for blob in scene.organs:
                render.paint_label(labels, blob)
            for lesion in scene.lesions:
                box, d = render.depth(lesion_blob(lesion, case.anatomy))
                organ = LABEL["kidney" if "kidney" in lesion.organ else lesion.organ]
                assert np.mean(np.isin(labels[box][d > 0], (organ, LABEL["vessel"]))) > 0.97
                assert (lesion.x < SIDE / 2) == (IMAGE_SIDE[lesion.organ] == "left")


def test_labels_show_what_is_asked():
    for kind in KINDS:
        case = next(case for case in draw_questions(200) if case.kind == kind)
        for answer, scene in case.variants.items():
            labels = render.label_anatomy(scene)
            render.label_findings(labels, scene)
            seen = [CLASSES[labels[at]] for at in centres(cases.boxes(scene, kind))]
            if kind in ("attribute", "count"):
                assert seen == [PATTERN_LABEL[answer]]
            elif kind == "window":
                assert seen == [answer]
            elif kind == "compare":
                target = next(v for k, v in PATTERN_LABEL.items() if k in case.question)
                assert [name == target for name in seen] == [answer == "left", answer == "right"]
            elif kind == "structure":
                assert ("cyst" in seen) == (answer == "yes")


def centres(boxes):
    """(row, column) of the native pixel at each box's centre."""
    return [tuple(int((box.xyxy[k] + box.xyxy[k + 2]) / 2 * SIDE / 1000) for k in (1, 0)) for box in boxes]


def test_lessons_are_crowded_and_labelled():
    source = PhantomLessons(40)
    lessons = [source[i] for i in range(40)]
    assert [x.id for x in lessons] == [f"phantom/lesson/{i:08d}" for i in range(40)]
    seen = collections.Counter()
    for lesson in lessons:
        assert lesson.labels.shape == lesson.image.pixels.shape == (SIDE, SIDE)
        assert lesson.labels.dtype == np.uint8
        assert lesson.image.window == DEFAULT_WINDOW
        kinds = [CLASSES[lesson.labels[at]] for at in centres(lesson.boxes)]
        assert set(kinds) <= set(FINDINGS)
        assert set(np.unique(lesson.labels)) & {LABEL[name] for name in FINDINGS} == {LABEL[name] for name in kinds}
        seen.update(kinds)
    assert set(seen) == set(FINDINGS)
    assert sum(seen.values()) > 3 * len(lessons)


def test_a_lesson_is_a_function_of_its_index():
    again = PhantomLessons(40)
    for i in (5, 3, 21):  # a patient's lessons in any order, after others
        x, y = PhantomLessons(100)[i], again[i]
        np.testing.assert_array_equal(x.image.pixels, y.image.pixels)
        np.testing.assert_array_equal(x.labels, y.labels)
        assert x.boxes == y.boxes
    assert not np.array_equal(again[4].image.pixels, again[5].image.pixels)
    with pytest.raises(IndexError):
        again[40]


def test_the_tools_see_what_the_certificate_says(tasks):
    """The renderer of mvg_jax.tools gives the views that the proofs were made with."""
    from mvg_jax import frames
    from mvg_jax.tools import Sources, ViewFormat, render_views

    task = next(task for task in tasks if task.kind == "compare")
    image = task.images[0]
    sources = Sources(
        pixels=image.pixels[None, None, :, :, None],
        rescale=np.array([[[image.slope, image.intercept]]], np.float32),
        size=np.array([[[SIDE, SIDE]]], np.int32),
    )
    whole = frames.full_frame(SIDE, SIDE, np.array(image.window, np.float32), np.int32(0))
    zooms = [frames.zoom(whole, np.array(box, np.float32)) for box in task.chain[0].arguments["bbox_2d"]]
    shown = jax.tree.map(lambda *leaves: np.stack(leaves), whole, *zooms)
    views = np.asarray(render_views(sources, np.zeros(3, np.int32), shown, ViewFormat(VIEW, VIEW, "linear"))).astype(
        float
    )
    hu = hounsfield(task)
    for got, want in zip(views, [overview(hu), *chain_views(task, hu)], strict=True):
        assert np.abs(got[..., 0] - want).max() < 0.51


def test_a_close_up_shows_what_the_call_would(tasks):
    """The tools, given the task's call, render what the close-up's overview is; comparisons and controls stay as they are."""
    close = PhantomCloseUps("val", SAMPLE)
    seen = collections.Counter()
    for i, task in itertools.islice(enumerate(tasks), 0, SAMPLE, 3):
        made = close[i]
        if not task.chain or len(task.boxes) > 1:
            assert made.id == task.id
            continue
        seen[task.kind] += 1
        assert (made.needs_tool, made.answer, made.question) == (False, task.answer, task.question)
        image = made.images[0]
        hu = image.pixels.astype(np.float64) * image.slope + image.intercept
        height, width = hu.shape
        view = grey(weights(height, 0, height, VIEW) @ hu @ weights(width, 0, width, VIEW).T, image.window)
        (expected,) = chain_views(task, hounsfield(task))
        inside = slice(2, -2)  # a crop ends with whole pixels, and nothing is read beyond
        assert np.abs(view - expected)[inside, inside].mean() < (1e-6 if task.kind == "window" else 5.0)
    assert set(seen) >= {"attribute", "count", "window"}
