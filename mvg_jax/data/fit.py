"""Native images into the one bucket that a run's programs are compiled for: size, channels and bits."""

import dataclasses

import numpy as np
from PIL import Image

from mvg_jax.data.images import BadImage, to_8bit
from mvg_jax.data.task import Demonstration, NativeImage, Task


@dataclasses.dataclass(frozen=True)
class Bucket:
    """What native images become: at most height x width, 1 (grey) or 3 (RGB) channels, 8 or 16 bits. images: most in one task."""

    height: int
    width: int
    channels: int
    bits: int
    images: int

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8 if self.bits == 8 else np.uint16)

    def fit(self, task: Task) -> Task:
        """The task with images of this bucket; the same object where nothing is to be done. BadImage if one cannot be."""
        if len(task.images) > self.images:
            raise BadImage(f"{task.id}: {len(task.images)} images, more than config.data.images {self.images}")
        images = tuple(self._image(image, task.id) for image in task.images)
        unchanged = all(a is b for a, b in zip(images, task.images, strict=True))
        return task if unchanged else dataclasses.replace(task, images=images)

    def fit_demonstration(self, demonstration: Demonstration) -> Demonstration:
        """The demonstration with its task fitted."""
        return dataclasses.replace(demonstration, task=self.fit(demonstration.task))

    def _image(self, image: NativeImage, name: str) -> NativeImage:
        if image.pixels.ndim == 3 and self.channels == 1:
            raise BadImage(f"{name}: a colour image; set config.data.channels to 3")
        image = _narrowed(image) if image.pixels.dtype.itemsize * 8 > self.bits else image
        image = _shrunk(image, self.height, self.width)
        pixels = image.pixels.astype(self.dtype, copy=False)
        if self.channels == 3 and pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        return image if pixels is image.pixels else dataclasses.replace(image, pixels=pixels)


def _narrowed(image: NativeImage) -> NativeImage:
    """16 bits into 8: what the image's own window shows."""
    return dataclasses.replace(image, pixels=to_8bit(image), window=(0.0, 255.0), slope=1.0, intercept=0.0, unit="grey")


def _shrunk(image: NativeImage, height: int, width: int) -> NativeImage:
    """Not larger than the bucket, its shape kept; every native pixel has its part in the result."""
    h, w = image.pixels.shape[:2]
    scale = min(height / h, width / w)
    if scale >= 1:
        return image
    size = max(1, min(width, round(w * scale))), max(1, min(height, round(h * scale)))
    channels = np.moveaxis(image.pixels.reshape(h, w, -1), 2, 0).astype(np.float32)
    small = [np.asarray(Image.fromarray(c).resize(size, Image.Resampling.BOX)) for c in channels]
    top = np.iinfo(image.pixels.dtype).max
    pixels = np.clip(np.rint(np.stack(small, axis=-1)), 0, top).astype(image.pixels.dtype)
    spacing = None if image.spacing_mm is None else image.spacing_mm / scale
    return dataclasses.replace(
        image, pixels=pixels.reshape(*pixels.shape[:2], *image.pixels.shape[2:]), spacing_mm=spacing
    )
