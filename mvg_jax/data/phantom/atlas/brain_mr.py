"""MR-like brains: nested warped shapes with signals of T1, T2 and FLAIR, a bias field and Rician noise, in three planes.

In axial and coronal images the patient's right is on the left; sagittal ones face left.
"""

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

SPACING_MM = 0.45
FILM = Film(top=4095, window=(0.0, 1300.0), white_sd=16.0, texture_sd=10.0, unit="signal", rician=True)
SEQUENCES = ("T1", "T2", "FLAIR")
PLANES = ("axial", "coronal", "sagittal")
# Signals of a spin echo at customary times; bone and air have next to none.
SIGNAL = {
    "T1": {"csf": 160, "grey": 470, "white": 640, "fat": 1050, "muscle": 420, "bone": 70, "lesion": 330, "mass": 300},
    "T2": {"csf": 1150, "grey": 690, "white": 500, "fat": 760, "muscle": 330, "bone": 60, "lesion": 900, "mass": 980},
    "FLAIR": {"csf": 130, "grey": 690, "white": 560, "fat": 720, "muscle": 380, "bone": 60, "lesion": 930, "mass": 960},
}
PLACES = {
    "frontal left": ("frontal lobe", "left"),
    "frontal right": ("frontal lobe", "right"),
    "occipital left": ("occipital lobe", "left"),
    "occipital right": ("occipital lobe", "right"),
}
PATTERNS = ("solid", "ring-like", "target-like", "striped")


@dataclasses.dataclass(frozen=True)
class Patient:
    """ventricles: their width over a normal one's. mass: a large lesion. mass_signal: its signal, None = that of the
    sequence."""

    plane: str
    sequence: str
    x: float
    y: float
    scale: float
    tilt: float
    outline: tuple
    ventricles: float
    bias: tuple[float, float, float]
    seed: int
    mass: Blob | None = None
    mass_signal: float | None = None

    def __call__(self, x, y, rx, ry=None, angle=0.0, bends=(), edge=2.0) -> Blob:
        """A shape in head coordinates: (0, 0) is the middle of the image."""
        c, s, k = math.cos(self.tilt), math.sin(self.tilt), self.scale
        ry = rx if ry is None else ry
        at = (self.x + k * (c * x - s * y), self.y + k * (s * x + c * y))
        return blob(*at, k * rx, k * ry, angle + self.tilt, bends, edge)


def sample(rng: np.random.Generator, shifted: bool) -> Patient:
    return Patient(
        plane="axial",
        sequence=pick(rng, SEQUENCES),
        x=256 + rng.uniform(-8, 8),
        y=256 + rng.uniform(-6, 6),
        scale=rng.uniform(0.82, 0.88) if shifted else rng.uniform(0.93, 1.03),
        tilt=rng.uniform(-0.08, 0.08),
        outline=canvas.bends(rng, 0.012),
        ventricles=rng.uniform(0.8, 1.15),
        bias=(rng.uniform(-0.12, 0.12), rng.uniform(-0.12, 0.12), rng.uniform(0.0, 0.1)),
        seed=int(rng.integers(2**31)),
    )


def _skull(p: Patient) -> Blob:
    match p.plane:
        case "axial":
            return p(0, 0, 186, 226, bends=p.outline, edge=3)
        case "coronal":
            return p(0, -24, 184, 200, bends=p.outline, edge=3)
    return p(14, -34, 224, 192, bends=p.outline, edge=3)


def paint(patient: Patient, side: int) -> np.ndarray:
    p, tone = patient, SIGNAL[patient.sequence]
    rng = np.random.default_rng((p.seed, 0))
    planes = np.full((1, side, side), 8.0, np.float32)
    skull = _skull(p)
    if p.plane != "axial":
        _neck(planes, p, tone)
    region, d = canvas.depth(skull, side)
    # The folds shift depths a little, so that no layer is an ellipse.
    wave = canvas.take(rng, canvas.bank(side, 120.0, 9.0, 3.0, 31))[region]
    folds = canvas.take(rng, canvas.bank(side, 34.0, 5.2, 1.5, 32))[region]
    marrow = canvas.take(rng, canvas.bank(side, 20.0, 2.0, 1.5, 33))[region]
    d = d / np.float32(p.scale)
    inner = d + 0.5 * wave

    def layer(inset, value, softness=2.0):
        canvas.blend(planes, np.clip((inner - inset) / softness + 0.5, 0, 1), value, region)

    layer(0, tone["muscle"])
    layer(3, tone["fat"])
    layer(11, tone["bone"])
    # Marrow between the tables of the skull.
    diploe = np.exp(-(((inner - 16) / 2.2) ** 2)) * np.clip(0.5 + 0.5 * marrow, 0, 1)
    canvas.blend(planes, (0.55 * diploe).astype(np.float32), tone["fat"], region)
    layer(22, tone["csf"])
    # The cortex: a ribbon under the surface that follows the furrows, which are where a field crosses zero.
    cortex = d - 27 + 1.5 * wave
    brain = np.clip(cortex / 2 + 0.5, 0, 1)
    reach = np.exp(-((np.maximum(cortex, 0) / (36 + 8 * wave)) ** 2))
    furrow = np.exp(-((folds / 0.19) ** 2)) * np.clip(reach * 1.6 - 0.25, 0, 1)
    ribbon = np.clip(np.maximum((8.5 - cortex) / 3, (1.3 * reach - np.abs(folds) * 1.25 - 0.2) * 4) + 0.5, 0, 1)
    mottle = canvas.take(rng, canvas.bank(side, 14.0, 1.4, 2.0, 34))[region]
    matter = tone["white"] + ribbon * (tone["grey"] - tone["white"]) + 9.0 * mottle
    canvas.blend(planes, brain, 0.0, region)
    planes[0][region] += brain * matter
    canvas.blend(planes, (brain * furrow * 0.9).astype(np.float32), tone["csf"], region)
    {"axial": _axial, "coronal": _coronal, "sagittal": _sagittal}[p.plane](planes, p, tone)
    if p.mass is not None:
        value = tone["mass"] if p.mass_signal is None else p.mass_signal
        canvas.paint(planes, dataclasses.replace(p.mass, edge=8.0), value, 0.95)
    x, y = canvas.grid(side)
    u, v = (x - 256) / 256, (y - 256) / 256
    planes *= 1 + p.bias[0] * u + p.bias[1] * v - p.bias[2] * (u * u + v * v)
    return planes


def _deep_grey(planes, p, tone, shapes):
    for shape in shapes:
        canvas.paint(planes, shape, tone["grey"], 0.8)


def _fissure(planes, p, tone, y1, y2, width=2.6):
    canvas.paint(planes, p(0, (y1 + y2) / 2, width, abs(y2 - y1) / 2), tone["csf"], 0.9)


def _axial(planes, p, tone):
    v = p.ventricles
    for s in (-1, 1):
        _deep_grey(
            planes,
            p,
            tone,
            [p(s * 58, 6, 20, 44, -0.28 * s), p(s * 22, 36, 17, 26, 0.2 * s), p(s * 30, -38, 10, 26, -0.3 * s)],
        )
    _fissure(planes, p, tone, -196, -96)
    _fissure(planes, p, tone, 120, 196)
    for s in (-1, 1):
        # Frontal horn, body, trigone; the fissure of Sylvius with the insula.
        for shape in (
            p(s * 17 * (0.6 + 0.4 * v), -40, 8 * v, 34, -0.32 * s),
            p(s * 13 * (0.6 + 0.4 * v), 8, 5 * v, 40, 0.08 * s),
            p(s * 37, 78, 9 * v, 34, -0.38 * s),
        ):
            canvas.paint(planes, shape, tone["grey"], 0.5, inset=-3)
            canvas.paint(planes, shape, tone["csf"])
        canvas.paint(planes, p(s * 100, 8, 3.2, 40, 0.2 * s), tone["csf"], 0.7)
        canvas.paint(planes, p(s * 126, -30, 30, 3.4, -0.25 * s), tone["csf"], 0.8)
    canvas.paint(planes, p(0, 38, 3.2 * v, 24), tone["csf"])


def _coronal(planes, p, tone):
    v = p.ventricles
    for s in (-1, 1):
        _deep_grey(
            planes, p, tone, [p(s * 50, -8, 15, 32, -0.35 * s), p(s * 19, 6, 15, 20), p(s * 30, -36, 9, 16, -0.5 * s)]
        )
    _fissure(planes, p, tone, -190, -78)
    for s in (-1, 1):
        for shape in (p(s * 20 * (0.7 + 0.3 * v), -34, 21 * v, 8 * v, 0.35 * s), p(s * 66, 66, 10 * v, 5 * v, 0.3 * s)):
            canvas.paint(planes, shape, tone["csf"])
        canvas.paint(planes, p(s * 112, 8, 44, 5, -0.25 * s), tone["csf"], 0.9)
        canvas.paint(planes, p(s * 84, 26, 5, 20, 0.3 * s), tone["csf"], 0.85)
    canvas.paint(planes, p(0, 8, 3.4 * v, 22), tone["csf"])
    # Brain stem, tentorium and cerebellum.
    for s in (-1, 1):
        canvas.paint(planes, p(s * 50, 128, 56, 40, 0.25 * s), tone["csf"], 0.9)
        _leaves(planes, p, tone, p(s * 50, 130, 50, 34, 0.25 * s))
    canvas.paint(planes, p(0, 108, 24, 62), tone["csf"], 0.9)
    canvas.paint(planes, p(0, 112, 18, 66), tone["white"])


def _leaves(planes, p, tone, shape):
    """The cerebellum: thin leaves along its outline."""
    region, d = canvas.depth(shape, planes.shape[1])
    leaves = 0.5 + 0.5 * np.sin(d * np.float32(1.05))
    alpha = np.clip(d / 2 + 0.5, 0, 1)
    core = np.clip((d - 16) / 4, 0, 1)
    value = tone["grey"] + (tone["white"] - tone["grey"]) * np.maximum(core, 0.45 * leaves)
    value += (tone["csf"] - value) * 0.3 * (leaves < 0.25) * (1 - core)
    planes[0][region] += alpha * (value - planes[0][region])


def _sagittal(planes, p, tone):
    # Midline: callosum over the ventricle, thalamus, brain stem into the cord, cerebellum behind it.
    canvas.paint(planes, p(-4, -30, 92, 44, 0.08), tone["white"])
    canvas.paint(planes, p(-2, -17, 78, 34, 0.08), tone["csf"] if p.ventricles > 1.3 else tone["grey"])
    canvas.paint(planes, p(-8, -26, 66, 17 * p.ventricles, 0.1), tone["csf"])
    canvas.paint(planes, p(2, 2, 30, 20), tone["grey"])
    canvas.paint(planes, p(50, 84, 30, 78, -0.15), tone["csf"], 0.95)
    canvas.paint(planes, p(112, 86, 66, 50, 0.25), tone["csf"], 0.95)
    _leaves(planes, p, tone, p(112, 86, 60, 44, 0.25))
    canvas.paint(planes, p(34, 44, 20, 34, -0.3), tone["white"])
    canvas.paint(planes, p(44, 84, 25, 28), tone["white"])
    canvas.paint(planes, p(58, 150, 14, 70, -0.12), tone["white"])
    canvas.paint(planes, p(76, 92, 10, 15), tone["csf"])


def _neck(planes, p, tone):
    """What lies under the brain: neck and, from the side, the face."""
    if p.plane == "coronal":
        for s in (-1, 1):
            canvas.paint(planes, p(s * 70, 200, 66, 130, 0.05 * s, edge=4), tone["fat"])
            canvas.paint(planes, p(s * 68, 200, 58, 122, 0.05 * s, edge=4), tone["muscle"])
        canvas.paint(planes, p(0, 230, 40, 90), tone["bone"] * 2)
        canvas.paint(planes, p(0, 240, 12, 110), tone["csf"])
        return
    for shape, colour in (
        (p(60, 220, 112, 150, -0.1, edge=4), "fat"),
        (p(60, 220, 104, 146, -0.1, edge=4), "muscle"),
        (p(-112, 120, 92, 118, 0.12, edge=4), "fat"),
        (p(-112, 120, 84, 110, 0.12, edge=4), "muscle"),
        (p(-212, 92, 24, 38, 0.45, edge=4), "fat"),
        (p(-120, 92, 60, 30, 0.1), "bone"),
        (p(-104, 148, 62, 18, 0.1), "fat"),
        (p(-96, 186, 68, 26), "muscle"),
        (p(-14, 196, 14, 130, 0.1), "bone"),
        (p(-62, 30, 30, 20), "bone"),
    ):
        canvas.paint(planes, shape, tone[colour])
    for k in range(5):
        canvas.paint(planes, p(28 + 2 * k, 168 + 34 * k, 20, 13), tone["grey"])
    canvas.paint(planes, p(64, 260, 12, 130), tone["csf"])
    canvas.paint(planes, p(64, 260, 7, 130), tone["white"])


def site(rng: np.random.Generator, patient: Patient, place: str) -> tuple[float, float]:
    s = -1 if PLACES[place][1] == "left" else 1
    front = place.startswith("frontal")
    shape = patient(s * rng.uniform(58, 80), rng.uniform(-108, -84) if front else rng.uniform(96, 116), 1)
    return shape.x, shape.y


def base(planes: np.ndarray, detail: Detail, overview: Overview) -> None:
    reach = detail.reach(overview)
    canvas.paint(planes, blob(detail.x, detail.y, 1.45 * reach, edge=0.8 * reach), 820.0, 0.45)
    canvas.paint(planes, blob(detail.x, detail.y, reach, edge=0.25 * reach), 800.0)


def ink(detail: Detail, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    d, r = detail, detail.radius
    match d.pattern:
        case "solid":
            drawn = 40 * details.disc(y, x, r - 2, 3.0)
        case "ring-like":
            drawn = 330 * details.ring(y, x, r - 2.0, 1.7) - 330 * details.disc(y, x, r - 4.5, 2.5)
        case "target-like":
            drawn = (
                330 * details.spot(y, x, 0, 0, 2.3)
                + 260 * details.ring(y, x, r - 2.2, 1.5)
                - 260 * details.ring(y, x, r - 7, 1.6)
            )
        case "striped":
            drawn = details.disc(y, x, r, 3.0) * (340 * details.stripes(y, x, d.angle, 8.5, 1.6, d.wobble[0]) - 130)
        case count:
            drawn = -560 * details.spots(d, y, x, int(count), 2.0)
    return drawn[None]


def control(rng: np.random.Generator, kind: str, patient: Patient) -> Asked:
    question = pick(rng, CONTROLS[kind])
    change = dataclasses.replace
    axial = change(patient, plane="axial")
    mass_at = site(rng, axial, pick(rng, tuple(PLACES)))
    radius = rng.uniform(36, 46)
    match kind:
        case "sequence":
            variants = {name: (change(patient, sequence=name), ()) for name in SEQUENCES}
            return Asked(question, AnswerType.CLOSED, SEQUENCES, variants)
        case "plane":
            variants = {name: (change(patient, plane=name, tilt=patient.tilt / 2), ()) for name in PLANES}
            return Asked(question, AnswerType.CLOSED, PLANES, variants)
        case "presence" if "ventricles" in question:
            big = change(axial, ventricles=rng.uniform(2.0, 2.5))
            where = (Box("ventricles", box(axial(0, 20, 60, 96))),)
            return Asked(question, AnswerType.YES_NO, ("yes", "no"), {"yes": (big, where), "no": (axial, where)})
        case "presence":
            shape = blob(*mass_at, radius, bends=canvas.bends(rng, 0.05))
            variants = {"yes": (change(axial, mass=shape), (Box("mass", box(shape)),)), "no": (axial, ())}
            return Asked(question, AnswerType.YES_NO, ("yes", "no"), variants)
        case "colour":
            shape = blob(*mass_at, radius, bends=canvas.bends(rng, 0.05))
            where = (Box("mass", box(shape)),)
            variants = {
                "bright": (change(axial, mass=shape, mass_signal=1150.0), where),
                "dark": (change(axial, mass=shape, mass_signal=190.0), where),
            }
            return Asked(question, AnswerType.CLOSED, ("bright", "dark"), variants)
        case "size":
            variants = {}
            for half in apart(rng, 24, 52):
                shape = blob(*mass_at, half)
                variants[measured(2 * half * SPACING_MM, "mm")] = (
                    change(axial, mass=shape, mass_signal=1150.0),
                    (Box("mass", box(shape)),),
                )
            return Asked(question, AnswerType.NUMBER, (), variants, 0.1)
    raise ValueError(kind)


CONTROLS = {
    "sequence": ("Which MR sequence is this?", "Is this a T1, a T2 or a FLAIR image?"),
    "plane": ("In which plane is the image taken?", "Which plane does the image show?"),
    "presence": ("Are the ventricles enlarged?", "Is there a large mass in the brain?"),
    "colour": ("Is the large mass bright or dark?",),
    "size": (f"The image is {round(512 * SPACING_MM)} mm wide. What is the diameter of the large mass in mm?",),
}

FAMILY = Family(
    name="brain_mr",
    modality="MRI",
    accepted=("MR", "magnetic resonance imaging"),
    film=FILM,
    spacing_mm=SPACING_MM,
    noun="lesion",
    groups={"attribute": PATTERNS, "count": ("1", "2", "3", "4")},
    wordings={
        "attribute": ("What is the structure of the lesion?", "What does the lesion look like inside?"),
        "count": ("How many dark foci are in the lesion?",),
        "compare": ("Which lesion is {target}, left or right in the image?",),
        "side": ("On which side of the image is the lesion?",),
        "organ": ("Which lobe holds the lesion?",),
    },
    targets=PATTERNS,
    places=PLACES,
    shares={
        "attribute": 0.31,
        "count": 0.24,
        "compare": 0.24,
        "side": 0.02,
        "organ": 0.03,
        "sequence": 0.04,
        "plane": 0.04,
        "presence": 0.03,
        "colour": 0.02,
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
