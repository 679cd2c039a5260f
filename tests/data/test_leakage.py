import io
import itertools
import time

import numpy as np
import pytest
from PIL import Image

from mvg_jax.data import leakage, readers
from mvg_jax.data.exporters import vqa_rad
from mvg_jax.data.exporters.common import encode_image
from mvg_jax.data.files import Files
from mvg_jax.data.images import FileImage, deep, to_8bit
from mvg_jax.data.leakage import drop_overlapping, find_overlap, refuse_or_allow
from mvg_jax.data.phantom import PhantomSource
from mvg_jax.data.records import DataSet, ReadReport, Record
from mvg_jax.data.task import AnswerType
from mvg_jax.errors import RunError

PATIENTS = 10


@pytest.fixture(scope="module")
def patients():
    """8-bit grey images of different patients."""
    source = PhantomSource("train", 2000)
    grey = (image for i in range(0, 2000, 2) if (image := source[i].images[0]).pixels.ndim == 2)
    return [to_8bit(image) for image in itertools.islice(grey, PATIENTS)]


def data_set(root, images, *, name="slake", split="train", language="en"):
    """A data set of encoded images, one question each."""
    folder = root / name / split
    folder.mkdir(parents=True)
    for number, content in enumerate(images):
        (folder / f"{number}.img").write_bytes(content)
    files = Files(folder)
    records = tuple(
        Record(
            id=f"{name}/{split}/{number}",
            dataset=name,
            split=split,
            kind="Organ",
            images=(FileImage(files, f"{number}.img"),),
            question=f"Which organ is {number}?",
            answer="Liver",
            answer_type=AnswerType.OPEN,
            language=language,
        )
        for number in range(len(images))
    )
    report = ReadReport(f"{name} {split}")
    report.rows = len(records)
    return DataSet(name, split, records, report)


def jpeg(pixels, *, quality=75, scale=1.0, side=None, mode="L"):
    image = Image.fromarray(pixels).convert(mode)
    size = (side, side) if side else (round(image.width * scale), round(image.height * scale))
    out = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=quality)
    return out.getvalue()


COPIES = {
    "re-encoded": {"quality": 30},
    "shrunk": {"scale": 0.3},
    "enlarged": {"scale": 1.5},
    "to the side of a model": {"side": 224},
    "in colour": {"mode": "RGB"},
    "CMYK": {"mode": "CMYK"},
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_planted_copy_is_caught_and_unrelated_images_are_not(tmp_path, patients, copy):
    """As in SLAKE, whose English test images lie in its Chinese training split."""
    train = data_set(tmp_path, [encode_image(p, "PNG") for p in patients[:6]], language="zh")
    test = data_set(tmp_path, [jpeg(patients[3], **COPIES[copy]), *map(jpeg, patients[6:])], split="test")
    report = find_overlap([train], [test])
    assert (report.train_images, report.test_images, report.clean) == (6, 5, False)
    (overlap,) = report.overlaps
    assert (overlap.images, overlap.same, overlap.alike, overlap.triplets) == (5, 0, 1, 0)
    (match,) = report.examples
    assert (match.train, match.test) == ("slake train 3.img", "slake test 0.img")
    assert report.train_refs == {train.records[3].images[0]}
    assert "1 of 5 images of slake test are in slake train (0 pixel for pixel, 1 look alike)" in str(report)


def test_pixels_count_and_not_files(tmp_path, patients):
    colour = np.repeat(patients[0][..., None], 3, axis=2)
    train = data_set(tmp_path, [encode_image(patients[0], "PNG"), encode_image(patients[1], "PNG")])
    test = data_set(tmp_path, [encode_image(colour, "PNG")], split="test")
    (overlap,) = find_overlap([train], [test]).overlaps
    assert (overlap.same, overlap.alike) == (1, 0)


def test_different_patients_do_not_overlap(tmp_path, patients):
    train = data_set(tmp_path, [encode_image(p, "PNG") for p in patients[:5]])
    test = data_set(tmp_path, [encode_image(p, "PNG") for p in patients[5:]], split="test")
    report = find_overlap([train], [test])
    assert report.clean
    assert str(report).endswith("5 training and 5 test images compared\n  none")
    refuse_or_allow(report, allowed=False)
    assert drop_overlapping(train, report).records == train.records


def test_a_16_bit_original_is_found_by_its_8_bit_copy(tmp_path):
    raw = PhantomSource("train", 1)[0].images[0].pixels
    assert raw.dtype == np.uint16
    shown = to_8bit(deep(raw, "a"))
    out = io.BytesIO()
    Image.fromarray(raw).save(out, "PNG")
    train = data_set(tmp_path, [out.getvalue()])
    test = data_set(tmp_path, [jpeg(shown, scale=0.5)], split="test")
    assert not find_overlap([train], [test]).clean


def test_plain_images_are_the_same_only_pixel_for_pixel(tmp_path):
    black, dark = np.zeros((64, 64), np.uint8), np.full((64, 64), 3, np.uint8)
    train = data_set(tmp_path, [encode_image(black, "PNG")])
    test = data_set(tmp_path, [encode_image(dark, "PNG"), encode_image(black, "JPEG")], split="test")
    (overlap,) = find_overlap([train], [test]).overlaps
    assert (overlap.same, overlap.alike) == (1, 0)


def test_overlap_is_refused_until_allowed_and_the_way_is_named(tmp_path, patients):
    train = data_set(tmp_path, [encode_image(p, "PNG") for p in patients[:2]])
    test = data_set(tmp_path, [jpeg(patients[1])], split="test")
    report = find_overlap([train], [test])
    with pytest.raises(RunError, match=r"1 of 1 images of slake test .*overlap=drop .*overlap=allow") as refused:
        refuse_or_allow(report, allowed=False)
    assert "\n" not in str(refused.value)
    refuse_or_allow(report, allowed=True)


def test_dropping_leaves_nothing_to_find_and_counts(tmp_path, patients):
    train = data_set(tmp_path, [encode_image(p, "PNG") for p in patients[:4]])
    test = data_set(tmp_path, [jpeg(patients[1]), encode_image(patients[2], "PNG")], split="test")
    kept = drop_overlapping(train, find_overlap([train], [test]))
    assert [record.id for record in kept.records] == ["slake/train/0", "slake/train/3"]
    assert kept.report.named == {"its image is in the test data": ["slake/train/1", "slake/train/2"]}
    assert not train.report.dropped
    assert find_overlap([kept], [test]).clean


def test_every_training_set_is_held_against_every_test_set(tmp_path, patients):
    files = [encode_image(p, "PNG") for p in patients]
    train = [data_set(tmp_path, files[:3], name="a"), data_set(tmp_path, files[3:6], name="b")]
    test = [
        data_set(tmp_path, files[5:7], name="c", split="test"),
        data_set(tmp_path, files[7:], name="d", split="test"),
    ]
    (overlap,) = find_overlap(train, test).overlaps
    assert (overlap.train, overlap.test, overlap.same) == ("b train", "c test", 1)


def test_triplets_are_found_across_encodings(tmp_path, patients):
    train = data_set(tmp_path, [encode_image(p, "PNG") for p in patients[:3]])
    test = data_set(tmp_path, [jpeg(p) for p in patients[:2]], split="test")
    (overlap,) = find_overlap([train], [test]).overlaps
    assert (overlap.alike, overlap.triplets) == (2, 2)


def test_vqa_rad_says_that_its_images_are_shared_by_construction(tmp_path):
    tasks = [PhantomSource("train", 8)[i] for i in range(8)]
    vqa_rad.export(tasks, tmp_path, "train", "mevf")
    vqa_rad.export(tasks[4:6], tmp_path, "test", "mevf")
    rows = (tmp_path / "testset.json").read_text()
    (tmp_path / "testset.json").write_text(rows.replace('"question": "', '"question": "Say: '))
    train, test = (readers.read("vqa_rad", tmp_path, split) for split in ("train", "test"))
    report = find_overlap([train], [test])
    (overlap,) = report.overlaps
    assert (overlap.same, overlap.images, overlap.triplets) == (2, 2, 0)
    with pytest.raises(RunError, match=r"splits its questions and not its images.*overlap=allow"):
        refuse_or_allow(report, allowed=False)


def test_unreadable_images_are_named_and_not_compared(tmp_path, patients):
    train = data_set(tmp_path, [b"no image", encode_image(patients[0], "PNG")])
    test = data_set(tmp_path, [encode_image(patients[0], "PNG")], split="test")
    report = find_overlap([train], [test])
    assert report.train_images == 1
    assert "1 images could not be read and were not compared (0.img: " in str(report)


class Counted:
    """An image reference that counts its loads."""

    def __init__(self, pixels):
        self.name, self.pixels, self.loads = "counted", pixels, 0

    def load(self):
        self.loads += 1
        return deep(self.pixels.astype(np.uint16), self.name)


def test_each_distinct_image_is_loaded_once(tmp_path, patients):
    ref = Counted(patients[0])
    records = tuple(Record(f"x/{i}", "x", "train", "", (ref,), f"q{i}", "a", AnswerType.OPEN) for i in range(5))
    data = DataSet("x", "train", records, ReadReport("x"))
    report = find_overlap([data], [data])
    assert ref.loads == 1
    assert report.overlaps[0].triplets == 5


def test_files_of_equal_bytes_are_decoded_once(tmp_path, patients, monkeypatch):
    """Parquet files hold an image again for each of its questions."""
    decoded = []
    take = leakage._print
    monkeypatch.setattr(leakage, "_print", lambda image: decoded.append(image) or take(image))
    monkeypatch.setattr(leakage.os, "cpu_count", lambda: 1)
    data = data_set(tmp_path, [encode_image(patients[i % 2], "PNG") for i in range(6)])
    assert find_overlap([data], [data]).train_images == 2
    assert len(decoded) == 2


def test_5000_by_5000_images_are_compared_in_seconds():
    rng = np.random.default_rng(0)

    small = np.full(64 * 64, 1 / 64, np.float16)  # all correlate: the hashes must tell them apart

    def prints():
        return [leakage._Print(bytes(8), bits, small) for bits in rng.integers(0, 2**63, (5000, 4), dtype=np.uint64)]

    train, test = prints(), prints()
    test[4321] = train[1234]
    start = time.thread_time()  # the work is done in this thread; what runs beside it does not count
    ((i, j, correlation),) = leakage._alike(train, test)
    assert (i, j) == (1234, 4321)
    assert correlation > leakage.LEAST_CORRELATION
    assert time.thread_time() - start < 20


def test_distances_count_bits():
    a = np.array([[0, 0, 0, 0], [1, 3, 0, 2**63]], np.uint64)
    b = np.array([[0, 0, 0, 0], [2**64 - 1] * 4], np.uint64)
    np.testing.assert_array_equal(leakage._distances(a, b), [[0, 256], [4, 252]])
