"""The scene graph of one axial abdomen: what lies where, how dense it is, and which findings it carries.

Lengths are native pixels (x right, y down, pixel edges), densities Hounsfield units. Radiological convention:
the patient's right side, and so the liver, is on the left of the image.
"""

import dataclasses
import math

import numpy as np

SIDE = 512

CLASSES = (
    "background",
    "soft",
    "liver",
    "spleen",
    "kidney",
    "bone",
    "bowel",
    "vessel",
    "cyst",
    "lesion_homogeneous",
    "lesion_rim",
    "lesion_calcified",
    "lesion_septated",
    "specks_1",
    "specks_2",
    "specks_3",
    "lytic",
    "sclerotic",
)
FINDINGS = CLASSES[CLASSES.index("cyst") :]  # what questions are about
LABEL = {name: index for index, name in enumerate(CLASSES)}

ORGANS = ("liver", "spleen", "left kidney", "right kidney")
IMAGE_SIDE = {"liver": "left", "right kidney": "left", "spleen": "right", "left kidney": "right"}


@dataclasses.dataclass(frozen=True)
class Layer:
    """Everything deeper than `inset` px inside a blob: its density and class (None leaves the class below)."""

    inset: float
    hu: float
    label: str | None


@dataclasses.dataclass(frozen=True)
class Blob:
    """A soft-edged ellipse, turned by `angle`, its outline bent by (order, amplitude, phase) harmonics.

    bottom: nothing is painted below this y (an air-fluid level). edge: width of the soft edge, px.
    """

    x: float
    y: float
    rx: float
    ry: float
    layers: tuple[Layer, ...]
    angle: float = 0.0
    bends: tuple[tuple[int, float, float], ...] = ()
    bottom: float = math.inf
    edge: float = 2.0


@dataclasses.dataclass(frozen=True)
class Lesion:
    """A hypodense disc in an organ, with a pattern inside that only a close look shows.

    contrast: density below the organ, HU. angle: turns the pattern. wobble [6]: small offsets of its parts, in -1..1.
    """

    organ: str
    x: float
    y: float
    radius: float
    contrast: float
    pattern: str
    angle: float
    wobble: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Scene:
    """One image without noise. `seed` fixes texture and noise; `spine` and `cyst` may be absent."""

    body: Blob
    organs: tuple[Blob, ...]
    table_y: float
    lesions: tuple[Lesion, ...]
    spine: Blob | None
    cyst: Blob | None
    seed: int


@dataclasses.dataclass(frozen=True)
class Pose:
    """Where the patient lies: centre, size and roll, from body coordinates to pixels."""

    x: float
    y: float
    scale: float
    roll: float

    def __call__(self, x: float, y: float) -> tuple[float, float]:
        c, s = math.cos(self.roll), math.sin(self.roll)
        return self.x + self.scale * (c * x - s * y), self.y + self.scale * (s * x + c * y)


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """A patient without findings. density: HU of each organ that can hold a lesion."""

    pose: Pose
    body: Blob
    organs: tuple[Blob, ...]
    table_y: float
    density: dict[str, float]


# Where lesion centres may lie in body coordinates (x, y, rx, ry): deep enough that the disc stays in the organ.
ZONES = {
    "liver": (-100.0, -30.0, 40.0, 32.0),
    "spleen": (141.0, -6.0, 3.0, 22.0),
    "left kidney": (106.0, 66.0, 5.0, 9.0),
    "right kidney": (-106.0, 66.0, 5.0, 9.0),
}


def sample_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draws a patient: pose, organ shapes and densities (portal-venous phase), bowel, bones."""
    pose = Pose(
        x=256 + rng.uniform(-9, 9),
        y=244 + rng.uniform(-9, 9),
        scale=rng.uniform(0.99, 1.07),
        roll=rng.uniform(-0.06, 0.06),
    )

    def blob(x, y, rx, ry, *layers, angle=0.0, shift=2.0, stretch=0.04, bend=0.0, edge=2.0, fluid=None):
        """A blob in body coordinates, jittered in place and size; fluid: level below its centre where gas ends."""
        jx, jy, jrx, jry, b2, b3, p2, p3 = rng.uniform(-1, 1, 8)
        px, py = pose(x + shift * jx, y + shift * jy)
        rx, ry = (pose.scale * r * (1 + stretch * j) for r, j in ((rx, jrx), (ry, jry)))
        bends = ((2, bend * (0.65 + 0.35 * b2), math.pi * p2), (3, bend * (0.65 + 0.35 * b3), math.pi * p3))
        bottom = math.inf if fluid is None else py + fluid
        return Blob(
            px,
            py,
            rx,
            ry,
            tuple(Layer(*layer) for layer in layers),
            angle + pose.roll,
            bends if bend else (),
            bottom,
            edge,
        )

    fat = rng.uniform(-108, -96)
    muscle = rng.uniform(52, 66)
    density = {"liver": rng.uniform(98, 114), "spleen": rng.uniform(108, 124)}
    density["left kidney"] = density["right kidney"] = rng.uniform(150, 175)
    vein, artery = rng.uniform(138, 152), rng.uniform(150, 175)
    rim = rng.uniform(12, 24)

    skin = ((0, 25, "soft"), (3, fat, "soft"), (rim, muscle, "soft"), (rim + rng.uniform(8, 11), fat, "soft"))
    body = dataclasses.replace(
        blob(0, 0, 214, 158, *skin, stretch=0.02, edge=2.5), bends=((4, 0.018, 0.0), (3, 0.01, rng.uniform(0, 6.28)))
    )

    organs = []
    add = organs.append
    liver, spleen, kidney = density["liver"], density["spleen"], density["left kidney"]

    # Bowel in the mesentery first, so that solid organs cover it.
    for x, y in ((48, 12), (84, 2), (62, -18), (34, -8), (-38, 20), (108, -14)):
        r = rng.uniform(11, 16)
        inner = rng.uniform(25, 70)
        add(
            blob(x, y, r * 1.2, r, (0, 85, "bowel"), (2.5, inner, "bowel"), angle=rng.uniform(0, 3), shift=5, bend=0.05)
        )
    for x, y in ((30, -108), (72, -104), (-6, -112)):
        add(blob(x, y, 22, 13, (0, 70, "bowel"), (2.5, 20, "bowel"), shift=4, bend=0.06))
        add(blob(x, y - 1, 17, 8, (0, -880, "bowel"), shift=3, bend=0.06, fluid=rng.uniform(1, 5)))

    # Liver: right lobe and left lobe, then the vessels in it.
    add(blob(-30, -62, 68, 36, (0, liver, "liver"), angle=-0.25, bend=0.03))
    add(blob(-97, -26, 76, 72, (0, liver, "liver"), angle=0.15, bend=0.025))
    for _ in range(6):
        x, y = rng.uniform(-140, -50), rng.uniform(-70, 12)
        add(
            blob(
                x, y, rng.uniform(9, 17), rng.uniform(2.2, 3.4), (0, vein, "vessel"), angle=rng.uniform(0, 3.14), edge=3
            )
        )
    add(blob(-48, -22, 24, 6.5, (0, vein, "vessel"), angle=-0.45, bend=0.04, edge=3))

    # Stomach with its air-fluid level, spleen, pancreas, descending colon.
    add(blob(66, -62, 50, 36, (0, 80, "bowel"), (3.5, 22, "bowel"), angle=-0.35, bend=0.04))
    add(blob(64, -72, 38, 22, (0, -930, "bowel"), angle=-0.3, bend=0.03, fluid=rng.uniform(-4, 8)))
    add(blob(141, -6, 27, 52, (0, spleen, "spleen"), angle=-0.12, bend=0.02, shift=1.0))
    add(blob(6, -18, 40, 9, (0, rng.uniform(85, 100), "soft"), angle=-0.35, bend=0.08))
    add(blob(131, -82, 17, 15, (0, 75, "bowel"), (3, -40, "bowel"), bend=0.05))
    add(blob(131, -85, 11, 8, (0, -860, "bowel"), bend=0.08, fluid=3.0))

    # Retroperitoneum: kidneys in their fat, great vessels, muscles.
    for sign in (-1, 1):
        add(blob(sign * 100, 64, 40, 46, (0, fat, "soft"), angle=sign * -0.3, shift=1.0, edge=6))
        cortex = ((0, kidney + 12, "kidney"), (7, kidney - 6, "kidney"))
        add(blob(sign * 102, 66, 30, 37, *cortex, angle=sign * -0.3, bend=0.015, shift=1.0))
        add(blob(sign * 74, 60, 13, 7, (0, fat, "soft"), angle=sign * 0.3, edge=4))
        add(blob(sign * 62, 50, 18, 4, (0, vein, "vessel"), angle=sign * 0.45))
        add(blob(sign * 49, 84, 18, 23, (0, muscle, "soft"), bend=0.04))
        add(blob(sign * 45, 118, 36, 19, (0, muscle, "soft"), angle=sign * -0.12, bend=0.03))
        add(blob(sign * 92, 116, 22, 8, (0, muscle - 3, "soft"), angle=sign * -0.5, bend=0.04))
        add(blob(sign * 40, 103, 22, 4.5, (0, 520, "bone"), angle=sign * 0.2))
    add(blob(15, 14, 13, 13, (0, artery, "vessel"), shift=1.5))
    add(blob(-24, 18, 16, 11, (0, vein, "vessel"), angle=0.2, shift=1.5))
    add(blob(-3, -16, 6.5, 6.5, (0, vein, "vessel")))
    add(blob(14, -8, 4.5, 4.5, (0, artery, "vessel")))

    # Vertebra: body, arch around the canal, spinous process.
    add(blob(0, 106, 24, 19, (0, 560, "bone"), shift=0.5))
    add(blob(0, 131, 5, 14, (0, 520, "bone"), shift=0.5))
    add(blob(0, 63, 39, 33, (0, 900, "bone"), (3.0, 600, "bone"), shift=0.5, stretch=0.02))
    add(blob(0, 104, 14, 10.5, (0, 30, "soft"), (3, 45, "soft"), shift=0.5))

    # Ribs in the wall, turned along it.
    for degrees in (-24, 6, 31, 52, 128, 149, 174, 204):
        t = math.radians(degrees + rng.uniform(-5, 5))
        x, y = 188 * math.cos(t), 137 * math.sin(t)
        tangent = math.atan2(137 * math.cos(t), -188 * math.sin(t))
        add(blob(x, y, rng.uniform(9, 13), 4.6, (0, 620, "bone"), (2.2, 260, "bone"), angle=tangent, shift=1.0))

    return Anatomy(pose, body, tuple(organs), body.y + body.ry + 7, density)


def sample_lesion(rng: np.random.Generator, anatomy: Anatomy, organ: str, pattern: str) -> Lesion:
    """Draws a lesion in `organ`: radius 11.5-14.5 px, 90-110 HU below the organ."""
    x, y, rx, ry = ZONES[organ]
    t, r = rng.uniform(0, 2 * math.pi), math.sqrt(rng.uniform())
    px, py = anatomy.pose(x + rx * r * math.cos(t), y + ry * r * math.sin(t))
    radius, contrast, angle = rng.uniform((11.5, 90, 0), (14.5, 110, 2 * math.pi))
    return Lesion(organ, px, py, radius, contrast, pattern, angle, tuple(rng.uniform(-1, 1, 6)))


def lesion_blob(lesion: Lesion, anatomy: Anatomy) -> Blob:
    """The part of a lesion that every view shows, the same for every pattern."""
    layer = Layer(0.0, anatomy.density[lesion.organ] - lesion.contrast, None)
    return Blob(lesion.x, lesion.y, lesion.radius, lesion.radius, (layer,), edge=3.0)


def sample_spine(rng: np.random.Generator, anatomy: Anatomy) -> dict[str, Blob]:
    """A lesion that fills much of the vertebral body, in its two variants; both stay above the default window."""
    x, y = anatomy.pose(rng.uniform(-2, 2), 63 + rng.uniform(-1, 1))
    rx, ry = rng.uniform(18.5, 21.5), rng.uniform(16.5, 18.5)
    hu = {"lytic": rng.uniform(270, 330), "sclerotic": rng.uniform(920, 1080)}
    return {kind: Blob(x, y, rx, ry, (Layer(0.0, value, kind),), edge=4.0) for kind, value in hu.items()}


def sample_cyst(rng: np.random.Generator, anatomy: Anatomy) -> Blob:
    """A large simple cyst of the liver, 60-80 px across."""
    x, y = anatomy.pose(-104 + rng.uniform(-12, 12), -34 + rng.uniform(-10, 8))
    layer = Layer(0.0, rng.uniform(-2, 10), "cyst")
    return Blob(x, y, rng.uniform(32, 39), rng.uniform(30, 37), (layer,), rng.uniform(0, math.pi))
