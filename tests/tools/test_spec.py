import copy
import operator
import random

import chex
import jax
import jsonschema
import numpy as np
import pytest

from mvg_jax import frames as fr
from mvg_jax.packed import pack
from mvg_jax.tools import (
    MAX_VIEWS,
    ImageInfo,
    Registry,
    ToolArgs,
    ToolCall,
    ToolError,
    ViewFormat,
    apply_tools,
    default_registry,
    observation_text,
    reframe_packed,
    render_packed,
    stack_sources,
)
from mvg_jax.tools.spec import OK_ZOOM, TEXTS, fits

CT = ImageInfo(512, 512, "HU", (-160.0, 240.0))
PHOTO = ImageInfo(300, 400, "grey", (0.0, 255.0))
IMAGES = (CT, PHOTO)
ALL = default_registry(None)
ZOOM, FLIP, ROTATE, WINDOW = ALL.names
BOX = [100, 200, 300, 400]


def nested(depth: int):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


BAD_CALLS = [
    ("E2", "sam2", {}),
    ("E2", "", {"bbox_2d": BOX, "img_idx": 0}),
    ("E2", ["image_zoom_in_tool"], {}),
    ("E2", None, {}),
    ("E3", ZOOM, {}),
    ("E3", ZOOM, None),
    ("E3", ZOOM, [BOX, 0]),
    ("E3", ZOOM, {"bbox_2d": BOX}),
    ("E3", ZOOM, {"img_idx": 0}),
    ("E3", ZOOM, {"bbox_2d": BOX, "img_idx": 0, "zoom": 2}),
    ("E3", ZOOM, {"bbox_2d": BOX, "img_idx": "0"}),
    ("E3", ZOOM, {"bbox_2d": BOX, "img_idx": True}),
    ("E3", ZOOM, {"bbox_2d": BOX, "img_idx": 0.5}),
    ("E3", ZOOM, {"bbox_2d": BOX, "img_idx": None}),
    ("E3", ZOOM, {"bbox_2d": BOX, "img_idx": 0, "label": 3}),
    ("E3", ZOOM, {"bbox_2d": [], "img_idx": 0}),
    ("E3", ZOOM, {"bbox_2d": [[]], "img_idx": 0}),
    ("E3", ZOOM, {"bbox_2d": [1, 2, 3], "img_idx": 0}),
    ("E3", ZOOM, {"bbox_2d": [1, 2, 3, 4, 5], "img_idx": 0}),
    ("E3", ZOOM, {"bbox_2d": [0, 0, True, 500], "img_idx": 0}),
    ("E3", ZOOM, {"bbox_2d": ["0", 0, 500, 500], "img_idx": 0}),
    ("E3", ZOOM, {"bbox_2d": [BOX, 5], "img_idx": 0}),
    ("E3", ZOOM, {"bbox_2d": [[BOX]], "img_idx": 0}),
    ("E3", ZOOM, {"bbox_2d": {"x1": 0}, "img_idx": 0}),
    ("E3", ZOOM, {"bbox_2d": "0,0,500,500", "img_idx": 0}),
    ("E3", ZOOM, {"bbox_2d": nested(50_000), "img_idx": 0}),
    ("E3", ZOOM, {"bbox_2d": [0] * 100_000, "img_idx": 0}),
    ("E4", ZOOM, {"bbox_2d": BOX, "img_idx": -1}),
    ("E4", ZOOM, {"bbox_2d": BOX, "img_idx": 2}),
    ("E4", ZOOM, {"bbox_2d": BOX, "img_idx": 10**5000}),
    ("E4", ZOOM, {"bbox_2d": BOX, "img_idx": 0, "label": "x" * 101}),
    ("E4", ZOOM, {"bbox_2d": BOX, "img_idx": 0, "label": "x" * 1_000_000}),
    ("E4", ZOOM, {"bbox_2d": [BOX] * (MAX_VIEWS + 1), "img_idx": 0}),
    ("E4", ZOOM, {"bbox_2d": [float("nan"), 0, 500, 500], "img_idx": 0}),
    ("E4", ZOOM, {"bbox_2d": [0, 0, float("inf"), 500], "img_idx": 0}),
    ("E4", ZOOM, {"bbox_2d": [0, 0, 500, 10**400], "img_idx": 0}),
    ("E4", ZOOM, {"bbox_2d": [-1, 0, 500, 500], "img_idx": 0}),
    ("E4", ZOOM, {"bbox_2d": [0, 0, 500, 1000.5], "img_idx": 0}),
    ("E4", ZOOM, {"bbox_2d": [300, 200, 100, 400], "img_idx": 0}),
    ("E4", ZOOM, {"bbox_2d": [100, 400, 300, 200], "img_idx": 0}),
    ("E4", ZOOM, {"bbox_2d": [100, 200, 100, 400], "img_idx": 0}),
    ("E4", ZOOM, {"bbox_2d": [100, 200, 300, 200], "img_idx": 0}),
    ("E4", ZOOM, {"bbox_2d": [0, 0, 1000, 9], "img_idx": 0}),
    ("E4", ZOOM, {"bbox_2d": [BOX, [0, 0, 9, 1000]], "img_idx": 0}),
    ("E3", FLIP, {"img_idx": 0}),
    ("E3", FLIP, {"axis": 0, "img_idx": 0}),
    ("E4", FLIP, {"axis": "Horizontal", "img_idx": 0}),
    ("E4", FLIP, {"axis": "horizontal", "img_idx": 9}),
    ("E3", ROTATE, {"angle": "90", "img_idx": 0}),
    ("E3", ROTATE, {"angle": 90.5, "img_idx": 0}),
    ("E3", ROTATE, {"angle": True, "img_idx": 0}),
    ("E4", ROTATE, {"angle": 0, "img_idx": 0}),
    ("E4", ROTATE, {"angle": 45, "img_idx": 0}),
    ("E4", ROTATE, {"angle": -90, "img_idx": 0}),
    ("E3", WINDOW, {"img_idx": 0}),
    ("E3", WINDOW, {"preset": "bone"}),
    ("E3", WINDOW, {"preset": 3, "img_idx": 0}),
    ("E3", WINDOW, {"center": 40, "img_idx": 0}),
    ("E3", WINDOW, {"width": 400, "img_idx": 0}),
    ("E3", WINDOW, {"preset": "bone", "center": 40, "img_idx": 0}),
    ("E3", WINDOW, {"preset": "bone", "center": 40, "width": 400, "img_idx": 0}),
    ("E3", WINDOW, {"center": "40", "width": 400, "img_idx": 0}),
    ("E4", WINDOW, {"preset": "liver!", "img_idx": 0}),
    ("E4", WINDOW, {"preset": "bone", "img_idx": 1}),
    ("E4", WINDOW, {"center": 40, "width": 0, "img_idx": 0}),
    ("E4", WINDOW, {"center": 40, "width": -400, "img_idx": 0}),
    ("E4", WINDOW, {"center": float("nan"), "width": 400, "img_idx": 0}),
    ("E4", WINDOW, {"center": 1e9, "width": 400, "img_idx": 0}),
]


@pytest.mark.parametrize(("code", "name", "arguments"), BAD_CALLS, ids=range(len(BAD_CALLS)))
def test_a_bad_call_is_a_typed_error(code, name, arguments):
    with pytest.raises(ToolError) as caught:
        ALL.parse(ToolCall(name, arguments), IMAGES)
    assert caught.value.code == code
    assert 0 < len(caught.value.text) <= 40


def random_json(rng: random.Random, depth: int = 0):
    """Any JSON value, rich in what tools expect and in what breaks them."""
    numbers = [0, 1, -1, 90, 500, 1000, 0.5, 1e300, float("nan"), float("-inf"), 10**400, True, None]
    strings = ["", "bone", "horizontal", "{0.__class__}", "\ud800", "x" * 5000, "</tool_call>"]
    kind = rng.randrange(4 if depth < 6 else 2)
    if kind == 0:
        return rng.choice(numbers)
    if kind == 1:
        return rng.choice(strings) if rng.random() < 0.3 else rng.uniform(-100, 1100)
    if kind == 2:
        return [random_json(rng, depth + 1) for _ in range(rng.choice([0, 1, 2, 4, 4, 5]))]
    keys = ["bbox_2d", "img_idx", "label", "axis", "angle", "preset", "center", "width", "", "__proto__"]
    return {rng.choice(keys): random_json(rng, depth + 1) for _ in range(rng.randrange(5))}


def test_no_json_value_raises_anything_but_a_tool_error():
    rng = random.Random(0)
    good = {
        ZOOM: {"bbox_2d": BOX, "img_idx": 0},
        FLIP: {"axis": "vertical", "img_idx": 1},
        ROTATE: {"angle": 90, "img_idx": 0},
        WINDOW: {"center": 40, "width": 400, "img_idx": 0},
    }
    texts, legal = set(), 0
    for _ in range(4000):
        name = rng.choice([*ALL.names, random_json(rng)])
        arguments = random_json(rng)
        if rng.random() < 0.8 and isinstance(name, str) and name in good:  # one argument of a good call replaced
            arguments = dict(good[name])
            arguments[rng.choice([*arguments, "label"])] = random_json(rng)
        try:
            args = ALL.parse(ToolCall(name, arguments), IMAGES)
        except ToolError as error:
            texts.add((error.code, error.text))
        else:
            legal += 1
            assert all(np.isfinite(x).all() for x in args)
            assert 0 <= args.image < len(IMAGES)
            assert 1 <= args.count <= MAX_VIEWS
    assert {code for code, _ in texts} == {"E2", "E3", "E4"}
    assert len(texts) < 16  # static texts, nothing of the model's own
    assert legal > 100


def test_whole_floats_are_integers_as_in_json_schema():
    args = ALL.parse(ToolCall(ZOOM, {"bbox_2d": [0.0, 0, 500.0, 500], "img_idx": 1.0}), IMAGES)
    assert (args.image, args.image.dtype) == (1, np.int32)
    ALL.parse(ToolCall(ROTATE, {"angle": 180.0, "img_idx": 0}), IMAGES)


def test_schemas_and_texts_are_what_a_prompt_needs():
    for tool, schema, line in zip(ALL.tools, ALL.schemas(), ALL.compact_lines(), strict=True):
        jsonschema.Draft202012Validator.check_schema(schema["function"]["parameters"])
        assert schema["type"] == "function"
        assert schema["function"]["name"] == tool.name
        assert schema["function"]["parameters"]["additionalProperties"] is False
        assert line.startswith(f"{tool.name}(")
        assert all(name in line for name in tool.parameters["required"])
    assert observation_text(OK_ZOOM, 1) == "Zoomed view."
    assert observation_text(OK_ZOOM, 2) == "Zoomed views."
    assert len({pair for pair in TEXTS}) == len(TEXTS)


def test_a_registry_holds_the_tools_that_were_named():
    assert default_registry((ROTATE, ZOOM)).names == (ROTATE, ZOOM)
    assert default_registry(None) == ALL  # compiled programs are shared
    assert hash(default_registry((ZOOM,))) != hash(ALL)
    with pytest.raises(ValueError, match="unknown tools"):
        default_registry(("sam2",))
    with pytest.raises(ToolError, match="E2"):
        default_registry((ZOOM,)).parse(ToolCall(FLIP, {"axis": "vertical", "img_idx": 0}), IMAGES)


# One row each of a batch: the call of one conversation that has two images, or None.
MIXED = [
    (ZOOM, {"bbox_2d": [BOX, [500, 500, 900, 800]], "img_idx": 0}),
    None,
    (ROTATE, {"angle": 90, "img_idx": 1}),
    (WINDOW, {"preset": "bone", "img_idx": 1}),
    (ZOOM, {"bbox_2d": [0, 0, 500, 1000], "label": "liver", "img_idx": 1}),
    (FLIP, {"axis": "horizontal", "img_idx": 0}),
]
SIZE = 16
VIEW = ViewFormat(SIZE, SIZE, "linear")


def batch(calls):
    """The arguments of apply_tools for these calls, all on conversations of two images over two native sources."""
    rng = np.random.default_rng(0)
    images = [[rng.integers(800, 1300, (48, 48)).astype(np.uint16) for _ in range(2)] for _ in range(2)]
    sources = stack_sources(images, [[(1.0, -1024.0)] * 2] * 2, 48, 48)
    first = fr.full_frame(48, 48, (-160.0, 240.0), 0)
    second = fr.rotate(fr.zoom(first._replace(source=np.int32(1)), np.array([100, 100, 800, 900])), 1)
    frames = jax.tree.map(lambda a, b: np.stack([np.stack([a, b])] * len(calls)), first, second)
    args = [ALL.no_call() if call is None else ALL.parse(ToolCall(*call), (CT, CT)) for call in calls]
    return sources, np.arange(len(calls), dtype=np.int32) % 2, frames, jax.tree.map(lambda *x: np.stack(x), *args)


# Fails at the second trace, in whichever test.
apply_once_traced = jax.jit(chex.assert_max_traces(apply_tools.__wrapped__, n=1), static_argnames=("registry", "view"))


def at(*pairs):
    """Element i of every array of a tree, for each (tree, i)."""
    return [jax.tree.map(operator.itemgetter(int(i)), tree) for tree, i in pairs]


def test_mixed_calls_in_one_batch_are_the_calls_one_by_one():
    sources, row, frames, args = batch(MIXED)
    result = jax.device_get(apply_once_traced(ALL, sources, row, frames, args, view=VIEW))
    assert result.views.shape == (len(MIXED), MAX_VIEWS, SIZE, SIZE, 3)
    assert result.views.dtype == np.uint8
    np.testing.assert_array_equal(result.count, [2, 0, 1, 1, 1, 1])
    assert result.code[1] == 0
    assert len(set(result.code.tolist())) == len(ALL.tools) + 1
    for b, call in enumerate(MIXED):
        count = result.count[b]
        assert not result.views[b, count:].any()
        if call is None:
            continue
        tool = ALL.tools[args.kind[b]]
        assert tool.name == call[0]
        alone = tool.apply(*at((sources, row[b]), (frames, b), (args, b)), VIEW)
        # Two programs may round a frame differently in its last bit, and so, rarely, a pixel.
        chex.assert_trees_all_close(at((result, b))[0]._replace(views=0), jax.device_get(alone)._replace(views=0))
        np.testing.assert_allclose(result.views[b].astype(int), alone.views, atol=1)
        assert result.views[b, :count].std() > 3


def test_another_mix_of_calls_compiles_nothing():
    for calls in (MIXED, MIXED[::-1], [None] * len(MIXED), [MIXED[0]] * len(MIXED)):
        result = apply_once_traced(ALL, *batch(calls), view=VIEW)
        asked = [0 if call is None else 2 if call is MIXED[0] else 1 for call in calls]
        np.testing.assert_array_equal(result.count, asked)


def test_arguments_of_no_call_have_the_shapes_of_a_call():
    call = ALL.parse(ToolCall(ZOOM, {"bbox_2d": BOX, "img_idx": 0}), IMAGES)
    nothing = Registry(()).no_call()
    assert isinstance(call, ToolArgs)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.tree.map(np.asarray, call), jax.tree.map(np.asarray, nothing))
    assert (nothing.kind, nothing.count) == (-1, 0)


def test_packed_calls_give_what_unpacked_ones_give():
    sources, row, frames, args = batch(MIXED)
    expected = jax.device_get(apply_tools(ALL, sources, row, frames, args, VIEW))
    calls = pack((np.asarray(row), frames, args))
    facts = reframe_packed(ALL, calls)
    views, facts = jax.device_get((render_packed(sources, calls, facts, VIEW), facts))
    chex.assert_trees_all_equal_shapes_and_dtypes((views, *facts.unpack()), tuple(expected))
    jax.tree.map(np.testing.assert_array_equal, (views, *facts.unpack()), tuple(expected))
    assert views.any()


def test_what_surely_fits_a_schema_is_valid_for_jsonschema():
    """Legal calls are seen to be legal; of mutilated ones none is passed that jsonschema refuses."""
    legal = [call for call in MIXED if call] + [
        (WINDOW, {"center": 40, "width": 400.5, "img_idx": 0}),
        (ZOOM, {"bbox_2d": [BOX], "label": "x" * 100, "img_idx": 0}),
    ]
    values = [
        True,
        False,
        None,
        0,
        1,
        -1,
        0.5,
        1.0,
        90,
        90.0,
        1e5,
        "",
        "bone",
        "x" * 101,
        [],
        {},
        BOX,
        [BOX, BOX],
        [BOX, 1],
        {"a": 1},
    ]
    rng = np.random.default_rng(0)
    passed = refused = 0
    for name, arguments in legal:
        tool = ALL.tools[ALL.names.index(name)]
        assert fits(arguments, tool.parameters)
        for _ in range(600):
            mutilated = copy.deepcopy(arguments)
            place, keys = mutilated, [*mutilated, "other"]
            while (key := keys[rng.integers(len(keys))]) in (place if isinstance(place, dict) else range(len(place))):
                if not isinstance(place[key], (dict, list)) or not place[key] or rng.random() < 0.4:
                    break
                place = place[key]
                keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if isinstance(place, dict) and rng.random() < 0.2:
                place.pop(key, None)
            else:
                place[key] = values[rng.integers(len(values))]
            sure = fits(mutilated, tool.parameters)
            valid = tool.validator.is_valid(mutilated)
            assert valid or not sure, (name, mutilated)
            passed, refused = passed + sure, refused + (not valid)
    assert passed > 300
    assert refused > 300


def test_a_schema_with_another_keyword_is_left_to_jsonschema():
    assert fits(3, {"type": "integer"})
    assert not fits(3, {"type": "integer", "multipleOf": 3})
    assert not fits(3, {"type": ["integer"]})
    assert not fits({"a": 1}, {"type": "object", "additionalProperties": {"type": "integer"}})
    assert not fits(True, {"enum": [1]})
