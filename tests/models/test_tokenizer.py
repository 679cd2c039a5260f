import dataclasses
import importlib
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import tokenizers

import mvg_jax
from mvg_jax import tools
from mvg_jax.data.phantom import questions
from mvg_jax.data.task import NativeImage, Task, Turn
from mvg_jax.env.chat import load_protocol
from mvg_jax.env.protocol import ENGINE_TAGS, TURN_TAGS, render_turn
from mvg_jax.models import hf
from mvg_jax.models.tokenizer import load_chat_template, load_tokenizer

TINY = pathlib.Path(mvg_jax.__file__).parent / "assets" / "tiny_internvl"
IMAGE = "<img>" + 16 * "<IMG_CONTEXT>" + "</img>"

TEXTS = (
    "",
    "Plain words, with punctuation; and more.",
    "  two  spaces\n\n\tand a tab \r\n",
    "ßüñ 日本語 🙂 \x00\x7f\u200b e\u0301",
    "x=3.5, y=-160; 007 1001 123456 a1b2 bbox_2d",
    "<think>It is visible.</think><answer>septated</answer><|im_end|>",
    '<tool_call>{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 40, 160, 1000], "img_idx": 0}}</tool_call>',
    f"<|im_start|>user\n{IMAGE}\nWhich lesion is calcified, left or right in the image?<|im_end|>",
    "<think <im_start|> </tool_call <img",
)


@pytest.fixture(scope="module")
def tiny():
    return load_tokenizer(TINY)


@pytest.fixture(scope="module")
def auto():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY, local_files_only=True)


@pytest.fixture(scope="module")
def protocol(tiny):
    return load_protocol(TINY, tiny, hf.read_config(TINY), tools.default_registry(None), "compact")


@pytest.fixture(scope="module")
def builder():
    """The build script as a module."""
    return importlib.import_module("make_tokenizer")


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_round_trips_and_reads_as_in_transformers(tiny, auto, text):
    ids = tiny.encode(text)
    assert tiny.decode(ids) == text
    assert ids == auto.encode(text, add_special_tokens=False)
    assert auto.decode(ids, skip_special_tokens=False) == text


def test_a_config_beside_the_tokenizer_does_not_change_it(tiny, tmp_path):
    # AutoTokenizer looks at config.json too and could put another family's splitting rule in place.
    from transformers import AutoTokenizer

    folder = shutil.copytree(TINY, tmp_path / "checkpoint")
    config = {"model_type": "internvl", "text_config": {"model_type": "qwen2"}, "vision_config": {}}
    (folder / "config.json").write_text(json.dumps(config))
    read = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for text in TEXTS:
        assert read.encode(text, add_special_tokens=False) == tiny.encode(text)
    assert read.context_image_token == "<IMG_CONTEXT>"
    assert (read.pad_token, read.eos_token) == ("<|endoftext|>", "<|im_end|>")


def test_every_number_up_to_1000_is_one_token(tiny):
    ids = [tiny.encode(str(number)) for number in range(1001)]
    assert {len(i) for i in ids} == {1}
    assert len({i[0] for i in ids}) == 1001
    comma = tiny.encode(", ")
    for a, b in [(0, 1000), (7, 70), (160, 16)]:
        assert tiny.encode(f"{a}, {b}") == [*ids[a], *comma, *ids[b]]
    assert len(comma) == 1


@pytest.mark.parametrize("text", ["1001", "007", "00", "31415926"])
def test_other_runs_of_digits_are_digits(tiny, text):
    assert tiny.encode(text) == [i for digit in text for i in tiny.encode(digit)]


def test_added_tokens_are_single_and_complete(tiny, auto):
    assert set(ENGINE_TAGS + TURN_TAGS) <= set(tiny.added)
    for token, i in tiny.added.items():
        assert tiny.encode(token) == [i]
        assert tiny.id(token) == i < tiny.size
    # Tags of a turn are what a turn says; only control tokens vanish from a clean text.
    turn = "<think>x</think><answer>y</answer>"
    assert auto.decode(tiny.encode(turn + "<|im_end|>"), skip_special_tokens=True) == turn
    with pytest.raises(KeyError, match="<nonsense>"):
        tiny.id("<nonsense>")


def test_size_covers_every_id(tiny, auto):
    assert tiny.size == len(auto) == max(auto.get_vocab().values()) + 1
    assert sorted(auto.get_vocab().values()) == list(range(tiny.size))


@pytest.mark.parametrize("kind", questions.KINDS)
def test_an_answer_is_one_token_and_reads_the_same_everywhere(tiny, kind):
    options = questions.OPTIONS[kind]
    alone = {option: tiny.encode(option) for option in options}
    assert {len(ids) for ids in alone.values()} == {1}
    listed = tiny.encode("\nOptions: " + ", ".join(options) + "<|im_end|>")
    for option, (i,) in alone.items():
        assert listed.count(i) == 1
        assert i in tiny.encode(f"<think>It is visible.</think><answer>{option}</answer>")
        assert i in tiny.encode(f"Is this {option}, or not?")


def test_an_option_inside_a_word_is_not_the_option(tiny):
    (no,) = tiny.encode("no")
    assert no in tiny.encode("yes or no")
    assert no not in tiny.encode("nothing, not now")


def test_what_decides_a_question_is_a_token_of_its_own(tiny):
    asked = [tiny.encode(questions.WORDINGS["compare"][0].format(target=target)) for target in questions.TARGETS]
    assert len({len(ids) for ids in asked}) == 1
    differing = [position for position, ids in enumerate(zip(*asked, strict=True)) if len(set(ids)) > 1]
    assert len(differing) == 1
    assert [tiny.decode([ids[differing[0]]]) for ids in asked] == list(questions.TARGETS)


LIMITS = {"prompt": 70, "zoom turn": 20, "turn with": 30, "window turn": 12, "answer turn": 8, "one view": 30,
          "two views": 48, "error": 12}  # fmt: skip


def test_rows_of_the_tiny_world_are_short(tiny, builder):
    lengths = {name: len(tiny.encode(text)) for name, text in builder.samples()}
    assert len(lengths) == len(questions.KINDS) + len(LIMITS) - 1
    for name, length in lengths.items():
        (limit,) = [limit for start, limit in LIMITS.items() if name.startswith(start)]
        assert length <= limit, f"{name}: {length} tokens"


def test_built_tokenizer_keeps_the_promises(builder):
    built = builder.build(
        texts=["<think>Look at the red box.</think>", "Is it red or blue?\nOptions: red, blue<|im_end|>"],
        slots=["red", "blue", "dark red"],
        whole=["Look at the red box."],
        plain=[line * 3 for line in builder.english()],
    )
    assert built.get_vocab_size() == builder.VOCAB_SIZE

    def tokens(text):
        return [built.decode([i], skip_special_tokens=False) for i in built.encode(text).ids]

    assert tokens("<think>Look at the red box.</think>") == ["<think>", "Look at the red box.", "</think>"]
    assert tokens("Is it red or blue?\n") == ["Is it ", "red", " or ", "blue", "?\n"]
    assert tokens("dark red, blue") == ["dark red", ", ", "blue"]
    assert "red" not in tokens("redder")


def test_chat_template_writes_the_wire_format(tiny, auto, protocol):
    task = Task(
        "0", "phantom", "count", (NativeImage(np.zeros((1, 1), np.uint8)),), "How many specks?", "2", options=("1", "2")
    )
    call = tools.ToolCall("image_zoom_in_tool", {"bbox_2d": [10, 20, 170, 180], "img_idx": 0})
    first, last = Turn("Zoom in.", call), Turn("Now it is visible.", "2")
    question = [{"type": "image"}, {"type": "text", "text": "How many specks?\nOptions: 1, 2"}]
    view = [{"type": "image"}, {"type": "text", "text": "Zoomed view."}]
    asked = [{"role": "system", "content": protocol.system_text()}, {"role": "user", "content": question}]
    acted = [
        {"role": "assistant", "content": "<think>Zoom in.</think>", "tool_calls": [dataclasses.asdict(call)]},
        {"role": "tool", "content": view},
    ]
    answered = [{"role": "assistant", "content": render_turn(last)}]

    def rendered(messages, generate):
        text = auto.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
        return re.sub("<IMG_CONTEXT>", IMAGE, text)

    text = tiny.decode(protocol.prompt_ids(task))
    assert rendered(asked, True) == text
    text += render_turn(first) + "<|im_end|>" + tiny.decode(protocol.observation_ids(1, "Zoomed view."))
    assert rendered(asked + acted, True) == text
    assert rendered(asked + acted + answered, False) == text + render_turn(last) + "<|im_end|>"


def test_chat_template_lists_tools(auto):
    schemas = tools.default_registry(("image_flip_tool",)).schemas()
    messages = [{"role": "system", "content": "Look."}, {"role": "user", "content": "Well?"}]
    text = auto.apply_chat_template(messages, tools=schemas, tokenize=False)
    assert f"Look.\n<tools>\n{json.dumps(schemas[0])}\n</tools><|im_end|>\n" in text


def test_chat_template_is_found_in_either_place(tmp_path):
    written = load_chat_template(TINY)
    assert "<tool_response>" in written
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": written}))
    assert load_chat_template(tmp_path) == written
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json has no chat_template"):
        load_chat_template(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"chat_template\.jinja"):
        load_chat_template(tmp_path / "nowhere")


def test_truncation_and_padding_in_the_file_are_ignored(tiny, tmp_path):
    cut = tokenizers.Tokenizer.from_file(str(TINY / "tokenizer.json"))
    cut.enable_truncation(4)
    cut.enable_padding(length=64, pad_id=0)
    cut.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode(TEXTS[1]) == tiny.encode(TEXTS[1])
    assert len(tiny.encode(TEXTS[1])) > 4


def test_a_folder_without_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(tmp_path))}.*tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_older_files_are_read_by_transformers(tiny, tmp_path):
    model = json.loads((TINY / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("".join(f"{left} {right}\n" for left, right in model["merges"]))
    with pytest.raises(FileNotFoundError, match=r"tokenizer_config\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    read = load_tokenizer(tmp_path)
    assert read.decode(read.encode("the lesion")) == "the lesion"
    assert read.encode("lesion") == tiny.encode("lesion")


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text((TINY / "tokenizer.json").read_text()[:1000])
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "tokenizer.json"))):
        load_tokenizer(tmp_path)
