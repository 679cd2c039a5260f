"""Parquet as hub uploads hold it."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def write_parquet(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
    """A shard of {image: {bytes, path}, question, answer} rows with the `huggingface` metadata that hub uploads carry."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {"image": {"_type": "Image"}} | {
        name: {"dtype": "string", "_type": "Value"} for name in ("question", "answer")
    }
    schema = pa.schema(
        [("image", image), ("question", pa.string()), ("answer", pa.string())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema), path)
