"""How the learner may run the model: the same numbers, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mvg_jax.rl.learner import LearnerShapes, make_batch
from mvg_jax.rl.logprobs import Forward, cast, token_logprobs
from tests import tiny_world
from tests.tiny_world import SPECIAL, plain_logprobs

PROMPTS, ROWS, LENGTH = 2, 4, 40
FRUGAL = Forward(remat=True, logit_positions=12)  # 40 is no multiple of 12


@pytest.fixture(scope="module")
def ledger():
    return tiny_world.random_ledger(PROMPTS)


@pytest.fixture(scope="module")
def micro(ledger):
    """The ledger as one microbatch at temperature 0.7."""
    batch = make_batch(ledger, np.zeros(ROWS), np.full(ROWS, 0.7), LearnerShapes(1, (LENGTH,), (8,)))
    return jax.tree.map(lambda x: jnp.asarray(x[0]), batch)


def loss_of(forward: Forward):
    def loss(params, micro):
        columns = token_logprobs(tiny_world.model()[0], params, micro, jnp.asarray(SPECIAL), forward)
        return columns.logprob.sum(), columns

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def test_columns_follow_from_the_plain_distribution(ledger, micro):
    (_, got), _ = loss_of(FRUGAL)(tiny_world.model()[1], micro)
    logprobs = plain_logprobs(ledger, 0.7, SPECIAL)
    mask = ledger.loss_mask_BxL
    own = np.take_along_axis(logprobs, ledger.tokens_BxL[..., None], axis=2)[..., 0]
    with np.errstate(invalid="ignore"):
        entropy = -np.nansum(np.exp(logprobs) * logprobs, axis=2)
    np.testing.assert_allclose(got.logprob, np.where(mask, own, 0), atol=1e-4)
    np.testing.assert_allclose(got.entropy, np.where(mask, entropy, 0), atol=1e-4)
    np.testing.assert_array_equal(got.likeliest, mask & (logprobs.argmax(axis=2) == ledger.tokens_BxL))


def test_less_memory_gives_the_same_gradient(micro):
    params = tiny_world.model()[1]
    (loss, columns), gradient = loss_of(Forward())(params, micro)
    (frugal_loss, frugal_columns), frugal = loss_of(FRUGAL)(params, micro)
    np.testing.assert_allclose(frugal_loss, loss, rtol=1e-6)
    np.testing.assert_allclose(frugal_columns.logprob, columns.logprob, atol=2e-6)
    for a, b in zip(jax.tree.leaves(frugal), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))


def shapes_in(jaxpr) -> set[tuple[int, ...]]:
    """Shapes of all intermediate arrays, nested programs included."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {variable.aval.shape for variable in equation.outvars}
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                found |= shapes_in(inner)
    return found


@pytest.mark.parametrize(("forward", "positions"), [(Forward(), LENGTH), (FRUGAL, 12)])
def test_logits_of_all_positions_exist_only_if_asked_for(micro, forward, positions):
    jaxpr = jax.make_jaxpr(loss_of(forward))(tiny_world.model()[1], micro).jaxpr
    with_logits = {shape for shape in shapes_in(jaxpr) if len(shape) >= 3 and shape[-1] == len(SPECIAL)}
    assert max(int(np.prod(shape[:-1])) for shape in with_logits) == ROWS * positions


def test_half_precision_stays_near_and_learns_in_full(micro):
    params = tiny_world.model()[1]
    (_, columns), gradient = loss_of(Forward())(params, micro)
    (_, half), half_gradient = loss_of(Forward(compute_dtype="bfloat16"))(params, micro)
    assert half.logprob.dtype == jnp.float32
    off = jnp.abs(half.logprob - columns.logprob)[micro.mask]
    assert 0 < off.max() < 0.3
    assert off.mean() < 0.03
    assert {x.dtype for x in jax.tree.leaves(half_gradient)} == {jnp.dtype("float32")}
    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    a, b = flat(half_gradient), flat(gradient)
    assert a @ b > 0.99 * np.linalg.norm(a) * np.linalg.norm(b)


def test_casting_to_the_same_type_copies_nothing():
    params = tiny_world.model()[1]
    same = jax.jit(lambda p: cast(p, "float32")).lower(params).as_text()
    assert "convert" not in same
    assert {x.dtype for x in jax.tree.leaves(nnx.to_pure_dict(cast(params, "bfloat16")))} == {jnp.dtype("bfloat16")}
