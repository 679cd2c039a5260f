"""Stained sections: stroma, glands, fat, muscle, and nuclei on a warped grid, so that none overlap. 0.5 um a unit."""

import dataclasses
import math

import numpy as np

from mvg_jax.data.phantom.atlas import canvas, details
from mvg_jax.data.phantom.atlas.canvas import blob, box
from mvg_jax.data.phantom.atlas.details import Detail
from mvg_jax.data.phantom.atlas.family import Asked, Family, Film, apart, measured, pick
from mvg_jax.data.phantom.scene import Blob
from mvg_jax.data.phantom.views import Overview
from mvg_jax.data.task import AnswerType, Box

UM = 0.5
FILM = Film(top=255, window=(0.0, 255.0), white_sd=3.0, texture_sd=2.5, unit="grey", rgb=True)
TISSUES = ("glands", "fat", "muscle", "lymphoid tissue")
# Colour of nuclei, of cytoplasm and of stroma, as a stain gives them.
STAINS = {
    "purple": ((96, 62, 142), (206, 150, 196), (232, 178, 204)),
    "brown": ((118, 72, 40), (206, 206, 222), (222, 224, 234)),
    "blue": ((64, 84, 156), (196, 208, 232), (216, 226, 240)),
}
PLACES = {
    "upper left": ("upper half", "left"),
    "upper right": ("upper half", "right"),
    "lower left": ("lower half", "left"),
    "lower right": ("lower half", "right"),
}
PATTERNS = ("one nucleus", "two nuclei", "a mitotic figure", "foam")
COLOURS = {"red": (14, -104, -86), "blue": (-112, -70, 10), "brown": (-64, -92, -126)}


@dataclasses.dataclass(frozen=True)
class Patient:
    """tissue: one of TISSUES or "stroma". stain: one of STAINS. glands: outlines, drawn where the tissue has them. cyst: a large
    empty space. density: share of the places that hold a nucleus."""

    tissue: str
    stain: str
    direction: float
    density: float
    glands: tuple[Blob, ...]
    tint: tuple[float, float, float]
    seed: int
    cyst: Blob | None = None


def sample(rng: np.random.Generator, shifted: bool) -> Patient:
    # Glands stand on a loose grid, none where others or details are looked for.
    glands = tuple(
        blob(x + rng.uniform(-14, 14), y + rng.uniform(-14, 14), rng.uniform(48, 62), rng.uniform(40, 52),
             rng.uniform(0, 3.14), canvas.bends(rng, 0.06))
        for x, y in ((256, 84), (256, 256), (256, 430), (66, 256), (446, 256), (52, 40), (462, 470), (460, 40), (50, 474))
    )  # fmt: skip
    return Patient(
        tissue=pick(rng, ("glands", "stroma", "muscle")),
        stain="purple",
        direction=rng.uniform(0, math.pi),
        density=rng.uniform(0.5, 0.6) if shifted else rng.uniform(0.28, 0.42),
        glands=glands,
        tint=tuple(rng.uniform(-18, -8, 3) if shifted else rng.uniform(-5, 5, 3)),
        seed=int(rng.integers(2**31)),
    )


def _nuclei(
    rng, side: int, cell: float, radius: tuple[float, float], share: float, warp, squeeze=1.0, angle=None
) -> np.ndarray:
    """[side, side] 0..1: one nucleus in a share of the cells of a warped grid, `cell` units wide. squeeze: their height over their
    width along `angle` (random where None)."""
    x, y = canvas.grid(side)
    u, v = (x + warp[0]) * np.float32(1 / cell), (y + warp[1]) * np.float32(1 / cell)
    row = np.floor(v)
    u += 0.5 * (row % 2)  # bricks
    col = np.floor(u)
    n = math.ceil(canvas.UNITS / cell) + 14
    index = (row * n + col).astype(np.int32)
    index += 7 * n + 7
    r = rng.uniform(*radius, n * n) / cell
    slack = np.maximum(0.5 - r, 0)
    cx, cy = 0.5 + slack * rng.uniform(-1, 1, (2, n * n))
    turn = rng.uniform(0, math.pi, n * n) if angle is None else angle + rng.normal(0, 0.12, n * n)
    r[rng.random(n * n) >= share] = -1.0
    cells = np.stack([cx, cy, np.cos(turn), np.sin(turn), r]).astype(np.float32)
    cx, cy, c, s, r = (np.take(values, index, mode="clip") for values in cells)
    u -= col
    u -= cx
    v -= row
    v -= cy
    a = c * u
    a += s * v
    b = c * v
    b -= s * u
    b *= np.float32(1 / (squeeze * 0.82))
    a *= a
    b *= b
    a += b
    np.sqrt(a, out=a)
    r -= a
    r *= np.float32(cell / 1.3)
    r += np.float32(0.5)
    return np.clip(r, 0, 1, out=r)


def paint(patient: Patient, side: int) -> np.ndarray:
    p = patient
    rng = np.random.default_rng((p.seed, 0))
    nucleus, plasm, stroma = (np.array(tone, np.float32) + np.array(p.tint, np.float32) for tone in STAINS[p.stain])
    x, y = canvas.grid(side)
    smooth = canvas.bank(side, 110.0, 15.0, 3.0, 51)
    warp = [10.0 * canvas.take(rng, smooth) for _ in range(2)]
    chromatin = canvas.take(rng, canvas.bank(side, 8.0, 0.7, 1.5, 52))
    planes = np.empty((3, side, side), np.float32)
    planes[...] = stroma[:, None, None]
    along = math.cos(p.direction) * x + math.sin(p.direction) * y
    across = math.cos(p.direction) * y - math.sin(p.direction) * x + 1.0 * warp[0]
    slits = canvas.take(rng, canvas.lines(side, 50.0, 4.0, 2.0, 53, 0.07))
    if p.tissue == "fat":
        _fat(planes, rng, side, warp, nucleus)
        return _finished(planes, p)
    if p.tissue == "muscle":
        bundle = np.sin(across * 0.3)
        canvas.blend(planes, (0.8 * np.clip(bundle * 2 + 1.3, 0, 1)).astype(np.float32), plasm * (1.02, 0.72, 0.88))
        canvas.blend(planes, np.clip(-bundle * 6 - 5, 0, 1).astype(np.float32), 246)
        planes += 5 * _fibres(along, across, warp)
        spread = _nuclei(rng, side, 26.0, (8.0, 11.0), p.density * 0.7, warp, 0.32, p.direction)
    elif p.tissue == "lymphoid tissue":
        canvas.blend(planes, np.float32(0.8), plasm)
        spread = _nuclei(rng, side, 12.0, (4.4, 5.6), 0.9, warp, 1.2)
    else:
        fibres = _fibres(along, across, warp)
        for plane, strength in zip(planes, (3.6, 9.0, 7.2), strict=True):
            plane += strength * fibres
        canvas.blend(planes, 0.85 * slits, 246)
        spread = np.maximum(
            _nuclei(rng, side, 34.0, (8.0, 11.5), p.density, warp, 0.34, p.direction),
            _nuclei(rng, side, 29.0, (4.2, 6.0), 0.5 * p.density, [warp[1] + 11, warp[0] + 17]),
        )
    chromatin *= np.float32(13)
    inks = [tone + chromatin for tone in nucleus]
    if p.tissue == "glands":
        inside = canvas.mask(p.glands, side)
        spread *= 1 - inside
    spread *= np.float32(0.88)
    for plane, dark in zip(planes, inks, strict=True):
        plane += spread * (dark - plane)
    if p.tissue == "glands":
        for gland in p.glands:
            _gland(planes, gland, rng, inks, plasm)
    if p.cyst is not None:
        canvas.paint(planes, p.cyst, plasm, inset=-5)
        canvas.paint(planes, p.cyst, 247)
    return _finished(planes, p)


def _fibres(along: np.ndarray, across: np.ndarray, warp) -> np.ndarray:
    """Waves along one direction, broken up by a smooth field: [side, side], -1..1."""
    waves = np.sin(across * 0.55 + 2.0 * np.sin(along * 0.03 + warp[1] * 0.2))
    waves *= np.clip(0.5 + 0.05 * warp[1], 0, 1)
    return waves


def _gland(planes, gland: Blob, rng, inks, plasm) -> None:
    """A ring of columnar cells, nuclei at its outer edge, mucus towards the lumen."""
    side = planes.shape[1]
    region, d = canvas.depth(gland, side)
    x, y = canvas.grid(side)
    t = np.arctan2(y[region[0]] - gland.y, x[:, region[1]] - gland.x)
    count = round(2 * math.pi * 0.5 * (gland.rx + gland.ry) / 8.5)
    phase = rng.uniform(0, 6.28, count)
    at = t * np.float32(count / (2 * math.pi))
    which = np.floor(at).astype(int) % count
    canvas.blend(planes, np.clip(d / 1.5 + 0.5, 0, 1), plasm, region)
    border = np.exp(-((np.abs(at - np.round(at)) * 8.5 / 1.1) ** 2)) * (d > 0)
    canvas.blend(planes, (0.35 * border).astype(np.float32), plasm * 0.8, region)
    mucus = np.clip((d - 15) / 4, 0, 1) * 0.55
    canvas.blend(planes, mucus, 240, region)
    canvas.blend(planes, np.clip((d - 27) / 2.5 + 0.5, 0, 1), 247, region)
    high = (8.2 + 1.8 * np.sin(phase)).astype(np.float32)[which]
    du, dv = (at - np.floor(at) - 0.5) * 8.5 / 3.4, (d - high) / 5.4
    nuclei = np.clip((1 - np.sqrt(du * du + dv * dv)) * 3 + 0.5, 0, 1).astype(np.float32) * 0.9
    for plane, dark in zip(planes, inks, strict=True):
        target = plane[region]
        target += nuclei * (dark[region] - target)


def _fat(planes, rng, side, warp, nucleus) -> None:
    """Large empty cells with thin walls: the distance between the two nearest of jittered seeds."""
    x, y = canvas.grid(side)
    cell = 62.0
    u, v = (x + 1.5 * warp[0]) / cell, (y + 1.5 * warp[1]) / cell
    n = math.ceil(canvas.UNITS / cell) + 8
    jitter = rng.uniform(0.18, 0.82, (2, n * n)).astype(np.float32)
    first = np.full((side, side), 9.0, np.float32)
    second = first.copy()
    iu, iv = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    for oy in (-1, 0, 1):
        for ox in (-1, 0, 1):
            index = (iv + oy + 4).clip(0, n - 1) * n + (iu + ox + 4).clip(0, n - 1)
            d = np.hypot(iu + ox + jitter[0][index] - u, iv + oy + jitter[1][index] - v).astype(np.float32)
            np.minimum(second, np.maximum(first, d), out=second)
            np.minimum(first, d, out=first)
    wall = (second - first) * cell
    canvas.blend(planes, np.clip((wall - 3.2) / 2.0, 0, 1), 247)
    spread = _nuclei(rng, side, 40.0, (5.0, 7.0), 0.6, warp, 0.5) * np.clip((5.0 - wall) / 2, 0, 1)
    canvas.blend(planes, spread * np.float32(0.9), nucleus)


def _finished(planes, p):
    return np.clip(planes, 0, 255, out=planes)


def site(rng: np.random.Generator, patient: Patient, place: str) -> tuple[float, float]:
    half, name = PLACES[place]
    x, y = 256 + (-1 if name == "left" else 1) * 92, 256 + (-1 if half == "upper half" else 1) * 90
    return x + rng.uniform(-60, 24) * (1 if name == "left" else -1), y + rng.uniform(-18, 18)


def base(planes: np.ndarray, detail: Detail, overview: Overview) -> None:
    reach = detail.reach(overview)
    canvas.paint(planes, blob(detail.x, detail.y, 1.25 * reach, edge=0.15 * reach), (150, 88, 150), 0.8)
    canvas.paint(planes, blob(detail.x, detail.y, 1.1 * reach, edge=0.2 * reach), (204, 176, 202))


def ink(detail: Detail, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    d, r = detail, detail.radius
    colour = (-108, -112, -62)
    c, s = math.cos(d.angle), math.sin(d.angle)
    match d.pattern:
        case "one nucleus":
            amplitude = details.oval(y, x, 5.2, 6.2, d.angle, d.wobble[0], d.wobble[1])
        case "two nuclei":
            amplitude = np.maximum(
                details.oval(y, x, 3.7, 4.5, d.angle, 5.4 * s, 5.4 * c),
                details.oval(y, x, 3.7, 4.5, d.angle, -5.4 * s, -5.4 * c),
            )
        case "a mitotic figure":
            plate = np.maximum(
                details.oval(y, x, 1.8, 8.2, d.angle), 0.9 * details.spikes(y, x, d.angle + 0.3, 6, 0.0, 8.5, 1.0)
            )
            amplitude = 1.1 * plate
        case "foam":
            bubbles = details.stripes(y, x, d.angle, 5.4, 1.1, d.wobble[0], (-2, -1, 0, 1, 2))
            bubbles = np.maximum(
                bubbles, details.stripes(y, x, d.angle + 1.57, 5.4, 1.1, d.wobble[1], (-2, -1, 0, 1, 2))
            )
            amplitude = 0.62 * bubbles * details.disc(y, x, r, 2.0)
        case "red" | "blue" | "brown":
            colour = COLOURS[d.pattern]
            six = dataclasses.replace(d, wobble=d.wobble + d.wobble)
            amplitude = np.maximum(details.spots(six, y, x, 6, 2.0, 0.62), details.spot(y, x, 0, 0, 2.0))
        case count:
            amplitude = 1.1 * details.spots(d, y, x, int(count), 2.3)
    return np.stack([tone * amplitude for tone in colour])


def control(rng: np.random.Generator, kind: str, patient: Patient) -> Asked:
    question = pick(rng, CONTROLS[kind])
    change = dataclasses.replace
    match kind:
        case "tissue":
            variants = {name: (change(patient, tissue=name), ()) for name in TISSUES}
            return Asked(question, AnswerType.CLOSED, TISSUES, variants)
        case "stain":
            variants = {name: (change(patient, stain=name), ()) for name in STAINS}
            return Asked(question, AnswerType.CLOSED, tuple(STAINS), variants)
        case "presence":
            where = tuple(Box("gland", box(gland)) for gland in patient.glands[:5])
            variants = {"yes": (change(patient, tissue="glands"), where), "no": (change(patient, tissue="stroma"), ())}
            return Asked(question, AnswerType.YES_NO, ("yes", "no"), variants)
        case "size":
            plain = change(patient, tissue="stroma")
            at = rng.uniform(190, 320, 2)
            variants = {}
            for radius in apart(rng, 36, 110):
                cyst = blob(*at, radius)
                variants[measured(2 * radius * UM, "um")] = (change(plain, cyst=cyst), (Box("empty space", box(cyst)),))
            return Asked(question, AnswerType.NUMBER, (), variants, 0.1)
        case "quantity":
            plain = change(patient, tissue="stroma")
            centres = rng.permutation(np.array([(128, 140), (380, 130), (250, 270), (120, 390), (390, 390)], float))
            shapes = [
                blob(*(c + rng.uniform(-12, 12, 2)), rng.uniform(44, 54), bends=canvas.bends(rng, 0.05))
                for c in centres
            ]
            variants = {
                str(n): (
                    change(plain, tissue="glands", glands=tuple(shapes[:n])),
                    tuple(Box("gland", box(shape)) for shape in shapes[:n]),
                )
                for n in (1, 2, 3, 4, 5)
            }
            return Asked(question, AnswerType.NUMBER, (), variants)
    raise ValueError(kind)


CONTROLS = {
    "tissue": ("Which tissue is shown?", "What tissue is this?"),
    "stain": ("What colour are the nuclei?",),
    "presence": ("Are there glands?",),
    "size": (f"The image is {round(512 * UM)} um wide. What is the diameter of the round empty space in um?",),
    "quantity": ("How many glands are there?",),
}

FAMILY = Family(
    name="histology",
    modality="Histopathology",
    accepted=("histology", "microscopy"),
    film=FILM,
    spacing_mm=UM / 1000,
    noun="cell",
    groups={"attribute": PATTERNS, "count": ("1", "2", "3", "4"), "colour": tuple(COLOURS)},
    wordings={
        "attribute": ("What is in the large pale cell?", "What does the large pale cell hold?"),
        "count": ("How many dark bodies are in the large pale cell?",),
        "colour": ("What colour are the grains in the large pale cell?",),
        "compare": ("Which large pale cell holds {target}, the left or the right one?",),
        "side": ("On which side of the image is the large pale cell?",),
        "organ": ("In which half of the image is the large pale cell?",),
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
        "tissue": 0.04,
        "stain": 0.04,
        "presence": 0.03,
        "size": 0.03,
        "quantity": 0.03,
    },
    control_wordings=CONTROLS,
    sample=sample,
    paint=paint,
    site=site,
    base=base,
    ink=ink,
    control=control,
)
