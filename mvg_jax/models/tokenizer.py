"""The tokenizer as the rest of the code sees it: text to ids and back, and the added tokens by name."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence


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


def load_chat_template(directory: str | pathlib.Path) -> str:
    """The Jinja chat template of a checkpoint folder: chat_template.jinja, or the field of tokenizer_config.json."""
    directory = pathlib.Path(directory)
    if (directory / "chat_template.jinja").is_file():
        return (directory / "chat_template.jinja").read_text(encoding="utf-8")
    config = directory / "tokenizer_config.json"
    if not config.is_file():
        raise FileNotFoundError(f"{directory} holds neither chat_template.jinja nor tokenizer_config.json")
    fields = json.loads(config.read_text(encoding="utf-8"))
    if "chat_template" not in fields:
        raise ValueError(f"{config} has no chat_template, and there is no chat_template.jinja beside it")
    return fields["chat_template"]


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
