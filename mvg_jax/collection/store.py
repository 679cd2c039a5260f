"""Trajectories on disk: parquet shards, one row a finished episode, with everything needed to play it again.

A row holds the task (its images as PNG, lossless), the turns, and what came of them. Observations are not stored as pixels: the
environment replays the turns and makes them; their lines of text stand there for people to read. An image is stored once a shard,
by the row that shows it first, and named by the SHA-256 of its pixels.

Files are untrusted: the schema must be ours, each turn goes through the parser of the wire format again, and the arguments of its
call through the tool's schema. Whatever is wrong is one RunError that names the file, the row and the field.
"""

import bisect
import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mvg_jax.data.images import BadImage, decode
from mvg_jax.data.task import AnswerType, Box, Demonstration, NativeImage, Task, Turn
from mvg_jax.env.episode import Stop, TurnRecord
from mvg_jax.env.protocol import ANSWER, CALL, Malformed, parse_turn, render_turn, turn_body
from mvg_jax.errors import RunError
from mvg_jax.metrics import replacing
from mvg_jax.tools import Registry, ToolCall, ToolError, default_registry

FORMAT = "2"  # raise it when a column changes
GROUP_ROWS = 8  # rows of a row group: the pixels read at a time
MAX_VIEWS_A_TURN = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Played:
    """A finished episode. records: its turns and what came of them. texts: the observations' lines, one a turn ("" = none).

    tokens: that the model wrote. source: who spoke ("expert", a model's name); sample: which try at the task it was.
    terms: the reward terms, unweighted. The task's certificate is not stored.
    """

    task: Task
    records: tuple[TurnRecord, ...]
    texts: tuple[str, ...]
    stop: Stop
    tokens: int
    source: str
    sample: int
    tools_on: bool = True
    terms: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def demonstration(self) -> Demonstration:
        """What is imitated. ValueError when a turn was malformed or cut off."""
        turns = tuple(record.turn for record in self.records)
        if not all(isinstance(turn, Turn) for turn in turns):
            raise ValueError(f"{self.task.id}: a malformed turn cannot be imitated")
        return Demonstration(self.task, turns, self.tools_on, self.source)


def write(
    path: str | os.PathLike, episodes: Sequence[Played], *, digest: str = "", notes: Mapping[str, Any] | None = None
) -> None:
    """Writes one shard in one piece: a reader sees the whole file or none. Equal episodes give equal bytes.

    digest: of the config that made it. notes: JSON values that travel in the file's head (see `read_notes`).
    RunError when it cannot be written. ValueError for an episode that would not read back: a malformed turn, no answer.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    head = {"mvg_jax.trajectories": FORMAT, "mvg_jax.config": digest, "mvg_jax.notes": json.dumps(notes or {})}
    seen: set[str] = set()
    rows = [_row(episode, seen) for episode in episodes]
    try:
        table = pa.Table.from_pylist(rows, _schema().with_metadata(head))
        with replacing(path) as file:
            # Statistics and dictionaries of so small groups are larger than what they save.
            plain = {"use_dictionary": False, "write_statistics": False}
            pq.write_table(table, file, row_group_size=GROUP_ROWS, compression="zstd", **plain)
    except (OSError, pa.ArrowException, UnicodeError) as error:
        raise RunError(f"cannot write {path}: {error}") from error


def read(*paths: str | os.PathLike, registry: Registry | None = None) -> "StoredTrajectories":
    """The trajectories of shards, or of folders of shards (*.parquet, in the order of their names), as one sequence.

    registry: the tools that calls may name (None = all there are). Opens files only; pixels and turns are read when asked for.
    RunError when there is no shard, or one is not ours.
    """
    files = []
    for path in map(pathlib.Path, paths):
        found = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not found:
            raise RunError(f"{path} holds no trajectories (*.parquet)")
        files += found
    return StoredTrajectories(tuple(map(_open, files)), registry or default_registry(None))


def read_notes(path: str | os.PathLike) -> tuple[str, dict[str, Any]]:
    """(digest, notes) of a shard, see `write`. RunError when it is not ours."""
    import pyarrow.parquet as pq

    path = _open(pathlib.Path(path)).path
    head = pq.read_schema(path).metadata
    try:
        notes = json.loads(head[b"mvg_jax.notes"])
        return head[b"mvg_jax.config"].decode(), dict(notes)
    except (KeyError, ValueError, TypeError) as error:
        raise RunError(f"{path}: its head has no config and notes") from error


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of trajectories. stamp: tells one version of the file from the next. groups: rows of each row group."""

    path: pathlib.Path
    stamp: int
    groups: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTrajectories(Sequence):
    """Random access to stored demonstrations: store[i] is one, store.played(i) all that is known of it. Pickles small.

    Reading a row that is not right raises a RunError; `check` finds such rows before anything starts.
    """

    shards: tuple[Shard, ...]
    registry: Registry

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Demonstration:
        return self.played(index).demonstration

    def played(self, index: int) -> Played:
        """Episode `index`, its images loaded."""
        return self._played(index, images=True)

    def outline(self, index: int) -> Played:
        """Episode `index` without its images, which takes no time."""
        return self._played(index, images=False)

    def check(self) -> None:
        """Reads all rows but their pixels. RunError for the first that is not right."""
        for index in range(len(self)):
            self.outline(index)

    def _played(self, index: int, *, images: bool) -> Played:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self._ends, index)
        shard, row = self.shards[number], index - (self._ends[number - 1] if number else 0)
        try:
            values = _texts(shard).slice(row, 1).to_pylist()[0]
            loaded = [_image(shard, image) for image in values["images"]] if images else []
            return _episode(values, loaded, self.registry)
        except (ValueError, ToolError, BadImage) as error:  # ValueError: text that is no UTF-8, too
            raise RunError(f"{shard.path} row {row}: {error}") from error

    @functools.cached_property
    def _ends(self) -> list[int]:
        return np.cumsum([sum(shard.groups) for shard in self.shards], dtype=int).tolist()

    def __getstate__(self) -> dict[str, Any]:
        return {"shards": self.shards, "tools": self.registry.names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(shards=state["shards"], registry=default_registry(state["tools"]))


# ---- the columns -----------------------------------------------------------------------------------------------------


@functools.cache
def _schema():
    import pyarrow as pa

    def field(name: str, kind, nullable: bool = False):
        return pa.field(name, kind, nullable)

    def many(kind):
        return pa.list_(pa.field("element", kind, nullable=False))

    text, real, count = pa.string(), pa.float64(), pa.int32()
    box = pa.struct([field("label", text), *(field(c, real) for c in ("x1", "y1", "x2", "y2")), field("image", count)])
    image = pa.struct(
        [
            field("key", text),
            field("planes", count),  # 3: three 16-bit colours side by side in a grey PNG, which knows none
            *(field(name, real) for name in ("low", "high", "slope", "intercept")),
            field("unit", text),
            field("spacing_mm", real, nullable=True),
        ]
    )
    turn = pa.struct(
        [
            field("think", text),
            field("kind", text),  # tool_call or answer
            field("body", text),  # the call as JSON, or the answer
            field("error", text, nullable=True),
            field("views", count),
            field("observation", text),
        ]
    )
    return pa.schema(
        [
            *(field(name, text) for name in ("id", "dataset", "kind", "question", "answer")),
            *(field(name, many(text)) for name in ("options", "accepted")),
            *(field(name, text) for name in ("answer_type", "modality", "language")),
            field("tolerance", pa.float64()),
            field("boxes", many(box)),
            field("chain", many(text), nullable=True),  # calls as JSON
            field("images", many(image)),
            field("pixels", many(pa.struct([field("key", text), field("png", pa.binary())]))),  # shown here first
            field("turns", many(turn)),
            field("tools_on", pa.bool_()),
            field("tools", many(text)),  # the names that were called, in order
            field("stop", text),
            field("tokens", count),
            field("source", text),
            field("sample", count),
            field("terms", many(pa.struct([field("name", text), field("value", real)]))),
        ]
    )


def _row(episode: Played, seen: set[str]) -> dict[str, Any]:
    """An episode as columns. seen: keys of the images that the shard holds already; is added to."""
    task = episode.task
    images, pixels = [], []
    for image in task.images:
        key = _key(image.pixels)
        if key not in seen:
            seen.add(key)
            pixels.append({"key": key, "png": _png(image.pixels)})
        low, high = image.window
        planes = 3 if image.pixels.ndim == 3 and image.pixels.dtype == np.uint16 else 1
        images.append(
            {"key": key, "planes": planes, "low": low, "high": high, "slope": image.slope}
            | {"intercept": image.intercept, "unit": image.unit, "spacing_mm": image.spacing_mm}
        )
    turns = []
    for record, text in zip(episode.records, episode.texts, strict=True):
        if not isinstance(record.turn, Turn):
            raise ValueError(f"{task.id}: a malformed turn cannot be stored")
        render_turn(record.turn)
        kind = CALL if record.call else ANSWER
        turns.append(
            {"think": record.turn.think, "kind": kind, "body": turn_body(record.turn), "error": record.error}
            | {"views": record.views, "observation": text}
        )
    if episode.stop != Stop.ANSWER:
        raise ValueError(f"{task.id}: an episode without an answer cannot be stored")
    return {
        "id": task.id,
        "dataset": task.dataset,
        "kind": task.kind,
        "question": task.question,
        "answer": task.answer,
        "options": task.options,
        "accepted": task.accepted,
        "answer_type": task.answer_type.value,
        "modality": task.modality,
        "language": task.language,
        "tolerance": task.tolerance,
        "boxes": [
            dict(zip(("x1", "y1", "x2", "y2"), map(float, box.xyxy), strict=True))
            | {"label": box.label, "image": box.image}
            for box in task.boxes
        ],
        "chain": None if task.chain is None else [turn_body(Turn("", call)) for call in task.chain],
        "images": images,
        "pixels": pixels,
        "turns": turns,
        "tools_on": episode.tools_on,
        "tools": [record.call.name for record in episode.records if record.call],
        "stop": episode.stop.name,
        "tokens": episode.tokens,
        "source": episode.source,
        "sample": episode.sample,
        "terms": [{"name": name, "value": float(value)} for name, value in episode.terms.items()],
    }


def _key(pixels: np.ndarray) -> str:
    what = f"{pixels.dtype.name} {pixels.shape} ".encode()
    return hashlib.sha256(what + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _png(pixels: np.ndarray) -> bytes:
    """[H, W] or [H, W, 3], uint8 or uint16, without loss."""
    if pixels.ndim == 3 and pixels.dtype == np.uint16:
        pixels = pixels.reshape(len(pixels), -1)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(
        file, "PNG", compress_level=1
    )  # noise: the highest level saves 7 % in 18 times the time
    return file.getvalue()


# ---- reading ---------------------------------------------------------------------------------------------------------


def _open(path: pathlib.Path) -> Shard:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file, stamp = pq.ParquetFile(path), path.stat().st_mtime_ns
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"cannot read {path}: {error}") from error
    with file:
        schema = file.schema_arrow
        version = (schema.metadata or {}).get(b"mvg_jax.trajectories")
        if version is None:
            raise RunError(f"{path} holds no trajectories of mvg_jax")
        if version != FORMAT.encode():
            raise RunError(f"{path}: trajectories of format {version!r:.20}; this version reads {FORMAT}")
        for ours in _schema():
            if ours.name not in schema.names or not schema.field(ours.name).equals(ours):
                raise RunError(f"{path}: column {ours.name} is missing or is no {ours.type}")
        groups = tuple(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
    return Shard(path.absolute(), stamp, groups)


@functools.lru_cache(maxsize=256)
def _texts(shard: Shard):
    """The table of a shard without its pixels."""
    names = [name for name in _schema().names if name != "pixels"]
    return _columns(shard, range(len(shard.groups)), names)


@functools.lru_cache(maxsize=256)
def _places(shard: Shard) -> dict[str, int]:
    """Row group of each image of a shard."""
    keys = _columns(shard, range(len(shard.groups)), ["pixels.list.element.key"]).column("pixels").to_pylist()
    group_of_row = np.repeat(np.arange(len(shard.groups)), shard.groups).tolist()
    return {image["key"]: group for images, group in zip(keys, group_of_row, strict=True) for image in images}


@functools.lru_cache(maxsize=8)
def _pngs(shard: Shard, group: int) -> dict[str, bytes]:
    """The images of a row group."""
    rows = _columns(shard, [group], ["pixels"]).column("pixels").to_pylist()
    return {image["key"]: image["png"] for images in rows for image in images}


def _columns(shard: Shard, groups: Sequence[int], names: list[str]):
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(shard.path) as file:
            return file.read_row_groups(list(groups), columns=names)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise RunError(f"cannot read {shard.path}: {error}") from error


def _image(shard: Shard, values: dict[str, Any]) -> NativeImage:
    key, planes = values["key"], values["planes"]
    group = _places(shard).get(key)
    _require(group is not None, "images", f"has no image {key[:80]!r}")
    pixels = decode(_pngs(shard, group)[key], "images").pixels
    _require(planes in (1, 3) and pixels.shape[1] % planes == 0, "images", f"has {planes} planes")
    pixels = pixels.reshape(len(pixels), -1, 3) if planes == 3 else pixels
    _require(_key(pixels) == key, "images", f"has changed pixels in {key}")
    window = (values["low"], values["high"])
    return NativeImage(pixels, window, values["slope"], values["intercept"], values["unit"], values["spacing_mm"])


def _episode(values: dict[str, Any], images: Sequence[NativeImage], registry: Registry) -> Played:
    """A row's episode, with the images that were loaded. ValueError or ToolError for whatever is not right."""
    _require(values["stop"] == Stop.ANSWER.name, "stop", "is not ANSWER")
    _require(values["images"], "images", "is empty")
    for image in values["images"]:
        numbers = [image[name] for name in ("low", "high", "slope", "intercept")] + [image["spacing_mm"] or 0.0]
        fits = all(map(math.isfinite, numbers)) and image["low"] < image["high"] and image["slope"] != 0
        _require(fits, "images", "has an impossible window or scale")
    for box in values["boxes"]:
        fits = all(map(math.isfinite, (box["x1"], box["y1"], box["x2"], box["y2"])))
        _require(fits and 0 <= box["image"] < len(values["images"]), "boxes", "has an impossible box")
    _require(values["answer_type"] in set(AnswerType), "answer_type", f"is {values['answer_type'][:80]!r}")
    _require(0 <= values["tolerance"] < math.inf, "tolerance", "is not 0 or above")
    for term in values["terms"]:
        _require(math.isfinite(term["value"]), "terms", "is not finite")
    chain = values["chain"]
    task = Task(
        id=values["id"],
        dataset=values["dataset"],
        kind=values["kind"],
        images=tuple(images),
        question=values["question"],
        answer=values["answer"],
        options=tuple(values["options"]),
        boxes=tuple(Box(b["label"], (b["x1"], b["y1"], b["x2"], b["y2"]), b["image"]) for b in values["boxes"]),
        chain=None if chain is None else tuple(_parsed("", CALL, body, "chain").action for body in chain),
        answer_type=AnswerType(values["answer_type"]),
        accepted=tuple(values["accepted"]),
        modality=values["modality"],
        language=values["language"],
        tolerance=values["tolerance"],
    )
    records, held = [], len(values["images"])
    for i, said in enumerate(values["turns"]):
        turn, views = _parsed(said["think"], said["kind"], said["body"], "turns"), said["views"]
        last = i + 1 == len(values["turns"])
        _require(isinstance(turn.action, str) == last, "turns", "must end with the only answer")
        _require(0 <= views <= MAX_VIEWS_A_TURN, "turns", f"has {views} views")
        if isinstance(turn.action, ToolCall):
            _require(values["tools_on"], "turns", "has a call although no tools were offered")
            if said["error"] is None:
                registry.check(turn.action)
        records.append(TurnRecord(turn, said["error"], held, views))
        held += views
    _require(records, "turns", "is empty")
    return Played(
        task=task,
        records=tuple(records),
        texts=tuple(said["observation"] for said in values["turns"]),
        stop=Stop.ANSWER,
        tokens=values["tokens"],
        source=values["source"],
        sample=values["sample"],
        tools_on=values["tools_on"],
        terms={term["name"]: term["value"] for term in values["terms"]},
    )


def _parsed(think: str, kind: str, body: str, column: str) -> Turn:
    """A turn put together as the model would have written it, and parsed as the model's."""
    _require(kind in (CALL, ANSWER), column, f"has a turn of kind {kind[:80]!r}")
    turn = parse_turn(f"<think>{think}</think><{kind}>{body}</{kind}>")
    if isinstance(turn, Malformed):
        raise ValueError(f"{column}: {turn.code}: {turn.text}")
    return turn


def _require(true: object, column: str, what: str) -> None:
    if not true:
        raise ValueError(f"{column} {what}")
