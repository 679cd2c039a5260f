"""DICOM files made by tests."""

import io

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian


def dicom_file(pixels, *, syntax=ExplicitVRLittleEndian, **attributes) -> bytes:
    """An uncompressed file with `pixels` [H, W], [H, W, 3] or [frames, H, W] (if NumberOfFrames is given); None leaves out."""
    data = pydicom.Dataset()
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    if pixels is not None:
        pixels = np.asarray(pixels)
        colour = pixels.ndim == 3 and "NumberOfFrames" not in attributes
        data.Rows, data.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
        data.SamplesPerPixel = 3 if colour else 1
        if colour:
            data.PlanarConfiguration = 0
        data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
        data.HighBit = data.BitsStored - 1
        data.PixelRepresentation = int(pixels.dtype.kind == "i")
        data.add_new("PixelData", "OB" if pixels.dtype.itemsize == 1 else "OW", pixels.tobytes())
    for key, value in attributes.items():
        if value is None:
            del data[key]
        else:
            setattr(data, key, value)
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    out = io.BytesIO()
    data.save_as(out, enforce_file_format=True)
    return out.getvalue()
