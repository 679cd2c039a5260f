"""A case: one scene, one question, and a variant of the scene for every answer.

Two items, the twins, are made of each case. They share everything but the answer and what decides it.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from mvg_jax.data.phantom import certificate, render
from mvg_jax.data.phantom.certificate import CT_OVERVIEW
from mvg_jax.data.phantom.patterns import ATTRIBUTES, COUNTS, WINDOW, window_start
from mvg_jax.data.phantom.questions import CONTROLS, KINDS, OPTIONS, SHARES, TARGETS, wording
from mvg_jax.data.phantom.scene import (
    IMAGE_SIDE,
    ORGANS,
    SIDE,
    Anatomy,
    Blob,
    Lesion,
    Scene,
    sample_anatomy,
    sample_cyst,
    sample_lesion,
    sample_spine,
)
from mvg_jax.data.phantom.views import BONE_WINDOW, DEFAULT_WINDOW
from mvg_jax.data.task import Box
from mvg_jax.tools.spec import ToolCall

ZOOM_UNITS, GRIDS = 120, 6
UNITS_PER_PX = 1000 / SIDE
_STREAM = 0x7068616E  # keeps these draws apart from other users of the same seeds


@dataclasses.dataclass(frozen=True)
class Case:
    """variants: the scene of each answer. twins: the answers of the two items."""

    kind: str
    question: str
    anatomy: Anatomy
    variants: dict[str, Scene]
    twins: tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Proof:
    """clean: the patient without findings and noise, [SIDE, SIDE] float32 HU.

    chain: the shortest that shows the answer; the same for every answer.
    certificate: bounds of d' over all pairs of answers, {} where no tool is needed.
    """

    clean: np.ndarray
    chain: tuple[ToolCall, ...]
    certificate: dict[str, float]


@functools.lru_cache(maxsize=64)  # twins, labels and repeats within a batch ask for the same case
def draw_case(pair: int) -> tuple[Case, Proof]:
    """The case of a pair of items, a function of `pair` alone. A scene that fails its certificate is drawn again."""
    rng = pair_rng(pair)
    kind = sample_kind(rng)
    while True:
        case = sample_case(rng, kind)
        proof = prove(case)
        if not proof.chain or _holds(proof.certificate):
            return case, proof


def pair_rng(pair: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((_STREAM, pair))))


def sample_kind(rng: np.random.Generator) -> str:
    return KINDS[rng.choice(len(KINDS), p=list(SHARES.values()))]


def boxes(scene: Scene, kind: str) -> tuple[Box, ...]:
    """The lesions that a question of this kind is about; for `structure` also the cyst, if there is one."""
    found = finding_boxes(scene)
    return tuple(box for box in found if (box.label == "vertebral lesion") == (kind == "window"))


def finding_boxes(scene: Scene) -> tuple[Box, ...]:
    """All findings of a scene: lesions (labelled with what is in them), cyst, vertebral lesion."""
    found = tuple(_box(f"{o.pattern} lesion", o.x, o.y, o.radius, o.radius) for o in scene.lesions)
    blobs = (("cyst", scene.cyst), ("vertebral lesion", scene.spine))
    return found + tuple(_box(label, o.x, o.y, o.rx, o.ry) for label, o in blobs if o is not None)


def zoom_box(x: float, y: float, units: int = ZOOM_UNITS) -> list[int]:
    """The expert's zoom box: `units` a side, on a grid of a sixth of that, inside 0..1000, near (x, y)."""
    grid = grid_units(units)
    low = [min(max(grid * round((c - units / 2) / grid), 0), 1000 - units) for c in (x, y)]
    return [low[0], low[1], low[0] + units, low[1] + units]


def grid_units(units: int) -> int:
    """How far apart the expert's zoom boxes of this size are."""
    return units // GRIDS


def zoom_call(*at: list[int]) -> ToolCall:
    """A zoom on one box or several."""
    return ToolCall("image_zoom_in_tool", {"bbox_2d": at[0] if len(at) == 1 else list(at), "img_idx": 0})


def bone_window_call() -> ToolCall:
    return ToolCall("window_level_tool", {"preset": "bone", "img_idx": 0})


def crowd(rng: np.random.Generator, anatomy: Anatomy, bare: Scene) -> Scene:
    """A patient with a finding almost wherever one can be: much to see in one image, for lessons in seeing."""
    cyst = sample_cyst(rng, anatomy) if rng.random() < 0.25 else None
    spine = rng.choice([None, *sample_spine(rng, anatomy).values()])
    lesions = tuple(
        sample_lesion(rng, anatomy, organ, str(rng.choice(ATTRIBUTES + COUNTS)))
        for organ in ORGANS
        if rng.random() < 0.8 and not (organ == "liver" and cyst)
    )
    return dataclasses.replace(bare, lesions=lesions, spine=spine, cyst=cyst, seed=int(rng.integers(2**31)))


def _box(label: str, x: float, y: float, rx: float, ry: float) -> Box:
    return Box(label, tuple(round(v * UNITS_PER_PX, 2) for v in (x - rx, y - ry, x + rx, y + ry)))


def _holds(bounds: dict[str, float]) -> bool:
    hidden = bounds["dprime_overview"] <= certificate.LIMIT_OVERVIEW
    return hidden and bounds["dprime_tool"] >= certificate.LIMIT_TOOL


def sample_case(rng: np.random.Generator, kind: str) -> Case:
    """Draws patient, findings, question and the twins' answers; nothing is proved yet."""
    anatomy = sample_anatomy(rng)
    target = str(rng.choice(TARGETS))
    question = wording(rng, kind, target)
    spine = sample_spine(rng, anatomy)
    # A vertebral lesion comes and goes whatever is asked, unless it is what is asked about.
    shown = [None, None, spine["lytic"], spine["sclerotic"]][rng.integers(4)]
    seed = int(rng.integers(2**31))
    empty = Scene(anatomy.body, anatomy.organs, anatomy.table_y, (), shown, None, seed)

    def lesion(organs: Sequence[str], pattern: str) -> Lesion:
        return sample_lesion(rng, anatomy, str(rng.choice(organs)), pattern)

    def on_side(side: str) -> list[str]:
        return [organ for organ in ORGANS if IMAGE_SIDE[organ] == side]

    def with_lesions(*lesions: Lesion) -> Scene:
        return dataclasses.replace(empty, lesions=lesions)

    options = OPTIONS[kind]
    any_pattern = str(rng.choice(ATTRIBUTES + COUNTS))
    match kind:
        case "attribute" | "count":
            one = lesion(ORGANS, options[0])
            variants = {option: with_lesions(dataclasses.replace(one, pattern=option)) for option in options}
        case "compare":
            other = str(rng.choice([a for a in ATTRIBUTES if a != target]))
            left, right = (lesion(on_side(side), target) for side in options)
            variants = {
                "left": with_lesions(left, dataclasses.replace(right, pattern=other)),
                "right": with_lesions(dataclasses.replace(left, pattern=other), right),
            }
        case "window":
            scene = with_lesions(lesion(ORGANS, any_pattern))
            variants = {option: dataclasses.replace(scene, spine=spine[option]) for option in options}
        case "organ":
            variants = {organ: with_lesions(lesion([organ], any_pattern)) for organ in options}
        case "side":
            variants = {side: with_lesions(lesion(on_side(side), any_pattern)) for side in options}
        case "structure":
            scene = with_lesions(lesion([organ for organ in ORGANS if organ != "liver"], any_pattern))
            variants = {"yes": dataclasses.replace(scene, cyst=sample_cyst(rng, anatomy)), "no": scene}
    twins = tuple(str(option) for option in rng.permutation(options)[:2])
    return Case(kind, question, anatomy, variants, twins)


def prove(case: Case) -> Proof:
    """The minimal chain and its certificate over all pairs of answers, from the noise-free images."""
    scene = next(iter(case.variants.values()))
    clean = render.render_anatomy(scene)
    clean.flags.writeable = False  # cached and shared by all items of the case
    if case.kind in CONTROLS:
        return Proof(clean, (), {})
    images = []
    for variant in case.variants.values():
        images.append(clean.copy())
        render.add_findings(images[-1], variant, case.anatomy)
    if case.kind == "window":
        chain, views, window = bone_window_call(), [(0, 0, SIDE, SIDE)], BONE_WINDOW
        differ = [_rect(scene.spine)]
    else:
        at = [zoom_box(o.x * UNITS_PER_PX, o.y * UNITS_PER_PX) for o in scene.lesions]
        chain, window = zoom_call(*at), DEFAULT_WINDOW
        views = [tuple(v / UNITS_PER_PX for v in box) for box in at]
        starts = [window_start(o) for o in scene.lesions]
        differ = [(x, y, x + WINDOW, y + WINDOW) for y, x in starts]
    bounds = {
        # Texture is left out of the smallest power, which only lowers it.
        "dprime_overview": certificate.overview_dprime(images, differ, CT_OVERVIEW, DEFAULT_WINDOW, render.WHITE_SD**2),
        "dprime_tool": certificate.tool_dprime(images, views, CT_OVERVIEW, window, render.largest_noise_power()),
    }
    return Proof(clean, (chain,), bounds)


def _rect(blob: Blob) -> tuple[float, float, float, float]:
    reach = max(blob.rx, blob.ry) + 2 * blob.edge
    return blob.x - reach, blob.y - reach, blob.x + reach, blob.y + reach
