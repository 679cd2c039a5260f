"""Frontal chest radiographs: attenuation summed along the beam, 12 bits, dense is bright. Image left is the patient's right."""

import dataclasses
import functools
import math

import numpy as np

from mvg_jax.data.phantom.atlas import canvas, details
from mvg_jax.data.phantom.atlas.canvas import blob, box
from mvg_jax.data.phantom.atlas.details import Detail
from mvg_jax.data.phantom.atlas.family import Asked, Family, Film, apart, measured, pick
from mvg_jax.data.phantom.scene import Blob
from mvg_jax.data.phantom.views import Overview
from mvg_jax.data.task import AnswerType, Box

SPACING_MM = 0.7
FILM = Film(top=4095, window=(0.0, 4095.0), white_sd=26.0, texture_sd=26.0, unit="grey")
RAW = 2750.0  # raw values a unit of attenuation
SIDES = {"left": -1, "right": 1}
PLACES = {
    "upper left": ("right upper lung", "left"),
    "lower left": ("right lower lung", "left"),
    "upper right": ("left upper lung", "right"),
    "lower right": ("left lower lung", "right"),
}
MARGINS = ("smooth", "spiculated", "calcified", "cavitary")


@dataclasses.dataclass(frozen=True)
class Patient:
    """x: of the midline. width, height: of the chest. heart: its width over the chest's. effusion, air: side of a pleural
    effusion and of a pneumothorax. mass: a large opacity. ribs: offsets of the ten pairs."""

    x: float
    y: float
    width: float
    height: float
    heart: float
    ribs: tuple[float, ...]
    lungs: tuple[tuple, tuple]
    dome: float
    seed: int
    effusion: str = ""
    air: str = ""
    mass: Blob | None = None

    @property
    def half(self) -> float:
        """Half of the inner width of the chest, units."""
        return 163.0 * self.width


def sample(rng: np.random.Generator, shifted: bool) -> Patient:
    return Patient(
        x=256 + rng.uniform(-8, 8),
        y=rng.uniform(-8, 8),
        width=rng.uniform(0.84, 0.9) if shifted else rng.uniform(0.94, 1.06),
        height=rng.uniform(0.94, 1.04),
        heart=rng.uniform(0.4, 0.47),
        ribs=tuple(rng.uniform(-3, 3, 10)),
        lungs=(canvas.bends(rng, 0.035), canvas.bends(rng, 0.035)),
        dome=rng.uniform(-8, 8),
        seed=int(rng.integers(2**31)),
    )


def lung(patient: Patient, side: str) -> Blob:
    s = SIDES[side]
    x = patient.x + s * 90 * patient.width
    return blob(x, 226 + patient.y, 79 * patient.width, 162 * patient.height, -0.07 * s, patient.lungs[s > 0], edge=5)


def domes(patient: Patient) -> list[Blob]:
    """The diaphragm; the liver's side stands higher."""
    return [
        blob(
            patient.x + s * 88 * patient.width,
            442 + patient.y + patient.dome * s + 6 * s,
            100 * patient.width,
            92,
            edge=4,
        )
        for s in (-1, 1)
    ]


def heart(patient: Patient) -> Blob:
    width = patient.heart * 2 * patient.half
    return blob(
        patient.x + 0.13 * width, 322 + patient.y, 0.5 * width, 0.45 * width + 12, 0.45, ((3, 0.05, 0.6),), edge=9
    )


def _ribs(a: np.ndarray, patient: Patient) -> None:
    """Posterior ribs slope down and out, anterior ones come back down and in; both are brighter at their rims."""
    side = a.shape[0]
    xs, _ = canvas.grid(side)
    u = np.abs(xs[0] - patient.x) / patient.half
    k = side / canvas.UNITS
    for i, shift in enumerate(patient.ribs):
        top = 66 + 33 * i * patient.height + patient.y + shift
        reach = min(1.0, 0.66 + 0.075 * i)  # the chest is a dome: upper ribs are shorter
        v = u / reach
        back = top - 16 * v + 44 * v**3
        front = top + 44 + (44 + 5 * i) * np.sqrt(np.maximum(1.0 - v, 0)) * 1.35
        for centre, low, high, half_width, strength in ((back, 0.1, 1.0, 6.2, 0.15), (front, 0.34, 1.0, 7.0, 0.075)):
            if i > 6 and centre is front:
                continue
            on = np.clip((v - low) / 0.05, 0, 1) * np.clip((high - v) / 0.02, 0, 1)
            cols = np.flatnonzero(on > 0)
            slope = np.gradient(centre[cols]) * k
            stretch = np.sqrt(1 + np.minimum(slope * slope, 30.0))
            y0 = max(0, int((centre[cols].min() - 40) * k))
            y1 = min(side, int((centre[cols].max() + 40) * k))
            rows = (np.arange(y0, y1, dtype=np.float32)[:, None] + 0.5) / k
            t = np.abs(rows - centre[cols].astype(np.float32)) / (stretch * half_width).astype(np.float32)
            body = np.clip((1 - t) * (half_width * k / 1.6), 0, 1)
            body *= 0.62 + 0.38 * t * t
            a[y0:y1, cols[0] : cols[-1] + 1] += _columns(body * (on[cols] * strength).astype(np.float32), cols)


def _columns(part: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Columns at `cols`, zeros in the gaps between."""
    out = np.zeros((part.shape[0], cols[-1] - cols[0] + 1), np.float32)
    out[:, cols - cols[0]] = part
    return out


def _add(a: np.ndarray, shape: Blob, value: float, soft: float, exponent: float = 0.5) -> None:
    """A body of `value` attenuation in its middle, rounded off towards its outline over `soft` units."""
    region, d = canvas.depth(shape, a.shape[0])
    a[region] += np.float32(value) * np.clip(d / soft, 0, 1) ** np.float32(exponent)


@functools.lru_cache(maxsize=2)
def _beam(side: int) -> np.ndarray:
    """Slow differences of the soft tissue over the field."""
    x, y = canvas.grid(side)
    return (0.05 * np.cos((x - 256) / 110) * np.cos((y - 260) / 180)).astype(np.float32)


def paint(patient: Patient, side: int) -> np.ndarray:
    rng = np.random.default_rng((patient.seed, 0))
    x, y = canvas.grid(side)
    px, py, w = patient.x, patient.y, patient.width
    torso = [
        blob(px, 400 + py, 236 * w, 420, bends=((4, 0.05, 0.0),), edge=6),
        blob(px - 176 * w, 168 + py, 120 * w, 96, -0.5, edge=6),
        blob(px + 176 * w, 168 + py, 120 * w, 96, 0.5, edge=6),
        blob(px, 40 + py, 56, 130, edge=6),
    ]
    thick = np.zeros((side, side), np.float32)
    for shape in torso:
        region, d = canvas.depth(shape, side)
        np.maximum(thick[region], np.sqrt(np.clip(d / 70, 0, 1)), out=thick[region])
    a = (0.62 + _beam(side)) * thick
    # Lungs: air where neither diaphragm, fluid nor a mass is; a pneumothorax is air without vessels.
    air, vessels = np.zeros((side, side), np.float32), np.zeros((side, side), np.float32)
    below = np.maximum(canvas.mask(domes(patient), side), np.clip((y - 432 - py) / 14, 0, 1))
    for name, s in SIDES.items():
        region, d = canvas.depth(lung(patient, name), side)
        full = np.clip(d / 30, 0, 1) ** np.float32(0.45)
        marked = np.clip(d / 10, 0, 1)
        ys, xs = np.broadcast_to(y, a.shape)[region], np.broadcast_to(x, a.shape)[region]
        out = np.abs(xs - px) / patient.half
        if patient.effusion == name:
            fluid = np.clip((ys - (352 + py - 95 * np.clip(out - 0.45, 0, 1))) / 10, 0, 1)
            full, marked = full * (1 - 0.93 * fluid), marked * (1 - fluid)
        if patient.air == name:
            apex = np.hypot((xs - px - s * 70 * w) / (80 * w), (ys - 262 - py) / 150)
            free = np.clip((apex - 0.80) * 40, 0, 1)
            a[region] += 0.11 * np.exp(-(((apex - 0.80) * 60) ** 2)) * (d > 0)
            full, marked = full * (1 + 0.22 * free), marked * (1 - free)
        np.maximum(air[region], full, out=air[region])
        np.maximum(vessels[region], marked, out=vessels[region])
        tree = [
            canvas.branches(
                rng, side, px + s * 40 * w, 226 + py + rng.uniform(-25, 30), t if s > 0 else math.pi - t, rng.uniform(2.6, 4.2),
                length=rng.uniform(105, 150), turn=rng.uniform(-0.002, 0.002), split=0.035, taper=0.988, least=0.6, most=16,
            )
            for t in np.linspace(-1.25, 1.25, 7) + rng.uniform(-0.15, 0.15, 7)
        ]  # fmt: skip
        lines = np.zeros((side, side), np.float32)
        points = np.concatenate(tree)
        canvas.stamp(lines, points[:, 0], points[:, 1], points[:, 2])
        lines *= np.float32(0.085)
        a += lines * _within(vessels, region)
        _add(a, blob(px + s * 44 * w, 232 + py, 17, 30, 0.3 * s), 0.1, 12)
    a -= 0.49 * air * (1 - below)
    a += 0.13 * below * np.clip(thick * 1.6 - 0.6, 0, 1)
    # Mediastinum, spine, trachea, great vessels, heart.
    body = np.clip((np.abs(y - 250 - py) - 260) / -30, 0, 1)
    cx = x - px
    a += (0.15 * np.clip((30 - np.abs(cx)) / 9 + 0.5, 0, 1) * body * np.clip((y - 80) / 40, 0, 1)).astype(np.float32)
    level = np.abs(np.sin((y - py) * (math.pi / 23)))
    a += (np.clip((17 - np.abs(cx)) / 3 + 0.5, 0, 1) * (0.06 + 0.05 * level) * body).astype(np.float32)
    a -= (0.13 * np.clip((8 - np.abs(cx)) / 3 + 0.5, 0, 1) * np.clip((178 + py - y) / 20, 0, 1)).astype(np.float32)
    _add(a, blob(px + 24, 166 + py, 20, 20), 0.14, 12)
    region, d = canvas.depth(heart(patient), side)
    a[region] += 0.36 * np.sqrt(np.clip(d / 30, 0, 1)) * (1 - 0.75 * below[region])
    _add(a, blob(px + 84 * w, 416 + py, 26, 15, 0.1), -0.2, 8)
    _ribs(a, patient)
    for s in (-1, 1):
        v = (s * cx[0] - 16) / (150 * w)
        on = np.clip(v / 0.06, 0, 1) * np.clip((1.05 - v) / 0.06, 0, 1)
        centre = (106 - 34 * v - 8 * np.sin(v * 5) + py)[None, :]
        t = np.abs(y - centre) / 6.5
        a += (np.clip((1 - t) * 4, 0, 1) * (0.5 + 0.5 * t * t) * on * 0.17).astype(np.float32)
        _add(a, blob(px + s * 190 * w, 190 + py, 28, 88, 0.25 * s), 0.09, 5)
        _add(a, blob(px + s * 216 * w, 108 + py, 26, 26), 0.2, 14)
    if patient.mass is not None:
        _add(a, patient.mass, 0.42, 9)
    soft = canvas.take(rng, canvas.bank(side, 90.0, 3.0, 3.0, 21))
    a += 0.012 * soft * thick
    return np.clip(300 + RAW * a, 0, FILM.top)[None].astype(np.float32)


def _within(field: np.ndarray, region) -> np.ndarray:
    """The field inside a region, zero elsewhere: what belongs to one lung stays in it."""
    out = np.zeros_like(field)
    out[region] = field[region]
    return out


def site(rng: np.random.Generator, patient: Patient, place: str) -> tuple[float, float]:
    upper, s = place.startswith("upper"), SIDES[PLACES[place][1]]
    x = patient.x + s * rng.uniform(82, 112) * patient.width
    return x, patient.y + (rng.uniform(140, 200) if upper else rng.uniform(262, 318))


def base(planes: np.ndarray, detail: Detail, overview: Overview) -> None:
    reach = detail.reach(overview)
    shape = blob(detail.x, detail.y, reach, edge=0.25 * reach)
    region, cover = canvas.cover(shape, overview.side)
    if detail.group == "marker":
        plate = blob(detail.x, detail.y, 2.1 * reach, bends=((4, 0.06, 0.0),), edge=1.5)
        canvas.paint(planes, plate, 900.0)
    else:
        planes[0][region] += np.float32(430) * cover


def ink(detail: Detail, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    d, r = detail, detail.radius
    match d.pattern:
        case "R" | "L":
            drawn = 2000 * details.letter(y, x, d.pattern)
        case "smooth":
            drawn = 150 * details.disc(y, x, r - 1, 3.0)
        case "spiculated":
            drawn = 650 * details.spikes(y, x, d.angle, 9, 0.45 * r, 1.75 * r, 1.3)
        case "calcified":
            drawn = 900 * details.spots(dataclasses.replace(d, radius=0.55 * r), y, x, 3, 2.1)
        case "cavitary":
            drawn = 520 * details.ring(y, x, r - 2.2, 1.7) - 250 * details.disc(y, x, r - 5, 2.5)
        case count:
            drawn = 950 * details.spots(d, y, x, int(count), 1.9)
    return drawn[None]


def always(rng: np.random.Generator, patient: Patient) -> tuple[Detail, ...]:
    """The side marker, on a plate beside the neck. Its letter says nothing about the side it lies on."""
    s = rng.choice((-1, 1))
    x, y = 256 + s * rng.uniform(200, 210), rng.uniform(44, 52)
    return (Detail("marker", pick(rng, ("R", "L")), x, y, 12.0, 0.0, (0.0,) * 6, "marker"),)


def control(rng: np.random.Generator, kind: str, patient: Patient) -> Asked:
    question = pick(rng, CONTROLS[kind])
    change = dataclasses.replace
    some = pick(rng, tuple(SIDES))

    def chest(name: str) -> tuple[Box, ...]:
        return (Box("lung", box(lung(patient, name))),)

    match kind:
        case "presence" if "heart" in question:
            wide = change(patient, heart=rng.uniform(0.58, 0.64))
            variants = {
                "yes": (wide, (Box("heart", box(heart(wide))),)),
                "no": (patient, (Box("heart", box(heart(patient))),)),
            }
            return Asked(question, AnswerType.YES_NO, ("yes", "no"), variants)
        case "presence":
            field = "effusion" if "effusion" in question else "air"
            variants = {"yes": (change(patient, **{field: some}), chest(some)), "no": (patient, chest(some))}
            return Asked(question, AnswerType.YES_NO, ("yes", "no"), variants)
        case "abnormality":
            x, y = site(rng, patient, pick(rng, tuple(PLACES)))
            variants = {
                "pleural effusion": (change(patient, effusion=some), chest(some)),
                "pneumothorax": (change(patient, air=some), chest(some)),
                "enlarged heart": (
                    change(patient, heart=rng.uniform(0.58, 0.64)),
                    (Box("heart", box(heart(patient))),),
                ),
                "mass": (change(patient, mass=_mass(rng, x, y, rng.uniform(30, 42))), chest(some)),
            }
            return Asked(question, AnswerType.CLOSED, tuple(variants), variants)
        case "effusion side":
            variants = {name: (change(patient, effusion=name), chest(name)) for name in SIDES}
            return Asked(question, AnswerType.CLOSED, tuple(SIDES), variants)
        case "size":
            x, y = site(rng, patient, pick(rng, tuple(PLACES)))
            outline = int(rng.integers(2**31))
            variants = {}
            for radius in apart(rng, 24, 52):
                mass = _mass(np.random.default_rng(outline), x, y, radius)
                variants[measured(2 * radius * SPACING_MM, "mm")] = (
                    change(patient, mass=mass),
                    (Box("mass", box(mass)),),
                )
            return Asked(question, AnswerType.NUMBER, (), variants, 0.1)
        case "locate":
            variants = {}
            for place in rng.permutation(tuple(PLACES))[:2]:
                mass = _mass(rng, *site(rng, patient, str(place)), rng.uniform(32, 46))
                corners = [round(v) for v in box(mass)]
                variants[str(corners)] = (change(patient, mass=mass), (Box("mass", box(mass)),))
            return Asked(question, AnswerType.BOX, (), variants)
    raise ValueError(kind)


def _mass(rng: np.random.Generator, x: float, y: float, radius: float) -> Blob:
    return blob(x, y, radius, edge=4)


CONTROLS = {
    "presence": ("Is there a pleural effusion?", "Is there a pneumothorax?", "Is the heart enlarged?"),
    "abnormality": ("What abnormality does the radiograph show?",),
    "effusion side": ("On which side of the image is the pleural effusion?",),
    "size": (f"The image is {round(512 * SPACING_MM)} mm wide. What is the diameter of the mass in mm?",),
    "locate": ("Where is the mass? Answer with its box.",),
}

FAMILY = Family(
    name="radiograph",
    modality="X-ray",
    accepted=("radiograph", "plain film"),
    film=FILM,
    spacing_mm=SPACING_MM,
    noun="nodule",
    groups={"attribute": MARGINS, "count": ("1", "2", "3", "4"), "marker": ("R", "L")},
    wordings={
        "attribute": ("What kind of nodule is it?", "What does the nodule look like in detail?"),
        "count": ("How many calcified specks are in the nodule?",),
        "marker": ("Which letter is on the side marker?",),
        "compare": ("Which nodule is {target}, left or right in the image?",),
        "side": ("On which side of the image is the nodule?",),
        "organ": ("Where is the nodule?",),
    },
    targets=MARGINS,
    places=PLACES,
    shares={
        "attribute": 0.27,
        "count": 0.20,
        "marker": 0.12,
        "compare": 0.20,
        "side": 0.03,
        "organ": 0.03,
        "presence": 0.04,
        "abnormality": 0.03,
        "effusion side": 0.02,
        "size": 0.03,
        "locate": 0.03,
    },
    control_wordings=CONTROLS,
    sample=sample,
    paint=paint,
    site=site,
    base=base,
    ink=ink,
    control=control,
    always=always,
)
