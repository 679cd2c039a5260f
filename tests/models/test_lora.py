import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mvg_jax.models.internvl import InternVL
from mvg_jax.models.lora import LoRALinear, add_lora, is_adapter, merge_lora
from tests import tiny_world

TARGETS = ("language_model.*.q_proj", "*.down_proj", "multi_modal_projector.linear_1")


def model(adapters: bool) -> InternVL:
    made = nnx.merge(tiny_world.model()[0], tiny_world.own_params())
    if adapters:
        add_lora(made, TARGETS, rank=4, alpha=8.0, rngs=nnx.Rngs(1))
    return made


def shaken(made: InternVL) -> InternVL:
    """Adapters as training leaves them: B is no longer zero."""
    rng = np.random.default_rng(0)
    for _, module in nnx.iter_modules(made):
        if isinstance(module, LoRALinear):
            module.lora_b[...] = jnp.asarray(rng.normal(size=module.lora_b.shape) * 0.1, jnp.float32)
    return made


def hidden(made: InternVL) -> np.ndarray:
    rng = np.random.default_rng(1)
    tokens = jnp.asarray(rng.integers(0, 12, (2, 6)), jnp.int32)
    views = rng.integers(0, 255, (2, 1, tiny_world.SIZE, tiny_world.SIZE, 3)).astype(np.uint8)
    features = made.encode_images(views[:, 0])[:, None]
    return np.asarray(made.prefill(tokens, jnp.array([6, 5]), features)[0])


def paths(made: InternVL) -> dict:
    return {path: leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(made, nnx.Param))}


def test_new_adapters_change_nothing():
    np.testing.assert_array_equal(hidden(model(adapters=True)), hidden(model(adapters=False)))


def test_adapters_sit_where_they_were_asked_for():
    plain, adapted = paths(model(False)), paths(model(True))
    new = set(adapted) - set(plain)
    assert set(plain) <= set(adapted)
    assert all(is_adapter(path) for path in new)
    wanted = lambda path: (
        (path[0] == "language_model" and path[-2] in ("q_proj", "down_proj")) or path[-2] == "linear_1"
    )
    owners = {path[:-1] for path in plain if path[-1] == "kernel" and wanted(path)}
    assert {path[:-1] for path in new} == owners
    assert len(new) == 2 * len(owners)
    assert not any(is_adapter(path) for path in plain)


def test_an_adapter_is_a_matrix_of_low_rank():
    base = nnx.Linear(6, 5, rngs=nnx.Rngs(0))
    layer = LoRALinear(base, rank=2, alpha=3.0, rngs=nnx.Rngs(1))
    layer.lora_b[...] = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5)), jnp.float32)
    x = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    kernel, a, b = (np.asarray(p[...], np.float64) for p in (base.kernel, layer.lora_a, layer.lora_b))
    expected = x @ (kernel + a @ b * 1.5) + np.asarray(base.bias[...])
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, atol=1e-5)


def test_merged_adapters_are_the_same_function_in_the_plain_layout():
    adapted = shaken(model(True))
    before = hidden(adapted)
    assert np.abs(before - hidden(model(False))).max() > 1e-2
    merge_lora(adapted)
    assert {p: x.shape for p, x in paths(adapted).items()} == {p: x.shape for p, x in paths(model(False)).items()}
    np.testing.assert_allclose(hidden(adapted), before, atol=1e-5)


def test_a_head_may_be_adapted():
    untied = InternVL(dataclasses.replace(model(False).config, tie_word_embeddings=False), nnx.Rngs(0))
    add_lora(untied, ("lm_head",), rank=2, alpha=4.0, rngs=nnx.Rngs(1))
    shaken(untied)
    x = jnp.ones((3, untied.config.text.hidden_size))
    before = untied.logits(x)
    assert jnp.abs(before - x @ untied.lm_head.kernel[...]).max() > 1e-2
    merge_lora(untied)
    np.testing.assert_allclose(untied.logits(x), before, atol=1e-5)


def test_adapters_learn_and_the_rest_need_not():
    """A step down their own gradient lowers the loss; it is the full gradient's share."""
    graph, params = nnx.split(shaken(model(True)), nnx.Param)
    adapters, frozen = nnx.split_state(params, lambda path, _: is_adapter(path), ...)
    tokens, length = jnp.zeros((1, 3), jnp.int32), jnp.array([3])
    features = jnp.zeros((1, 1, 4, model(False).config.text.hidden_size))

    @jax.jit
    def loss(adapters, frozen):
        made = nnx.merge(graph, nnx.merge_state(adapters, frozen))
        return jnp.square(made.prefill(tokens, length, features)[0][..., :4] - 1.0).sum()

    own = jax.grad(loss)(adapters, frozen)
    assert {path[-1] for path, _ in nnx.to_flat_state(own)} == {"lora_a", "lora_b"}
    decoder = [leaf[...] for path, leaf in nnx.to_flat_state(own) if path[0] == "language_model"]
    assert all(jnp.abs(leaf).max() > 0 for leaf in decoder)
    moved = jax.tree.map(lambda p, g: p - 1e-3 * g, adapters, own)
    assert loss(moved, frozen) < loss(adapters, frozen)


@pytest.mark.parametrize(
    ("targets", "rank", "what"), [(("*.q_proj", "w*"), 4, r"'w\*'; there is '.*'"), (("*.q_proj",), 0, "rank of 0")]
)
def test_what_cannot_be_adapted_is_refused(targets, rank, what):
    with pytest.raises(ValueError, match=what):
        add_lora(model(False), targets, rank=rank, alpha=1.0, rngs=nnx.Rngs(0))
