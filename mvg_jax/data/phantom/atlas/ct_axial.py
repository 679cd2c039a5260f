"""CT-like axial abdomens for the atlas: the patients of `mvg_jax.data.phantom.scene`, of any size. Planes hold HU + 1024."""

import dataclasses
import math

import numpy as np

from mvg_jax.data.phantom import render, scene
from mvg_jax.data.phantom.atlas import canvas, details
from mvg_jax.data.phantom.atlas.canvas import UNITS, blob, box
from mvg_jax.data.phantom.atlas.details import Detail
from mvg_jax.data.phantom.atlas.family import Asked, Family, Film, apart, measured, pick
from mvg_jax.data.phantom.scene import Anatomy, Blob
from mvg_jax.data.phantom.views import DEFAULT_WINDOW, Overview
from mvg_jax.data.task import AnswerType, Box

SPACING_MM = 0.7
WINDOW = tuple(v - render.INTERCEPT for v in DEFAULT_WINDOW)
FILM = Film(
    top=4095,
    window=WINDOW,
    white_sd=render.WHITE_SD,
    texture_sd=render.TEXTURE_SD,
    unit="HU",
    intercept=render.INTERCEPT,
)
PLACES = {organ: (organ, scene.IMAGE_SIDE[organ]) for organ in scene.ORGANS}
PATTERNS = ("homogeneous", "rim-enhancing", "calcified", "septated")
SMALLER = 0.84  # patients out of distribution lie in a larger field of view


@dataclasses.dataclass(frozen=True)
class Patient:
    """size: over that of the anatomy. cyst: a large one, in units of the image."""

    anatomy: Anatomy
    size: float
    seed: int
    cyst: Blob | None = None

    def __call__(self, shape: Blob) -> Blob:
        """A shape of the anatomy in the image."""
        at = {name: UNITS / 2 + self.size * (getattr(shape, name) - UNITS / 2) for name in ("x", "y")}
        bottom = shape.bottom if shape.bottom == math.inf else UNITS / 2 + self.size * (shape.bottom - UNITS / 2)
        return dataclasses.replace(shape, **at, rx=self.size * shape.rx, ry=self.size * shape.ry, bottom=bottom)


def sample(rng: np.random.Generator, shifted: bool) -> Patient:
    return Patient(scene.sample_anatomy(rng), SMALLER if shifted else 1.0, int(rng.integers(2**31)))


def paint(patient: Patient, side: int) -> np.ndarray:
    rng = np.random.default_rng((patient.seed, 0))
    planes = np.full((1, side, side), render.AIR - render.INTERCEPT, np.float32)
    x, y = canvas.grid(side)
    table = UNITS / 2 + patient.size * (patient.anatomy.table_y - UNITS / 2)
    below = y - (table - (x - UNITS / 2) ** 2 * 0.00042)
    for low, high, value in ((0, 20, -930.0), (0, 2, -60.0), (18, 20, -90.0)):
        canvas.blend(planes, np.clip(np.minimum(below - low, high - below) + 0.5, 0, 1), value - render.INTERCEPT)
    _layers(planes, patient(patient.anatomy.body))
    # Mesenteric vessels and septa: thin bright lines where a smooth field crosses zero.
    lines = canvas.take(rng, canvas.lines(side, 70.0, 5.0, 2.0, 61, 0.16))
    lines *= 110 * np.clip(0.5 + 0.5 * canvas.take(rng, canvas.bank(side, 70.0, 8.0, 3.0, 62)), 0, 1.2)
    region, inside = canvas.cover(patient(patient.anatomy.body), side, inset=patient.anatomy.body.layers[-1].inset)
    planes[0][region] += inside * lines[region]
    for organ in patient.anatomy.organs:
        _layers(planes, patient(organ))
    if patient.cyst is not None:
        canvas.paint(planes, patient.cyst, 5 - render.INTERCEPT)
    return planes


def _layers(planes: np.ndarray, shape: Blob) -> None:
    """Blends a shape's layers in, one inside the other."""
    side = planes.shape[1]
    region, d = canvas.depth(shape, side)
    for layer in shape.layers:
        alpha = render.cover(d, layer.inset, max(shape.edge, canvas.SHARPEST * UNITS / side))
        canvas.blend(planes, alpha, layer.hu - render.INTERCEPT, region)


def site(rng: np.random.Generator, patient: Patient, place: str) -> tuple[float, float]:
    x, y, rx, ry = scene.ZONES[place]
    t, r = rng.uniform(0, 2 * math.pi), math.sqrt(rng.uniform())
    at = patient.anatomy.pose(x + rx * r * math.cos(t), y + ry * r * math.sin(t))
    shape = patient(blob(*at, 1))
    return shape.x, shape.y


def base(planes: np.ndarray, detail: Detail, overview: Overview) -> None:
    reach = detail.reach(overview)
    canvas.paint(planes, blob(detail.x, detail.y, reach, edge=0.25 * reach), 15 - render.INTERCEPT)


def ink(detail: Detail, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    d, r = detail, detail.radius
    match d.pattern:
        case "homogeneous":
            drawn = 30 * details.disc(y, x, r - 2, 3.0)
        case "rim-enhancing":
            drawn = 140 * details.ring(y, x, r - 2.0, 1.8)
        case "septated":
            drawn = 130 * details.disc(y, x, r, 3.0) * details.stripes(y, x, d.angle, 9.0, 1.7, d.wobble[0])
        case "calcified":
            near = (3.5 * math.sin(d.angle), 3.5 * math.cos(d.angle))
            drawn = 190 * np.maximum(details.spot(y, x, 0.0, 0.0, 2.7), 0.8 * details.spot(y, x, *near, 2.2))
        case count:
            drawn = 180 * details.spots(d, y, x, int(count), 2.2)
    return drawn[None]


def control(rng: np.random.Generator, kind: str, patient: Patient) -> Asked:
    question = pick(rng, CONTROLS[kind])
    change = dataclasses.replace
    at = patient(blob(*patient.anatomy.pose(-104 + rng.uniform(-8, 8), -34 + rng.uniform(-8, 8)), 1))
    match kind:
        case "presence":
            cyst = blob(at.x, at.y, rng.uniform(30, 37), rng.uniform(28, 35), rng.uniform(0, 3.14))
            variants = {"yes": (change(patient, cyst=cyst), (Box("cyst", box(cyst)),)), "no": (patient, ())}
            return Asked(question, AnswerType.YES_NO, ("yes", "no"), variants)
        case "size":
            variants = {}
            for radius in apart(rng, 18, 46):
                cyst = blob(at.x, at.y, radius)
                variants[measured(2 * radius * SPACING_MM, "mm")] = (
                    change(patient, cyst=cyst),
                    (Box("cyst", box(cyst)),),
                )
            return Asked(question, AnswerType.NUMBER, (), variants, 0.1)
    raise ValueError(kind)


CONTROLS = {
    "presence": ("Is there a large cyst in the liver?",),
    "size": (f"The image is {round(UNITS * SPACING_MM)} mm wide. What is the diameter of the cyst in mm?",),
}

FAMILY = Family(
    name="ct_axial",
    modality="CT",
    accepted=("computed tomography",),
    film=FILM,
    spacing_mm=SPACING_MM,
    noun="lesion",
    groups={"attribute": PATTERNS, "count": ("1", "2", "3", "4")},
    wordings={
        "attribute": ("What is the structure of the lesion?", "What is the internal structure of the lesion?"),
        "count": ("How many specks are in the lesion?",),
        "compare": ("Which lesion is {target}, left or right in the image?",),
        "side": ("On which side of the image is the lesion?",),
        "organ": ("Which organ holds the lesion?",),
    },
    targets=PATTERNS,
    places=PLACES,
    shares={
        "attribute": 0.31,
        "count": 0.24,
        "compare": 0.24,
        "side": 0.05,
        "organ": 0.06,
        "presence": 0.05,
        "size": 0.05,
    },
    control_wordings=CONTROLS,
    sample=sample,
    paint=paint,
    site=site,
    base=base,
    ink=ink,
    control=control,
)
