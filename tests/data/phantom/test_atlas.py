import collections
import dataclasses
import itertools
import json
import pickle

import jax
import numpy as np
import pytest
from PIL import Image

from mvg_jax.data.phantom import certificate, expert, mixture
from mvg_jax.data.phantom.atlas import CONTENT, FAMILIES, PhantomAtlas, all_questions, canvas, details
from mvg_jax.data.phantom.atlas import source as atlas
from mvg_jax.data.phantom.expert import ATLAS_THINKS, DECISIONS
from mvg_jax.data.phantom.views import Overview, grey, sample, weights
from mvg_jax.data.task import AnswerType
from mvg_jax.env.protocol import parse_turn, render_turn
from mvg_jax.scoring.strict import score
from mvg_jax.tools import ImageInfo, ToolCall, default_registry

SAMPLE = 14  # items a family
SMALL = Overview(256, 32)
NAMES = tuple(FAMILIES)


@pytest.fixture(scope="module")
def tasks():
    """Items of each family alone, and some of all together, for a small overview of small images."""
    sources = [PhantomAtlas("val", SAMPLE, families=(name,), overview=SMALL) for name in NAMES]
    sources.append(PhantomAtlas("val", SAMPLE, first=100, overview=SMALL))
    return [source[i] for source in sources for i in range(SAMPLE)]


def planes(task):
    """Stored values [C, side, side]."""
    image = task.images[0]
    side = image.pixels.shape[0]
    return image.pixels.astype(np.float64).reshape(side, side, -1).transpose(2, 0, 1)


def window(task):
    """In stored values."""
    return tuple(value - task.images[0].intercept for value in task.images[0].window)


def shown(task, image, overview=SMALL):
    d = overview.whole()
    return grey(sample(image, d, d), window(task))


def close_views(task, image, overview=SMALL):
    at = task.chain[0].arguments["bbox_2d"]
    at = at if isinstance(at[0], list) else [at]
    pixels = [[v * overview.side / 1000 for v in box] for box in at]
    axes = [(overview.weights(y1, y2), overview.weights(x1, x2)) for x1, y1, x2, y2 in pixels]
    return np.stack([grey(sample(image, *axis), window(task)) for axis in axes])


def draw_cases(count, families=NAMES):
    for pair in range(count):
        rng = atlas.pair_rng(pair)
        yield atlas.sample_case(rng, *atlas.sample_kind(rng, families), families, Overview())


def pairs(tasks):
    return [(a, b) for a, b in zip(tasks[::2], tasks[1::2], strict=True)]


def test_an_item_is_a_function_of_split_index_families_and_overview(tasks):
    last = tasks[-SAMPLE:]
    again = pickle.loads(pickle.dumps(PhantomAtlas("val", 4, first=106, overview=SMALL)))[1]  # noqa: S301
    assert again.id == "phantom_atlas/val/00000107"
    np.testing.assert_array_equal(again.images[0].pixels, last[7].images[0].pixels)
    same = [dataclasses.replace(task, images=()) for task in (again, last[7])]
    assert same[0] == same[1]
    other = PhantomAtlas("test", 8, first=106, overview=SMALL)[1]
    assert other.images[0].pixels.shape != again.images[0].pixels.shape or not np.array_equal(
        other.images[0].pixels, again.images[0].pixels
    )


def test_splits_are_disjoint_and_arguments_are_checked():
    seeds = sorted(atlas.SPLITS.values())
    assert all(b - a >= atlas.PAIRS for a, b in itertools.pairwise(seeds))
    PhantomAtlas("train", 2, first=2 * atlas.PAIRS - 2)
    for wrong, message in (
        (dict(split="dev", size=1), "none of"),
        (dict(split="train", size=2, first=2 * atlas.PAIRS - 1), "not within"),
        (dict(split="train", size=2, families=()), "families"),
        (dict(split="train", size=2, families=("fundus", "sonogram")), "families"),
        (dict(split="train", size=2, families=("fundus", "fundus")), "families"),
        (dict(split="train", size=2, overview=Overview(1024, 448)), "at least 4 native"),
        (dict(split="train", size=2, overview=Overview(512, 64, "nearest")), "nearest"),
    ):
        with pytest.raises(ValueError, match=message):
            PhantomAtlas(**wrong)
    with pytest.raises(IndexError):
        PhantomAtlas("train", 2)[2]


def test_images_are_of_the_family(tasks):
    for task, name in zip(tasks, [n for n in NAMES for _ in range(SAMPLE)], strict=False):
        family, image = FAMILIES[name], task.images[0]
        assert task.modality == family.modality
        assert image.pixels.shape == ((256, 256, 3) if family.film.rgb else (256, 256))
        assert image.pixels.dtype == (np.uint8 if family.film.rgb else np.uint16)
        assert image.pixels.max() <= family.film.top
        assert image.spacing_mm == (None if family.spacing_mm is None else 2 * family.spacing_mm)


def test_twins_differ_in_the_answer_and_not_in_the_overview(tasks):
    seen = collections.Counter()
    for a, b in pairs(tasks):
        assert (a.kind, a.question, a.options, a.answer_type) == (b.kind, b.question, b.options, b.answer_type)
        assert a.answer != b.answer
        if a.kind == "modality":
            continue
        apart = np.abs(shown(a, planes(a)) - shown(b, planes(b))).max()
        if not a.needs_tool:
            assert a.chain == b.chain == ()
            assert a.certificate == b.certificate == {}
            assert apart > 12, (a.id, a.kind)  # the answer can be seen
            continue
        seen[a.modality, a.kind] += 1
        places = [[box.xyxy for box in task.boxes] for task in (a, b)]  # labels say what is in a detail
        assert (places[0], a.chain, a.certificate) == (places[1], b.chain, b.certificate)
        assert apart < 0.5  # grey levels; pixels are rounded
        assert np.abs(close_views(a, planes(a)) - close_views(b, planes(b))).max() > 20
    assert len(seen) > 8


def test_every_item_that_needs_a_tool_carries_a_certificate_that_holds(tasks):
    needing = [task for task in tasks if task.needs_tool]
    assert 0.65 < len(needing) / len(tasks) < 0.9
    for task in needing:
        assert task.certificate["dprime_overview"] <= certificate.LIMIT_OVERVIEW
        assert task.certificate["dprime_tool"] >= certificate.LIMIT_TOOL
        assert (task.certificate["native_px"], task.certificate["overview_px"], task.certificate["bicubic"]) == (
            256,
            32,
            0,
        )


@pytest.mark.parametrize("name", NAMES)
def test_an_observer_needs_the_tool(name):
    """Matched filter on rounded views with fresh noise, two alternatives: chance on the overview, never wrong after."""
    family, families = FAMILIES[name], (name,)
    source = PhantomAtlas("val", 80, families=families, overview=SMALL)
    pair = next(k for k in range(40) if atlas.sample_kind(atlas.pair_rng(10**6 + k), families)[1] == "attribute")
    task = source[2 * pair]
    case, ground, _, _ = atlas.draw_case(10**6 + pair, families, SMALL)
    clean = []
    for answer in case.twins:
        clean.append(ground.copy())
        atlas.add_details(clean[-1], case.variants[answer], SMALL)

    def look(image):
        return shown(task, image), close_views(task, image)

    expected = [look(family.film.mean(image)) for image in clean]
    filters = [b - a for a, b in zip(*expected, strict=True)]
    middles = [(a + b) / 2 for a, b in zip(*expected, strict=True)]
    right = np.zeros(2)
    trials = 24
    for k in range(trials):
        truth = k % 2
        pixels = family.film.expose(clean[truth], 1000 + k, False).astype(np.float64)
        noisy = pixels.reshape(SMALL.side, SMALL.side, -1).transpose(2, 0, 1)
        for j, (view, template, middle) in enumerate(zip(look(noisy), filters, middles, strict=True)):
            right[j] += (np.sum((np.rint(view) - middle) * template) > 0) == truth
    assert right[1] == trials
    assert right[0] <= 0.8 * trials  # 24 guesses exceed this with probability < 0.002


def test_the_observer_of_the_certificate_is_as_good_as_it_says():
    """d' of the correlating observer, measured on exposed images, against the certificate's formula."""
    film = FAMILIES["fundus"].film
    rng = np.random.default_rng(5)
    image = np.full((3, 256, 256), 120.0)
    other = image.copy()
    other[:, 100:120, 110:140] += 0.8 + 0.2 * rng.standard_normal((3, 20, 30))  # low frequencies too: texture disturbs
    box = (90.0, 80.0, 150.0, 140.0)
    said = certificate.matched_dprime([image, other], [box], SMALL, film.window, film.noise(256, False))
    wy, wx = SMALL.weights(box[1], box[3]), SMALL.weights(box[0], box[2])
    template = grey(sample(other, wy, wx), film.window) - grey(sample(image, wy, wx), film.window)
    noise = []
    for seed in range(250):
        pixels = film.expose(image.astype(np.float32), seed, False).transpose(2, 0, 1).astype(float)
        noise.append(np.vdot(template, np.rint(grey(sample(pixels, wy, wx), film.window))))
    assert said == pytest.approx(np.vdot(template, template) / np.std(noise), rel=0.2)


@pytest.mark.parametrize("overview", [Overview(), Overview(640, 140, "bicubic")])
@pytest.mark.parametrize("name", NAMES)
def test_no_overview_shows_a_pattern(name, overview):
    family = FAMILIES[name]
    for group, patterns in family.groups.items():
        drawn, n = [], details.size(overview)
        for pattern in patterns:
            detail = details.Detail(group, pattern, 171.3, 214.9, 13.0, 0.7, (0.3, -0.2, 0.9, -0.5, 0.1, 0.4))
            image = np.zeros((family.film.planes, overview.side, overview.side))
            y, x = details.window(detail, overview)
            image[:, y : y + n, x : x + n] = details.hidden(detail, patterns, family.ink, overview)
            drawn.append(image)
        d = overview.whole()
        views = [d @ (image - drawn[0]) @ d.T for image in drawn[1:]]
        assert max(np.abs(view).max() for view in views) < 1e-8
        native = min(np.abs(image - drawn[0]).max() for image in drawn[1:])
        assert native * certificate.gain(family.film.window) > 15  # grey levels


def test_a_pattern_that_shows_in_the_overview_is_refused(monkeypatch):
    pair = next(p for p in range(100) if atlas.sample_kind(atlas.pair_rng(p), ("fundus",))[1] == "count")
    case, clean, _, bounds = atlas.draw_case(pair, ("fundus",), SMALL)
    assert bounds["dprime_overview"] <= certificate.LIMIT_OVERVIEW
    monkeypatch.setattr(details, "projector", lambda overview, start: np.zeros((details.size(overview),) * 2))
    assert atlas.prove(case, clean, SMALL)[1]["dprime_overview"] > certificate.LIMIT_OVERVIEW


def test_bicubic_weights_are_pillows():
    image = np.random.default_rng(0).normal(100, 30, (256, 256)).astype(np.float32)
    for x1, y1, x2, y2 in ((0, 0, 256, 256), (30, 60, 94, 124), (200, 10, 256, 66)):
        w = [weights(256, low, high, 32, "bicubic") for low, high in ((y1, y2), (x1, x2))]
        want = np.asarray(Image.fromarray(image).crop((x1, y1, x2, y2)).resize((32, 32), Image.Resampling.BICUBIC))
        np.testing.assert_allclose(sample(image.astype(float), *w), want, atol=1e-3)


def test_kinds_have_their_shares_and_no_answer_is_favoured():
    drawn = list(draw_cases(2400))
    tools = np.mean([bool(case.asked) for case in drawn])
    assert 0.7 < tools < 0.8
    assert {case.kind for case in drawn} == set(CONTENT)
    answers, first = collections.defaultdict(collections.Counter), collections.defaultdict(collections.Counter)
    for case in drawn:
        assert case.question in all_questions()
        if not case.options:
            continue
        assert set(case.twins) <= set(case.options)
        key = (case.question, case.answer_type, len(case.options))
        answers[key].update(case.gold(answer) for answer in case.twins)
        first[key][case.gold(case.twins[0])] += 1
    for (_, _, options), count in answers.items():
        chance, total = 1 / options, sum(count.values())
        assert max(count.values()) / total <= chance + max(0.02, 3.5 * np.sqrt(chance * (1 - chance) / total))
        if options == 2:
            assert set(count.values()) == {total // 2}
    for (_, _, options), count in first.items():  # nor does an even index say anything
        chance, total = 1 / options, sum(count.values())
        assert max(count.values()) / total <= chance + 3.5 * np.sqrt(chance * (1 - chance) / total)


def test_no_length_is_right_for_many():
    for family in FAMILIES.values():
        values = []
        for seed in range(150):
            rng = np.random.default_rng(seed)
            asked = family.control(rng, "size", family.sample(rng, False))
            assert asked.tolerance == 0.1
            values += [float(answer.split()[0]) for answer in asked.variants]
        values = np.array(values)
        hits = [
            np.mean(np.abs(guess - values) <= 0.1 * values) for guess in np.linspace(values.min(), values.max(), 200)
        ]
        assert max(hits) < 0.36


def test_questions_of_one_family_do_not_ask_for_the_modality():
    assert all(case.kind != "modality" for case in draw_cases(200, ("fundus",)))


def test_gold_answers_score_and_others_do_not(tasks):
    kinds = set()
    for case in (*draw_cases(400), *draw_cases(200, ("radiograph",))):
        kinds.add(case.answer_type)
        for answer, other in itertools.permutations(case.twins):
            assert score(case.gold(answer), case.gold(answer), case.options) == 1.0
            assert score(case.gold(other), case.gold(answer), case.options) == 0.0
    assert kinds == {
        AnswerType.CLOSED, AnswerType.CHOICE, AnswerType.YES_NO, AnswerType.NUMBER, AnswerType.BOX,
    }  # fmt: skip
    for task in tasks:
        assert score(task.answer, task.answer, task.options) == 1.0


def test_boxes_and_calls_are_legal(tasks):
    registry = default_registry(None)
    for task in tasks:
        height, width = task.images[0].pixels.shape[:2]
        image = ImageInfo(height=height, width=width, unit=task.images[0].unit, window=task.images[0].window)
        for box in task.boxes:
            x1, y1, x2, y2 = box.xyxy
            assert 0 <= x1 < x2 <= 1000
            assert 0 <= y1 < y2 <= 1000
        for call in task.chain:
            registry.parse(call, [image])
            at = call.arguments["bbox_2d"]
            at = at if isinstance(at[0], list) else [at]
            assert len(at) == len(task.boxes)
            for zoom, box in zip(at, task.boxes, strict=True):
                assert inside(box.xyxy, zoom)


def inside(box, zoom):
    return zoom[0] <= box[0] and zoom[1] <= box[1] and box[2] <= zoom[2] and box[3] <= zoom[3]


def test_the_expert_takes_every_task(tasks):
    rng = np.random.default_rng(3)
    registry = default_registry(None)
    weights = dict.fromkeys(DECISIONS, 1)
    for task in tasks:
        image = ImageInfo(height=256, width=256, unit=task.images[0].unit, window=task.images[0].window)
        right = expert(task, rng, decision="right")
        assert right[-1].action == task.answer
        assert len(right) == len(task.chain) + 1
        for turn in right[:-1]:
            at = turn.action.arguments["bbox_2d"]
            at = at if isinstance(at[0], list) else [at]
            assert all(inside(box.xyxy, zoom) for box, zoom in zip(task.boxes, at, strict=True))
        if task.kind == "compare":
            first, second = right[-1].think.split(", ")
            assert (first in task.question) != (second in task.question) or first in second or second in first
        for turn in (*right, *mixture(task, rng, weights), *expert(task, rng, decision="off_target")):
            assert parse_turn(render_turn(turn)) == turn
            assert turn.think in ATLAS_THINKS or task.kind == "compare"
            if isinstance(turn.action, ToolCall):
                registry.parse(turn.action, [image])
                assert "." not in json.dumps(turn.action.arguments)  # whole units: one token a number
    needing = next(task for task in tasks if task.needs_tool and task.answer_type == AnswerType.CHOICE)
    guesses = {expert(needing, rng, decision="direct")[-1].action for _ in range(100)}
    assert guesses == set("ABCD"[: len(needing.options)])
    with pytest.raises(ValueError, match="chains"):
        expert(dataclasses.replace(needing, chain=None), rng, decision="right")
    with pytest.raises(ValueError, match="no options"):
        expert(dataclasses.replace(needing, options=()), rng, decision="direct")


def test_other_overviews_have_certificates_of_their_own():
    for overview in (Overview(), Overview(640, 140, "bicubic")):
        families = ("fundus", "brain_mr")
        pair = next(k for k in range(40) if atlas.sample_kind(atlas.pair_rng(k), families)[1] == "count")
        task = PhantomAtlas("train", 80, families=families, overview=overview)[2 * pair]
        assert task.images[0].pixels.shape[:2] == (overview.side, overview.side)
        proof = task.certificate
        assert (proof["overview_px"], proof["bicubic"]) == (overview.view, overview.resample == "bicubic")
        assert proof["dprime_overview"] <= certificate.LIMIT_OVERVIEW
        assert proof["dprime_tool"] >= certificate.LIMIT_TOOL


def test_patients_out_of_distribution_are_others():
    for name, family in FAMILIES.items():
        draw = lambda shifted, family=family: [family.sample(np.random.default_rng(i), shifted) for i in range(20)]
        usual, other = draw(False), draw(True)
        changed = {
            "ct_axial": "size", "radiograph": "width", "brain_mr": "scale", "fundus": "tone", "histology": "density",
        }[name]  # fmt: skip
        low, high = (np.array([np.ravel(getattr(p, changed))[-1] for p in ps]) for ps in (usual, other))
        assert low.max() < high.min() or high.max() < low.min()
    assert PhantomAtlas("ood", 2, overview=SMALL)[0].id == "phantom_atlas/ood/00000000"


def test_a_bank_is_periodic_and_has_its_power():
    field = canvas.bank(128, 48.0, 0.0, 2.8, 11)
    assert field.std() == pytest.approx(1, abs=1e-3)
    edge = np.abs(field[0] - field[-1]).mean()
    assert edge < 2 * np.abs(np.diff(field, axis=0)).mean()
    drawn = canvas.take(np.random.default_rng(0), field)
    np.testing.assert_allclose(np.sort(drawn.ravel()), np.sort(field.ravel()))


@pytest.mark.parametrize("resample", ["linear", "bicubic"])
def test_the_tools_see_what_the_certificate_says(resample):
    """The renderer of mvg_jax.tools gives the views that the proofs were made with, colour and 8 bits included."""
    from mvg_jax import frames
    from mvg_jax.tools import Sources, ViewFormat, render_views

    overview = dataclasses.replace(SMALL, resample=resample)
    pair = next(k for k in range(40) if atlas.sample_kind(atlas.pair_rng(k), ("fundus",))[1] == "compare")
    source = PhantomAtlas("train", 80, families=("fundus",), overview=overview)
    seen = []
    for task in (source[2 * pair], source[2 * pair + 1]):
        image = task.images[0]
        sources = Sources(
            pixels=image.pixels[None, None],
            rescale=np.array([[[image.slope, image.intercept]]], np.float32),
            size=np.array([[image.pixels.shape[:2]]], np.int32),
        )
        whole = frames.full_frame(256, 256, np.array(image.window, np.float32), np.int32(0))
        zooms = [frames.zoom(whole, np.array(box, np.float32)) for box in task.chain[0].arguments["bbox_2d"]]
        many = jax.tree.map(lambda *leaves: np.stack(leaves), whole, *zooms)
        form = ViewFormat(overview.view, overview.view, resample)
        views = np.asarray(render_views(sources, np.zeros(3, np.int32), many, form)).astype(float).transpose(0, 3, 1, 2)
        want = [shown(task, planes(task), overview), *close_views(task, planes(task), overview)]
        for got, expected in zip(views, want, strict=True):
            assert np.abs(got - expected).max() < (0.51 if resample == "linear" else 1.6)  # two roundings
            assert np.abs(got - expected).mean() < 0.4
        seen.append(views)
    assert np.abs(seen[0][0] - seen[1][0]).mean() < 0.1  # the twins' overviews differ by roundings
    assert np.abs(seen[0][1:] - seen[1][1:]).max() > 20
