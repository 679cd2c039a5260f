"""PhantomAtlas: CT-, radiograph-, MR-, fundus- and histology-like images with questions of the kinds that VQA-RAD and SLAKE ask.

patient -> scene (patient and details) -> a scene for every answer -> question -> certificate -> pixels, all a function of
(split, index, families, overview).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from mvg_jax.data.phantom import certificate
from mvg_jax.data.phantom.atlas import brain_mr, canvas, ct_axial, details, fundus, histology, radiograph
from mvg_jax.data.phantom.atlas.canvas import UNITS
from mvg_jax.data.phantom.atlas.details import Detail
from mvg_jax.data.phantom.atlas.family import Family, Patient, pick
from mvg_jax.data.phantom.cases import zoom_box, zoom_call
from mvg_jax.data.phantom.views import RESAMPLE, Overview
from mvg_jax.data.task import AnswerType, Box, NativeImage, Task
from mvg_jax.tools.spec import ToolCall

FAMILIES: Mapping[str, Family] = {
    module.FAMILY.name: module.FAMILY for module in (ct_axial, radiograph, brain_mr, fundus, histology)
}
# First pair of each split. `ood`: patients, textures and stains outside of the range of the others.
SPLITS = {"train": 0, "val": 10**6, "test": 2 * 10**6, "ood": 3 * 10**6}
PAIRS = 10**6
# What each kind of question is about, in the words of VQA-RAD and SLAKE.
CONTENT = {
    "modality": "modality", "sequence": "modality", "stain": "colour", "plane": "plane", "organ": "position", "tissue": "organ",
    "structure": "organ", "presence": "presence", "abnormality": "abnormality", "side": "position", "effusion side": "position",
    "eye": "position", "marker": "position", "locate": "position", "size": "size", "count": "count", "quantity": "count",
    "attribute": "attribute", "colour": "colour", "spot colour": "colour", "compare": "compare",
}  # fmt: skip
MODALITY_SHARE = 0.05
CHOICE_SHARE = 0.25  # of the closed questions with three options or more: asked for the option's letter
TINY_OVERVIEW = Overview()
LEAST_STEP = 4.0
TRIES = 50
MODALITY_QUESTIONS = ("What modality is this image?", "How was this image made?")
_STREAM = 0x61746C73  # keeps these draws apart from other users of the same seeds


@dataclasses.dataclass(frozen=True)
class Scene:
    """One image without noise. boxes: what the question is about."""

    family: str
    patient: Patient
    details: tuple[Detail, ...]
    boxes: tuple[Box, ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """A question and a scene for every answer. twins: the answers of the two items. asked: which details must be seen closely; ()
    where the overview is enough. seed: of texture and noise. shifted: out of distribution."""

    kind: str
    question: str
    answer_type: AnswerType
    options: tuple[str, ...]
    variants: Mapping[str, Scene]
    twins: tuple[str, str]
    asked: tuple[int, ...]
    seed: int
    tolerance: float = 0.0
    shifted: bool = False

    def gold(self, answer: str) -> str:
        """The answer as it is written."""
        return chr(ord("A") + self.options.index(answer)) if self.answer_type == AnswerType.CHOICE else answer


class PhantomAtlas:
    """Items `first` .. `first + size` of a split; items 2k and 2k+1 are twins: one question, two answers, everything else equal.

    families: which of FAMILIES, equally often. overview: what the model is shown first; images are overview.side px a side, and
    certificates hold for this overview only. ValueError for an unknown split, family or way to resample, for items out of
    range, and for fewer than LEAST_STEP native pixels an overview pixel, where nothing can be hidden.
    """

    def __init__(
        self,
        split: str,
        size: int,
        first: int = 0,
        *,
        families: Sequence[str] = tuple(FAMILIES),
        overview: Overview = TINY_OVERVIEW,
    ):
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is none of {sorted(SPLITS)}")
        if not (first >= 0 and size > 0 and first + size <= 2 * PAIRS):
            raise ValueError(f"items {first}..{first + size} are not within 0..{2 * PAIRS}")
        if not families or set(families) - set(FAMILIES) or len(set(families)) < len(families):
            raise ValueError(f"families {tuple(families)}: some of {sorted(FAMILIES)}, each once")
        if overview.resample not in RESAMPLE or overview.step < LEAST_STEP:
            raise ValueError(
                f"{overview}: at least {LEAST_STEP:g} native pixels an overview pixel, resampled by one of {RESAMPLE}"
            )
        self.split, self.size, self.first, self.families, self.overview = split, size, first, tuple(families), overview

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Task:
        if not 0 <= index < self.size:
            raise IndexError(index)
        index += self.first
        case, clean, chain, bounds = draw_case(SPLITS[self.split] + index // 2, self.families, self.overview)
        answer = case.twins[index % 2]
        scene = case.variants[answer]
        family = FAMILIES[scene.family]
        planes = clean.copy() if clean is not None else ground(scene, self.overview)
        add_details(planes, scene, self.overview)
        spacing = None if family.spacing_mm is None else family.spacing_mm * UNITS / self.overview.side
        film = family.film
        pixels = film.expose(planes, case.seed, case.shifted)
        window = tuple(value + film.intercept for value in film.window)
        return Task(
            id=f"phantom_atlas/{self.split}/{index:08d}",
            dataset="phantom_atlas",
            kind=case.kind,
            images=(NativeImage(pixels, window, 1.0, film.intercept, film.unit, spacing),),
            question=case.question,
            answer=case.gold(answer),
            options=case.options,
            boxes=scene.boxes,
            chain=chain,
            certificate=bounds,
            answer_type=case.answer_type,
            accepted=family.accepted if case.kind == "modality" and case.answer_type == AnswerType.CLOSED else (),
            modality=family.modality,
            tolerance=case.tolerance,
        )


@functools.lru_cache(maxsize=4)  # twins, when they are read one after the other
def draw_case(
    pair: int, families: tuple[str, ...], overview: Overview
) -> tuple[Case, np.ndarray | None, tuple[ToolCall, ...], dict[str, float]]:
    """The case of a pair of items, the planes that its twins share without details (None if they do not), chain and certificate.

    A scene that fails its certificate is drawn again; RuntimeError after TRIES of them.
    """
    rng = pair_rng(pair)
    family, kind = sample_kind(rng, families)
    shifted = pair >= SPLITS["ood"]
    for _ in range(TRIES):
        case = sample_case(rng, family, kind, families, overview, shifted)
        if not case.asked:
            return case, None, (), {}
        clean = ground(next(iter(case.variants.values())), overview)
        clean.flags.writeable = False
        chain, bounds = prove(case, clean, overview)
        if bounds["dprime_overview"] <= certificate.LIMIT_OVERVIEW and bounds["dprime_tool"] >= certificate.LIMIT_TOOL:
            return case, clean, chain, bounds
    raise RuntimeError(f"no {kind} of {family} could be certified for {overview}")


def pair_rng(pair: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((_STREAM, pair))))


def sample_kind(rng: np.random.Generator, families: tuple[str, ...]) -> tuple[str, str]:
    """The family and kind of a question."""
    family = pick(rng, families)
    if len(families) > 1 and rng.random() < MODALITY_SHARE:
        return family, "modality"
    shares = FAMILIES[family].shares
    return family, str(rng.choice(list(shares), p=list(shares.values())))


def sample_case(
    rng: np.random.Generator, name: str, kind: str, families: tuple[str, ...], overview: Overview, shifted: bool = False
) -> Case:
    """Draws patient, findings, question and the twins' answers; nothing is proved yet, and no pixel drawn."""
    family = FAMILIES[name]
    seed = int(rng.integers(2**31))
    answer_type, tolerance, asked = AnswerType.CLOSED, 0.0, ()
    if kind == "modality":
        question = pick(rng, MODALITY_QUESTIONS)
        variants = {}
        for other in families:
            patient = FAMILIES[other].sample(rng, shifted)
            always = FAMILIES[other].always(rng, patient)
            variants[FAMILIES[other].modality] = Scene(
                other, patient, (*always, *_decoy(rng, FAMILIES[other], patient)), ()
            )
        options = tuple(variants)
    elif kind in family.control_wordings:
        patient = family.sample(rng, shifted)
        seen = family.control(rng, kind, patient)
        shown = family.always(rng, patient)
        variants = {answer: Scene(name, other, shown, boxes) for answer, (other, boxes) in seen.variants.items()}
        question, answer_type, options, tolerance = seen.question, seen.answer_type, seen.options, seen.tolerance
    else:
        patient = family.sample(rng, shifted)
        target = pick(rng, family.targets)
        question = pick(rng, family.wordings[kind]).format(target=target)
        shown = family.always(rng, patient)
        options, variants = _with_details(rng, family, kind, patient, target)
        asked = tuple(range(2 if kind == "compare" else 1)) if kind in (*family.groups, "compare") else ()
        if kind == "marker":
            plate = shown[0]
            variants = {letter: (dataclasses.replace(plate, pattern=letter),) for letter in options}
            shown = _decoy(rng, family, patient)
        scenes = {}
        for answer, found in variants.items():
            boxes = tuple(_box(family, detail, overview) for detail in found)
            scenes[answer] = Scene(name, patient, (*found, *shown), boxes)
        variants = scenes
    twins = tuple(str(answer) for answer in rng.permutation(list(variants))[:2])
    if answer_type == AnswerType.CLOSED and len(options) > 2 and rng.random() < CHOICE_SHARE:
        answer_type, options = AnswerType.CHOICE, tuple(str(option) for option in rng.permutation(options))
    return Case(kind, question, answer_type, options, variants, twins, asked, seed, tolerance, shifted)


def _with_details(
    rng: np.random.Generator, family: Family, kind: str, patient: Patient, target: str
) -> tuple[tuple[str, ...], dict[str, tuple[Detail, ...]]]:
    """Options of a question about details, and the details that make each of them right."""

    def one(place: str, group: str, pattern: str) -> Detail:
        x, y = family.site(rng, patient, place)
        wobble = tuple(float(w) for w in rng.uniform(-1, 1, 6))
        return Detail(group, pattern, float(x), float(y), rng.uniform(11.5, 14.5), rng.uniform(0, 6.28), wobble, place)

    def on(side: str) -> str:
        return pick(rng, [place for place, (_, of) in family.places.items() if of == side])

    visible = [group for group in family.groups if group != "marker"]
    group = pick(rng, visible)
    pattern = pick(rng, family.groups[group])
    match kind:
        case "compare":
            options = ("left", "right")
            other = pick(rng, [p for p in family.groups["attribute"] if p != target])
            left, right = (one(on(side), "attribute", target) for side in options)
            swap = dataclasses.replace
            return options, {"left": (left, swap(right, pattern=other)), "right": (swap(left, pattern=other), right)}
        case "side":
            options = ("left", "right")
            return options, {side: (one(on(side), group, pattern),) for side in options}
        case "organ":
            organs = tuple(dict.fromkeys(organ for organ, _ in family.places.values()))
            where = {o: pick(rng, [p for p, (organ, _) in family.places.items() if organ == o]) for o in organs}
            return organs, {organ: (one(place, group, pattern),) for organ, place in where.items()}
    options = family.groups[kind]
    if kind == "marker":
        return options, {}
    detail = one(pick(rng, tuple(family.places)), kind, options[0])
    return options, {option: (dataclasses.replace(detail, pattern=option),) for option in options}


def _decoy(rng: np.random.Generator, family: Family, patient: Patient) -> tuple[Detail, ...]:
    """A detail that the question is not about, in every second image."""
    _, variants = _with_details(rng, family, "side", patient, family.targets[0])
    return variants["left" if rng.random() < 0.5 else "right"] if rng.random() < 0.5 else ()


def _box(family: Family, detail: Detail, overview: Overview) -> Box:
    noun = detail.group if detail.group == "marker" else family.noun
    return Box(f"{detail.pattern} {noun}", canvas.box(canvas.blob(detail.x, detail.y, detail.reach(overview))))


def ground(scene: Scene, overview: Overview) -> np.ndarray:
    """The planes [C, side, side] of a scene without details and noise."""
    return FAMILIES[scene.family].paint(scene.patient, overview.side)


def add_details(planes: np.ndarray, scene: Scene, overview: Overview) -> None:
    """Adds a scene's details in place: their bases, then what the overview does not show of them."""
    family = FAMILIES[scene.family]
    n = details.size(overview)
    for detail in scene.details:
        family.base(planes, detail, overview)
        y, x = details.window(detail, overview)
        planes[:, y : y + n, x : x + n] += details.hidden(detail, family.groups[detail.group], family.ink, overview)


def zoom_units(overview: Overview) -> int:
    """Side of the expert's zoom box: what about 7.7 overview pixels cover, at least 40 of 1000."""
    return max(40, 20 * round(7.68 * 1000 / overview.view / 20))


def prove(case: Case, clean: np.ndarray, overview: Overview) -> tuple[tuple[ToolCall, ...], dict[str, float]]:
    """The minimal chain and its certificate over all pairs of answers, from the noise-free images.

    The certificate names the overview it is for: side of the native image and of the view in px, and whether it is bicubic.
    """
    scene = next(iter(case.variants.values()))
    film = FAMILIES[scene.family].film
    images = []
    for variant in case.variants.values():
        planes = clean.copy()
        add_details(planes, variant, overview)
        images.append(film.mean(planes))
    looked = [scene.details[index] for index in case.asked]
    units = zoom_units(overview)
    at = [zoom_box(d.x * 1000 / UNITS, d.y * 1000 / UNITS, units) for d in looked]
    views = [tuple(v * overview.side / 1000 for v in box) for box in at]
    n = details.size(overview)
    starts = [details.window(detail, overview) for detail in looked]
    differ = [(x, y, x + n, y + n) for y, x in starts]
    noise = film.noise(overview.side, case.shifted)
    bounds = {
        "dprime_overview": certificate.overview_dprime(images, differ, overview, film.window, film.smallest),
        "dprime_tool": certificate.matched_dprime(images, views, overview, film.window, noise),
        "native_px": float(overview.side),
        "overview_px": float(overview.view),
        "bicubic": float(overview.resample == "bicubic"),
    }
    return (zoom_call(*at),), bounds


def all_questions(families: Sequence[str] = tuple(FAMILIES)) -> tuple[str, ...]:
    """Every question that these families can ask."""
    texts = list(MODALITY_QUESTIONS)
    for name in families:
        family = FAMILIES[name]
        asked = [text for wordings in family.wordings.values() for text in wordings]
        texts += [text.format(target=target) for text in asked for target in family.targets]
        texts += [text for wordings in family.control_wordings.values() for text in wordings]
    return tuple(dict.fromkeys(texts))
