"""The rollout engine: four compiled programs over a KV cache that lives as long as the conversation.

    prefill   prompts [P, L]        -> prefix pool, first logits of every row        once per group of G rows
    decode    logits [B, V]         -> at most T tokens a row, stops when all rows have stopped
    encode    views [N, H, W, 3]    -> features [N, E, W]                          only views that exist, in buckets of n
    extend    [last token | observation] [B, X] -> logits of the next turn           appended at each row's own length

On a mesh (see mesh.py) rows lie in shards, prompts and their groups together, and weights in the sampling layout.

A turn's last sampled token has no keys and values yet when decode stops; `extend` feeds it first. So a turn costs its own
tokens and nothing else, and no text is ever tokenised twice.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mvg_jax.mesh import abstract, by_shard, constrain
from mvg_jax.models.axes import to_sampling
from mvg_jax.models.decoder import Prefix, Suffix
from mvg_jax.rollout.sampling import Sampling, draw


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The static shapes of a rollout: with these fixed, nothing compiles after warm-up.

    prompts (P) x group (G) rows; prompt_length; turn_tokens (T): most tokens sampled a turn; observation_lengths and
    encode_batches: bucket tables; suffix_length: KV cache a row; prompt_images and views: images a row may hold.
    """

    prompts: int
    group: int
    prompt_length: int
    turn_tokens: int
    observation_lengths: tuple[int, ...]
    encode_batches: tuple[int, ...]
    suffix_length: int
    prompt_images: int
    views: int

    @property
    def rows(self) -> int:
        return self.prompts * self.group


def bucket(table: tuple[int, ...], size: int, what: str) -> int:
    """The smallest entry of an ascending table that holds `size`; ValueError names the table when none does."""
    for entry in table:
        if size <= entry:
            return entry
    raise ValueError(f"{what}: {size} does not fit the bucket table {table}; enlarge it in the config")


class State(NamedTuple):
    """What stays on the device between turns.

    position_B: rotary position of each row's next token (an image may take fewer positions than tokens).
    pending_B: last sampled token, not yet in the cache.
    """

    prefix: Prefix
    suffix: Suffix
    position_B: jax.Array
    logits: jax.Array
    pending_B: jax.Array


class Drawn(NamedTuple):
    """A turn's draws: tokens [B, T] int32, log-probs [B, T] float32, count [B] int32, ended [B] bool (end-of-turn drawn)."""

    tokens: jax.Array
    logprobs: jax.Array
    count: jax.Array
    ended: jax.Array


class Engine:
    """The compiled programs of one model and one table of shapes. Weights are an argument: the engine holds none.

    dtype: that `weights` casts to; None: none.
    """

    def __init__(
        self,
        graph: nnx.GraphDef,
        shapes: Shapes,
        end_of_turn: int,
        banned_V: np.ndarray,
        dtype: jnp.dtype | None = None,
    ):
        self.shapes = shapes
        self._graph, self._dtype = graph, dtype
        self.banned_V = jnp.asarray(banned_V)
        self.encode = jax.jit(functools.partial(_encode, graph))
        self.prefill = jax.jit(functools.partial(_prefill, graph, shapes.group, shapes.suffix_length))
        self.decode = jax.jit(functools.partial(_decode, graph, shapes.turn_tokens, end_of_turn), donate_argnums=1)
        self.extend = jax.jit(functools.partial(_extend, graph), donate_argnums=1)

    def weights(self, params: nnx.State) -> nnx.State:
        """The learner's weights as the programs want them; see `models.axes.to_sampling`."""
        return to_sampling(params, nnx.merge(self._graph, params).config.text, self._dtype)

    def lower(
        self, params: nnx.State, view_size: tuple[int, int], max_views: int, extra_lengths: tuple[int, ...] = ()
    ) -> list[tuple[str, jax.stages.Lowered]]:
        """Every program for every bucket with its name, on abstract shapes, ready for `compiles.compile_all`.

        view_size: (H, W). max_views: R. extra_lengths: further lengths that `extend` will be called with.
        """
        s = self.shapes
        B = s.rows
        of = lambda shape, dtype: abstract(shape, dtype, "batch")
        views = lambda n: of((n, *view_size, 3), jnp.uint8)
        index = lambda n: of((n,), jnp.int32)
        row = lambda dtype: of((B,), dtype)
        images = s.prompts * s.prompt_images
        prompts = self._abstract_prompts(params, view_size)
        *_, feature = prompts
        features = lambda *leading: of((*leading, *feature.shape[2:]), feature.dtype)
        state = self.abstract_state(params, view_size)
        sampling = Sampling(row(jnp.float32), row(jnp.int32), row(jnp.float32))
        extend = lambda T: self.extend.lower(
            params, state, row(bool), of((B, T), jnp.int32), row(jnp.int32), features(B, max_views)
        )
        encode = lambda n: self.encode.lower(params, views(B * max_views), index(n))
        return [
            ("decode", self.decode.lower(params, state, row(bool), of((B, 4), jnp.uint32), sampling, self.banned_V)),
            *((f"extend/{T}", extend(T)) for T in s.observation_lengths + extra_lengths),
            ("prefill", self.prefill.lower(params, *prompts)),
            ("encode prompts", self.encode.lower(params, views(images), index(images))),
            *((f"encode/{n}", encode(n)) for n in s.encode_batches),
        ]

    def abstract_state(self, params: nnx.State, view_size: tuple[int, int]) -> State:
        """Shapes and shardings of what stays on the device between turns."""
        state = jax.eval_shape(self.prefill, params, *self._abstract_prompts(params, view_size))
        return jax.tree.map(lambda x: abstract(x.shape, x.dtype, *STATE_AXES[x.ndim]), state)

    def _abstract_prompts(self, params: nnx.State, view_size: tuple[int, int]) -> tuple[jax.ShapeDtypeStruct, ...]:
        """What `prefill` takes beside the weights."""
        P, L, N = self.shapes.prompts, self.shapes.prompt_length, self.shapes.prompt_images
        of = lambda shape, dtype: abstract(shape, dtype, "batch")
        views, index = of((P * N, *view_size, 3), jnp.uint8), of((P * N,), jnp.int32)
        feature = jax.eval_shape(self.encode, params, views, index)
        return of((P, L), jnp.int32), of((P,), jnp.int32), of((P, N, *feature.shape[1:]), feature.dtype)


STATE_AXES = {1: ("batch",), 2: ("batch", "vocab"), 4: ("batch", None, "kv")}  # of a State's arrays, by their rank


def _laid_out(state: State) -> State:
    return jax.tree.map(lambda x: constrain(x, *STATE_AXES[x.ndim]), state)


def _encode(graph, params, views_NxSxSx3, index_n) -> jax.Array:
    """Encodes the views named by index_n (N itself = none, padding the bucket): features [N, E, W], 0 where not named.

    With several shards, each names n of its own N views.
    """

    def take(views_NxSxSx3, index_n):
        return views_NxSxSx3.at[index_n].get(mode="fill", fill_value=0)

    def put_back(views_NxSxSx3, index_n, features_nxExW):
        empty = jnp.zeros((len(views_NxSxSx3), *features_nxExW.shape[1:]), features_nxExW.dtype)
        return empty.at[index_n].set(features_nxExW, mode="drop")

    features_nxExW = nnx.merge(graph, params).encode_images(by_shard(take)(views_NxSxSx3, index_n))
    return by_shard(put_back)(views_NxSxSx3, index_n, constrain(features_nxExW, "batch"))


def last_of(x_PxLxD: jax.Array, length_P: jax.Array) -> jax.Array:
    """Each prompt's entry at its last token, [P, D]."""
    return x_PxLxD[jnp.arange(len(length_P)), length_P - 1]


def _prefill(graph, group, suffix_length, params, tokens_PxL, length_P, features_PxNxExW) -> State:
    """Runs every prompt once. Forking it into G rows copies nothing: row b reads prefix b // G."""
    model = nnx.merge(graph, params)
    P = len(length_P)
    hidden_PxLxD, prefix = model.prefill(tokens_PxL, length_P, features_PxNxExW)
    logits_PxV = model.logits(by_shard(last_of)(hidden_PxLxD, length_P))
    _, next_P = model.positions(tokens_PxL, length_P, jnp.zeros_like(length_P))
    suffix = Suffix.empty(model.config.text, P * group, suffix_length, prefix.keys[0].dtype)
    fork = by_shard(lambda x_P: jnp.repeat(x_P, group, axis=0))
    return _laid_out(State(prefix, suffix, fork(next_P), fork(logits_PxV), jnp.zeros(P * group, jnp.int32)))


def _decode(
    graph, turn_tokens, end_of_turn, params, state: State, active_B, name_Bx4, sampling: Sampling, banned_V
) -> tuple[State, Drawn]:
    """Samples one turn for the active rows, until each has drawn `end_of_turn` or T tokens."""
    model = nnx.merge(graph, params)
    B, T = len(active_B), turn_tokens

    def draw_rows(logits_BxV, position_B):
        # Logits come split over the vocabulary and rows are drawn whole, some on each device; without the first line the compiler
        # would rather gather the head's weights for every token.
        logits_BxV = constrain(constrain(logits_BxV, "batch", "vocab"), "spread")
        drawn = draw(logits_BxV, name_Bx4, constrain(position_B, "batch"), sampling, banned_V)
        return tuple(constrain(x, "batch") for x in drawn)

    def record(drawn: Drawn, t, going_B, token_B, logprob_B) -> Drawn:
        write = lambda array_BxT, value_B: jax.lax.dynamic_update_index_in_dim(
            array_BxT, jnp.where(going_B, value_B, jnp.zeros_like(value_B)), t, axis=1
        )
        return Drawn(
            write(drawn.tokens, token_B),
            write(drawn.logprobs, logprob_B),
            drawn.count + going_B.astype(jnp.int32),
            drawn.ended | (going_B & (token_B == end_of_turn)),
        )

    def going_on(carry):
        t, going_B, _, _, _ = carry
        return (t < T) & going_B.any()

    def step(carry):
        t, going_B, token_B, suffix, drawn = carry
        x_Bx1xD = model.language_model.embed_tokens(token_B[:, None])
        position_B = state.position_B + suffix.length - state.suffix.length  # no image is ever drawn
        hidden, suffix = model.decode(
            x_Bx1xD,
            position_B[:, None],
            prefix=state.prefix,
            cache=suffix,
            count_B=going_B.astype(jnp.int32),
        )
        token_B, logprob_B = draw_rows(model.logits(hidden[:, 0]), suffix.length)
        drawn = record(drawn, t, going_B, token_B, logprob_B)
        return t + 1, going_B & ~drawn.ended, token_B, suffix, drawn

    # The first token comes from the logits at hand; the loop feeds a token only when a row wants another.
    # The noise is named by the token's index in the row's suffix, which is what the cache holds when it is drawn.
    token_B, logprob_B = draw_rows(state.logits, state.suffix.length)
    empty = Drawn(
        jnp.zeros((B, T), jnp.int32), jnp.zeros((B, T), jnp.float32), jnp.zeros(B, jnp.int32), jnp.zeros(B, bool)
    )
    drawn = record(empty, 0, active_B, token_B, logprob_B)
    carry = (jnp.int32(1), active_B & ~drawn.ended, token_B, state.suffix, drawn)
    _, _, token_B, suffix, drawn = jax.lax.while_loop(going_on, step, carry)
    last_B = by_shard(lambda tokens, count: tokens[jnp.arange(len(count)), jnp.maximum(count - 1, 0)])(
        drawn.tokens, drawn.count
    )
    position_B = state.position_B + suffix.length - state.suffix.length
    pending_B = jnp.where(active_B, last_B, state.pending_B)
    drawn = jax.tree.map(lambda x: constrain(x, "batch"), drawn)
    return _laid_out(State(state.prefix, suffix, position_B, state.logits, pending_B)), drawn


def _extend(graph, params, state: State, active_B, tokens_BxT, count_B, features_BxRxExW) -> State:
    """Appends [pending token | observation] to the active rows and leaves the logits of their next turn.

    tokens_BxT, count_B: observations. features_BxRxExW: features of the views in them, in order.
    """
    model = nnx.merge(graph, params)
    tokens = jnp.concatenate([state.pending_B[:, None], tokens_BxT], axis=1)
    count_B = jnp.where(active_B, count_B + 1, 0)
    positions, next_B = model.positions(tokens, count_B, state.position_B)
    x_BxTxW = model.embed(tokens, features_BxRxExW)
    hidden, suffix = model.decode(x_BxTxW, positions, prefix=state.prefix, cache=state.suffix, count_B=count_B)
    last_BxD = jnp.take_along_axis(hidden, jnp.maximum(count_B - 1, 0)[:, None, None], axis=1)[:, 0]
    logits = jnp.where(active_B[:, None], model.logits(last_BxD), state.logits)
    return _laid_out(State(state.prefix, suffix, next_B, logits, state.pending_B))
