"""A folder or zip of DICOM files: questions whose answers stand in the headers.

Asked of every file with pixel data and a modality: which modality; of slices also which plane; where it says so, which part of
the body. The image is the first frame. Splits are drawn by a hash of the study (80 / 10 / 10 %), so a file keeps its split when
others come and go and no study is in two splits; a patient with several studies may be.
"""

import hashlib

from mvg_jax.data.dicom import headers
from mvg_jax.data.files import Files
from mvg_jax.data.images import BadImage, FileImage, is_dicom
from mvg_jax.data.modality import MODALITIES, wordings
from mvg_jax.data.records import DataSet, ReadReport, Record
from mvg_jax.data.task import AnswerType
from mvg_jax.errors import RunError

SPLITS = ("train", "validation", "test")
_LIMITS = {"train": 0.8, "validation": 0.9, "test": 1.0}
_PLANES = ("axial", "coronal", "sagittal")
_HEAD = 132


def read(files: Files, split: str) -> DataSet:
    """The records of a split. RunError when no file is DICOM. Files that cannot be asked about are dropped and named."""
    report, records, any_dicom = ReadReport(f"dicom/{split}"), [], False
    for name in files.names:
        content = _content(files, name)
        if content is None:
            continue
        any_dicom = True
        facts, fault = _facts(content, name)
        if fault:
            report.rows += 1
            report.drop(name, fault)
        elif split_of(facts["study"]) == split:
            report.rows += 1
            image = FileImage(files, name)
            records += [_record(image, split, facts["modality"], *asked) for asked in questions_from_headers(facts)]
        else:
            report.note("a file of another split")
    if not any_dicom:
        raise RunError(f"{files.root} holds no DICOM file")
    return DataSet("dicom", split, tuple(records), report)


def split_of(study: str) -> str:
    """The split of a study, by its hash alone."""
    share = int.from_bytes(hashlib.sha256(study.encode()).digest()[:8], "big") / 2**64
    return next(split for split, limit in _LIMITS.items() if share < limit)


def questions_from_headers(facts: dict) -> list[tuple[str, str, str, tuple[str, ...], tuple[str, ...]]]:
    """(kind, question, answer, options, accepted) of what the facts of `mvg_jax.data.dicom.headers` can answer."""
    modality, plane, body_part = facts["modality"], facts["plane"], facts["body_part"]
    asked = [("modality", "Which imaging modality is this?", modality, MODALITIES, wordings(modality))]
    if plane:
        asked.append(("plane", "In which plane is this slice?", plane, _PLANES, ()))
    if body_part:
        asked.append(("body_part", "Which part of the body does this image show?", body_part, (), ()))
    return asked


def _content(files: Files, name: str) -> bytes | None:
    """The file if it is DICOM. Of files on disk only those are read whole."""
    path = files.path(name)
    if path is not None:
        with path.open("rb") as file:
            if not is_dicom(file.read(_HEAD)):
                return None
    content = files.read(name)
    return content if is_dicom(content) else None


def _facts(content: bytes, name: str) -> tuple[dict, str]:
    """(facts of the header, why the file cannot be asked about or "")."""
    try:
        facts = headers(content, name)
    except BadImage:
        return {}, "unreadable DICOM"
    if not facts["frames"]:
        return facts, "no pixel data"
    return facts, "" if facts["modality"] else "no modality that takes pictures of patients"


def _record(
    image: FileImage, split: str, modality: str, kind: str, question: str, answer: str, options, accepted
) -> Record:
    return Record(
        id=f"dicom/{image.name}/{kind}",
        dataset="dicom",
        split=split,
        kind=kind,
        images=(image,),
        question=question,
        answer=answer,
        answer_type=AnswerType.CLOSED if options else AnswerType.OPEN,
        options=options,
        accepted=accepted,
        modality=modality,
    )
