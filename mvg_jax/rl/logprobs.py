"""Log-probs of a batch's tokens under the sampling policy: the one forward pass that every update, score and comparison runs.

The prompt is run once a group and its rows attend to it, as in the sampler, so that log-probs agree with those recorded
while sampling. Logits can be made for a few positions at a time, so that [positions, V] need not exist for a real vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mvg_jax.mesh import by_shard, constrain
from mvg_jax.models.layers import by_positions
from mvg_jax.models.vlm import VisionLanguageModel
from mvg_jax.rl.packing import Packed
from mvg_jax.rollout.sampling import policy_logits


class Forward(NamedTuple):
    """How the learner runs the model; what it computes is the same but for rounding.

    compute_dtype: weights are cast to it for the pass (and activations follow). remat: layers are recomputed in the
    backward pass. logit_positions: positions of every row whose logits exist at a time; 0: all of them.
    """

    compute_dtype: str = "float32"
    remat: bool = False
    logit_positions: int = 0


class TokenLogprobs(NamedTuple):
    """Each [b, L] (of packed rows [r, K]) float32, 0 outside of the mask; only the log-prob carries a gradient.
    likeliest: 1 if no token is likelier."""

    logprob: jax.Array
    entropy: jax.Array
    likeliest: jax.Array


def token_logprobs(
    graph: nnx.GraphDef, params: nnx.State, micro, banned_V: jax.Array, forward: Forward
) -> TokenLogprobs:
    """Of the suffix tokens [b, L] of a microbatch (a `learner.Batch` without its first axis), or of the targets [r, K] of a
    `Packed` one, which are demonstrated and not drawn: at temperature 1."""
    model = nnx.merge(graph, cast(params, forward.compute_dtype))
    if forward.remat:
        model.set_attributes(remat=True)
    if isinstance(micro, Packed):
        before, tokens = _states_before_targets(model, micro)
        temperature = jnp.ones(len(tokens), jnp.float32)
    else:
        before, tokens, temperature = _states_before(model, micro), micro.tokens, micro.temperature
    score = functools.partial(_score, model, temperature, banned_V)
    columns = by_positions(score, forward.logit_positions, before, tokens)
    return TokenLogprobs(*(jnp.where(micro.mask, x, 0.0) for x in columns))


def cast(params: nnx.State, dtype: str) -> nnx.State:
    """The weights in another float type; the same arrays where they have it already."""
    return jax.tree.map(lambda x: x.astype(dtype), params)


def _states_before(model: VisionLanguageModel, micro) -> jax.Array:
    """The hidden states [b, L, D] that the suffix tokens were drawn from: the last of the prompt, then those of the suffix."""
    p, N0 = micro.prompt_views.shape[:2]
    group = micro.tokens.shape[0] // p
    own_views = micro.prompt_views.reshape(p * N0, *micro.prompt_views.shape[2:])
    features = model.encode_images(by_shard(lambda *parts: jnp.concatenate(parts))(own_views, micro.views))
    part = lambda prompts, all_: (all_[: len(prompts)], all_[len(prompts) :])
    prompt_features, row_features = by_shard(part)(own_views, constrain(features, "batch"))
    hidden, prefix = model.prefill(
        micro.prompts, micro.prompt_length, prompt_features.reshape(p, N0, *features.shape[1:])
    )
    fork = lambda x_pxD: jnp.repeat(x_pxD, group, axis=0, total_repeat_length=len(x_pxD) * group)
    first_bxD = by_shard(lambda *prompts: fork(last_of(*prompts)))(hidden, micro.prompt_length)
    x = model.embed(micro.tokens, by_shard(lambda features, index: features[index])(row_features, micro.view_index))
    hidden, _ = model.decode(x, micro.positions, prefix=prefix)
    return jnp.concatenate([first_bxD[:, None], hidden[:, :-1]], axis=1)


def last_of(x_PxLxD: jax.Array, length_P: jax.Array) -> jax.Array:
    """Each prompt's entry at its last token, [P, D]."""
    return x_PxLxD[jnp.arange(len(length_P)), length_P - 1]


def _states_before_targets(model: VisionLanguageModel, micro: Packed) -> tuple[jax.Array, jax.Array]:
    """The hidden states [r, K, D] before the targets of packed rows, and the targets' ids [r, K]."""
    features = constrain(model.encode_images(micro.views), "batch")
    x = model.embed(micro.tokens, by_shard(lambda features, index: features[index])(features, micro.view_index))
    hidden, _ = model.decode(x, micro.positions, first_BxT=micro.first)

    def take(hidden_rxLxD, tokens_rxL, target_rxK):
        before = jnp.take_along_axis(hidden_rxLxD, jnp.maximum(target_rxK - 1, 0)[..., None], axis=1)
        return before, jnp.take_along_axis(tokens_rxL, target_rxK, axis=1)

    return by_shard(take)(hidden, micro.tokens, micro.target)


def _score(
    model: VisionLanguageModel,
    temperature_b: jax.Array,
    banned_V: jax.Array,
    before_bxTxD: jax.Array,
    tokens_bxT: jax.Array,
) -> TokenLogprobs:
    logits = jax.nn.log_softmax(policy_logits(model.logits(before_bxTxD), temperature_b, banned_V[None, None]))
    logprob = jnp.take_along_axis(logits, tokens_bxT[..., None], axis=-1)[..., 0]
    still = jax.lax.stop_gradient(logits)
    entropy = -jnp.sum(jnp.exp(still) * still, axis=-1)
    return TokenLogprobs(logprob, entropy, (still.argmax(axis=-1) == tokens_bxT).astype(jnp.float32))
