"""DICOM files: one frame as a native image, and the few facts of the header that questions can be made of.

Pixel values are kept as stored (signed ones above 0, floats and 32 bits in 16); what the header says about them becomes slope,
intercept, window, unit and spacing:

rescale     slope and intercept (modality LUTs are applied to the values); unit "HU" for CT that is rescaled, unless the header
            gives another type of value.
window      the first window of the header, centre -/+ width / 2 as the window tools have it (the standard's LINEAR function
            lies half a value beside, its SIGMOID is drawn straight). Without one: the full range of 8 bits or less, the
            0.5th to 99.5th percentile of more. Explicit VOI tables are not read.
MONOCHROME1 low values are white: the physical value is mirrored in the stored range, by a negative slope, so that bright is
            high for every tool; such values are arbitrary ("grey") anyway.
spacing     pixel spacing, else that at the detector, where pixels are square.
colour      RGB, YCbCr and palettes become 8-bit RGB.

Enhanced multi-frame files say these things per frame or once for all; both are looked up.
"""

import dataclasses
import hashlib
import io
import logging
import math
import warnings
import zlib
from typing import Any

import numpy as np
import pydicom
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

from mvg_jax.data.images import MAX_PIXELS, BadImage, deep
from mvg_jax.data.modality import MODALITIES, spelt
from mvg_jax.data.task import NativeImage

# pydicom warns of every slip in a header; what cannot be read is told by BadImage. Set once: filters are not for threads.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
warnings.filterwarnings("ignore", module=r"pydicom\.")
logging.getLogger("pydicom").setLevel(logging.ERROR)

MAX_INFLATED = 512 * 1024**2  # bytes a deflated file may unpack to
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_META = 132  # where the file's meta group begins: preamble and mark
_RESCALING = "PixelValueTransformationSequence"
_RGB_AFTER_DECODING = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_SQUARE = 1e-3  # relative difference of row and column spacing
_STRAIGHT = 0.9  # least cosine between a slice's normal and a body axis; less is oblique
_PLANES = ("sagittal", "coronal", "axial")  # normals along x (to the left), y (to the back), z (to the head)
_MAX_TEXT = 200


def decode_dicom(content: bytes, name: str, frame: int = 0) -> NativeImage:
    """Frame `frame` of a DICOM file: uint8 [H, W] or [H, W, 3], or uint16 [H, W]. BadImage names file and fault."""
    try:
        return _image(_dataset(content, name), name, frame)
    except BadImage:
        raise
    except Exception as error:  # pydicom and its decoders raise whatever comes over them on hostile bytes
        raise BadImage(f"{name}: {type(error).__name__}: {_line(str(error))}") from error


def headers(content: bytes, name: str) -> dict[str, Any]:
    """What a DICOM file says of its image, and nothing of the patient. BadImage when it cannot be read.

    modality: one of MODALITIES, "" where it is none of them (segmentations, doses, reports). body_part, study_description:
    in lower case, "" = not said. plane: "axial", "coronal" or "sagittal", "" where oblique or not said. frames: 0 without
    pixel data. study: a hash by which files of one study are known.
    """
    try:
        data = _dataset(content, name)
        modality = spelt(str(data.get("Modality", "")))
        study = data.get("StudyInstanceUID") or data.get("SeriesInstanceUID") or data.get("SOPInstanceUID") or name
        return {
            "modality": modality if modality in MODALITIES else "",
            "body_part": _line(str(data.get("BodyPartExamined", "") or "")).lower(),
            "plane": _plane(_attribute(data, 0, "PlaneOrientationSequence", "ImageOrientationPatient")),
            "study_description": _line(str(data.get("StudyDescription", "") or "")).lower(),
            "frames": _frames(data) if _pixels_there(data) else 0,
            "study": hashlib.sha256(str(study).encode()).hexdigest()[:16],
        }
    except BadImage:
        raise
    except Exception as error:  # as above
        raise BadImage(f"{name}: {type(error).__name__}: {_line(str(error))}") from error


def _dataset(content: bytes, name: str) -> pydicom.Dataset:
    if _DEFLATED in content[_META : _META + 1024]:
        _check_inflated(content, name)
    return pydicom.dcmread(io.BytesIO(content))


def _check_inflated(content: bytes, name: str) -> None:
    """BadImage when a deflated file unpacks to more than MAX_INFLATED bytes."""
    begin = _META + 12 + int.from_bytes(content[_META + 8 : _META + 12], "little")  # its first element is its length
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    if len(inflate.decompress(content[begin:], MAX_INFLATED + 1)) > MAX_INFLATED:
        raise BadImage(f"{name}: unpacks to more than {MAX_INFLATED} bytes")


def _pixels_there(data: pydicom.Dataset) -> bool:
    return any(key in data for key in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))


def _frames(data: pydicom.Dataset) -> int:
    return int(data.get("NumberOfFrames") or 1)


def _image(data: pydicom.Dataset, name: str, frame: int) -> NativeImage:
    if not _pixels_there(data):
        raise BadImage(f"{name}: no pixel data")
    if not 0 <= frame < _frames(data):
        raise BadImage(f"{name}: has {_frames(data)} frames, no frame {frame}")
    if (pixels := int(data.Rows) * int(data.Columns)) > MAX_PIXELS or pixels <= 0:
        raise BadImage(f"{name}: {data.Columns} x {data.Rows} pixels are too many or too few")
    stored = pixel_array(data, index=frame)
    spacing = _spacing(data, frame)
    match data.PhotometricInterpretation:
        case "MONOCHROME1" | "MONOCHROME2":
            return dataclasses.replace(_grey(data, frame, stored, name), spacing_mm=spacing)
        case "PALETTE COLOR":
            return NativeImage(_eight_bits(apply_color_lut(stored, data)[..., :3]), spacing_mm=spacing)
        case space if space in _RGB_AFTER_DECODING and stored.shape[2:] == (3,):
            return NativeImage(_eight_bits(stored, int(data.BitsStored)), spacing_mm=spacing)
        case space:
            raise BadImage(f"{name}: colour space {_line(str(space))} with {stored.shape[2:] or 1} channels")


def _grey(data: pydicom.Dataset, frame: int, stored: np.ndarray, name: str) -> NativeImage:
    """[H, W] of any depth, with the header's rescaling, window and unit."""
    slope, intercept = _rescale(data, frame)
    if "ModalityLUTSequence" in data and stored.dtype.kind in "iu":
        stored, slope, intercept = apply_modality_lut(stored, data), 1.0, 0.0
    low, high = _stored_range(data, stored)
    shallow = stored.dtype == np.uint8
    image = NativeImage(stored, (low, high)) if shallow else deep(stored, name)
    window = _window(data, frame) or sorted(v * slope + intercept for v in image.window)
    slope_of_pixels, intercept_of_pixels = image.slope * slope, image.intercept * slope + intercept
    mirrored = data.PhotometricInterpretation == "MONOCHROME1"
    if mirrored:
        both = (low + high) * slope + 2 * intercept
        window, slope_of_pixels, intercept_of_pixels = (
            (both - window[1], both - window[0]),
            -slope_of_pixels,
            both - intercept_of_pixels,
        )
    unit = "HU" if _is_hounsfield(data, frame) and not mirrored else "grey"
    return NativeImage(image.pixels, tuple(map(float, window)), slope_of_pixels, intercept_of_pixels, unit)


def _is_hounsfield(data: pydicom.Dataset, frame: int) -> bool:
    said = [_attribute(data, frame, _RESCALING, key) for key in ("RescaleIntercept", "RescaleType")]
    return data.get("Modality") == "CT" and said[0] is not None and said[1] in (None, "", "HU")


def _stored_range(data: pydicom.Dataset, stored: np.ndarray) -> tuple[float, float]:
    """Least and greatest value that can be stored; of floats, those that are."""
    if stored.dtype.kind == "f":
        return float(stored.min()), float(stored.max())
    bits = int(data.BitsStored)
    return (-float(2 ** (bits - 1)), float(2 ** (bits - 1) - 1)) if stored.dtype.kind == "i" else (0.0, 2.0**bits - 1)


def _rescale(data: pydicom.Dataset, frame: int) -> tuple[float, float]:
    given = [_attribute(data, frame, _RESCALING, key) for key in ("RescaleSlope", "RescaleIntercept")]
    slope, intercept = (default if v is None else float(v) for v, default in zip(given, (1.0, 0.0), strict=True))
    if not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0:
        raise ValueError(f"rescale slope {slope}, intercept {intercept}")
    return slope, intercept


def _window(data: pydicom.Dataset, frame: int) -> tuple[float, float] | None:
    """(low, high) of the first window; None where there is none."""
    given = [_attribute(data, frame, "FrameVOILUTSequence", key) for key in ("WindowCenter", "WindowWidth")]
    first = [v[0] if isinstance(v, pydicom.multival.MultiValue) and len(v) else v for v in given]
    if any(v is None or v == "" or isinstance(v, pydicom.multival.MultiValue) for v in first):
        return None
    centre, width = map(float, first)
    return (centre - width / 2, centre + width / 2) if math.isfinite(centre) and 0 < width < math.inf else None


def _spacing(data: pydicom.Dataset, frame: int) -> float | None:
    """mm between neighbours; None where not said, or where rows and columns differ."""
    given = _attribute(data, frame, "PixelMeasuresSequence", "PixelSpacing") or data.get("ImagerPixelSpacing")
    if not given or len(given) != 2:
        return None
    row, column = map(float, given)
    return row if row > 0 and math.isfinite(row) and abs(row - column) <= _SQUARE * row else None


def _attribute(data: pydicom.Dataset, frame: int, group: str, key: str) -> Any:
    """An attribute of the file, else of a functional group of enhanced files, shared or the frame's own; None if nowhere."""
    if data.get(key) is not None:
        return data.get(key)
    for holder in (
        *(data.get("PerFrameFunctionalGroupsSequence") or ())[frame : frame + 1],
        *(data.get("SharedFunctionalGroupsSequence") or ())[:1],
    ):
        if (items := holder.get(group)) and items[0].get(key) is not None:
            return items[0].get(key)
    return None


def _plane(orientation: Any) -> str:
    """The plane of a slice by the directions of its rows and columns in the patient's coordinates."""
    if orientation is None or len(orientation) != 6:
        return ""
    along_row, along_column = np.array(orientation, float).reshape(2, 3)
    normal = np.abs(np.cross(along_row, along_column))
    length = np.linalg.norm(normal)
    if not (np.isfinite(length) and length > 0):
        return ""
    return _PLANES[int(normal.argmax())] if normal.max() / length >= _STRAIGHT else ""


def _eight_bits(colours: np.ndarray, bits: int | None = None) -> np.ndarray:
    """uint8 from colours of `bits` bits, by default all of their type."""
    bits = bits or 8 * colours.dtype.itemsize
    return (colours >> max(bits - 8, 0)).astype(np.uint8)


def _line(text: str) -> str:
    return " ".join(text.split())[:_MAX_TEXT]
