"""The store of trajectories: what is written comes back, and what is not ours is refused by name."""

import dataclasses
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mvg_jax.collection import store
from mvg_jax.collection.store import Played, read, read_notes, write
from mvg_jax.data.task import AnswerType, Box, NativeImage, Task, Turn
from mvg_jax.env.episode import Stop, TurnRecord
from mvg_jax.env.protocol import Malformed
from mvg_jax.errors import RunError
from mvg_jax.tools import ToolCall, default_registry

ZOOM = ToolCall("image_zoom_in_tool", {"bbox_2d": [[1, 2.5, 300, 400], [0, 0, 500, 500]], "img_idx": 0, "label": "ø"})


def noise(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


IMAGES = {
    "grey 8": NativeImage(noise(7, 5)),
    "grey 16": NativeImage(noise(6, 9, dtype=np.uint16), (-160.0, 240.0), 0.1, -1024.3, "HU", 0.7),
    "colour 8": NativeImage(noise(5, 8, 3), (1.0, 200.0)),
    "colour 16": NativeImage(noise(5, 8, 3, dtype=np.uint16), (0.0, 65535.0), 2.0, 1.0, "grey"),
    "one pixel, all black": NativeImage(np.zeros((1, 1), np.uint16)),
}


def task(name="a/1", images=(IMAGES["grey 16"],)):
    return Task(
        id=name,
        dataset="a",
        kind='Organ, "quoted"\n',
        images=tuple(images),
        question="包含什么? naïve \U0001f600 </answer><|im_end|>",
        answer="Lunge, \tHerz",
        options=("ja", "né"),
        boxes=(Box("Läsion", (0.1, 2.0, 1000.0, 999.5), len(images) - 1),),
        chain=(ZOOM,),
        answer_type=AnswerType.LIST,
        accepted=("x", ""),
        modality="CT",
        language="zh",
        tolerance=0.1,
    )


def played(task_, **changes):
    first = len(task_.images)
    turns = (
        TurnRecord(Turn("Größer sehen.", ZOOM), None, first, 2),
        TurnRecord(Turn("", ToolCall("image_flip_tool", {"axis": "sideways", "img_idx": 0})), "E4", first + 2, 0),
        TurnRecord(Turn(" 1 < 2 ", " ja\n"), None, first + 2, 0),
    )
    fields = {"records": turns, "texts": ("Zoomed views.", "E4: Illegal value.", ""), "stop": Stop.ANSWER}
    fields |= {"tokens": 40, "source": "Lehrer", "sample": 3, "terms": {"accuracy": 1.0, "format": 0.1 + 0.2}}
    return Played(task_, **(fields | changes))


def same_task(a: Task, b: Task) -> bool:
    plain = all(getattr(a, f.name) == getattr(b, f.name) for f in dataclasses.fields(a) if f.name != "images")
    same = lambda x, y: x.dtype == y.dtype and x.shape == y.shape and np.array_equal(x, y)
    rest = lambda image: dataclasses.replace(image, pixels=None)
    images = [same(x.pixels, y.pixels) and rest(x) == rest(y) for x, y in zip(a.images, b.images, strict=True)]
    return plain and all(images)


@pytest.mark.parametrize("name", IMAGES)
def test_what_is_written_comes_back(tmp_path, name):
    given = played(task(images=[IMAGES[name], IMAGES["colour 8"]]))
    write(tmp_path / "0.parquet", [given], digest="d", notes={"kept": 1})
    store = read(tmp_path)
    got = store.played(0)
    assert len(store) == 1
    assert same_task(got.task, given.task)
    for field in ("records", "texts", "stop", "tokens", "source", "sample", "tools_on", "terms"):
        assert getattr(got, field) == getattr(given, field), field
    demonstration = store[0]
    assert demonstration.turns == tuple(record.turn for record in given.records)
    assert (demonstration.tools_on, demonstration.source) == (True, "Lehrer")
    assert read_notes(tmp_path / "0.parquet") == ("d", {"kept": 1})


def test_an_unknown_chain_is_not_an_empty_one(tmp_path):
    chains = (None, (), (ZOOM, ZOOM))
    write(tmp_path / "0.parquet", [played(dataclasses.replace(task(), chain=chain)) for chain in chains])
    assert tuple(demonstration.task.chain for demonstration in read(tmp_path)) == chains


def test_shards_are_one_sequence_in_the_order_of_their_names(tmp_path):
    many = [played(task(f"t/{i}", [NativeImage(noise(4, 4, seed=i // 3))])) for i in range(40)]
    write(tmp_path / "b.parquet", many[21:])
    write(tmp_path / "a.parquet", many[:21])
    write(tmp_path / "sub" / "c.parquet", many)
    (tmp_path / ".a.parquet.1.tmp").write_bytes(b"torn")
    store = read(tmp_path)
    assert [store[i].task.id for i in range(40)] == [f"t/{i}" for i in range(40)]
    assert [d.task.id for d in store] == [f"t/{i}" for i in range(40)]
    assert all(same_task(store[i].task, many[i].task) for i in (39, 0, 20, 21))
    assert store.outline(30).task.id == "t/30"
    assert store.outline(30).task.images == ()
    for outside in (-1, 40):
        with pytest.raises(IndexError):
            store[outside]
    assert len(read(tmp_path / "sub", tmp_path / "b.parquet")) == 59
    small = pickle.dumps(store)
    assert len(small) < 1500
    assert same_task(pickle.loads(small)[25].task, many[25].task)  # noqa: S301 - our own bytes
    store.check()


def test_an_image_is_stored_once_a_shard_and_equal_episodes_give_equal_bytes(tmp_path):
    shared = NativeImage(noise(64, 64, dtype=np.uint16))
    one, twenty = [played(task("t", [shared]))], [played(task(f"t/{i}", [shared])) for i in range(20)]
    sizes = {}
    for name, episodes in (("one", one), ("twenty", twenty), ("again", twenty)):
        write(tmp_path / name, episodes)
        sizes[name] = (tmp_path / name).stat().st_size
    assert sizes["twenty"] < sizes["one"] + 12_000  # with each row's own image it were 150,000 more
    assert (tmp_path / "again").read_bytes() == (tmp_path / "twenty").read_bytes()
    assert np.array_equal(read(tmp_path / "twenty")[19].task.images[0].pixels, shared.pixels)


def test_a_shard_may_be_empty_and_a_folder_may_not(tmp_path):
    write(tmp_path / "0.parquet", [], notes={"why": "nothing kept"})
    assert len(read(tmp_path)) == 0
    assert read_notes(tmp_path / "0.parquet")[1] == {"why": "nothing kept"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds no trajectories"):
        read(tmp_path / "empty")
    with pytest.raises(RunError, match="cannot read"):
        read(tmp_path / "nowhere.parquet")


def test_what_would_not_read_back_is_not_written(tmp_path):
    good = played(task())
    records = (TurnRecord(Malformed("E1", "?"), "E1", 1, 0), *good.records[1:])
    for bad, words in (
        (dataclasses.replace(good, records=records), "malformed"),
        (dataclasses.replace(good, stop=Stop.MAX_TURNS), "without an answer"),
        (played(task(), records=(TurnRecord(Turn("<answer>", "x"), None, 1, 0),), texts=("",)), "does not parse"),
    ):
        with pytest.raises(ValueError, match=words):
            write(tmp_path / "0.parquet", [bad])
    with pytest.raises(RunError, match="cannot write"):
        write(tmp_path / "0.parquet", [played(dataclasses.replace(task(), question="\ud800"))])
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        write(tmp_path / "file" / "0.parquet", [good])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def rewritten(tmp_path, change, version=store.FORMAT):
    """A shard of three rows, the second of which someone has changed."""
    path = tmp_path / "0.parquet"
    write(path, [played(task(f"t/{i}", [NativeImage(noise(4, 4, seed=i))])) for i in range(3)])
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows[1])
    head = table.schema.metadata | {b"mvg_jax.trajectories": version.encode()}
    pq.write_table(pa.Table.from_pylist(rows, table.schema.with_metadata(head)), path)
    return path


def put(column, *keys):
    """A change of one value: put("turns", 0, "body", value)."""
    *inner, value = keys

    def change(row):
        at, steps = row, [column, *inner]
        for step in steps[:-1]:
            at = at[step]
        at[steps[-1]] = value

    return change


HOSTILE = [
    (put("turns", 0, "body", '{"name": "image_zoom_in_tool"}'), "turns", "E1"),
    (put("turns", 0, "body", '{"name": "no_tool", "arguments": {}}'), "Unknown tool", "E2"),
    (put("turns", 0, "body", '{"name": "image_flip_tool", "arguments": {"axis": 1, "img_idx": 0}}'), "argument", "E3"),
    (put("turns", 0, "body", "[" * 5000), "turns", "E1"),
    (put("turns", 0, "think", "</think><answer>yes</answer>"), "turns", "E1"),
    (put("turns", 0, "kind", "answer"), "turns", "answer"),
    (put("turns", 0, "kind", "system"), "turns", "system"),
    (put("turns", 2, "body", "<|im_end|>"), "turns", "E1"),
    (put("turns", 2, "body", "x" * 5000), "turns", "E1"),
    (put("turns", 0, "views", -1), "turns", "views"),
    (put("turns", []), "turns", "empty"),
    (put("tools_on", False), "turns", "no tools"),
    (put("stop", "MAX_TURNS"), "stop", "ANSWER"),
    (put("answer_type", "essay"), "answer_type", "essay"),
    (put("boxes", 0, "x1", float("nan")), "boxes", "impossible"),
    (put("boxes", 0, "image", 1), "boxes", "impossible"),
    (put("images", []), "images", "empty"),
    (put("images", 0, "high", float("-inf")), "images", "window"),
    (put("images", 0, "slope", 0.0), "images", "window"),
    (put("images", 0, "planes", 3), "images", "planes"),
    (put("images", 0, "key", "../../etc/passwd"), "images", "no image"),
    (put("pixels", 0, "png", b"\x89PNG torn"), "images", "cannot identify"),
    (put("pixels", 0, "png", store._png(noise(4, 4, seed=9))), "images", "changed"),
    (put("pixels", []), "images", "no image"),
    (put("terms", 0, "value", float("inf")), "terms", "finite"),
    (put("chain", ["{}"]), "chain", "E1"),
]


@pytest.mark.parametrize(("change", "field", "word"), HOSTILE)
def test_a_hostile_row_is_one_error_that_names_file_row_and_field(tmp_path, change, field, word):
    store = read(rewritten(tmp_path, change))
    with pytest.raises(RunError) as caught:
        store[1]
    text = str(caught.value)
    assert "0.parquet row 1: " in text
    assert field in text
    assert word in text
    assert "\n" not in text
    assert len(text) < 400
    assert store[0].task.id == "t/0"
    assert store[2].task.id == "t/2"


def test_check_finds_a_bad_row_before_anything_starts(tmp_path):
    with pytest.raises(RunError, match="row 1"):
        read(rewritten(tmp_path, put("stop", "VOID"))).check()


def test_a_call_of_a_tool_that_is_not_on_offer_is_refused(tmp_path):
    write(tmp_path / "0.parquet", [played(task())])
    with pytest.raises(RunError, match=r"row 0: E2: Unknown tool"):
        read(tmp_path, registry=default_registry(("image_flip_tool",))).check()
    read(tmp_path, registry=default_registry(("image_zoom_in_tool",))).check()  # its other call was an error then, too


def test_files_that_are_not_ours_are_refused(tmp_path):
    path = rewritten(tmp_path, put("stop", "ANSWER"), version="99")
    with pytest.raises(RunError, match="format b'99'"):
        read(path)
    table = pq.read_table(rewritten(tmp_path, put("stop", "ANSWER")))
    pq.write_table(table.drop_columns(["turns"]), path)
    with pytest.raises(RunError, match="column turns is missing"):
        read(path)
    index = table.schema.get_field_index("tokens")
    pq.write_table(table.set_column(index, "tokens", pa.array(["1"] * 3)), path)
    with pytest.raises(RunError, match="column tokens"):
        read(path)
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(RunError, match="holds no trajectories of mvg_jax"):
        read(path)
    path.write_bytes(b"PAR1 not at all PAR1")
    with pytest.raises(RunError, match="cannot read"):
        read(path)
