"""Tasks in the layouts of OmniMedVQA. Tasks without two to four options, or of several images, are left out.

    folder    Images/ and QA_information/
    zip       OmniMedVQA.zip, with a folder OmniMedVQA/ inside

Half of the tasks go to "Chest CT Scan", whose file says `modality` and whose image names have blanks and brackets. Spellings
of modalities are as dirty as the published ones. The first task's gold stands among its options twice; after the last task
comes a row whose gold is none of the options.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mvg_jax.data.exporters.common import encode_image, writer
from mvg_jax.data.images import to_8bit
from mvg_jax.data.task import AnswerType, Task
from mvg_jax.errors import RunError

LAYOUTS = ("folder", "zip")
SPLITS = {"open_access": "Open-access", "restricted_access": "Restricted-access"}
SOURCES = ("Phantoms", "Chest CT Scan")

_DIRTY = {
    "CT": ("CT(Computed Tomography)", "CT (Computed Tomography)"),
    "MRI": ("MR (Mag-netic Resonance Imaging)", "MRI"),
    "OCT": ("OCT (Optical Coherence Tomography",),
    "Ultrasound": ("ultrasound", "Ultrasound"),
    "Microscopy": ("Microscopy Images",),
}


def export(tasks: Sequence[Task], folder: Path, split: str, layout: str) -> None:
    """Writes questions and images. RunError for an unknown split or layout, and for a split that is there."""
    if layout not in LAYOUTS or split not in SPLITS:
        raise RunError(f"omnimedvqa has the layouts {', '.join(LAYOUTS)} and the splits {', '.join(SPLITS)}")
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {source: [] for source in SOURCES}
    archive, top = ("OmniMedVQA.zip", "OmniMedVQA/") if layout == "zip" else (None, "")
    with writer(folder, archive, top, new=f"QA_information/{SPLITS[split]}/{SOURCES[0]}.json") as put:
        fitting = (task for task in tasks if 2 <= len(task.options) <= 4 and len(task.images) == 1)
        for index, task in enumerate(fitting):
            source = SOURCES[index % len(SOURCES)]
            image = f"Images/{source}/{split}/{task.kind}/{index // len(SOURCES):06d} ({index % 10}).png"
            put(image, encode_image(to_8bit(task.images[0]), "PNG"))
            rows[source].append(_row(task, source, split, index, image))
        if first := rows[SOURCES[0]]:
            first[0] = _twice(first[0])
            first.append(first[0] | {"gt_answer": "none of these", "question_id": "Phantoms_dirty"})
        for source, asked in rows.items():
            put(f"QA_information/{SPLITS[split]}/{source}.json", json.dumps(asked, indent=1).encode())


def _row(task: Task, source: str, split: str, index: int, image: str) -> dict[str, Any]:
    gold = task.options[ord(task.answer) - ord("A")] if task.answer_type == AnswerType.CHOICE else task.answer
    spellings = _DIRTY.get(task.modality or "CT", (task.modality,))
    return {
        "dataset": source,
        "question_id": f"{source}_{split}_{index:04d}",
        "question_type": "Disease Diagnosis",
        "question": task.question,
        "gt_answer": gold,
        "image_path": image,
        **{f"option_{letter}": option for letter, option in zip("ABCD", task.options, strict=False)},
        "modality" if source == "Chest CT Scan" else "modality_type": spellings[index % len(spellings)],
    }


def _twice(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its gold as last option too."""
    letters = [letter for letter in "ABCD" if f"option_{letter}" in row]
    wrong = [letter for letter in letters if row[f"option_{letter}"] != row["gt_answer"]]
    return row | {f"option_{(wrong or letters)[-1]}": row["gt_answer"]}
