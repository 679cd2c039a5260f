"""From a scene to pixels: soft-edged shapes painted in their bounding boxes, then texture and noise."""

import functools
import math

import numpy as np

from mvg_jax.data.phantom import patterns
from mvg_jax.data.phantom.scene import LABEL, SIDE, Anatomy, Blob, Lesion, Scene, lesion_blob

AIR = -1000.0
INTERCEPT = -1024.0
WHITE_SD, GRAIN_SD, TEXTURE_SD = 8.0, 7.0, 5.0
_BANK = 768
_TEXTURE_SCALE = 64.0
_GRAIN_SCALE = 1.1


def depth(blob: Blob, side: int = SIDE) -> tuple[tuple[slice, slice], np.ndarray] | None:
    """The blob's bounding box and about how deep each pixel there lies inside it (px); None if it is off the image."""
    c, s = math.cos(blob.angle), math.sin(blob.angle)
    grow = 1.0 + sum(abs(a) for _, a, _ in blob.bends)
    hx = grow * math.hypot(blob.rx * c, blob.ry * s) + blob.edge
    hy = grow * math.hypot(blob.rx * s, blob.ry * c) + blob.edge
    x0, x1 = max(0, math.floor(blob.x - hx)), min(side, math.ceil(blob.x + hx))
    y0, y1 = max(0, math.floor(blob.y - hy)), min(side, math.ceil(min(blob.y + hy, blob.bottom)))
    if x0 >= x1 or y0 >= y1:
        return None
    x = np.arange(x0, x1, dtype=np.float32) + np.float32(0.5 - blob.x)
    y = (np.arange(y0, y1, dtype=np.float32) + np.float32(0.5 - blob.y))[:, None]
    u = x * np.float32(c / blob.rx) + y * np.float32(s / blob.rx)
    v = x * np.float32(-s / blob.ry) + y * np.float32(c / blob.ry)
    r = u * u
    r += v * v
    np.sqrt(r, out=r)
    if blob.bends:
        r *= _bend(blob.bends, u, v, r)
    np.subtract(np.float32(1), r, out=r)
    r *= np.float32(min(blob.rx, blob.ry))
    if blob.bottom < math.inf:
        np.minimum(r, np.float32(blob.bottom - blob.y) - y, out=r)
    return (slice(y0, y1), slice(x0, x1)), r


def _bend(bends: tuple[tuple[int, float, float], ...], u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    """1 + sum of amplitude * cos(order * angle + phase) at points (u, v) of radius r, orders 2-4; spoils u and v."""
    u /= np.maximum(r, np.float32(1e-3))
    v /= np.maximum(r, np.float32(1e-3))
    cos2, sin2 = u * u, u * v
    cos2 += cos2
    cos2 -= 1
    sin2 += sin2
    out = np.ones_like(r)
    for order, amplitude, phase in bends:
        match order:
            case 2:
                cos, sin = cos2, sin2
            case 3:
                cos, sin = cos2 * u - sin2 * v, sin2 * u + cos2 * v
            case 4:
                cos, sin = 2 * cos2 * cos2 - 1, 2 * sin2 * cos2
        if math.cos(phase):
            out += cos * np.float32(amplitude * math.cos(phase))
        if math.sin(phase):
            out -= sin * np.float32(amplitude * math.sin(phase))
    return out


def cover(d: np.ndarray, inset: float, edge: float) -> np.ndarray:
    """How much of each pixel is deeper than `inset`, 0..1."""
    a = d * np.float32(1 / edge)
    a += np.float32(0.5 - inset / edge)
    np.maximum(a, np.float32(0), out=a)
    return np.minimum(a, np.float32(1), out=a)


def _blend(target: np.ndarray, a: np.ndarray, value: float) -> None:
    """target + a * (value - target), in place."""
    step = np.float32(value) - target
    step *= a
    target += step


def paint(hu: np.ndarray, blob: Blob) -> None:
    """Blends a blob's layers into an image [SIDE, SIDE] in place."""
    found = depth(blob)
    if found is None:
        return
    box, d = found
    target = hu[box]
    for layer in blob.layers:
        a = cover(d, layer.inset, blob.edge)
        _blend(target, a, layer.hu)


def paint_label(labels: np.ndarray, blob: Blob) -> None:
    """Writes the classes of a blob's layers into a class map in place."""
    found = depth(blob)
    if found is None:
        return
    box, d = found
    for layer in blob.layers:
        if layer.label is not None:
            labels[box][d > layer.inset] = LABEL[layer.label]


def render_anatomy(scene: Scene) -> np.ndarray:
    """The patient without findings, texture, or noise: [SIDE, SIDE] float32 HU."""
    rng = np.random.default_rng((scene.seed, 0))
    hu = np.full((SIDE, SIDE), AIR, np.float32)
    _paint_table(hu, scene.table_y)
    box, d = depth(scene.body)
    target = hu[box]
    for layer in scene.body.layers:
        a = cover(d, layer.inset, scene.body.edge)
        _blend(target, a, layer.hu)
    strands = _take(rng, _strands())[box]
    target += a * strands
    for blob in scene.organs:
        paint(hu, blob)
    return hu


def add_findings(hu: np.ndarray, scene: Scene, anatomy: Anatomy) -> None:
    """Paints cyst, vertebral lesion, and lesions with their patterns into an image in place."""
    for blob in (scene.cyst, scene.spine):
        if blob is not None:
            paint(hu, blob)
    for lesion in scene.lesions:
        paint(hu, lesion_blob(lesion, anatomy))
        add_pattern(hu, lesion)


def add_pattern(hu: np.ndarray, lesion: Lesion) -> None:
    """Adds a lesion's pattern in place; no overview pixel changes."""
    y, x = patterns.window_start(lesion)
    hu[y : y + patterns.WINDOW, x : x + patterns.WINDOW] += patterns.pattern(lesion).astype(np.float32)


def expose(hu: np.ndarray, seed: int) -> np.ndarray:
    """Texture and noise on top (in place on `hu`), then raw values [SIDE, SIDE] uint16 = HU + 1024."""
    rng = np.random.default_rng((seed, 1))
    noise = rng.standard_normal((SIDE, SIDE), dtype=np.float32)
    noise *= np.float32(WHITE_SD)
    noise += _take(rng, _grain())
    noise += _take(rng, _texture())
    hu += noise
    hu -= np.float32(INTERCEPT - 0.5)  # adding one half makes the truncation below a rounding
    np.clip(hu, 0, 4095, out=hu)
    return hu.astype(np.uint16)


def label_anatomy(scene: Scene) -> np.ndarray:
    """Class of every pixel of the patient without findings [SIDE, SIDE] uint8, indices into `scene.CLASSES`."""
    labels = np.zeros((SIDE, SIDE), np.uint8)
    for blob in (scene.body, *scene.organs):
        paint_label(labels, blob)
    return labels


def label_findings(labels: np.ndarray, scene: Scene) -> None:
    """Writes the classes of a scene's findings into a class map in place; a lesion's whole disc takes its class."""
    for blob in (scene.cyst, scene.spine):
        if blob is not None:
            paint_label(labels, blob)
    for lesion in scene.lesions:
        y, x = np.ogrid[:SIDE, :SIDE]
        inside = (y + 0.5 - lesion.y) ** 2 + (x + 0.5 - lesion.x) ** 2 < lesion.radius**2
        labels[inside] = LABEL[patterns.PATTERN_LABEL[lesion.pattern]]


@functools.cache
def largest_noise_power() -> float:
    """Upper bound of the noise power at any spatial frequency, HU² per native pixel, texture included."""
    total = WHITE_SD**2
    for spectrum, sd in ((_grain_power(), GRAIN_SD), (_texture_power(), TEXTURE_SD)):
        total += sd**2 * spectrum.max() / spectrum.mean()
    return float(total)


def _paint_table(hu: np.ndarray, y: float) -> None:
    """The couch: a thin shell curving up at the sides, foam inside."""
    x = np.arange(SIDE, dtype=np.float32) - SIDE / 2
    top = np.float32(y) - x * x * np.float32(0.00042)
    y0 = max(0, int(top.min()) - 3)
    rows = np.arange(y0, SIDE, dtype=np.float32)[:, None]
    d = rows - top
    target = hu[y0:]
    for low, high, value in ((0, 20, -930.0), (0, 2, -60.0), (18, 20, -90.0)):
        _blend(target, np.clip(np.minimum(d - low, high - d) + 0.5, 0, 1), value)


def _take(rng: np.random.Generator, bank: np.ndarray) -> np.ndarray:
    """A random [SIDE, SIDE] piece of a bank, flipped at random."""
    y, x = rng.integers(0, _BANK - SIDE + 1, 2)
    piece = bank[y : y + SIDE, x : x + SIDE]
    fy, fx = rng.integers(0, 2, 2)
    return piece[:: 1 - 2 * fy, :: 1 - 2 * fx]


def frequency_squared(side: int) -> np.ndarray:
    """Squared spatial frequencies [side, side // 2 + 1], cycles a pixel, as `rfft2` orders them."""
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]
    return fy**2 + fx**2


def _grain_power() -> np.ndarray:
    return np.exp(-((2 * np.pi * _GRAIN_SCALE) ** 2) * frequency_squared(_BANK))


def _texture_power() -> np.ndarray:
    """Power law of exponent 2.8 (Burgess), flat below one cycle in 64 px so that its largest power is finite."""
    return (frequency_squared(_BANK) + _TEXTURE_SCALE**-2) ** -1.4


def random_field(power: np.ndarray, seed: int) -> np.ndarray:
    """A [side, side] float32 random field with the power spectrum [side, side // 2 + 1], sd 1. It is periodic."""
    side = power.shape[0]
    white = np.random.default_rng(seed).standard_normal((side, side), dtype=np.float32)
    field = np.fft.irfft2(np.fft.rfft2(white) * np.sqrt(power), s=(side, side))
    return (field / field.std()).astype(np.float32)


@functools.cache
def _grain() -> np.ndarray:
    return random_field(_grain_power(), 1) * np.float32(GRAIN_SD)


@functools.cache
def _texture() -> np.ndarray:
    return random_field(_texture_power(), 2) * np.float32(TEXTURE_SD)


@functools.cache
def _strands() -> np.ndarray:
    """Mesenteric vessels and septa: thin bright lines where a smooth field crosses zero, HU over fat."""
    f2 = frequency_squared(_BANK)
    field = random_field(np.exp(-f2 * 22.0**2 * 4), 3)
    strength = 0.5 + 0.5 * random_field(np.exp(-f2 * 30.0**2 * 4), 4)
    return (130.0 * np.clip(strength, 0, 1.2) * np.exp(-((field / 0.16) ** 2))).astype(np.float32)
