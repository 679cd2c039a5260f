"""Builds the tokenizer of the tiny model.

    PYTHONPATH=. python scripts/make_tokenizer.py --out=mvg_jax/assets/tiny_internvl

A row of the tiny world costs real seconds on two cores, so its text has to be short in tokens. The usual byte-level BPE
is kept, but its pre-tokenizer knows the world's fixed phrases:

    text ── added tokens (<think>, <|im_end|>, …)
         ── phrases: the longest pieces of template text between slots; each is one token
         ── slots:   answer, option and label words; one token each, without the space before them, so that a word reads
                     the same in the question, in the options and in <answer>
         ── numbers: each run of digits 0..1000 is one token
         ── words:   everything else, by BPE merges down to bytes

A phrase of a prompt or a call never contains a slot word or a number, so what decides a question or an action stays a
token of its own. The text comes from the modules that speak it; the build is deterministic, byte for byte. A tokenizer
that a checkpoint was trained with is kept as it is: later wordings still tokenise, only longer.
"""

import ast
import collections
import inspect
import json
import pathlib
import re
from collections.abc import Iterator

import numpy as np
from absl import app, flags
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mvg_jax import tools
from mvg_jax.data.phantom import questions
from mvg_jax.data.phantom.expert import BONE, SEEN_NOW, THINKS, ZOOM, ZOOM_TWO
from mvg_jax.data.task import NativeImage, Task, Turn
from mvg_jax.env import protocol
from mvg_jax.env.protocol import Protocol, Vocabulary, render_turn
from mvg_jax.tools import ToolCall, geometry, intensity, spec

OUT = flags.DEFINE_string("out", None, "Folder for tokenizer.json and tokenizer_config.json.", required=True)

VOCAB_SIZE = 1664
LARGEST_NUMBER = 1000

# Control tokens: never part of what a turn says, dropped by skip_special_tokens.
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
# Tags of the wire format: single tokens that stay in decoded text (as Qwen does for <tool_call>).
TAGS = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<answer>", "</answer>",
    "<tool_response>", "</tool_response>", "<tools>", "</tools>",
)  # fmt: skip

# ---------------------------------------------------------------------------------------------------------------------
# The text of the tiny world
# ---------------------------------------------------------------------------------------------------------------------

TOKENS_PER_IMAGE = 16
CALLS = (
    ToolCall("image_zoom_in_tool", {"bbox_2d": [120, 440, 280, 600], "img_idx": 0}),
    ToolCall("image_zoom_in_tool", {"bbox_2d": [[120, 440, 280, 600], [520, 140, 680, 300]], "img_idx": 0}),
    ToolCall("window_level_tool", {"preset": "bone", "img_idx": 0}),
    ToolCall("image_zoom_in_tool", {"bbox_2d": [120, 440, 280, 600], "label": "lesion", "img_idx": 0}),
    ToolCall("window_level_tool", {"center": 400, "width": 1800, "img_idx": 0}),
    ToolCall("image_flip_tool", {"axis": "horizontal", "img_idx": 0}),
    ToolCall("image_rotate_tool", {"angle": 90, "img_idx": 0}),
)


def character_protocol(style: str) -> Protocol:
    """The wire format with one id a character, which turns ids back into the text a tokenizer will have to read."""
    added = {token: 0x110000 + i for i, token in enumerate(SPECIAL + TAGS)}
    names = {i: token for token, i in added.items()}
    units = re.compile("|".join(map(re.escape, added)) + "|.", re.DOTALL)
    vocabulary = Vocabulary(
        encode=lambda text: [added[unit] if unit in added else ord(unit) for unit in units.findall(text)],
        decode=lambda ids: "".join(names[i] if i in names else chr(i) for i in ids),
        special=added,
        pad=added["<|endoftext|>"],
        end_of_turn=added["<|im_end|>"],
        image=added["<IMG_CONTEXT>"],
        image_start=added["<img>"],
        image_end=added["</img>"],
    )
    return Protocol(vocabulary, tools.default_registry(None), style, TOKENS_PER_IMAGE)


def prompts(style: str, kind: str) -> list[str]:
    """Every question of this kind with its options, with tools and without."""
    speak = character_protocol(style)
    image, options = NativeImage(np.zeros((1, 1), np.uint8)), questions.OPTIONS[kind]
    asked = dict.fromkeys(
        text.format(target=target) for text in questions.WORDINGS[kind] for target in questions.TARGETS
    )
    tasks = [Task("0", "phantom", kind, (image,), question, options[0], options) for question in asked]
    ids = [speak.prompt_ids(task, tools_on) for task in tasks for tools_on in (True, False)]
    return [speak.vocabulary.decode(prompt) for prompt in ids]


def observations() -> list[str]:
    """What follows a call: every text of a tool that worked, every error."""
    speak = character_protocol("compact")
    shown = [(count, spec.observation_text(code, count)) for code in range(1, len(spec.TEXTS)) for count in (1, 2)]
    shown += [(0, text) for text in error_texts()]
    return [speak.vocabulary.decode(speak.observation_ids(count, text)) for count, text in shown]


def error_texts() -> list[str]:
    """Observation texts of all errors: those of the parser, and the literals with which the tools raise ToolError."""
    texts = [protocol.FORMAT_TEXT, protocol.JSON_TEXT, protocol.LENGTH_TEXT]
    texts = [protocol.error_text("E1", text) for text in texts]
    for module in (spec, geometry, intensity):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "ToolError":
                texts.append(protocol.error_text(*(ast.literal_eval(argument) for argument in node.args)))
    return texts


def slot_words() -> list[str]:
    """Options of questions and legal words of tool arguments."""
    words = {option for options in questions.OPTIONS.values() for option in options}
    for tool in tools.default_registry(None).tools:
        for parameter in tool.parameters["properties"].values():
            words.update(value for value in parameter.get("enum", ()) if isinstance(value, str))
    return sorted(word for word in words if not word.isdigit())


def english() -> list[str]:
    return (pathlib.Path(__file__).parent / "tokenizer_english.txt").read_text(encoding="utf-8").splitlines()


def samples() -> Iterator[tuple[str, str]]:
    """Texts whose lengths matter, each as it is tokenised: apart from its neighbours."""
    turns = (
        ("zoom turn", Turn(ZOOM, CALLS[0])),
        ("turn with two zooms", Turn(ZOOM_TWO, CALLS[1])),
        ("window turn", Turn(BONE, CALLS[2])),
        ("answer turn", Turn(SEEN_NOW, "rim-enhancing")),
    )
    for kind in questions.KINDS:
        yield f"prompt ({kind})", max(prompts("compact", kind), key=len)
    for name, turn in turns:
        yield name, render_turn(turn) + "<|im_end|>"
    one_view, two_views, *_, error = observations()
    yield from (("one view", one_view), ("two views", two_views), ("error", error))


# ---------------------------------------------------------------------------------------------------------------------
# The tokenizer
# ---------------------------------------------------------------------------------------------------------------------

# The layout of InternVL3's own template, plus tools (schemas in <tools>) and tool turns (shown as user turns).
CHAT_TEMPLATE = """\
{%- macro body(content, after_image) -%}
    {%- if content is string -%}{{ content }}
    {%- else -%}
        {%- for part in content -%}
            {%- if part['type'] == 'image' -%}{{ '<IMG_CONTEXT>' + after_image }}
            {%- elif part['type'] == 'text' -%}{{ part['text'] }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
    {{- '<|im_start|>' + ('user' if message['role'] == 'tool' else message['role']) + '\\n' -}}
    {%- if message['role'] == 'tool' -%}
        {{- '<tool_response>' + body(message['content'], '') + '</tool_response>' -}}
    {%- else -%}
        {{- body(message['content'], '\\n') -}}
    {%- endif -%}
    {%- if message['role'] == 'system' and tools -%}
        {{- '\\n<tools>' -}}
        {%- for tool in tools -%}{{ '\\n' + (tool | tojson) }}{%- endfor -%}
        {{- '\\n</tools>' -}}
    {%- endif -%}
    {%- if message['tool_calls'] -%}
        {%- for call in message['tool_calls'] -%}
            {%- set function = call['function'] if call['function'] else call -%}
            {{- '<tool_call>{"name": "' + function['name'] + '", "arguments": ' -}}
            {{- (function['arguments'] | tojson) + '}</tool_call>' -}}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>' + ('' if loop.last and not add_generation_prompt else '\\n') -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

NUMBER = r"(?<![0-9A-Za-z_])[0-9]+(?![0-9A-Za-z_])"  # a number of a template; `bbox_2d` is a name
WORD = r" ?\p{L}+| ?[^\s\p{L}0-9]+|\s+"


def _alternatives(texts: list[str]) -> str:
    """One regex alternative a text, longest first; a text that ends in a word character must not end inside a word."""
    ordered = sorted(set(texts), key=lambda text: (-len(text), text))
    return "|".join(re.escape(text) + (r"(?![0-9A-Za-z_])" if re.match(r"\w", text[-1]) else "") for text in ordered)


def mine_phrases(texts: list[str], slots: list[str], whole: list[str]) -> list[str]:
    """The pieces of template text between added tokens, slot words, numbers and line ends; at least two characters.

    The texts of `whole` are phrases as they stand.
    """
    tokens = [re.escape(token) for token in SPECIAL + TAGS]
    cut = "|".join([*tokens, *map(re.escape, whole), rf"(?<![A-Za-z])(?:{_alternatives(slots)})", NUMBER])
    pieces = set(whole)
    for text in texts:
        for piece in re.split(cut, text):
            pieces.update(line for line in piece.splitlines(keepends=True) if len(line) > 1)
    return sorted(pieces)


def split_pattern(phrases: list[str], slots: list[str]) -> str:
    """The pre-tokenizer's regex: every character of any text falls under exactly one alternative."""
    slot = _alternatives(slots)
    return "|".join([*filter(None, [_alternatives(phrases)]), slot, "[0-9]+", rf" (?=(?:{slot}))", WORD])


def _byte_level(text: str) -> str:
    """`text` in the printable alphabet in which byte-level BPE keeps its vocabulary."""
    return "".join(piece for piece, _ in pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(text))


def train_words(texts: list[str], slots: list[str], size: int) -> list[tuple[str, str]]:
    """The merges of an ordinary BPE on the words of `texts` other than slots, most frequent first.

    Each distinct text counts once, so that what a template repeats does not push ordinary words out.
    """
    added = re.compile("|".join(re.escape(token) for token in SPECIAL + TAGS))
    split = pre_tokenizers.Split(Regex(split_pattern([], slots)), "isolated")
    words = collections.Counter()
    for part in sorted({part for text in texts for part in added.split(text)}):
        words.update(piece for piece, _ in split.pre_tokenize_str(part) if not piece.isdigit() and piece not in slots)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=len(alphabet) + size, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([word for word in sorted(words) for _ in range(words[word])], trainer)
    return [tuple(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]]


def build(texts: list[str], slots: list[str], whole: list[str], plain: list[str]) -> Tokenizer:
    """The tokenizer for template `texts` with `slots` and sentences `whole`; `plain` trains the merges of other words.

    Ids: 256 bytes, numbers 10..1000 in order (0..9 are bytes), phrases, slots, word pieces, then the added tokens,
    which end at VOCAB_SIZE. Raises ValueError if the phrases leave no room for words, or the words do not fill it.
    """
    phrases = mine_phrases(texts, slots, whole)
    numbers = [str(number) for number in range(10, LARGEST_NUMBER + 1)]
    fixed = dict.fromkeys(sorted(pre_tokenizers.ByteLevel.alphabet()) + numbers)
    fixed.update(dict.fromkeys(_byte_level(text) for text in [*phrases, *sorted(set(slots))]))
    room = VOCAB_SIZE - len(SPECIAL) - len(TAGS) - len(fixed)
    if room < 128:
        raise ValueError(f"{len(phrases)} phrases and {len(slots)} slots leave {room} of {VOCAB_SIZE} ids for words")
    # A trained piece may already be a phrase or slot: train with room to spare, keep the first that fill the ids.
    merges = train_words(texts + plain, slots, 2 * room)
    vocab, kept = dict(fixed), []
    for left, right in merges:
        if len(vocab) == len(fixed) + room:
            break
        vocab[left + right] = None
        kept.append((left, right))
    if len(vocab) < len(fixed) + room:
        raise ValueError(f"the text yields only {len(vocab) - len(fixed)} of {room} word pieces")
    ids = {token: index for index, token in enumerate(vocab)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=kept, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split_pattern(phrases, slots)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in TAGS])
    return tokenizer


def save(tokenizer: Tokenizer, directory: pathlib.Path) -> None:
    """tokenizer.json, tokenizer_config.json and the chat template, as transformers reads them."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        chat_template=CHAT_TEMPLATE,
    )
    wrapped.save_pretrained(directory)


def build_tiny() -> Tokenizer:
    """The tokenizer of the tiny world, from the modules as they are."""
    turns = [render_turn(Turn(THINKS[0], call)) for call in CALLS]
    turns += [render_turn(Turn(think, "yes")) for think in THINKS]
    return build(
        texts=[text for kind in questions.KINDS for text in prompts("compact", kind)] + turns + observations(),
        slots=slot_words(),
        whole=[*THINKS, *error_texts()],
        plain=english() + prompts("full", "attribute")[:1],
    )


def main(_):
    tokenizer = build_tiny()
    save(tokenizer, pathlib.Path(OUT.value))
    print(f"vocabulary {tokenizer.get_vocab_size()}")
    for name, text in samples():
        encoding = tokenizer.encode(text, add_special_tokens=False)
        tokens = [tokenizer.decode([token], skip_special_tokens=False) for token in encoding.ids]
        shown = [token for token in tokens if token != "<IMG_CONTEXT>"]
        print(f"{len(tokens):4d} {name}: {'|'.join(shown)!r}")


if __name__ == "__main__":
    app.run(main)
