"""PhantomVQA as a random-access source: index -> Task, a pure function of (split, index)."""

import dataclasses
import functools

import numpy as np

from mvg_jax.data.phantom import render
from mvg_jax.data.phantom.cases import boxes, crowd, draw_case, finding_boxes
from mvg_jax.data.phantom.patterns import PATTERN_LABEL
from mvg_jax.data.phantom.questions import OPTIONS
from mvg_jax.data.phantom.scene import CLASSES, FINDINGS, Anatomy, Scene, sample_anatomy
from mvg_jax.data.phantom.views import BONE_WINDOW, DEFAULT_WINDOW
from mvg_jax.data.task import LabelledImage, NativeImage, Task

SPACING_MM = 0.7
# First pair of each split. A split's pairs stay below the next one's.
SPLITS = {"train": 0, "val": 10**6, "test": 2 * 10**6}
PAIRS = 10**6
LESSONS_OF_A_PATIENT = 4
_LESSONS = 0x6C736E73  # keeps the lessons' draws apart from the tasks'


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
    return Task(
        id=f"phantom/{split}/{index:08d}",
        dataset="phantom",
        kind=case.kind,
        images=(_image(render.expose(hu, scene.seed)),),
        question=case.question,
        answer=answer,
        options=OPTIONS[case.kind],
        boxes=boxes(scene, case.kind),
        chain=proof.chain,
        certificate=proof.certificate,
    )


class PhantomCloseUps(PhantomSource):
    """The same items with what their call would show in place of the image, where one view shows it: questions to learn reading from.

    Comparisons stay as they are.
    """

    def __getitem__(self, index: int) -> Task:
        return close_up(super().__getitem__(index))


def close_up(task: Task) -> Task:
    """A task that needs a zoom into one box, or a window, as one that needs nothing; other tasks unchanged."""
    if not task.chain:
        return task
    call, (image,) = task.chain[0], task.images
    if call.name == "window_level_tool":
        image = dataclasses.replace(image, window=BONE_WINDOW)
    elif len(task.boxes) == 1:
        height, width = image.pixels.shape
        x1, y1, x2, y2 = call.arguments["bbox_2d"]
        rows, columns = ((round(a * n / 1000), round(b * n / 1000)) for a, b, n in ((y1, y2, height), (x1, x2, width)))
        image = dataclasses.replace(image, pixels=image.pixels[slice(*rows), slice(*columns)])
    else:
        return task
    return dataclasses.replace(task, id=f"{task.id}/close", images=(image,), boxes=(), chain=(), certificate={})


class PhantomLessons:
    """Labelled images crowded with findings, `size` of them: index -> LabelledImage, a function of the index alone.

    Neighbours share a patient, which is what takes long to draw. classes: names of the labels. findings: those that questions are
    about. alike: those among them that an overview cannot tell apart.
    """

    classes, findings, alike = CLASSES, FINDINGS, tuple(PATTERN_LABEL.values())

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> LabelledImage:
        if not 0 <= index < self.size:
            raise IndexError(index)
        anatomy, bare, clean, labels = _patient(index // LESSONS_OF_A_PATIENT)
        scene = crowd(_lesson_rng(1, index), anatomy, bare)
        hu, labels = clean.copy(), labels.copy()
        render.add_findings(hu, scene, anatomy)
        render.label_findings(labels, scene)
        image = _image(render.expose(hu, scene.seed))
        return LabelledImage(f"phantom/lesson/{index:08d}", image, labels, finding_boxes(scene))


@functools.lru_cache(maxsize=8)
def _patient(number: int) -> tuple[Anatomy, Scene, np.ndarray, np.ndarray]:
    """A patient without findings: anatomy, scene, noise-free HU, and labels."""
    rng = _lesson_rng(0, number)
    anatomy = sample_anatomy(rng)
    bare = Scene(anatomy.body, anatomy.organs, anatomy.table_y, (), None, None, int(rng.integers(2**31)))
    return anatomy, bare, render.render_anatomy(bare), render.label_anatomy(bare)


def _lesson_rng(what: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((_LESSONS, what, number))))


def _image(pixels: np.ndarray) -> NativeImage:
    return NativeImage(pixels, DEFAULT_WINDOW, 1.0, render.INTERCEPT, "HU", SPACING_MM)
