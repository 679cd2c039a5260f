"""Small labelled volumes on disk."""

import json
import pathlib

import nibabel
import numpy as np

SHAPE = (60, 72, 48)  # right, front, head; 1 x 1 x 2 mm
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
NAMES = "1 liver\n2 kidney_L 100\n3 kidney_R 101\n4 cord\n5 nodule # small\n"
# label -> (x, y, z) ranges
BLOCKS = {
    1: ((6, 56), (34, 66), (4, 44)),
    2: ((6, 20), (10, 26), (2, 22)),
    3: ((40, 54), (8, 24), (26, 46)),
    4: ((20, 38), (4, 28), (2, 46)),
    5: ((8, 16), (44, 52), (10, 30)),
}


def labels() -> np.ndarray:
    """int16 [X, Y, Z], axes to the patient's right, front and head. The liver is small near the feet, and in two parts on top."""
    volume = np.zeros(SHAPE, np.int16)
    for label, ranges in BLOCKS.items():
        volume[tuple(slice(*r) for r in ranges)] = label
        if label == 1:
            volume[:, 46:66, :16] = 0
            volume[:36, 34:66, :16] = 0
            volume[30:34, 34:66, 34:] = 0
    return volume


def write_volume(
    folder: pathlib.Path,
    *,
    image=None,
    label=None,
    affine=AFFINE,
    label_affine=None,
    codes="RAS",
    names=NAMES,
    about=None,
) -> pathlib.Path:
    """A subject's folder. codes: orientation in which the arrays are stored."""
    folder.mkdir(parents=True, exist_ok=True)
    label = labels() if label is None else label
    image = labels() * 40 + 10 if image is None else image
    for name, values, at in (("image.nii.gz", image, affine), ("labels.nii", label, label_affine)):
        nifti = nibabel.Nifti1Image(values, affine if at is None else at)
        start, end = (nibabel.orientations.axcodes2ornt(c) for c in (nibabel.aff2axcodes(nifti.affine), codes))
        nibabel.save(nifti.as_reoriented(nibabel.orientations.ornt_transform(start, end)), folder / name)
    (folder / "names.txt").write_text(names)
    if about is not None:
        (folder / "volume.json").write_text(json.dumps(about))
    return folder
