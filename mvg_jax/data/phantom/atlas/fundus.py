"""Colour photographs of the fundus: disc, cup, fovea, vessel trees, spots. In a right eye the disc lies on the right."""

import dataclasses
import math

import numpy as np

from mvg_jax.data.phantom.atlas import canvas, details
from mvg_jax.data.phantom.atlas.canvas import blob, box
from mvg_jax.data.phantom.atlas.details import Detail
from mvg_jax.data.phantom.atlas.family import Asked, Family, Film, apart, pick
from mvg_jax.data.phantom.scene import Blob
from mvg_jax.data.phantom.views import Overview
from mvg_jax.data.task import AnswerType, Box

FILM = Film(top=255, window=(0.0, 255.0), white_sd=3.0, texture_sd=2.5, unit="grey", rgb=True)
RED = (-40, -92, -56)
PLACES = {
    "upper left": ("upper half", "left"),
    "upper right": ("upper half", "right"),
    "lower left": ("lower half", "left"),
    "lower right": ("lower half", "right"),
}
PATTERNS = ("dotted", "flame-shaped", "ring-shaped", "uniform")
COLOURS = {"red": (-14, -84, -48), "yellow": (16, 52, -30), "white": (16, 52, 84)}


@dataclasses.dataclass(frozen=True)
class Patient:
    """eye: `left` or `right`. cup: the cup's diameter over the disc's. spot: a large spot and its colour; exudates: how many."""

    eye: str
    y: float
    tone: tuple[float, float, float]
    disc: float
    cup: float
    seed: int
    spot: Blob | None = None
    spot_colour: tuple[float, float, float] = (0.0, 0.0, 0.0)
    exudates: int = 0

    @property
    def nasal(self) -> int:
        """Side of the disc: 1 = on the right."""
        return 1 if self.eye == "right" else -1

    @property
    def disc_at(self) -> tuple[float, float]:
        return 256 + self.nasal * 112.0, 250 + self.y

    @property
    def fovea(self) -> tuple[float, float]:
        return 256 - self.nasal * 36.0, 266 + self.y


def sample(rng: np.random.Generator, shifted: bool) -> Patient:
    tone = (150, 92, 60) if shifted else (196, 96, 48)
    return Patient(
        eye=pick(rng, ("left", "right")),
        y=rng.uniform(-10, 10),
        tone=tuple(float(c) for c in np.array(tone) * rng.uniform(0.92, 1.08, 3)),
        disc=rng.uniform(34, 39),
        cup=rng.uniform(0.3, 0.5),
        seed=int(rng.integers(2**31)),
    )


def cup(patient: Patient) -> Blob:
    x, y = patient.disc_at
    return blob(x - 2 * patient.nasal, y, patient.disc * patient.cup * 0.94, patient.disc * patient.cup, edge=4)


def disc(patient: Patient) -> Blob:
    return blob(*patient.disc_at, 0.92 * patient.disc, patient.disc, edge=3)


def paint(patient: Patient, side: int) -> np.ndarray:
    p = patient
    rng = np.random.default_rng((p.seed, 0))
    x, y = canvas.grid(side)
    field = np.hypot(x - 256, y - 256)
    choroid = canvas.take(rng, canvas.bank(side, 70.0, 2.2, 2.6, 41))
    # Choroidal vessels shine through as a faint orange net.
    net = canvas.take(rng, canvas.lines(side, 40.0, 3.6, 1.5, 42, 0.3))
    fx, fy = p.fovea
    far2 = (x - fx) ** 2 + (y - fy) ** 2
    macula = np.exp(-far2 / (2 * 52.0**2)) * 0.20 + np.exp(-far2 / (2 * 15.0**2)) * 0.22
    light = 1.04 - 0.34 * (field / 240) ** 2 + 0.05 * (x - 256) / 256 * p.nasal - macula
    planes = np.empty((3, side, side), np.float32)
    for plane, tone, rough, web in zip(planes, p.tone, (5.0, 4.0, 2.0), (3.0, 8.0, 3.0), strict=True):
        plane[...] = tone * light + rough * choroid + web * net
    _disc(planes, p)
    _vessels(planes, p, rng)
    if p.exudates:
        _exudates(planes, p, rng)
    if p.spot is not None:
        rough = canvas.take(rng, canvas.bank(side, 12.0, 1.5, 2.0, 43))
        region, d = canvas.depth(p.spot, side)
        canvas.blend(planes, np.clip((d + 2.5 * rough[region]) / 5 + 0.5, 0, 1) * 0.85, p.spot_colour, region)
    rim = np.clip((240 - field) / 3, 0, 1) * np.clip((236 - np.abs(y - 256)) / 2, 0, 1)
    planes *= rim
    planes += 5.0
    return np.clip(planes, 0, 255, out=planes)


def _disc(planes, p):
    x, y = p.disc_at
    canvas.paint(planes, blob(x, y, p.disc + 9, edge=22), (206, 118, 62), 0.4)
    canvas.paint(planes, disc(p), (216, 134, 78), 0.95)
    canvas.paint(planes, cup(p), (252, 230, 178), 0.95)


def _vessels(planes, p, rng):
    """Arteries and veins leave the disc up and down, arch around the fovea, and branch; veins are wider and darker."""
    side = planes.shape[1]
    x, y = p.disc_at
    trees = {"vein": [], "artery": []}
    for kind, width in (("vein", 4.6), ("artery", 3.4)):
        for up in (-1, 1):
            shift = 0.18 if kind == "artery" else -0.05
            for reach, angle, turn, scale in ((330, 1.12 + shift, 0.0066, 1.0), (190, 2.2 - shift, -0.003, 0.62)):
                # The angle is measured from the temporal direction, which is away from the disc's side.
                t = angle + rng.uniform(-0.1, 0.1)
                start = math.atan2(up * math.sin(t), -p.nasal * math.cos(t))
                sign = _towards_temporal(up, p.nasal)
                trees[kind].append(
                    canvas.branches(
                        rng, side, x - 3 * p.nasal, y + up * 3, start, width * scale, length=reach, turn=turn * sign,
                        split=0.026, taper=0.9972, least=0.75, most=26, wander=0.035,
                    )
                )  # fmt: skip
    for kind, colour, alpha in (("artery", (172, 52, 34), 0.72), ("vein", (118, 26, 22), 0.78)):
        lines = np.zeros((side, side), np.float32)
        points = np.concatenate(trees[kind])
        canvas.stamp(lines, points[:, 0], points[:, 1], points[:, 2] * 0.5 + 0.25)
        canvas.blend(planes, lines * np.float32(alpha), colour)
        if kind == "artery":  # the light reflex
            thin = np.zeros((side, side), np.float32)
            wide = points[points[:, 2] > 1.8]
            canvas.stamp(thin, wide[:, 0], wide[:, 1], wide[:, 2] * 0.14, 0.35)
            canvas.blend(planes, thin, (226, 120, 84))


def _towards_temporal(up: int, nasal: int) -> int:
    """Sign of the turn (y down) that bends a vessel which runs up (-1) or down (1) towards the temporal side."""
    return up * nasal


def _exudates(planes, p, rng):
    """Hard exudates: small yellow clumps in an arc about the fovea."""
    side = planes.shape[1]
    fx, fy = p.fovea
    t = rng.uniform(0, 6.28) + rng.normal(0, 0.55, p.exudates)
    r = rng.uniform(52, 86) + rng.normal(0, 9, p.exudates)
    out = np.zeros((side, side), np.float32)
    canvas.stamp(out, fx + r * np.cos(t), fy + r * np.sin(t), rng.uniform(1.6, 5.0, p.exudates))
    canvas.blend(planes, out * 0.9, (240, 206, 112))


def site(rng: np.random.Generator, patient: Patient, place: str) -> tuple[float, float]:
    half, name = PLACES[place]
    s, up = (-1 if name == "left" else 1), (-1 if half == "upper half" else 1)
    angle = rng.uniform(0.72, 1.0)
    r = rng.uniform(138, 168)
    return 256 + s * r * math.cos(angle), 256 + up * r * math.sin(angle)


def base(planes: np.ndarray, detail: Detail, overview: Overview) -> None:
    reach = detail.reach(overview)
    canvas.paint(planes, blob(detail.x, detail.y, reach, edge=0.5 * reach), (212, 150, 98), 0.85)


def ink(detail: Detail, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    d, r = detail, detail.radius
    colour = RED
    inside = details.disc(y, x, r, 3.0)
    match d.pattern:
        case "dotted":
            seven = dataclasses.replace(d, wobble=d.wobble + d.wobble)
            amplitude = np.maximum(details.spots(seven, y, x, 6, 1.7, 0.66), details.spot(y, x, 0, 0, 1.7))
        case "flame-shaped":
            amplitude = inside * details.stripes(y, x, d.angle, 5.6, 1.25, d.wobble[0], (-2, -1, 0, 1, 2))
        case "ring-shaped":
            amplitude = details.ring(y, x, r - 3.0, 1.8)
        case "uniform":
            amplitude = 0.4 * inside
        case "red" | "yellow" | "white":
            colour = COLOURS[d.pattern]
            # Clear lines between the grains carry the opposite, so that the colour is not that of the whole spot.
            grains = details.spots(dataclasses.replace(d, wobble=d.wobble + d.wobble), y, x, 5, 2.2, 0.58)
            amplitude = 1.15 * np.maximum(grains, details.spot(y, x, 0, 0, 2.0))
        case count:
            amplitude = 1.3 * details.spots(d, y, x, int(count), 2.3)
    return np.stack([c * amplitude for c in colour])


def control(rng: np.random.Generator, kind: str, patient: Patient) -> Asked:
    question = pick(rng, CONTROLS[kind])
    change = dataclasses.replace
    at = site(rng, patient, pick(rng, tuple(PLACES)))
    spot = blob(*at, rng.uniform(26, 36), bends=canvas.bends(rng, 0.12))
    spotted = (Box("spot", box(spot)),)
    red, yellow, white = (96.0, 18.0, 18.0), (242.0, 208.0, 104.0), (246.0, 236.0, 214.0)
    match kind:
        case "eye":
            variants = {}
            for eye in ("left", "right"):
                seen = change(patient, eye=eye)
                variants[eye] = (seen, (Box("optic disc", box(disc(seen))),))
            return Asked(question, AnswerType.CLOSED, ("left", "right"), variants)
        case "presence" if "exudates" in question:
            x, y = patient.fovea
            where = (Box("macula", box(blob(x, y, 92))),)
            variants = {"yes": (change(patient, exudates=int(rng.integers(22, 34))), where), "no": (patient, where)}
            return Asked(question, AnswerType.YES_NO, ("yes", "no"), variants)
        case "presence":
            variants = {"yes": (change(patient, spot=spot, spot_colour=red), spotted), "no": (patient, ())}
            return Asked(question, AnswerType.YES_NO, ("yes", "no"), variants)
        case "structure":
            variants = {}
            for name, (x, y) in (("optic disc", patient.disc_at), ("macula", patient.fovea), ("periphery", at)):
                shape = dataclasses.replace(spot, x=float(x), y=float(y), rx=spot.rx, ry=spot.ry)
                variants[name] = (change(patient, spot=shape, spot_colour=red), (Box("haemorrhage", box(shape)),))
            return Asked(question, AnswerType.CLOSED, tuple(variants), variants)
        case "spot colour":
            tones = {"red": red, "yellow": yellow, "white": white}
            variants = {name: (change(patient, spot=spot, spot_colour=tone), spotted) for name, tone in tones.items()}
            return Asked(question, AnswerType.CLOSED, tuple(variants), variants)
        case "size":
            variants = {}
            for ratio in apart(rng, 0.3, 0.85):
                seen = change(patient, cup=round(ratio, 2))
                variants[f"{round(ratio, 2):.2f}"] = (seen, (Box("optic disc", box(disc(seen))),))
            return Asked(question, AnswerType.NUMBER, (), variants, 0.1)
    raise ValueError(kind)


CONTROLS = {
    "eye": ("Is this a left or a right eye?", "Which eye is it?"),
    "presence": ("Are there hard exudates?", "Is there a large haemorrhage?"),
    "structure": ("Where does the large haemorrhage lie?",),
    "spot colour": ("What colour is the large spot?",),
    "size": ("What is the vertical cup-to-disc ratio?",),
}

FAMILY = Family(
    name="fundus",
    modality="Fundus photography",
    accepted=("fundus photograph", "retinal photograph"),
    film=FILM,
    spacing_mm=None,
    noun="lesion",
    groups={"attribute": PATTERNS, "count": ("1", "2", "3", "4"), "colour": tuple(COLOURS)},
    wordings={
        "attribute": ("What does the lesion look like in detail?", "What is the pattern of the lesion?"),
        "count": ("How many microaneurysms are in the lesion?",),
        "colour": ("What colour are the grains in the lesion?",),
        "compare": ("Which lesion is {target}, left or right in the image?",),
        "side": ("On which side of the image is the lesion?",),
        "organ": ("In which half of the image is the lesion?",),
    },
    targets=PATTERNS,
    places=PLACES,
    shares={
        "attribute": 0.22,
        "count": 0.19,
        "colour": 0.19,
        "compare": 0.19,
        "side": 0.02,
        "organ": 0.02,
        "eye": 0.04,
        "presence": 0.04,
        "structure": 0.03,
        "spot colour": 0.03,
        "size": 0.03,
    },
    control_wordings=CONTROLS,
    sample=sample,
    paint=paint,
    site=site,
    base=base,
    ink=ink,
    control=control,
)
