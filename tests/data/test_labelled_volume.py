import collections
import gzip
import pickle

import nibabel
import numpy as np
import pytest

from mvg_jax.data.files import Files
from mvg_jax.data.labelled_volume import (
    GAP_MM,
    KINDS,
    MARGIN,
    OPTIONS,
    PLANES,
    SMALL,
    LabelledVolume,
    SliceImage,
    VolumeLessons,
    balanced,
    slices,
    split_slices,
    volume_tasks,
    voxels,
)
from mvg_jax.errors import RunError
from tests.volume_files import AFFINE, BLOCKS, SHAPE, labels, write_volume

VIEW = 128


def open_volume(folder, **about) -> LabelledVolume:
    return LabelledVolume.open(Files(folder), "image.nii.gz", "labels.nii", "names.txt", **about)


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    return open_volume(write_volume(tmp_path_factory.mktemp("volume")), view=VIEW, modality="MRI")


def one_of(volume, plane, index):
    return next(one for one in slices(volume) if (one.image.plane, one.image.index) == (plane, index))


def test_slices_are_shown_as_radiologists_see_them(volume):
    at = lambda plane, index, label: np.argwhere(SliceImage(volume, plane, index).regions() == label).mean(axis=0)
    left, right, cord, liver = 2, 3, 4, 1
    for plane, below, above in (("axial", 15, 35), ("coronal", 15, 15)):
        shown = at(plane, below, left)[1] > at(plane, above, right)[1]
        assert shown, "the patient's left is on the right of the image"
    assert at("axial", 20, liver)[0] < at("axial", 20, cord)[0], "the front is at the top"
    assert at("sagittal", 33, liver)[1] < at("sagittal", 33, cord)[1], "the front is on the left"
    x, _y, z = (sum(r) / 2 for r in BLOCKS[left])
    row, column = at("coronal", 15, left)
    assert (row + 0.5, column + 0.5) == (2 * (SHAPE[2] - z), SHAPE[0] - x), "the head is at the top, 1 mm a pixel"


def test_a_window_of_a_slice_is_black_outside_of_it(volume):
    whole = SliceImage(volume, "axial", 20)
    part = SliceImage(volume, "axial", 20, (-5, 60, 25, 90))
    assert part.name != whole.name
    pixels = part.load().pixels
    assert pixels.shape == part.regions().shape == (30, 30)
    np.testing.assert_array_equal(pixels[:12, 5:], whole.load().pixels[60:72, :25])
    assert not pixels[12:].any()
    assert not pixels[:, :5].any()


def test_voxels_of_another_spacing_become_square(volume):
    for plane, shape in (("axial", (72, 60)), ("coronal", (96, 60)), ("sagittal", (96, 72))):
        image = SliceImage(volume, plane, 20).load()
        assert image.pixels.shape == shape
        assert image.spacing_mm == 1.0
        assert SliceImage(volume, plane, 20).regions().shape == shape


@pytest.mark.parametrize("codes", ["LAS", "PSR", "ILP"])
def test_the_way_of_storage_changes_nothing(tmp_path, volume, codes):
    other = open_volume(write_volume(tmp_path, codes=codes))
    for plane in PLANES:
        np.testing.assert_array_equal(
            SliceImage(volume, plane, 12).load().pixels, SliceImage(other, plane, 12).load().pixels
        )


def test_grey_values_keep_their_meaning(tmp_path):
    rng = np.random.default_rng(0)
    stored = {
        "hu": rng.integers(-1000, 3000, SHAPE).astype(np.int16),
        "deep": rng.integers(0, 40_000, SHAPE).astype(np.uint16),
        "byte": rng.integers(0, 255, SHAPE).astype(np.uint8),
        "float": rng.normal(size=SHAPE).astype(np.float32),
    }
    for name, values in stored.items():
        image = SliceImage(open_volume(write_volume(tmp_path / name, image=values)), "axial", 20).load()
        shown = image.pixels * image.slope + image.intercept
        np.testing.assert_allclose(shown, values[::-1, ::-1, 20].T, atol=image.slope if name == "float" else 0)
        assert image.window[0] < image.window[1]
    assert open_volume(tmp_path / "hu", window=(-160.0, 240.0), unit="HU").window == (-160.0, 240.0)
    holes = stored["float"].copy()
    holes[0] = np.nan
    filled = voxels(open_volume(write_volume(tmp_path / "holes", image=holes))).grey_XYZ
    assert (filled[0] == 0).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": labels()[:-1]}, "shape"),
        ({"label_affine": AFFINE + np.diag([0, 0, 0.1, 0])}, "affine"),
        ({"label": labels() + 0.5}, "whole numbers"),
        ({"label": labels() - 1}, "whole numbers"),
        ({"label": labels() * 0}, "none of the labels"),
        ({"image": np.zeros((*SHAPE, 2), np.float32)}, "three dimensions"),
        ({"image": np.full(SHAPE, np.nan, np.float32)}, "no finite value"),
    ],
)
def test_volumes_that_do_not_fit_are_refused_by_name(tmp_path, change, reason):
    with pytest.raises(RunError, match=reason) as error:
        open_volume(write_volume(tmp_path, **change))
    assert "labels.nii" in str(error.value) or "image.nii.gz" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not a volume", gzip.compress(b"neither", mtime=0), b"\x1f\x8bcut"])
def test_a_file_that_is_no_volume_is_refused_by_name(tmp_path, content):
    write_volume(tmp_path)
    (tmp_path / "image.nii.gz").write_bytes(content)
    with pytest.raises(RunError, match=r"image\.nii\.gz"):
        open_volume(tmp_path)


def test_slice_images_pickle_small_and_load_the_same(volume):
    image = SliceImage(volume, "coronal", 14)
    stored = pickle.dumps(image)
    assert len(stored) < 2_000
    again = pickle.loads(stored)  # noqa: S301 - our own bytes
    assert again.name == image.name
    np.testing.assert_array_equal(again.load().pixels, image.load().pixels)


def test_positions_held_out_have_no_neighbour_in_training(volume):
    held = {split: split_slices([volume], split) for split in ("train", "val", "test")}
    assert all(held.values())
    for plane, mm in zip(PLANES, (2.0, 1.0, 1.0), strict=True):
        places = {
            split: np.array([one.image.index for one in some if one.image.plane == plane])
            for split, some in held.items()
        }
        for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
            assert np.abs(places[a][:, None] - places[b]).min() * mm > GAP_MM


def test_several_subjects_are_split_as_a_whole(tmp_path):
    volumes = [open_volume(write_volume(tmp_path / str(i)), subject=str(i)) for i in range(4)]
    subjects = [{one.image.volume.subject for one in split_slices(volumes, s)} for s in ("train", "val", "test")]
    assert list(map(len, subjects)) == [2, 1, 1]
    assert len(set.union(*subjects)) == 4


def test_every_task_is_true_of_the_label_map(volume):
    seen = collections.Counter()
    for split in ("train", "val", "test"):
        for record in volume_tasks([volume], split).records:
            seen[record.kind] += 1
            _check(volume, record)
    assert set(seen) == set(KINDS), seen


def _check(volume, record):
    image, answer = record.images[0], record.answer
    regions = image.regions()
    height, width = regions.shape
    area = {name: 0 for name in volume.structures}
    slice_ = SliceImage(volume, image.plane, image.index).regions()
    for i, region in enumerate(volume.regions, 1):
        area[region.name] += int((slice_ == i).sum())
    assert (image.window is not None) == (record.kind in ("structure", "side"))
    mentioned = [name for name in volume.structures if name in record.question]
    match record.kind:
        case "structure" | "side":
            asked = [
                int(v) for v in record.question[record.question.index("[") + 1 : record.question.index("]")].split(",")
            ]
            x1, y1, x2, y2 = (round(v * s / 1000) for v, s in zip(asked, (width, height) * 2, strict=True))
            inside = collections.Counter(regions[y1:y2, x1:x2].ravel().tolist())
            del inside[0]
            most = volume.regions[max(inside, key=inside.get) - 1]
            assert answer == (most.name if record.kind == "structure" else most.side)
            bx1, by1, bx2, by2 = record.boxes[0].xyxy
            assert asked[0] <= bx1
            assert asked[1] <= by1
            assert asked[2] >= bx2
            assert asked[3] >= by2
            assert asked[2] - asked[0] <= (1 + 2 * MARGIN) * (bx2 - bx1) + 40
            if record.kind == "structure":
                assert len(set(record.options)) == OPTIONS
                assert all(area[name] for name in record.options)
                small = min(bx2 - bx1, by2 - by1) * VIEW / 1000 < SMALL
                assert [call.arguments["bbox_2d"] for call in record.chain] == [asked] * small
            else:
                assert image.plane != "sagittal"
        case "presence":
            assert answer == ("yes" if area[mentioned[0]] else "no")
        case "larger":
            assert answer == max(record.options, key=area.get)
            assert min(area[o] for o in record.options) > 0
        case "count":
            numbers = [i for i, region in enumerate(volume.regions, 1) if region.name == mentioned[0]]
            import scipy.ndimage

            assert int(answer) == sum(scipy.ndimage.label(regions == i)[1] for i in numbers)
        case "quadrant":
            numbers = [i for i, region in enumerate(volume.regions, 1) if region.name == mentioned[0]]
            rows, columns = np.nonzero(np.isin(regions, numbers))
            upper, left = (rows < height // 2).mean() > 0.5, (columns < width // 2).mean() > 0.5
            assert answer == f"{'upper' if upper else 'lower'} {'left' if left else 'right'}"
        case "box":
            assert np.abs(np.array(eval_box(answer)) - record.boxes[0].xyxy).max() <= 0.5
    if record.kind != "structure":
        assert record.chain == ()


def eval_box(text: str) -> list[float]:
    return [float(v) for v in text.strip("[]").split(",")]


def test_texts_alone_do_not_give_answers_away(volume):
    records = volume_tasks([volume], "train").records
    by_text = collections.defaultdict(collections.Counter)
    for record in records:
        if record.kind in ("presence", "larger", "count", "quadrant"):
            key = (record.images[0].plane, record.kind, *sorted(record.question.replace("?", "").split()))
            by_text[key][record.answer] += 1
    assert by_text
    for answers in by_text.values():
        assert len(answers) > 1, answers
        assert len(set(answers.values())) == 1, answers
    sides = collections.Counter(record.answer for record in records if record.kind == "side")
    assert sides["left"] == sides["right"] > 0
    structure = [record for record in records if record.kind == "structure"]
    first = np.mean([record.options[0] == record.answer for record in structure])
    assert first == pytest.approx(1 / OPTIONS)


def test_answers_are_balanced_within_a_key():
    record = lambda answer: type("R", (), {"answer": answer})
    draft = lambda key, answer: type("D", (), {"key": key, "record": record(answer)})
    drafts = [draft("a", "1")] * 9 + [draft("a", "2")] * 4 + [draft("a", "3")] + [draft("b", "1")] * 5
    drafts = [draft(d.key, d.record.answer) for d in drafts]
    kept = collections.Counter((d.key, d.record.answer) for d in balanced(drafts, np.random.default_rng(0)))
    assert kept == {("a", "1"): 1, ("a", "2"): 1, ("a", "3"): 1}
    kept = balanced(drafts[:13], np.random.default_rng(0))
    assert collections.Counter(d.record.answer for d in kept) == {"1": 4, "2": 4}


def test_the_seed_decides_alone(volume):
    a, b, c = (volume_tasks([volume], "train", seed).records for seed in (3, 3, 4))
    assert [r.id for r in a] == [r.id for r in b] != [r.id for r in c]
    assert a == b
    assert len({r.id for r in a}) == len(a)


def test_kinds_and_the_size_of_the_overview_are_the_volume_s(tmp_path):
    folder = write_volume(tmp_path)
    small, large = (open_volume(folder, view=view, kinds=("structure",)) for view in (32, 1024))
    tasks = {view: volume_tasks([v], "train").records for view, v in ((32, small), (1024, large))}
    assert {r.kind for r in tasks[32]} == {"structure"}
    assert all(r.chain for r in tasks[32])
    assert not any(r.chain for r in tasks[1024])


def test_lessons_label_every_pixel_by_name(volume):
    lessons = VolumeLessons([volume], "train")
    assert lessons.classes == ("", "liver", "kidney", "cord", "nodule")
    assert len(lessons) == len(split_slices([volume], "train"))
    for i in range(0, len(lessons), 7):
        lesson = lessons[i]
        assert lesson.labels.shape == lesson.image.pixels.shape
        assert lesson.labels.dtype == np.uint8
        for box in lesson.boxes:
            x1, y1, x2, y2 = (round(v * s / 1000) for v, s in zip(box.xyxy, lesson.labels.shape[::-1] * 2, strict=True))
            assert (lesson.labels[y1:y2, x1:x2] == lessons.classes.index(box.label)).mean() > 0.5


def test_kinds_are_all_documented_answers(volume):
    assert {r.kind for r in volume_tasks([volume], "train").records} <= set(KINDS)
    for record in volume_tasks([volume], "val").records:
        assert not record.options or record.answer in record.options
        assert record.modality == "MRI"
        assert record.split == "val"
        assert record.dataset == "volume"
        task = record.task()
        assert task.images[0].pixels.ndim == 2


def test_a_nifti_2_file_is_read(tmp_path, volume):
    write_volume(tmp_path)
    image = nibabel.load(tmp_path / "image.nii.gz")
    nibabel.save(nibabel.Nifti2Image(np.asarray(image.dataobj), image.affine), tmp_path / "image.nii.gz")
    np.testing.assert_array_equal(voxels(open_volume(tmp_path)).grey_XYZ, voxels(volume).grey_XYZ)


def test_where_a_box_lies_says_little_about_what_it_holds(volume):
    records = [r for split in ("train", "val", "test") for r in volume_tasks([volume], split).records]
    centres = collections.defaultdict(list)
    for record in records:
        if record.kind == "structure":
            x1, y1, x2, y2 = record.boxes[0].xyxy
            centres[record.images[0].plane, record.answer].append(((x1 + x2) / 2, (y1 + y2) / 2))
    often = [np.array(some) for some in centres.values() if len(some) >= 12]
    assert often
    for some in often:
        assert (some.std(axis=0) > 80).all()
