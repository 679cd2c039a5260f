"""Encoded images into native ones: what FORMATS names, and DICOM. Colour becomes RGB, grey stays grey with all of its bits.

And back: native images as 8 bits show them.
"""

import dataclasses
import io
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from mvg_jax.data.files import Files
from mvg_jax.data.task import NativeImage
from mvg_jax.errors import RunError

MAX_PIXELS = 80_000_000  # Pillow itself warns from 89 million on
# Not all that Pillow has plugins for: EPS, for one, starts another program.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_GREY_8 = ("1", "L")
_GREY_ALPHA = ("LA", "La")
_GREY_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_DICOM_MARK = slice(128, 132)


class BadImage(Exception):
    """An image that cannot be used; the text says which and why. A pipeline skips, counts and names it."""


class ImageRef(Protocol):
    """An image that is not loaded yet. name: unique within its data set. Hashable; pickles small."""

    name: str

    def load(self) -> NativeImage:
        """The pixels. BadImage when there are none to be had."""


@runtime_checkable
class EncodedRef(ImageRef, Protocol):
    """An image that lies somewhere as one encoded file: equal bytes are equal images, whoever holds them."""

    def read(self) -> bytes:
        """The encoded file. BadImage when it is not there or empty."""


@dataclasses.dataclass(frozen=True)
class FileImage:
    """An image in a file of a data set."""

    files: Files
    name: str

    def read(self) -> bytes:
        try:
            return self.files.read(self.name)
        except RunError as error:
            raise BadImage(str(error)) from error

    def load(self) -> NativeImage:
        return decode(self.read(), self.name)


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins with `head`, 132 bytes or more, is DICOM, by its mark."""
    return head[_DICOM_MARK] == b"DICM"


def decode(content: bytes, name: str) -> NativeImage:
    """The image in an encoded file: uint8 [H, W] or [H, W, 3], or uint16 [H, W] with its own window. BadImage otherwise.

    Transparency is dropped, EXIF orientation is not applied (no public evaluator does), of several frames the first counts.
    """
    if is_dicom(content):
        from mvg_jax.data.dicom import decode_dicom  # here: pydicom is slow to import

        return decode_dicom(content, name)
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise BadImage(f"{name}: {image.width} x {image.height} pixels are too many")
        if image.mode in _GREY_DEEP:
            return deep(np.asarray(image), name)
        if image.mode in _GREY_ALPHA:
            return NativeImage(np.asarray(image.getchannel(0)))
        return NativeImage(np.asarray(image.convert("L" if image.mode in _GREY_8 else "RGB")))
    except BadImage:
        raise
    except Exception as error:  # Pillow's plugins raise whatever comes over them on hostile bytes
        raise BadImage(f"{name}: {type(error).__name__}: {error}") from error


def deep(values: np.ndarray, name: str, unit: str = "grey", spacing_mm: float | None = None) -> NativeImage:
    """Grey values of more than 8 bits [H, W] as uint16, shown from the 0.5th to the 99.5th percentile. BadImage if not finite."""
    values = np.asarray(values)
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise BadImage(f"{name}: needs finite values in two dimensions, has shape {values.shape}")
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):
        raise BadImage(f"{name}: values from {low} to {high} are too far apart")
    if np.issubdtype(values.dtype, np.integer) and high - low <= 65535:
        slope, intercept = 1.0, 0.0 if low >= 0 and high <= 65535 else low
        pixels = (values.astype(np.int64) - int(intercept)).astype(np.uint16)
    else:
        slope, intercept = (high - low) / 65535 or 1.0, low
        pixels = np.rint((values.astype(np.float64) - low) / slope).astype(np.uint16)
    window = tuple(float(v) for v in np.percentile(values, (0.5, 99.5)))
    if window[0] >= window[1]:
        window = (low, high if high > low else low + 1.0)
    return NativeImage(pixels, window, slope, intercept, unit, spacing_mm)


def to_8bit(image: NativeImage) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3]: the image as its default window shows it, rounded."""
    low, high = image.window
    physical = image.pixels.astype(np.float32) * np.float32(image.slope) + np.float32(image.intercept)
    grey = (physical - np.float32(low)) * np.float32(255.0 / (high - low))
    return np.rint(np.clip(grey, 0.0, 255.0)).astype(np.uint8)
