"""Any labelled volume as verifiable tasks: an image volume, a label volume on the same grid, and names for the labels.

Slices are shown as radiologists see them: axial and coronal ones from the patient's feet and front, so that the left of the image
is the patient's right; sagittal ones with the front on the left. Top is the front (axial) or the head. Pixels are square: where the
spacing is not, the coarser axis is resampled (image linearly, labels by nearest neighbour).

    region      what one name (and side) labels in a slice; it is visible from VISIBLE_MM2 on
    slice       usable if SLICE_REGIONS regions or more are visible
    part        a connected part of a region
    needs tool  rule: `structure` asked of a part whose box is narrower than SMALL pixels of the overview needs a zoom on the box that
                it names. The other kinds need none: the place of a box tells its side, and the rest are asked only of wider parts

Texts do not give answers away. Questions that name a box show a random window of the slice, since in one body places tell names;
the options of `structure` are neighbours in the slice, each of which is asked for with its own box. The other kinds hold as many
tasks of each answer as of any other for one plane and wording (`box` has no answers to balance).
"""

import dataclasses
import functools
import gzip
import io
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mvg_jax.data.files import Files
from mvg_jax.data.label_names import Name, read_names
from mvg_jax.data.records import DataSet, ReadReport, Record
from mvg_jax.data.task import AnswerType, Box, LabelledImage, NativeImage
from mvg_jax.errors import RunError
from mvg_jax.tools.spec import ToolCall

PLANES = ("axial", "coronal", "sagittal")  # fixed z, y, x of a volume whose axes point right, forwards, up
KINDS = ("structure", "presence", "side", "larger", "count", "quadrant", "box")
SPLITS = ("train", "val", "test")

VISIBLE_MM2 = 60.0
SPECK_MM2 = 10.0  # smaller parts are taken for ragged edges when parts are counted
SLICE_REGIONS = 2
SMALL = 16.0  # overview pixels; a token of most vision towers shows 16 to 32
OPTIONS, ROUNDS = 3, 3  # of a `structure` question; how often a slice's names are dealt out to such questions
GRID = 20  # units of 0..1000 in which questions name boxes
MARGIN = 0.25  # of a part's sides, added around it where a question names a box
# Windows of slices: what a box takes of a window's side; that side, as a share of the slice's longer one; how much lies outside.
APPARENT, NARROWEST, WIDEST, OUTSIDE = (0.14, 0.45), 0.3, 1.2, 0.45
LARGER = 1.5  # ratio of areas from which one is called larger
IN_QUARTER = 0.8  # share of a region within one quarter of the image
RARE = 0.25  # a third answer, and further ones, are asked for if they are at least this share of the second commonest
# Split by position: blocks of neighbouring slices, in mm, with a gap on either side of what is held out.
TRAIN_MM, HELD_OUT_MM, GAP_MM = 16.0, 6.0, 2.0
SUBJECTS = 3  # from this many volumes on, the split is by subject
OFF_GRID = 0.1  # of a voxel, that affines of one grid may differ by at its farthest corner
MAX_BYTES, MAX_VOXELS = 4 << 30, 1 << 30

Pixels = tuple[int, int, int, int]  # xyxy, pixel edges


@dataclasses.dataclass(frozen=True)
class LabelledVolume:
    """Two NIfTI files on one grid. names: (label, name) pairs; labels of one name and side are one region, others are background.

    view: side in pixels of the square overview that a model is shown. kinds: of questions. window: shown as black and
    white (None: 0.5th and 99.5th percentile of the volume). Pickles small; voxels are read when asked for, once a process.
    """

    files: Files = dataclasses.field(compare=False)
    root: str
    image: str
    labels: str
    names: tuple[tuple[int, Name], ...]
    subject: str = "0"
    modality: str = ""
    unit: str = "grey"
    window: tuple[float, float] | None = None
    view: int = 448
    kinds: tuple[str, ...] = KINDS

    @classmethod
    def open(cls, files: Files, image: str, labels: str, names: str, **about) -> "LabelledVolume":
        """The volume of two NIfTI files and a table of names (see `label_names.read_names`); about: the other fields.

        RunError when a file cannot be read, the grids differ, or no named label occurs.
        """
        volume = cls(files, str(files.root), image, labels, read_names(files.read(names), names), **about)
        if not voxels(volume).regions_XYZ.any():
            raise RunError(f"{labels}: none of the labels named in {names} occurs")
        return volume

    @functools.cached_property
    def regions(self) -> tuple[Name, ...]:
        """The regions in the order of their numbers 1, 2, ... in region maps."""
        return tuple(dict.fromkeys(name for _, name in self.names))

    @functools.cached_property
    def structures(self) -> tuple[str, ...]:
        """The names of the regions, whatever their side."""
        return tuple(dict.fromkeys(region.name for region in self.regions))

    @functools.cached_property
    def structure_of(self) -> np.ndarray:
        """int [1 + regions]: 1 + index into `structures` of each region number, 0 of 0."""
        return np.array([0, *(1 + self.structures.index(region.name) for region in self.regions)])

    def __getstate__(self) -> dict:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


class Voxels(NamedTuple):
    """grey_XYZ: uint8 or uint16, axes to the patient's right, front and head; value = grey * slope + intercept.

    regions_XYZ: uint16, 0 = none, else 1 + index into LabelledVolume.regions. spacing: mm.
    """

    grey_XYZ: np.ndarray
    regions_XYZ: np.ndarray
    spacing: tuple[float, float, float]
    slope: float
    intercept: float
    window: tuple[float, float]


@functools.lru_cache(maxsize=4)
def voxels(volume: LabelledVolume) -> Voxels:
    """The voxels of a volume. RunError as in `LabelledVolume.open`."""
    image, affine = _read_nifti(volume.files, volume.image)
    labels, labels_affine = _read_nifti(volume.files, volume.labels)
    if image.shape != labels.shape:
        raise RunError(f"{volume.labels}: shape {labels.shape}, but {volume.image} has {image.shape}")
    spacing = _spacing(affine)
    apart = (np.abs(affine - labels_affine)[:3] @ np.array([*image.shape, 1.0])).max()  # mm, at the farthest corner
    if apart > OFF_GRID * min(spacing):
        raise RunError(f"{volume.labels}: its affine is not that of {volume.image}; both must lie on one grid")
    if (labels != np.rint(labels)).any() or labels.min() < 0:
        raise RunError(f"{volume.labels}: labels must be whole numbers from 0 on")
    number = {name: i + 1 for i, name in enumerate(volume.regions)}
    known = np.array([label for label, _ in volume.names])  # in order
    at = np.minimum(np.searchsorted(known, labels), len(known) - 1)
    numbers = np.array([number[name] for _, name in volume.names], np.uint16)
    regions = np.where(known[at] == labels, numbers[at], np.uint16(0))
    grey, slope, intercept = _grey(image)
    window = volume.window or _window(image)
    return Voxels(grey, regions, spacing, slope, intercept, window)


def _read_nifti(files: Files, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(values [X, Y, Z] towards right, front and head, affine [4, 4])."""
    import nibabel

    content = files.read(name)
    try:
        if content[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(content)) as stream:
                content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise RunError(f"{name}: more than {MAX_BYTES >> 30} GiB")
        big = content[:4] in ((540).to_bytes(4, "little"), (540).to_bytes(4, "big"))
        nifti = (nibabel.Nifti2Image if big else nibabel.Nifti1Image).from_bytes(content)
        if len(nifti.shape) < 3 or math.prod(nifti.shape[3:]) != 1 or not 0 < math.prod(nifti.shape) <= MAX_VOXELS:
            raise RunError(f"{name}: shape {nifti.shape}; one volume of three dimensions is needed")
        nifti = nibabel.as_closest_canonical(nifti)
        values = np.asanyarray(nifti.dataobj).reshape(nifti.shape[:3])
    except RunError:
        raise
    except Exception as error:  # nibabel raises whatever comes over it on hostile bytes
        raise RunError(f"{name} is no readable NIfTI file: {type(error).__name__}: {error}") from error
    if values.dtype.kind not in "iuf" or not np.isfinite(nifti.affine).all() or min(_spacing(nifti.affine)) < 1e-6:
        raise RunError(
            f"{name}: needs real values and voxels of some size, has {values.dtype} and affine {nifti.affine.tolist()}"
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():  # outside of what was measured, by some programs
        finite = values[np.isfinite(values)]
        if not finite.size:
            raise RunError(f"{name}: holds no finite value")
        values = np.where(np.isfinite(values), values, finite.min())
    return values, nifti.affine


def _spacing(affine: np.ndarray) -> tuple[float, float, float]:
    """mm along each axis of the array."""
    return tuple(float(v) for v in np.linalg.norm(affine[:3, :3], axis=0))


def _grey(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """(uint8 or uint16, slope, intercept): as stored where that fits, else the range in 65536 steps."""
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind in "iu" and low >= 0 and high <= 255:
        return values.astype(np.uint8), 1.0, 0.0
    if values.dtype.kind in "iu" and high - low <= 65535:
        start = min(low, 0.0) if high <= 65535 else low
        return (values.astype(np.int64) - int(start)).astype(np.uint16), 1.0, start
    slope = (high - low) / 65535 or 1.0
    return np.rint((values.astype(np.float64) - low) / slope).astype(np.uint16), slope, low


def _window(values: np.ndarray) -> tuple[float, float]:
    """The volume's 0.5th and 99.5th percentile, the same for all of its slices."""
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    return (low, high) if low < high else (float(values.min()), float(max(values.max(), values.min() + 1)))


# ---- slices ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SliceImage:
    """A slice, or a window of it, as a task's image. index: along the volume's axis, from the left, back or feet. window: in pixels
    of the slice, None for the whole; what lies outside of the slice is black."""

    volume: LabelledVolume
    plane: str
    index: int
    window: Pixels | None = None

    @property
    def name(self) -> str:
        name = f"{self.volume.subject}/{self.plane}/{self.index:03d}"
        return name if self.window is None else f"{name}@" + ",".join(map(str, self.window))

    def load(self) -> NativeImage:
        v = voxels(self.volume)
        rows, columns = _pixel_mm(v.spacing, self.plane)
        pixels = _square(_cut(v.grey_XYZ, self.plane, self.index), rows, columns, linear=True)
        pixels = windowed(pixels, self.window)
        return NativeImage(pixels, v.window, v.slope, v.intercept, self.volume.unit, min(rows, columns))

    def regions(self) -> np.ndarray:
        """The region of each pixel, uint16 [H, W]."""
        v = voxels(self.volume)
        regions = _cut(v.regions_XYZ, self.plane, self.index)
        return windowed(_square(regions, *_pixel_mm(v.spacing, self.plane), linear=False), self.window)


def windowed(pixels: np.ndarray, window: Pixels | None) -> np.ndarray:
    """The window of a slice [H, W], 0 outside of the slice."""
    if window is None:
        return pixels
    x1, y1, x2, y2 = window
    out = np.zeros((y2 - y1, x2 - x1), pixels.dtype)
    inside = pixels[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)]
    top, left = max(-y1, 0), max(-x1, 0)
    out[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return out


def _cut(volume_XYZ: np.ndarray, plane: str, index: int) -> np.ndarray:
    axis = 2 - PLANES.index(plane)
    return np.ascontiguousarray(np.take(volume_XYZ, index, axis)[::-1, ::-1].T)


def _pixel_mm(spacing: tuple[float, float, float], plane: str) -> tuple[float, float]:
    """(row, column) spacing of a slice."""
    columns, rows = (spacing[i] for i in range(3) if i != 2 - PLANES.index(plane))
    return rows, columns


def _square(pixels: np.ndarray, row_mm: float, column_mm: float, *, linear: bool) -> np.ndarray:
    """The slice [H, W] with square pixels of the finer spacing, in its own dtype."""
    if math.isclose(row_mm, column_mm, rel_tol=1e-3):
        return pixels
    if row_mm < column_mm:
        return np.ascontiguousarray(_square(pixels.T, column_mm, row_mm, linear=linear).T)
    step = column_mm / row_mm
    at = (np.arange(max(round(len(pixels) / step), 1)) + 0.5) * step - 0.5
    if not linear:
        return pixels[np.clip(np.floor(at + 0.5).astype(int), 0, len(pixels) - 1)]
    low = np.clip(np.floor(at).astype(int), 0, len(pixels) - 1)
    high = np.minimum(low + 1, len(pixels) - 1)
    share = np.clip(at - low, 0.0, 1.0)[:, None]
    return np.rint(pixels[low] * (1 - share) + pixels[high] * share).astype(pixels.dtype)


class Part(NamedTuple):
    """A connected part of a region in a slice. box: its bounds. asked: the box by which a question names it, in 0..1000, or None
    where something else takes more of that box."""

    region: Name
    pixels: int
    box: Pixels
    asked: tuple[int, int, int, int] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Slice:
    """What is known of a usable slice. areas: pixels of each visible region. quarters: share of each name's pixels in the image's
    four quarters. absent: names with no pixel at all. mm: side of a pixel."""

    image: SliceImage
    height: int
    width: int
    mm: float
    areas: dict[Name, int]
    parts: tuple[Part, ...]
    quarters: dict[str, np.ndarray]
    absent: frozenset[str]

    def units(self, box: Pixels) -> tuple[float, float, float, float]:
        """A box in 0..1000 of the image."""
        return tuple(round(1000 * v / side, 2) for v, side in zip(box, (self.width, self.height) * 2, strict=True))

    def readable(self, box: Pixels) -> bool:
        """Whether the overview shows a box SMALL pixels wide or wider."""
        x1, y1, x2, y2 = self.units(box)
        return min(x2 - x1, y2 - y1) * self.image.volume.view / 1000 >= SMALL

    def visible(self, part: "Part") -> bool:
        """Whether a part alone would make its region visible."""
        return part.pixels * self.mm**2 >= VISIBLE_MM2

    def whole(self, name: str) -> tuple[Part, ...]:
        """The parts of all regions of a name that are no specks."""
        return tuple(p for p in self.parts if p.region.name == name and p.pixels * self.mm**2 >= SPECK_MM2)


@functools.lru_cache(maxsize=64)
def slices(volume: LabelledVolume) -> tuple[Slice, ...]:
    """The usable slices of a volume, plane by plane, in order."""
    shape = voxels(volume).regions_XYZ.shape
    all_of = ((plane, i) for axis, plane in enumerate(PLANES) for i in range(shape[2 - axis]))
    read = (_read_slice(SliceImage(volume, plane, i)) for plane, i in all_of)
    return tuple(one for one in read if one is not None)


def _read_slice(image: SliceImage) -> Slice | None:
    import scipy.ndimage

    regions, volume = image.regions(), image.volume
    structures = volume.structure_of[regions]
    mm = min(_pixel_mm(voxels(volume).spacing, image.plane))
    counts = np.bincount(regions.ravel(), minlength=len(volume.regions) + 1)[1:]
    areas = {r: int(c) for r, c in zip(volume.regions, counts, strict=True) if c * mm**2 >= VISIBLE_MM2}
    if len(areas) < SLICE_REGIONS:
        return None
    height, width = regions.shape
    empty = Slice(image, height, width, mm, areas, (), {}, frozenset())
    parts = []
    for number, where in enumerate(scipy.ndimage.find_objects(regions), 1):
        if where is None:
            continue
        connected, _ = scipy.ndimage.label(regions[where] == number)
        sizes = np.bincount(connected.ravel())
        for i, (rows, columns) in enumerate(scipy.ndimage.find_objects(connected), 1):
            y, x = where[0].start, where[1].start
            box = (x + columns.start, y + rows.start, x + columns.stop, y + rows.stop)
            asked = (
                _asked(empty, structures, volume.structure_of[number], box) if sizes[i] * mm**2 >= VISIBLE_MM2 else None
            )
            parts.append(Part(volume.regions[number - 1], int(sizes[i]), box, asked))
    present = np.flatnonzero(np.bincount(structures.ravel(), minlength=len(volume.structures) + 1)[1:])
    return dataclasses.replace(
        empty,
        parts=tuple(parts),
        quarters={volume.structures[i]: _quarters(structures == i + 1) for i in present},
        absent=frozenset(name for i, name in enumerate(volume.structures) if i not in present),
    )


def _asked(where: Slice, structures: np.ndarray, number: int, box: Pixels) -> tuple[int, int, int, int] | None:
    """The box with its margin, on the grid; None unless it holds more of its own structure than of any other."""
    x1, y1, x2, y2 = where.units(box)
    dx, dy = MARGIN * (x2 - x1), MARGIN * (y2 - y1)
    low = (GRID * math.floor(max(v, 0) / GRID) for v in (x1 - dx, y1 - dy))
    high = (GRID * math.ceil(min(v, 1000) / GRID) for v in (x2 + dx, y2 + dy))
    asked = (*low, *high)
    sides = (where.width, where.height) * 2
    left, top, right, bottom = (round(v * side / 1000) for v, side in zip(asked, sides, strict=True))
    inside = np.bincount(structures[top:bottom, left:right].ravel())
    inside[0] = 0
    return asked if inside.argmax() == number and (inside == inside[number]).sum() == 1 else None


def _quarters(mask: np.ndarray) -> np.ndarray:
    """Shares [2, 2] of a mask's pixels: (upper, lower) x (left, right)."""
    y, x = mask.shape[0] // 2, mask.shape[1] // 2
    shares = [[half[:, :x].sum(), half[:, x:].sum()] for half in (mask[:y], mask[y:])]
    return np.array(shares) / max(int(mask.sum()), 1)


def _field(one: Slice, parts: Sequence[Part], rng: np.random.Generator) -> Pixels:
    """A random square window of a slice that shows these parts with their margins.

    How large they appear and where is drawn first, whatever they are, so that coordinates alone say little; but the window's side
    stays between NARROWEST and WIDEST, and at most OUTSIDE of it lies beyond the slice.
    """
    boxes = np.array([part.box for part in parts])
    margin = MARGIN * (boxes[:, 2:] - boxes[:, :2])
    low, high = (boxes[:, :2] - margin).min(axis=0), (boxes[:, 2:] + margin).max(axis=0)
    size, extent = np.array([one.width, one.height]), float((high - low).max())
    side = np.clip(extent / rng.uniform(*APPARENT), NARROWEST * size.max(), WIDEST * size.max())
    side = math.ceil(max(side, extent + 2))
    first = np.maximum(high - side, -OUTSIDE * side)
    last = np.maximum(np.minimum(low, size - (1 - OUTSIDE) * side), first)
    x, y = (int(v) for v in np.floor(rng.uniform(first, last)))
    return x, y, x + side, y + side


# ---- splits ------------------------------------------------------------------------------------------------------------


def split_slices(volumes: Sequence[LabelledVolume], split: str, seed: int = 0) -> tuple[Slice, ...]:
    """The usable slices of a split.

    From SUBJECTS volumes on whole subjects are held out, a tenth (at least one) each for val and test. With fewer, blocks of
    neighbouring slices are, plane by plane, and GAP_MM on either side of them belongs to no split. Slices of different planes cross
    in a line of pixels, so that a held-out slice has been seen line by line, though never as an image.
    """
    if split not in SPLITS:
        raise RunError(f"split {split!r}: use one of {', '.join(SPLITS)}")
    if len(volumes) >= SUBJECTS:
        order = np.random.default_rng(seed).permutation(len(volumes))
        held = max(len(volumes) // 10, 1)
        chosen = {"val": order[:held], "test": order[held : 2 * held], "train": order[2 * held :]}[split]
        return tuple(one for i in sorted(chosen) for one in slices(volumes[i]))
    return tuple(one for volume in volumes for plane in PLANES for one in _block(volume, plane, split))


def _block(volume: LabelledVolume, plane: str, split: str) -> Iterator[Slice]:
    thick = voxels(volume).spacing[2 - PLANES.index(plane)]
    count = lambda mm: max(math.ceil(mm / thick), 1)
    train, held, gap = count(TRAIN_MM), count(HELD_OUT_MM), count(GAP_MM)
    parts = (
        ("train", train),
        ("", gap),
        ("val", held),
        ("", gap),
        ("train", train),
        ("", gap),
        ("test", held),
        ("", gap),
    )
    cycle = [name for name, size in parts for _ in range(size)]
    # Begins in the middle of a block, so that the first slices, which are poor, are not all of them one split's.
    usable = [one for one in slices(volume) if one.image.plane == plane]
    return (
        one for one in usable if cycle[(one.image.index - usable[0].image.index + train // 2) % len(cycle)] == split
    )


# ---- tasks -------------------------------------------------------------------------------------------------------------


def volume_tasks(volumes: Sequence[LabelledVolume], split: str, seed: int = 0, name: str = "volume") -> DataSet:
    """Tasks about a split's slices, in an order drawn from `seed`."""
    usable = split_slices(volumes, split, seed)
    report = ReadReport(f"{name}/{split}")
    report.notes["a usable slice"] = len(usable)
    report.notes["a region visible in a slice"] = sum(len(one.areas) for one in usable)
    records = []
    for kind in KINDS:
        rng = np.random.default_rng((seed, KINDS.index(kind)))
        drafts = [d for one in usable if kind in one.image.volume.kinds for d in _MAKERS[kind](one, rng)]
        kept = drafts if kind in ("structure", "box") else balanced(drafts, rng)
        report.rows += len(drafts)
        ids = {draft.record.id for draft in kept}
        for draft in drafts:
            if draft.record.id not in ids:
                report.drop(draft.record.id, f"{kind}: so that answers are equally frequent")
        records += [draft.record for draft in kept]
    order = np.random.default_rng((seed, len(KINDS))).permutation(len(records))
    named = (dataclasses.replace(records[i], dataset=name, split=split) for i in order)
    return DataSet(name, split, tuple(named), report)


class Draft(NamedTuple):
    """key: what the text gives away (wording, names, plane); within one key answers are balanced."""

    key: tuple
    record: Record


def balanced(drafts: Sequence[Draft], rng: np.random.Generator) -> list[Draft]:
    """As many drafts of each answer as of any other within a key; none of keys with one answer."""
    groups: defaultdict[tuple, defaultdict[str, list[Draft]]] = defaultdict(lambda: defaultdict(list))
    for draft in drafts:
        groups[draft.key][draft.record.answer].append(draft)
    kept = []
    for answers in groups.values():
        if len(answers) > 1:
            second = sorted(map(len, answers.values()))[-2]
            common = [some for some in answers.values() if len(some) >= RARE * second]
            least = min(map(len, common))
            kept += [some[i] for some in common for i in sorted(rng.permutation(len(some))[:least])]
    return kept


class VolumeLessons:
    """The usable slices of a split as labelled images, in an order drawn from `seed`. classes: names of the labels, 0 is unnamed.
    findings: what questions are about, all the others; alike: those that an overview cannot tell apart, none."""

    alike = ()

    def __init__(self, volumes: Sequence[LabelledVolume], split: str, seed: int = 0):
        self.classes = ("", *dict.fromkeys(region.name for volume in volumes for region in volume.regions))
        if len(self.classes) > 256:
            raise RunError(f"{len(self.classes) - 1} names of structures; lessons can hold 255")
        self.findings = self.classes[1:]
        usable = split_slices(volumes, split, seed)
        self._slices = [usable[i] for i in np.random.default_rng(seed).permutation(len(usable))]

    def __len__(self) -> int:
        return len(self._slices)

    def __getitem__(self, index: int) -> LabelledImage:
        one = self._slices[index]
        number = {name: i for i, name in enumerate(self.classes)}
        table = np.array([0, *(number[region.name] for region in one.image.volume.regions)], np.uint8)
        boxes = tuple(Box(part.region.name, one.units(part.box)) for part in one.parts if part.asked)
        return LabelledImage(one.image.name, one.image.load(), table[one.image.regions()], boxes)


def zoom_call(box: Sequence[int]) -> ToolCall:
    """A zoom on a box of the first image."""
    return ToolCall("image_zoom_in_tool", {"bbox_2d": list(box), "img_idx": 0})


def box_text(box: Sequence[int]) -> str:
    """A box as questions and answers write it."""
    return "[" + ", ".join(map(str, box)) + "]"


def _record(one: Slice, kind: str, what: str, question: str, answer: str, parts: Iterable[Part], **more) -> Record:
    boxes = tuple(Box(part.region.full, one.units(part.box)) for part in parts)
    more = {"answer_type": AnswerType.CLOSED, "chain": ()} | more
    return Record(
        id=f"{one.image.name}/{kind}/{what}",
        dataset="",
        split="",
        kind=kind,
        images=(one.image,),
        question=question,
        answer=answer,
        boxes=boxes,
        modality=one.image.volume.modality,
        **more,
    )


def _structure(one: Slice, rng: np.random.Generator) -> Iterator[Draft]:
    """Which of OPTIONS names is in a box; names are dealt into groups of neighbours, each of which is asked for."""
    parts: defaultdict[str, list[Part]] = defaultdict(list)
    for part in one.parts:
        if part.asked:
            parts[part.region.name].append(part)
    structures = one.image.volume.structure_of[one.image.regions()]
    for round_ in range(ROUNDS):
        left = [parts[name][rng.integers(len(parts[name]))] for name in rng.permutation(sorted(parts))]
        while len(left) >= OPTIONS:
            some = sorted(left, key=lambda part, first=left[0]: _distance(part, first))[:OPTIONS]
            left = [part for part in left if part not in some]
            shown = [_shown(one, part, [part], structures, rng) for part in some]
            if None in shown:
                continue
            options = tuple(some[i].region.name for i in rng.permutation(OPTIONS))
            for seen, part in shown:
                chain = () if seen.readable(part.box) else (zoom_call(part.asked),)
                question, what = f"Which structure is in {box_text(part.asked)}?", f"{part.region.full}-{round_}"
                name = part.region.name
                record = _record(seen, "structure", what, question, name, [part], options=options, chain=chain)
                yield Draft((), record)


def _shown(
    one: Slice, part: Part, all_of: Sequence[Part], structures: np.ndarray, rng: np.random.Generator
) -> tuple[Slice, Part] | None:
    """A part in a random window that shows all of some parts; None where something else takes more of the box that names it."""
    window = _field(one, all_of, rng)
    image = dataclasses.replace(one.image, window=window)
    seen = dataclasses.replace(one, image=image, width=window[2] - window[0], height=window[3] - window[1])
    box = tuple(v - w for v, w in zip(part.box, window[:2] * 2, strict=True))
    asked = _asked(seen, windowed(structures, window), 1 + one.image.volume.structures.index(part.region.name), box)
    return None if asked is None else (seen, part._replace(box=box, asked=asked))


def _distance(a: Part, b: Part) -> float:
    """Between the middles of two parts, in pixels."""
    return math.dist(*((p.box[0] + p.box[2], p.box[1] + p.box[3]) for p in (a, b))) / 2


def _presence(one: Slice, rng: np.random.Generator) -> Iterator[Draft]:
    """Whether a name is in the slice: in full view, or not at all."""
    shown = {part.region.name for part in one.parts if one.visible(part) and one.readable(part.box)}
    for name in sorted(shown | one.absent):
        parts = [part for part in one.parts if part.region.name == name and one.visible(part)]
        yield Draft(
            (one.image.plane, name),
            _record(
                one,
                "presence",
                name,
                f"Is the {name} in this slice?",
                "no" if name in one.absent else "yes",
                parts,
                options=("yes", "no"),
                answer_type=AnswerType.YES_NO,
            ),
        )


def _side(one: Slice, rng: np.random.Generator) -> Iterator[Draft]:
    """On which side of the patient a box is; windows show a part on either side. A sagittal slice does not tell."""
    parts: defaultdict[str, dict[str, Part]] = defaultdict(dict)
    for part in one.parts if one.image.plane != "sagittal" else ():
        if part.asked and part.region.side:
            parts[part.region.name].setdefault(part.region.side, part)
    structures = one.image.volume.structure_of[one.image.regions()] if parts else None
    for name, sides in sorted(parts.items()):
        if len(sides) < 2:
            continue
        shown = [_shown(one, part, list(sides.values()), structures, rng) for part in sides.values()]
        for seen, part in shown if None not in shown else ():
            question = f"On which side of the patient is the {name} in {box_text(part.asked)}?"
            side = part.region.side
            record = _record(seen, "side", part.region.full, question, side, [part], options=("left", "right"))
            yield Draft((one.image.plane, name), record)


def _larger(one: Slice, rng: np.random.Generator) -> Iterator[Draft]:
    """Which of two names takes more of the slice."""
    areas: defaultdict[str, int] = defaultdict(int)
    for region, count in one.areas.items():
        areas[region.name] += count
    shown = {name: max((p for p in one.parts if p.region.name == name), key=lambda p: p.pixels) for name in areas}
    names = sorted(name for name, part in shown.items() if one.readable(part.box))
    for a, b in itertools.combinations(names, 2):
        if max(areas[a], areas[b]) < LARGER * min(areas[a], areas[b]):
            continue
        first, second = (a, b) if rng.random() < 0.5 else (b, a)
        question = f"Which is larger in this slice, the {first} or the {second}?"
        answer = a if areas[a] > areas[b] else b
        parts = [part for part in one.parts if part.region.name in (a, b) and one.visible(part)]
        record = _record(one, "larger", f"{a}-{b}", question, answer, parts, options=(first, second))
        yield Draft((one.image.plane, a, b), record)


def _count(one: Slice, rng: np.random.Generator) -> Iterator[Draft]:
    """How many separate parts a name has, where all of them can be seen."""
    for name in sorted({region.name for region in one.areas}):
        parts = one.whole(name)
        if parts and all(one.readable(part.box) for part in parts):
            question = f"How many separate parts of the {name} are in this slice?"
            record = _record(one, "count", name, question, str(len(parts)), parts, answer_type=AnswerType.NUMBER)
            yield Draft((one.image.plane, name), record)


QUARTERS = ("upper left", "upper right", "lower left", "lower right")


def _quadrant(one: Slice, rng: np.random.Generator) -> Iterator[Draft]:
    """In which quarter of the image a name lies."""
    for name, shares in one.quarters.items():
        parts = one.whole(name)
        if shares.max() >= IN_QUARTER and parts and all(one.readable(part.box) for part in parts):
            question, answer = f"In which quarter of the image is the {name}?", QUARTERS[int(shares.argmax())]
            yield Draft(
                (one.image.plane, name), _record(one, "quadrant", name, question, answer, parts, options=QUARTERS)
            )


def _box(one: Slice, rng: np.random.Generator) -> Iterator[Draft]:
    """Where a name is that has one part."""
    for name in sorted({region.name for region in one.areas}):
        parts = one.whole(name)
        if len(parts) == 1 and one.readable(parts[0].box):
            answer = box_text([round(v) for v in one.units(parts[0].box)])
            question = f"Where is the {name}? Answer with its box."
            yield Draft(
                (one.image.plane, name), _record(one, "box", name, question, answer, parts, answer_type=AnswerType.BOX)
            )


_MAKERS = dict(zip(KINDS, (_structure, _presence, _side, _larger, _count, _quadrant, _box), strict=True))
