"""Builds the tokenizer of the tiny model: `python scripts/make_tokenizer.py --out=mvg_jax/assets/tiny_internvl`.

A row of the tiny world costs real seconds on two cores, so its text has to be short in tokens. The usual byte-level BPE
is kept, but its pre-tokenizer knows the world's fixed phrases:

    text ── added tokens (<think>, <|im_end|>, …)
         ── phrases: the longest pieces of template text between slots; each is one token
         ── slots:   answer, option and label words; one token each, without the space before them, so that a word reads
                     the same in the question, in the options and in <answer>
         ── numbers: each run of digits 0..1000 is one token
         ── words:   everything else, by BPE merges down to bytes

A phrase never contains a slot word or a number, so what decides a question stays a token of its own. The build is
deterministic: the same source text gives the same files, byte for byte.
"""

import collections
import json
import pathlib
import re

from absl import app, flags
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import tiny_world_text

OUT = flags.DEFINE_string("out", None, "Folder for tokenizer.json and tokenizer_config.json.", required=True)

VOCAB_SIZE = 1792
LARGEST_NUMBER = 1000

# Control tokens: never part of what a turn says, dropped by skip_special_tokens.
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
# Tags of the wire format: single tokens that stay in decoded text (as Qwen does for <tool_call>).
TAGS = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<answer>", "</answer>",
    "<tool_response>", "</tool_response>", "<tools>", "</tools>",
)  # fmt: skip

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


def mine_phrases(texts: list[str], slots: list[str]) -> list[str]:
    """The pieces of template text between added tokens, slot words, numbers and line ends; at least two characters."""
    cut = "|".join(
        [*(re.escape(token) for token in SPECIAL + TAGS), rf"(?<![A-Za-z])(?:{_alternatives(slots)})", NUMBER]
    )
    pieces = set()
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
    for text in sorted({part for text in texts for part in added.split(text)}):
        words.update(piece for piece, _ in split.pre_tokenize_str(text) if not piece.isdigit() and piece not in slots)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=len(alphabet) + size, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([word for word in sorted(words) for _ in range(words[word])], trainer)
    return [tuple(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]]


def build(texts: list[str], slots: list[str], english: list[str]) -> Tokenizer:
    """The tokenizer for template `texts` with `slots`; `english` trains the merges of ordinary words.

    Ids: 256 bytes, numbers 10..1000 in order (0..9 are bytes), phrases, slots, word pieces, then the added tokens, which
    end at VOCAB_SIZE. Raises ValueError if the phrases leave no room for words.
    """
    phrases = mine_phrases(texts, slots)
    numbers = [str(number) for number in range(10, LARGEST_NUMBER + 1)]
    fixed = dict.fromkeys(sorted(pre_tokenizers.ByteLevel.alphabet()) + numbers)
    fixed.update(dict.fromkeys(_byte_level(text) for text in [*phrases, *sorted(set(slots))]))
    room = VOCAB_SIZE - len(SPECIAL) - len(TAGS) - len(fixed)
    if room < 128:
        raise ValueError(f"{len(phrases)} phrases and {len(set(slots))} slots leave {room} of {VOCAB_SIZE} ids for words")
    # A trained piece may already be a phrase or slot: train with room to spare, keep the first merges that fill the ids.
    merges = train_words(texts + english, slots, 2 * room)
    vocab, kept = dict(fixed), []
    for left, right in merges:
        if len(vocab) == len(fixed) + room:
            break
        vocab[left + right] = None
        kept.append((left, right))
    ids = {token: index for index, token in enumerate(vocab)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=kept, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(split_pattern(phrases, slots)), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
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


def main(_):
    english = (pathlib.Path(__file__).parent / "tokenizer_english.txt").read_text().splitlines()
    tokenizer = build(tiny_world_text.template_texts(), tiny_world_text.slot_words(), english)
    save(tokenizer, pathlib.Path(OUT.value))
    print(f"vocabulary {tokenizer.get_vocab_size()}")
    for name, text in tiny_world_text.samples():
        encoding = tokenizer.encode(text, add_special_tokens=False)
        tokens = [tokenizer.decode([token], skip_special_tokens=False) for token in encoding.ids]
        shown = [token for token in tokens if token != "<IMG_CONTEXT>"]
        print(f"{len(tokens):4d} {name}: {'|'.join(shown)!r}")


if __name__ == "__main__":
    app.run(main)
