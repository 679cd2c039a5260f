"""PhantomVQA as a random-access source: index -> Task, a pure function of (split, index)."""

import numpy as np

from mvg_jax.data.phantom import render
from mvg_jax.data.phantom.cases import boxes, draw_case
from mvg_jax.data.phantom.questions import OPTIONS
from mvg_jax.data.phantom.views import DEFAULT_WINDOW
from mvg_jax.data.task import NativeImage, Task

SPACING_MM = 0.7
# First pair of each split. A split's pairs stay below the next one's.
SPLITS = {"train": 0, "val": 10**6, "test": 2 * 10**6}
PAIRS = 10**6


class PhantomSource:
    """Items `first` .. `first + size` of a split; items 2k and 2k+1 are twins. Earlier calls change nothing."""

    def __init__(self, split: str, size: int, first: int = 0):
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is none of {sorted(SPLITS)}")
        if not (first >= 0 and size > 0 and first + size <= 2 * PAIRS):
            raise ValueError(f"items {first}..{first + size} are not within 0..{2 * PAIRS}")
        self.split, self.size, self.first = split, size, first

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Task:
        if not 0 <= index < self.size:
            raise IndexError(index)
        return make_task(self.split, self.first + index)


def make_task(split: str, index: int) -> Task:
    """The item `index` of a split: one image [512, 512] uint16, raw = HU + 1024."""
    case, proof = draw_case(SPLITS[split] + index // 2)
    answer = case.twins[index % 2]
    scene = case.variants[answer]
    hu = proof.clean.copy()
    render.add_findings(hu, scene, case.anatomy)
    image = NativeImage(render.expose(hu, scene.seed), DEFAULT_WINDOW, 1.0, render.INTERCEPT, "HU", SPACING_MM)
    return Task(
        id=f"phantom/{split}/{index:08d}",
        dataset="phantom",
        kind=case.kind,
        images=(image,),
        question=case.question,
        answer=answer,
        options=OPTIONS[case.kind],
        boxes=boxes(scene, case.kind),
        chain=proof.chain,
        certificate=proof.certificate,
    )


def dense_labels(task: Task) -> np.ndarray:
    """Class of every native pixel of a task's image, [512, 512] uint8, indices into CLASSES.

    A lesion's whole disc takes the class of its pattern.
    """
    _, split, index = task.id.split("/")
    case, _ = draw_case(SPLITS[split] + int(index) // 2)
    return render.label_map(case.variants[task.answer])
