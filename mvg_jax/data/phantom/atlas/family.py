"""What a family of images is: how a patient is drawn and painted, and what can be asked about it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mvg_jax.data.phantom.atlas import canvas
from mvg_jax.data.phantom.atlas.details import Detail, Ink
from mvg_jax.data.phantom.certificate import Noise
from mvg_jax.data.phantom.views import Overview
from mvg_jax.data.task import AnswerType, Box

Patient = Any  # a frozen dataclass of the family; `details` apart, it is all that an image shows


@dataclasses.dataclass(frozen=True)
class Film:
    """How planes become pixels: noise, range, type.

    white_sd, texture_sd: noise a pixel, and texture of power f^-2.8 that counts as noise. rician: magnitude of a complex
    signal (MR). unit: of the physical values, which are planes + intercept. window: in the planes' values. rgb: three planes of 8
    bits, otherwise one of `top` + 1 levels.
    """

    top: float
    window: tuple[float, float]
    white_sd: float
    texture_sd: float
    unit: str
    rgb: bool = False
    rician: bool = False
    intercept: float = 0.0

    @property
    def planes(self) -> int:
        return 3 if self.rgb else 1

    @property
    def pixel(self) -> type:
        return np.uint8 if self.rgb else np.uint16

    def mean(self, clean: np.ndarray) -> np.ndarray:
        """The expected pixels of noise-free planes."""
        if self.rician:
            clean = np.sqrt(clean**2 + self.white_sd**2)
        return np.clip(clean, np.float32(0), np.float32(self.top))

    def expose(self, clean: np.ndarray, seed: int, shifted: bool) -> np.ndarray:
        """Pixels [side, side] or [side, side, 3] of noise-free planes. shifted: another texture."""
        rng = np.random.default_rng((seed, 1))
        side = clean.shape[1]
        texture = canvas.take(rng, canvas.bank(side, *_texture(shifted)))
        signal = rng.standard_normal(clean.shape, dtype=np.float32)
        signal *= np.float32(self.white_sd)
        texture *= np.float32(self.texture_sd)
        signal += texture
        signal += clean
        if self.rician:
            imaginary = rng.standard_normal(clean.shape, dtype=np.float32)
            imaginary *= np.float32(self.white_sd)
            np.hypot(signal, imaginary, out=signal)
        signal += np.float32(0.5)  # makes the truncation below a rounding
        pixels = np.clip(signal, 0, self.top, out=signal).astype(self.pixel)
        return np.ascontiguousarray(pixels.transpose(1, 2, 0)) if self.rgb else pixels[0]

    @property
    def smallest(self) -> float:
        """The noise's power where it has least. Rician noise has more than 0.9 of its Gaussian power where the signal is 3 sd or
        more; texture is left out, which only lowers it."""
        return self.white_sd**2 * (0.9 if self.rician else 1.0)

    def noise(self, side: int, shifted: bool) -> Noise:
        """What disturbs a view."""
        return Noise(self.white_sd**2, self.texture_sd**2 * _covariance(side, *_texture(shifted)[:-1]), self.rgb)


@functools.lru_cache(maxsize=4)
def _covariance(side: int, scale: float, blur: float, slope: float) -> np.ndarray:
    """[side, side] over lags (wrapped around), of a field of sd 1."""
    covariance = np.fft.irfft2(canvas.power(side, scale, blur, slope), s=(side, side))
    return covariance / covariance[0, 0]


def _texture(shifted: bool) -> tuple[float, float, float, int]:
    """scale, blur and slope of the texture, and the seed of its bank."""
    return (24.0, 0.0, 2.0, 12) if shifted else (48.0, 0.0, 2.8, 11)


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question that the overview answers, with a patient for every answer and the boxes of what it is about.

    The twins show two of `variants`; a question of AnswerType.NUMBER has only those.
    """

    question: str
    answer_type: AnswerType
    options: tuple[str, ...]
    variants: Mapping[str, tuple[Patient, tuple[Box, ...]]]
    tolerance: float = 0.0


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of image.

    modality: its name as an answer; accepted: others that are as right. spacing_mm: of a unit of the canvas, None where
    length has no meaning. noun: what a small finding is called.
    groups: patterns that a detail may show, by the kind of question about them. wordings: of those questions, of `compare`
    (with {target}), `side` and `organ`. targets: what `compare` may ask for. places: where details may lie -> (organ, side of the
    image). shares: of the kinds among questions.
    sample(rng, shifted) -> a patient; shifted: outside of the range of training. paint(patient, side) -> planes.
    site(rng, patient, place) -> (x, y). base(planes, detail, overview): the part of a detail that every view shows, in place.
    ink: the part only close views show, [C, n, n]. always(rng, patient): details that every image has.
    control(rng, kind, patient): questions that need no tool.
    """

    name: str
    modality: str
    accepted: tuple[str, ...]
    film: Film
    spacing_mm: float | None
    noun: str
    groups: Mapping[str, tuple[str, ...]]
    wordings: Mapping[str, tuple[str, ...]]
    targets: tuple[str, ...]
    places: Mapping[str, tuple[str, str]]
    shares: Mapping[str, float]
    control_wordings: Mapping[str, tuple[str, ...]]
    sample: Callable[[np.random.Generator, bool], Patient]
    paint: Callable[[Patient, int], np.ndarray]
    site: Callable[[np.random.Generator, Patient, str], tuple[float, float]]
    base: Callable[[np.ndarray, Detail, Overview], None]
    ink: Ink
    control: Callable[[np.random.Generator, str, Patient], Asked]
    always: Callable[[np.random.Generator, Patient], tuple[Detail, ...]] = lambda rng, patient: ()


def measured(value: float, unit: str) -> str:
    """A measurement as an answer, in whole units."""
    return f"{round(value)} {unit}"


def pick(rng: np.random.Generator, options) -> str:
    return str(options[rng.integers(len(options))])


def apart(rng: np.random.Generator, low: float, high: float) -> tuple[float, float]:
    """Two sizes, uniform in their logarithms, a third or more apart."""
    while True:
        one, two = np.exp(rng.uniform(np.log(low), np.log(high), 2))
        if max(one, two) > 1.33 * min(one, two):
            return float(one), float(two)
