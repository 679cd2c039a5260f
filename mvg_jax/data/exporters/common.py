"""What exporters share: native images as other people's files hold them, 8 bits a channel."""

import io

import numpy as np
from PIL import Image

from mvg_jax.data.task import AnswerType, NativeImage, Task
from mvg_jax.errors import RunError


def encode_image(pixels: np.ndarray, format: str, mode: str | None = None) -> bytes:
    """An image file. pixels: uint8 [H, W] or [H, W, 3]. format: "JPEG" (quality 95) or "PNG". mode: of Pillow; None = L or RGB."""
    image = Image.fromarray(pixels)
    out = io.BytesIO()
    image.convert(mode or image.mode).save(out, format, quality=95)
    return out.getvalue()


def only_image(task: Task) -> NativeImage:
    """The image of a task in a layout that has room for one. RunError if it has none or several."""
    if len(task.images) != 1:
        raise RunError(f"{task.id}: this layout holds one image a question, not {len(task.images)}")
    return task.images[0]


def answer_text(task: Task) -> str:
    """The answer in words: the option's text where the task asks for its letter."""
    return task.options[ord(task.answer) - ord("A")] if task.answer_type is AnswerType.CHOICE else task.answer
