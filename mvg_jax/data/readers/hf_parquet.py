"""Parquet shards as the Hugging Face hub holds them, with embedded images or with paths of images beside them."""

import dataclasses
import functools
import io
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mvg_jax.data.files import Files
from mvg_jax.data.images import BadImage, FileImage, ImageRef, decode
from mvg_jax.data.task import NativeImage
from mvg_jax.errors import RunError

GROUPS = 4  # row groups of images held in memory by each process


def shards(files: Files, split: str, folder: str = "") -> list[str]:
    """Names of a split's shards in order: `<split>-00000-of-00007[-hash].parquet`, `<split>.parquet` or `<split>/0000.parquet`.

    folder: only those whose path goes through a folder of this name (a config of the data set).
    """
    wanted = re.compile(rf"(^|/){re.escape(split)}(-\d+-of-\d+(-[0-9a-f]+)?|/\d+)?\.parquet$")
    within = lambda name: not folder or folder.lower() in name.lower().split("/")[:-1]
    return [name for name in files.names if wanted.search(name) and within(name)]


def rows(files: Files, names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(id "shard:row", values) of each row; an image column's value is an ImageRef, or None where there is no image.

    Images are not read. RunError for a file that is no parquet.
    """
    for shard, name in enumerate(names):
        table = open_shard(files, name)
        images = [field.name for field in table.schema_arrow if _is_image(field.type)]
        plain = [field.name for field in table.schema_arrow if field.name not in images]
        row = 0
        for group in range(table.num_row_groups):
            values = _columns(files, name, table, group, plain).to_pylist() if plain else []
            there = {column: _kinds(files, name, table, group, column) for column in images}
            for i in range(table.metadata.row_group(group).num_rows):
                refs = {column: _reference(files, name, group, i, column, *there[column][i]) for column in images}
                yield f"{shard}:{row}", (values[i] if plain else {}) | refs
                row += 1


@dataclasses.dataclass(frozen=True)
class ParquetImage:
    """An image embedded in row `row` of a row group."""

    files: Files
    shard: str
    group: int
    row: int
    column: str

    @property
    def name(self) -> str:
        return f"{self.shard}#{self.group}.{self.row}.{self.column}"

    def read(self) -> bytes:
        try:
            content = _group(self.files, self.shard, self.group, self.column)[self.row].as_py()
        except RunError as error:
            raise BadImage(f"{self.name}: {error}") from error
        if not content:
            raise BadImage(f"{self.name}: no bytes")
        return content

    def load(self) -> NativeImage:
        return decode(self.read(), self.name)


def open_shard(files: Files, name: str) -> pq.ParquetFile:
    """A shard, from disk or from within a zip."""
    try:
        return pq.ParquetFile(files.path(name) or io.BytesIO(files.read(name)))
    except (pa.ArrowException, OSError) as error:
        raise RunError(f"cannot read {name} of {files.root}: {error}") from error


def _columns(files: Files, name: str, table: pq.ParquetFile, group: int, columns: list[str]) -> pa.Table:
    try:
        return table.read_row_group(group, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise RunError(f"cannot read {', '.join(columns)} of {name} of {files.root}: {error}") from error


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_image(kind: pa.DataType) -> bool:
    return _is_binary(kind) or (
        pa.types.is_struct(kind) and {kind.field(i).name for i in range(kind.num_fields)} == {"bytes", "path"}
    )


def _kinds(files: Files, name: str, table: pq.ParquetFile, group: int, column: str) -> list[tuple[bool, str | None]]:
    """(whether bytes are there, path) of each cell. Bytes are read only where some cells have them and others have not."""
    plain = _is_binary(table.schema_arrow.field(column).type)
    rows, nulls = table.metadata.row_group(group).num_rows, _nulls(table, group, column if plain else f"{column}.bytes")
    if nulls in (0, rows):
        there = [nulls == 0] * rows
    else:
        cells = _columns(files, name, table, group, [column]).column(0).combine_chunks()
        there = (cells if plain else cells.field("bytes")).is_valid().to_pylist()
    if plain:
        return [(bytes_there, None) for bytes_there in there]
    paths = _columns(files, name, table, group, [f"{column}.path"]).column(0).combine_chunks().field("path")
    return list(zip(there, paths.to_pylist(), strict=True))


def _nulls(table: pq.ParquetFile, group: int, leaf: str) -> int | None:
    """How many cells are null, as the file's statistics have it."""
    chunks = table.metadata.row_group(group)
    for chunk in (chunks.column(k) for k in range(chunks.num_columns)):
        if chunk.path_in_schema == leaf and chunk.statistics is not None and chunk.statistics.has_null_count:
            return chunk.statistics.null_count
    return None


def _reference(
    files: Files, shard: str, group: int, row: int, column: str, there: bool, path: str | None
) -> ImageRef | None:
    if there:
        return ParquetImage(files, shard, group, row, column)
    found = path and files.find(path)
    return FileImage(files, found or path) if path else None


@functools.lru_cache(maxsize=GROUPS)
def _group(files: Files, shard: str, group: int, column: str) -> pa.Array:
    values = _columns(files, shard, open_shard(files, shard), group, [column]).column(0).combine_chunks()
    return values if _is_binary(values.type) else values.field("bytes")
