"""Images and questions that training and test data have in common, whatever files and data sets they lie in.

Two images are the same if their decoded pixels are, and alike if one is the other encoded again, resized or shown with fewer
bits. Medical images of one kind look alike to a perceptual hash, so that only nominates pairs (a difference hash of 256 bits,
compared by popcount), and the correlation of two small images with the coarse shape of the body taken away decides.

Measured on phantoms (CT-, radiograph-, MR-, fundus- and histology-like, 130 to 240 images each) and on the 315 images of
VQA-RAD, every third copied as JPEG of quality 30 and 75, at 0.3 to 1.5 times its size and at 224 x 224: copies lie within 23
bits and correlate at 0.946 or more, 0.953 without histology; different patients correlate at 0.892 at most, and different
images of VQA-RAD at 0.847. (A 64-bit difference hash gives equal values to different phantom patients.) Most twins of one
phantom patient are alike, and so are many slices of one brain 1 or 2 mm apart, 5 of 158 axial ones 3 mm apart, none beyond.
Crops, mirror images and images without structure are not found by likeness.
"""

import copy
import dataclasses
import hashlib
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tqdm
from PIL import Image

from mvg_jax.data.images import BadImage, EncodedRef, ImageRef, to_8bit
from mvg_jax.data.records import DataSet, Record
from mvg_jax.data.task import NativeImage
from mvg_jax.errors import RunError

HASH_BITS = 32  # most bits in which the hashes of two pictures that are compared differ
LEAST_CORRELATION = 0.92
EXAMPLES = 5  # pairs that a report names
WAYS_OUT = "--config.data.overlap=drop leaves their questions out, --config.data.overlap=allow trains on them"

_HASH_SIDE = 16
_SIDE, _COARSE = 64, 16  # of the small images, and of what is taken away from them
_STEP = 1.0  # grey levels between neighbours below which the hash sees no edge: noise in the dark would make others
_PLAIN = 1.0  # standard deviation in grey levels of a small image below which there is nothing to compare
_CHUNK = 512
_SPLIT_BY_QUESTION = {
    "vqa_rad": "VQA-RAD splits its questions and not its images, so its test images are in train by construction"
}


@dataclasses.dataclass(frozen=True)
class Match:
    """An image of the test data that the training data hold too. correlation: 1.0 = pixel for pixel."""

    train: str
    test: str
    correlation: float


@dataclasses.dataclass(frozen=True)
class Overlap:
    """What a training set and a test set share: distinct images of the test set, and training records.

    same: test images that are in train pixel for pixel. alike: others that look like one in train.
    triplets: training records with question, answer and image of a test record.
    """

    train: str
    test: str
    images: int
    same: int
    alike: int
    triplets: int
    explanation: str = ""

    def __str__(self) -> str:
        text = (
            f"{self.same + self.alike} of {self.images} images of {self.test} are in {self.train} "
            f"({self.same} pixel for pixel, {self.alike} look alike); {self.triplets} training questions are asked there too"
        )
        return f"{text}. {self.explanation}" if self.explanation else text


@dataclasses.dataclass(frozen=True)
class OverlapReport:
    """What was compared and found. train_refs: images of the training data that are in the test data."""

    train_images: int
    test_images: int
    overlaps: tuple[Overlap, ...]
    examples: tuple[Match, ...]
    unreadable: tuple[str, ...]
    train_refs: frozenset[ImageRef]

    @property
    def clean(self) -> bool:
        """Whether no image is shared."""
        return not self.overlaps

    def __str__(self) -> str:
        lines = [f"train/test overlap: {self.train_images} training and {self.test_images} test images compared"]
        lines += [f"  {overlap}" for overlap in self.overlaps] or ["  none"]
        lines += [f"  {m.train} is {m.test} (correlation {m.correlation:.3f})" for m in self.examples]
        if self.unreadable:
            named = ", ".join(self.unreadable[:EXAMPLES])
            lines.append(f"  {len(self.unreadable)} images could not be read and were not compared ({named})")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, eq=False)
class _Print:
    """What is kept of an image. small: [64 * 64] float16 of norm 1, None of a plain image. bits: [4] uint64."""

    digest: bytes
    bits: np.ndarray
    small: np.ndarray | None


def find_overlap(train: Sequence[DataSet], test: Sequence[DataSet]) -> OverlapReport:
    """Compares every image of `train` with every one of `test`. Each distinct image is decoded once, by threads."""
    refs = list(dict.fromkeys(ref for data in (*train, *test) for ref in _refs(data.records)))
    prints, unreadable = _prints(refs)
    digest_of = {ref: found.digest for ref, found in prints.items()}
    pictures = {found.digest: found for found in prints.values()}
    digests_of = lambda sets: list(
        dict.fromkeys(digest_of[r] for d in sets for r in _refs(d.records) if r in digest_of)
    )
    train_digests, test_digests = digests_of(train), digests_of(test)
    shared: dict[bytes, dict[bytes, float]] = defaultdict(dict)  # test picture -> training pictures -> correlation
    for i, j, correlation in _alike([pictures[d] for d in train_digests], [pictures[d] for d in test_digests]):
        shared[test_digests[j]][train_digests[i]] = correlation
    for digest in set(train_digests) & set(test_digests):
        shared[digest][digest] = 1.0
    pairs = [_compare(a, b, shared, digest_of) for a in train for b in test]
    leaked = {digest for found in shared.values() for digest in found}
    return OverlapReport(
        len(train_digests),
        len(test_digests),
        tuple(pair for pair in pairs if pair.same or pair.alike),
        tuple(_examples(train, test, shared, digest_of)),
        tuple(unreadable),
        frozenset(ref for d in train for ref in _refs(d.records) if digest_of.get(ref) in leaked),
    )


def refuse_or_allow(report: OverlapReport, allowed: bool) -> None:
    """RunError saying what to do if images are shared and that is not allowed."""
    if not report.clean and not allowed:
        found = "; ".join(str(overlap) for overlap in report.overlaps)
        raise RunError(f"{found}: {WAYS_OUT}")


def drop_overlapping(data: DataSet, report: OverlapReport) -> DataSet:
    """The training set without the records that show an image of the test data; they are counted in its report."""
    kept, read = [], copy.deepcopy(data.report)
    for record in data.records:
        if report.train_refs.isdisjoint(record.images):
            kept.append(record)
        else:
            read.drop(record.id, "its image is in the test data")
    return dataclasses.replace(data, records=tuple(kept), report=read)


def _refs(records: Iterable[Record]) -> Iterator[ImageRef]:
    return (ref for record in records for ref in record.images)


def _compare(
    train: DataSet, test: DataSet, shared: dict[bytes, dict[bytes, float]], digest_of: dict[ImageRef, bytes]
) -> Overlap:
    in_train = {digest_of[ref] for ref in _refs(train.records) if ref in digest_of}
    in_test = {digest_of[ref] for ref in _refs(test.records) if ref in digest_of}
    found = {digest: shared[digest].keys() & in_train for digest in in_test if digest in shared}
    same = sum(digest in others for digest, others in found.items())
    asked = set()
    for record in test.records:
        for ref in record.images:
            asked |= {_question(record, digest) for digest in found.get(digest_of.get(ref), ())}
    triplets = sum(any(_question(r, digest_of.get(ref)) in asked for ref in r.images) for r in train.records)
    return Overlap(
        f"{train.name} {train.split}",
        f"{test.name} {test.split}",
        len(in_test),
        same,
        sum(bool(others) for others in found.values()) - same,
        triplets,
        _SPLIT_BY_QUESTION.get(train.name, "") if train.name == test.name else "",
    )


def _question(record: Record, digest: bytes | None) -> tuple:
    return " ".join(record.question.casefold().split()), " ".join(record.answer.casefold().split()), digest


def _examples(
    train: Sequence[DataSet],
    test: Sequence[DataSet],
    shared: dict[bytes, dict[bytes, float]],
    digest_of: dict[ImageRef, bytes],
) -> Iterator[Match]:
    """The first few pairs, those that are alike without being the same among them."""
    name = lambda data, ref: f"{data.name} {data.split} {ref.name}"
    names = lambda sets: {digest_of[r]: name(d, r) for d in sets for r in _refs(d.records) if r in digest_of}
    train_names, test_names = names(train), names(test)
    pairs = [(c, a, b) for b, found in shared.items() for a, c in found.items()]
    for correlation, a, b in sorted(pairs, key=lambda pair: pair[0])[:EXAMPLES]:
        yield Match(train_names[a], test_names[b], correlation)


def _prints(refs: Sequence[ImageRef]) -> tuple[dict[ImageRef, _Print], list[str]]:
    """Image -> what is kept of it; and the images that could not be read. Files with equal bytes are decoded once."""
    known: dict[bytes, _Print] = {}

    def take(ref: ImageRef) -> _Print | str:
        try:
            if not isinstance(ref, EncodedRef):
                return _print(ref.load())
            key = hashlib.blake2b(ref.read(), digest_size=16).digest()
            if key not in known:
                known[key] = _print(ref.load())
            return known[key]
        except BadImage as error:
            return str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        taken = tqdm.tqdm(
            pool.map(take, refs),
            desc="compare train and test images",
            total=len(refs),
            unit="image",
            delay=2,
            disable=not sys.stderr.isatty(),
        )
        results = list(zip(refs, taken, strict=True))
    prints = {ref: found for ref, found in results if isinstance(found, _Print)}
    return prints, [found for _, found in results if isinstance(found, str)]


def _print(image: NativeImage) -> _Print:
    pixels = image.pixels
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]  # grey, saved as colour
    digest = hashlib.blake2b(f"{pixels.shape} {pixels.dtype}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels))
    grey = Image.fromarray(to_8bit(image)).convert("L")
    wide = np.asarray(grey.resize((_HASH_SIDE + 1, _HASH_SIDE), Image.Resampling.BOX), np.float32)
    bits = np.packbits(np.diff(wide, axis=1) > _STEP).view(np.uint64)
    return _Print(digest.digest(), bits, _small(grey))


def _small(grey: Image.Image) -> np.ndarray | None:
    small = Image.fromarray(np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32))
    coarse = small.resize((_COARSE, _COARSE), Image.Resampling.BOX).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    detail = (np.asarray(small) - np.asarray(coarse)).ravel()
    return None if detail.std() < _PLAIN else (detail / np.linalg.norm(detail)).astype(np.float16)


def _alike(train: Sequence[_Print], test: Sequence[_Print]) -> Iterator[tuple[int, int, float]]:
    """(index in train, index in test, correlation) of pictures that are alike."""
    rows = [i for i, p in enumerate(train) if p.small is not None]
    columns = np.array([j for j, p in enumerate(test) if p.small is not None], np.int64)
    if not rows or not len(columns):
        return
    test_bits, test_small = np.stack([test[j].bits for j in columns]), np.stack([test[j].small for j in columns])
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        near = _distances(np.stack([train[i].bits for i in chunk]), test_bits) <= HASH_BITS
        some = np.flatnonzero(near.any(axis=0))
        left = np.stack([train[i].small for i in chunk]).astype(np.float32)
        correlation = left @ test_small[some].astype(np.float32).T
        for i, j in zip(*np.nonzero(near[:, some] & (correlation >= LEAST_CORRELATION)), strict=True):
            yield chunk[i], int(columns[some[j]]), float(correlation[i, j])


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[n, 4] and [m, 4] uint64 -> [n, m]: in how many bits they differ."""
    words = (np.bitwise_count(a[:, None, k] ^ b[None, :, k]).astype(np.uint16) for k in range(a.shape[1]))
    return sum(words, np.zeros((len(a), len(b)), np.uint16))
