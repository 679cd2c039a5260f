"""The tokenizer as the rest of the code sees it: text to ids and back, and the added tokens by name."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from mvg_jax.models.config import ModelConfig, QwenVLConfig


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """encode: text -> ids, nothing added, the strings in `added` as their single ids. decode: ids -> text, tags kept.

    added: every added token (control tokens and the tags of the wire format) with its id.
    size: V, one more than the largest id.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    added: Mapping[str, int]
    size: int

    def id(self, token: str) -> int:
        """The id of an added token; KeyError naming it if the tokenizer has no such single token."""
        if token not in self.added:
            raise KeyError(f"{token!r} is not an added token of this tokenizer (it has {sorted(self.added)})")
        return self.added[token]

    def name(self, number: int, where: str) -> str:
        """The added token of this id; KeyError, beginning with `where`, if there is none."""
        for token, i in self.added.items():
            if i == number:
                return token
        raise KeyError(f"{where} {number} is not an added token of the tokenizer")


def load_tokenizer(directory: str | pathlib.Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder.

    tokenizer.json is read by the tokenizers library alone; a folder with only the older files (vocab.json and
    merges.txt) goes through transformers. Raises FileNotFoundError naming what is missing, ValueError naming a file
    that cannot be read.
    """
    directory = pathlib.Path(directory)
    fast = directory / "tokenizer.json"
    if fast.is_file():
        return _from_tokenizers(_read(fast))
    older = ("tokenizer_config.json", "vocab.json", "merges.txt")
    missing = [name for name in older if not (directory / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{directory} holds no tokenizer: neither tokenizer.json nor {', '.join(missing)}")
    from transformers import AutoTokenizer

    return _from_tokenizers(AutoTokenizer.from_pretrained(directory, local_files_only=True).backend_tokenizer)


def chat_template_file(directory: str | pathlib.Path) -> pathlib.Path:
    """The file of a checkpoint folder that its processor takes the chat template from."""
    directory = pathlib.Path(directory)
    for name in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json"):
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(f"{directory} holds neither chat_template.jinja nor tokenizer_config.json")


def load_chat_template(directory: str | pathlib.Path) -> str:
    """The Jinja chat template of a checkpoint folder: chat_template.jinja, or the field of one of two JSON files."""
    path = chat_template_file(directory)
    if path.suffix == ".jinja":
        return path.read_text(encoding="utf-8")
    template = _fields(path).get("chat_template")
    if isinstance(template, list):  # several by name
        template = {entry.get("name"): entry.get("template") for entry in template}.get("default")
    if not isinstance(template, str):
        raise ValueError(f"{path} has no chat_template, and there is no chat_template.jinja beside it")
    return template


def named_tokens(directory: str | pathlib.Path) -> dict[str, str]:
    """The tokens that tokenizer_config.json has a name for, as pad_token or start_image_token."""
    fields = _fields(pathlib.Path(directory) / "tokenizer_config.json")
    extra = fields.get("extra_special_tokens")
    found = {}
    for name, token in {**(extra if isinstance(extra, dict) else {}), **fields}.items():
        token = token.get("content") if isinstance(token, dict) else token
        if name.endswith("_token") and isinstance(token, str):
            found[name] = token
    return found


def named_token(directory: str | pathlib.Path, name: str) -> str:
    """One of `named_tokens`; KeyError naming file and field if it is not there."""
    named = named_tokens(directory)
    if name not in named:
        raise KeyError(f"{directory}/tokenizer_config.json lacks {name}")
    return named[name]


def pad_token(directory: str | pathlib.Path, tokenizer: Tokenizer) -> str:
    """What generation_config.json (pad_token_id), else tokenizer_config.json (pad_token) pads with. KeyError if neither says."""
    path = pathlib.Path(directory) / "generation_config.json"
    number = _fields(path).get("pad_token_id") if path.is_file() else None
    if number is not None:
        return tokenizer.name(number, f"{path}: pad_token_id")
    return named_token(directory, "pad_token")


class ImageTokens(NamedTuple):
    """What stands in for an image: E placeholders between two marks. written: what chat templates write for it instead."""

    start: str
    placeholder: str
    end: str
    written: str


def image_tokens(
    directory: str | pathlib.Path, tokenizer: Tokenizer, config: ModelConfig | QwenVLConfig
) -> ImageTokens:
    """The tokens around an image by config.json, or by tokenizer_config.json where it does not name them (InternVL).

    KeyError names what is missing or is no added token; ValueError if the two files contradict each other.
    """
    if isinstance(config, QwenVLConfig):  # the template writes the marks, the processor repeats the placeholder
        fields = ("vision_start_token_id", "image_token_id", "vision_end_token_id")
        tokens = [tokenizer.name(getattr(config, field), f"config.json: {field}") for field in fields]
        return ImageTokens(*tokens, "".join(tokens))
    fields = ("start_image_token", "context_image_token", "end_image_token")
    tokens = [named_token(directory, field) for field in fields]
    found = tokenizer.id(tokens[1])
    if found != config.image_token_id:
        raise ValueError(
            f"{directory}/tokenizer_config.json: context_image_token {tokens[1]!r} has id {found}, but config.json has "
            f"image_token_id {config.image_token_id}"
        )
    return ImageTokens(*tokens, tokens[1])


def _fields(path: pathlib.Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no {path.name}")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} is not a JSON object")
    return fields


def _read(path: pathlib.Path):
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} is not a readable tokenizer: {error}") from error


def _from_tokenizers(tokenizer) -> Tokenizer:
    # Truncation and padding that a file may carry would silently change what encode returns.
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    vocab = tokenizer.get_vocab(with_added_tokens=True)
    added = {token.content: i for i, token in sorted(tokenizer.get_added_tokens_decoder().items())}
    return Tokenizer(encode, decode, added, max(vocab.values()) + 1)
