"""The ways to compute attention agree; what runs on a GPU only is at least made into a program for one."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from mvg_jax.models import attention
from mvg_jax.models.attention import DECODE, MASKED, VISION, live_attention, merge_attention, whole_attention

B, K, C, S = 4, 2, 32, 90  # not a whole number of blocks
LENGTH_B = np.array([0, 1, 70, 90], np.int32)


def part(seed: int, T: int, H: int, dtype=jnp.float32):
    """(q, k, v) of normal noise."""
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = (B, T, H, C), (B, K, C, S), (B, K, S, C)
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("T", [1, 3])  # a row's own keys, and those that three rows of a group share
@pytest.mark.parametrize("H", [2, 14])
def test_the_pallas_kernel_gives_what_the_plain_way_gives(T, H):
    q, k, v = part(0, T, H)
    plain, ours = (live_attention(q, k, v, LENGTH_B, kernel) for kernel in ("plain", "pallas"))
    assert [x.shape for x in ours] == [(B, T, H, C), (B, T, H, 1), (B, T, H, 1)]
    for x, y in zip(plain, ours, strict=True):
        np.testing.assert_allclose(x[1:], y[1:], rtol=1e-5, atol=1e-5)
    assert (ours[2][0] == MASKED).all()
    # Beside another part, a part without keys has no weight.
    other = live_attention(*part(1, T, H), np.full(B, S, np.int32), "plain")
    joined = [merge_attention([parts, other]) for parts in (plain, ours)]
    np.testing.assert_allclose(joined[0], joined[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(joined[1][0], (other[0] / other[1])[0], rtol=1e-6)


def test_the_pallas_kernel_never_looks_past_the_length():
    q, k, v = part(0, 1, 4)
    past_BxS = np.arange(S)[None] >= LENGTH_B[:, None]
    spoilt_k = jnp.where(past_BxS[:, None, None], jnp.nan, k)
    clean, spoilt = (live_attention(q, keys, v, LENGTH_B, "pallas") for keys in (k, spoilt_k))
    for x, y in zip(clean, spoilt, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("length", [16, 30, 64, 65])
def test_the_pallas_kernel_takes_any_length_from_16_on(length):
    q, k, v = part(0, 1, 4)
    some = q, k[..., :length], v[:, :, :length], np.minimum(LENGTH_B, length)
    for x, y in zip(*(live_attention(*some, kernel) for kernel in ("plain", "pallas")), strict=True):
        np.testing.assert_allclose(x[1:], y[1:], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="15 keys, fewer than 16"):
        live_attention(q, k[..., :15], v[:, :, :15], LENGTH_B, "pallas")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_pallas_kernel_becomes_a_program_for_cuda(dtype, monkeypatch):
    monkeypatch.setattr(attention, "interpreted", lambda: False)
    q, k, v = (jax.ShapeDtypeStruct(x.shape, dtype) for x in part(0, 1, 14))
    program = jax.jit(functools.partial(live_attention, kernel="pallas"))
    h100 = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), abstract_device=h100)):
        lowered = program.trace(q, k, v, LENGTH_B).lower(lowering_platforms=("cuda",)).as_text()
    assert "decode_attention" in lowered
    assert "triton" in lowered


def test_cudnn_is_asked_for_what_the_plain_way_gives(monkeypatch):
    """cuDNN's part is taken by its definition; how it is called, and what is made of its answer, is ours."""
    signature = inspect.signature(cudnn.dot_product_attention)

    def defined(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        assert (given["qkv_layout"], given["mask_type"]) == ("BNTH", cudnn.MaskType.PADDING)
        assert given["return_residual"]
        assert given["q_seqlen"].tolist() == [given["query"].shape[2]] * len(given["query"])
        scores = jnp.einsum("bntc,bnsc->bnts", given["query"], given["key"]) * given["scale"]
        there = jnp.arange(scores.shape[-1])[None, None, None] < given["kv_seqlen"][:, None, None, None]
        scores = jnp.where(there, scores, -jnp.inf)
        return jnp.einsum("bnts,bnsc->bntc", jax.nn.softmax(scores), given["value"]), jax.nn.logsumexp(scores, axis=-1)

    monkeypatch.setattr(cudnn, "dot_product_attention", defined)
    other = live_attention(*part(1, 3, 4), np.full(B, S, np.int32), "plain")
    parts = [live_attention(*part(0, 3, 4), LENGTH_B, kernel) for kernel in ("plain", "cudnn")]
    assert {x.dtype for x in parts[1]} == {jnp.dtype(jnp.float32)}
    plain, ours = (merge_attention([one, other]) for one in parts)
    np.testing.assert_allclose(ours, plain, atol=1e-6)


def test_windows_attend_to_real_patches_only():
    q, k, v = (jax.random.normal(key, (3, 8, 2, 16)) for key in jax.random.split(jax.random.key(0), 3))
    real = np.arange(8)[None] < np.array([8, 5, 2])[:, None]
    out = whole_attention(q, k, v, "plain", real)
    for n, count in enumerate((8, 5, 2)):
        alone = whole_attention(q[n : n + 1], k[n : n + 1, :count], v[n : n + 1, :count], "plain")
        np.testing.assert_allclose(out[n], alone[0], atol=1e-5)
        library = jax.nn.dot_product_attention(q[n], k[n, :count], v[n, :count])
        np.testing.assert_allclose(out[n], library, atol=1e-5)


def test_the_first_way_is_the_plain_one():
    assert VISION[0] == DECODE[0] == "plain"
