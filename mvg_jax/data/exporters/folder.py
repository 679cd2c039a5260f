"""Tasks in the format for a user's own data, which `mvg_jax.data.readers.folder` describes. Nothing is lost but certificates.

    files       <split>.jsonl for each split
    one_file    questions.jsonl, whose lines say their split

Grey images become DICOM files, with window, rescaling and spacing; colour images become PNG.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage
from pydicom.valuerep import DSfloat

from mvg_jax.data.exporters.common import encode_image
from mvg_jax.data.readers.folder import SPLITS
from mvg_jax.data.task import NativeImage, Task
from mvg_jax.errors import RunError

LAYOUTS = ("files", "one_file")


def export(tasks: Sequence[Task], folder: Path, split: str, layout: str) -> None:
    """Writes lines and images. RunError for an unknown split or layout; FileExistsError for a <split>.jsonl that is there."""
    if layout not in LAYOUTS or split not in SPLITS:
        raise RunError(f"folder has the layouts {', '.join(LAYOUTS)} and the splits {', '.join(SPLITS)}")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    name, mode = (f"{split}.jsonl", "x") if layout == "files" else ("questions.jsonl", "a")
    with open(folder / name, mode, encoding="utf-8") as file:
        for task in tasks:
            paths = [_write(image, folder) for image in task.images]
            row = _row(task, paths) | ({"split": split} if layout == "one_file" else {})
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _row(task: Task, images: list[str]) -> dict[str, Any]:
    row = {
        "id": task.id,
        "images": images,
        "question": task.question,
        "answer": task.answer,
        "options": list(task.options),
        "answer_type": str(task.answer_type),
        "accepted": list(task.accepted),
        "kind": task.kind,
        "modality": task.modality,
        "language": task.language,
        "boxes": [{"label": box.label, "xyxy_1000": list(box.xyxy), "image": box.image} for box in task.boxes],
    }
    if task.chain is not None:
        row["chain"] = [{"name": call.name, "arguments": call.arguments} for call in task.chain]
    if task.tolerance:
        row["tolerance"] = task.tolerance
    return {key: value for key, value in row.items() if value not in ([], "") or key == "chain"}


def _write(image: NativeImage, folder: Path) -> str:
    """Writes an image under the name of its content; returns its path below the folder."""
    grey = image.pixels.ndim == 2
    content = encode_dicom(image) if grey else encode_image(image.pixels, "PNG")
    name = f"images/{hashlib.sha256(content).hexdigest()[:16]}.{'dcm' if grey else 'png'}"
    (folder / name).write_bytes(content)
    return name


def encode_dicom(image: NativeImage) -> bytes:
    """A grey image as a DICOM file: pixels as they are, with rescaling, window and spacing; of modality CT if in HU."""
    data = pydicom.Dataset()
    data.SOPClassUID = SecondaryCaptureImageStorage
    data.SOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[hashlib.sha256(image.pixels.tobytes()).hexdigest()])
    data.Modality = "CT" if image.unit == "HU" else "OT"
    data.Rows, data.Columns = image.pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated = data.BitsStored = 8 * image.pixels.dtype.itemsize
    data.HighBit = data.BitsStored - 1
    low, high = image.window
    data.WindowCenter, data.WindowWidth = _decimal((low + high) / 2), _decimal(high - low)
    data.RescaleSlope, data.RescaleIntercept = _decimal(image.slope), _decimal(image.intercept)
    if image.spacing_mm is not None:
        data.PixelSpacing = [_decimal(image.spacing_mm)] * 2
    little = image.pixels.astype(image.pixels.dtype.newbyteorder("<"))
    data.add_new("PixelData", "OB" if little.dtype == np.uint8 else "OW", little.tobytes())
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out = io.BytesIO()
    data.save_as(out, enforce_file_format=True)
    return out.getvalue()


def _decimal(value: float) -> DSfloat:
    """A number in the 16 characters that DICOM has for it."""
    return DSfloat(float(value), auto_format=True)
