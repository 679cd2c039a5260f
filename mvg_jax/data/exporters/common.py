"""What exporters share: native images as other people's files hold them, 8 bits a channel; folders and zips of them."""

import contextlib
import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

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


@contextlib.contextmanager
def writer(
    folder: Path, archive: str | None, top: str = "", new: str | None = None
) -> Iterator[Callable[[str, bytes], None]]:
    """Gives `put(name, content)`: writes a file below the folder, or adds it to the zip `archive` there, its name after `top`.

    RunError if the file `new` is there already.
    """
    if archive is None:
        if new is not None and (folder / new).exists():
            raise RunError(f"{folder / new} is there already")

        def put(name: str, content: bytes) -> None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

        yield put
    else:
        with zipfile.ZipFile(folder / archive, "a") as file:
            if new is not None and top + new in file.namelist():
                raise RunError(f"{new} is there already, in {folder / archive}")
            yield lambda name, content: file.writestr(top + name, content)
