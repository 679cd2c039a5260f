"""One spelling for each imaging modality, whatever a data set calls it."""

import re

_NAMES = {
    "CT": ("ct", "computed tomography"),
    "MRI": ("mr", "mri", "magnetic resonance imaging", "magnetic resonance"),
    "X-Ray": ("x ray", "xray", "cr", "dx", "rg", "radiograph", "radiography"),
    "Ultrasound": ("us", "ultrasound", "ultrasonography"),
    "PET": ("pt", "pet", "positron emission tomography"),
    "Nuclear medicine": ("nm", "nuclear medicine"),
    "Mammography": ("mg", "mammography", "mammogram"),
    "Angiography": ("xa", "angiography"),
    "Fluoroscopy": ("rf", "fluoroscopy"),
    "Fundus photography": ("op", "fundus", "fundus photography"),
    "OCT": ("opt", "oct", "optical coherence tomography"),
    "Endoscopy": ("es", "endoscopy"),
    "Microscopy": ("sm", "gm", "microscopy", "microscopy images", "histology", "histopathology"),
    "Dermoscopy": ("dermoscopy", "dermatoscopy"),
    "Colposcopy": ("colposcopy",),
    "Digital photography": ("xc", "digital photography"),
    "Infrared reflectance imaging": ("infrared reflectance imaging",),
}
MODALITIES = tuple(_NAMES)
_BY_WORDING = {wording: name for name, wordings in _NAMES.items() for wording in wordings}


def spelt(text: str) -> str:
    """The modality that `text` names: by word, by DICOM code, with an expansion in brackets, closed or not.

    An unknown one keeps its wording, with single blanks.
    """
    before_bracket = text.split("(")[0].strip() or text
    folded = " ".join(re.findall(r"[a-z0-9]+", before_bracket.lower()))
    return _BY_WORDING.get(folded, " ".join(text.split()))


def wordings(name: str) -> tuple[str, ...]:
    """Other ways to say one of MODALITIES in full: no DICOM codes other than the usual short forms."""
    return tuple(w for w in _NAMES[name] if w != name.lower() and (len(w) > 2 or w in ("ct", "mr", "us")))
