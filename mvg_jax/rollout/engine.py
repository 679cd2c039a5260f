"""The rollout engine: compiled programs over a KV cache that lives as long as the conversations.

    encode    views [n, H, W, 3]                -> features [F, E, W]
    prefill   prompts [p, L] without their last token -> their keys and values in the pool        once per group of G rows
    extend    what n rows were told [n, X]      -> their keys and values, at each row's own length
    decode    every slot's pending token        -> up to K new ones a slot; stops when few enough still have a turn to finish

A cache has a pool of M prompts and S slots for rows (see slots.py). A row always has one *pending* token: the last that was drawn
for it or given to it, whose keys and values are not in the cache yet; at first the last of its prompt. So decode is the one place
where a token is drawn, a turn costs its own tokens and nothing else, seating a row writes nothing, and no text is tokenised twice.
What a row is given ends with a word, never with an image.

What is known of rows beside their keys and values is a few numbers each; they live on the host, which names them with every call.
On a mesh (see mesh.py) slots and pool lie in shards, a prompt and its rows in the same one, and indices count within it.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mvg_jax.mesh import abstract, by_shard, constrain, shard_count
from mvg_jax.models.attention import PLAIN, Kernels
from mvg_jax.models.axes import to_sampling
from mvg_jax.models.config import TextConfig
from mvg_jax.models.decoder import Prefix, Suffix, suffix_bytes
from mvg_jax.packed import Packed, abstract_packed
from mvg_jax.rollout.sampling import Sampling, draw


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The static shapes of a rollout: with these fixed, nothing compiles after warm-up.

    prompts (P) x group (G) rows, played in lanes side by side (see policies.SampledPolicy). Of each lane's rows `slots` (S) are in
    its cache at a time, with the prompts of at most `pool` (M).
    prompt_length; turn_tokens (T): most tokens sampled a turn; suffix_length: KV cache a row; prompt_images and views: images that
    a prompt and a row after it may hold.
    prefill_prompts: that one prefill takes. extend_rows, observation_lengths, encode_batches: bucket tables of extend's rows and
    tokens and of encode's views. decode_slots, decode_lengths: bucket tables of the part of the cache that decode works on, the first
    slots and their first tokens. decode_tokens (K): most tokens of a slot in one call of decode.
    idle: share of the seated rows that may have finished their turn before decode stops for them.
    """

    prompts: int
    group: int
    slots: int
    pool: int
    prompt_length: int
    turn_tokens: int
    suffix_length: int
    prompt_images: int
    views: int
    prefill_prompts: int
    extend_rows: tuple[int, ...]
    observation_lengths: tuple[int, ...]
    encode_batches: tuple[int, ...]
    decode_slots: tuple[int, ...]
    decode_lengths: tuple[int, ...]
    decode_tokens: int
    idle: float = 0.25
    lanes: int = 1

    @property
    def rows(self) -> int:
        return self.prompts * self.group

    @property
    def turn_batches(self) -> tuple[int, int]:
        """Rows whose turns are handed to the environment at a time: a quarter of a lane's slots, or all."""
        return max(self.slots // shard_count() // 4, 1) * shard_count(), self.slots


def bucket(table: tuple[int, ...], size: int, what: str) -> int:
    """The smallest entry of an ascending table that holds `size`; ValueError names the table when none does."""
    for entry in table:
        if size <= entry:
            return entry
    raise ValueError(f"{what}: {size} does not fit the bucket table {table}; enlarge it in the config")


class State(NamedTuple):
    """Keys [., K, C, L] and values [., K, L, C], a pair a layer: of the pool's M prompts, of the S slots' rows."""

    prompt_keys: tuple[jax.Array, ...]
    prompt_values: tuple[jax.Array, ...]
    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


class Opening(NamedTuple):
    """Prompts [p] for the pool. entry: place in the pool (M: none). count: tokens of each that are run.
    seen: [p, N] the features of its images in order."""

    entry: np.ndarray
    tokens_PxL: np.ndarray
    count: np.ndarray
    seen: np.ndarray


class Told(NamedTuple):
    """What rows [n] are fed. slot: S for none. entry, prompt_count: place and length of their prompt in the pool.
    length: tokens that the row holds; position: rotary position of the first new one. seen: [n, R] features of the views in it."""

    slot: np.ndarray
    entry: np.ndarray
    prompt_count: np.ndarray
    tokens_nxX: np.ndarray
    count: np.ndarray
    length: np.ndarray
    position: np.ndarray
    seen: np.ndarray


class Going(NamedTuple):
    """The slots [S] as decode finds them. seat: entry * G + place in the group (M * G: empty). left: tokens to draw at most.
    least: decode stops when fewer slots than that go on; the same for all. name [S, 4] uint32, sampling: of the draws, see
    sampling.draw."""

    seat: np.ndarray
    pending: np.ndarray
    length: np.ndarray
    position: np.ndarray
    left: np.ndarray
    least: np.ndarray
    name: np.ndarray
    sampling: Sampling


class Drawn(NamedTuple):
    """Draws: tokens [S, K] int32, log-probs [S, K] float32, count [S] int32, ended [S] bool (end-of-turn drawn)."""

    tokens: jax.Array
    logprobs: jax.Array
    count: jax.Array
    ended: jax.Array


class Engine:
    """The compiled programs of one model and one table of shapes. Weights are an argument (a list of arrays, which takes a call less
    time to go through than an nnx.State): the engine holds none. Openings, what is told and who goes on come packed.

    dtype: that `weights` casts to; None: none. kernels: ways to compute attention.
    """

    def __init__(
        self,
        graph: nnx.GraphDef,
        shapes: Shapes,
        end_of_turn: int,
        banned_V: np.ndarray,
        dtype: jnp.dtype | None = None,
        kernels: Kernels = PLAIN,
    ):
        self.shapes = shapes
        self._graph, self._dtype = graph, dtype
        model = functools.partial(_model, graph, kernels)
        self.banned_V = jnp.asarray(banned_V)
        self.start = jax.jit(functools.partial(_start, model, shapes))
        self.blank = jax.jit(functools.partial(_blank, model, shapes))
        self.see = jax.jit(by_shard(_see), donate_argnums=0)
        self.encode = jax.jit(functools.partial(_encode, model, max(shapes.encode_batches)))
        self.prefill = jax.jit(functools.partial(_prefill, model), donate_argnums=1)
        self.extend = jax.jit(functools.partial(_extend, model), donate_argnums=1)
        self.move = jax.jit(_move, donate_argnums=0)
        self.decode = jax.jit(
            functools.partial(_decode, model, shapes.group, shapes.decode_tokens, end_of_turn),
            donate_argnums=1,
            static_argnames="length",
        )

    def weights(self, params: nnx.State) -> list[jax.Array]:
        """The learner's weights as the programs want them; see `models.axes.to_sampling`."""
        return jax.tree.leaves(to_sampling(params, nnx.merge(self._graph, params).config.text, self._dtype))

    def lower(
        self, params: list[jax.Array], view_size: tuple[int, int], max_views: int
    ) -> list[tuple[str, jax.stages.Lowered]]:
        """Every program for every bucket, by name, on abstract shapes, ready for `compiles.compile_all`.

        view_size: (H, W). max_views: R.
        """
        s = self.shapes
        of = lambda shape, dtype=jnp.int32: abstract(shape, dtype, "batch")
        int_of = lambda *shape: of(shape)
        state = self.abstract_state(params)
        views = {"views": of((s.slots, s.views, *view_size, 3), jnp.uint8)}
        views["prompts"] = of((s.prefill_prompts, s.prompt_images, *view_size, 3), jnp.uint8)
        feature = jax.eval_shape(self.encode, params, views["views"], int_of(max(s.encode_batches)))
        features = of(feature.shape, feature.dtype)
        S, p, N, V = s.slots, s.prefill_prompts, s.prompt_images, self.banned_V

        def decode(n: int, length: int) -> jax.stages.Lowered:
            sampling = Sampling(of((n,), jnp.float32), int_of(n), of((n,), jnp.float32))
            going = abstract_packed(Going(*(int_of(n) for _ in range(6)), of((n, 4), jnp.uint32), sampling))
            return self.decode.lower(params, state, going, int_of(s.pool), V, length=length)

        seen = lambda n, R: self.see.lower(
            views["views"], of((n, R, *view_size, 3), jnp.uint8), int_of(n), int_of(n, R)
        )
        programs = [("start", self.start.lower(params)), ("blank views", self.blank.lower(params))]
        programs.append((f"see {S}", seen(S, s.views)))
        programs += [(f"see {n} turns", seen(n, max_views)) for n in dict.fromkeys(s.turn_batches)]
        programs += [(f"decode {n}x{L}", decode(n, L)) for n in s.decode_slots for L in s.decode_lengths]
        if len(s.decode_slots) > 1:
            moved = int_of(s.turn_batches[0])
            programs.append((f"move {moved.shape[0]}", self.move.lower(state, moved, moved)))
        for X in s.observation_lengths:
            for n in s.extend_rows:
                told = Told(
                    *(int_of(n) for _ in range(3)), int_of(n, X), *(int_of(n) for _ in range(3)), int_of(n, max_views)
                )
                programs.append((f"extend {n}x{X}", self.extend.lower(params, state, abstract_packed(told), features)))
        opening = abstract_packed(Opening(int_of(p), int_of(p, s.prompt_length), int_of(p), int_of(p, N)))
        programs.append((f"prefill {p}x{s.prompt_length}", self.prefill.lower(params, state, opening, features)))
        first = bucket(s.encode_batches, p * N, "rollout.encode_batches")
        for kind, sizes in (("prompts", (first,)), ("views", s.encode_batches)):
            programs += [(f"encode {n} {kind}", self.encode.lower(params, views[kind], int_of(n))) for n in sizes]
        return programs

    def abstract_state(self, params: list[jax.Array]) -> State:
        """Shapes and shardings of what stays on the device between turns."""
        return jax.tree.map(lambda x: abstract(x.shape, x.dtype, *STATE_AXES), jax.eval_shape(self.start, params))


STATE_AXES = ("batch", "kv")  # of a State's arrays


def state_bytes(config: TextConfig, shapes: Shapes, itemsize: int) -> int:
    """Bytes of all lanes' States: keys and values of all layers, of every prompt in a pool and every slot."""
    prompts = suffix_bytes(config, shapes.pool, shapes.prompt_length, itemsize)
    return shapes.lanes * (prompts + suffix_bytes(config, shapes.slots, shapes.suffix_length, itemsize))


def _model(graph: nnx.GraphDef, kernels: Kernels, params: list[jax.Array]) -> nnx.Module:
    model = nnx.merge(graph, params)
    model.set_attributes(**kernels._asdict())
    return model


def _laid_out(state: State) -> State:
    return jax.tree.map(lambda x: constrain(x, *STATE_AXES), state)


def _start(model, shapes: Shapes, params) -> State:
    """An empty cache."""
    model = model(params)
    text, dtype = model.config.text, model.language_model.embed_tokens.embedding.dtype
    empty = lambda rows, length: Suffix.empty(text, rows, length, dtype)[:2]
    return _laid_out(State(*empty(shapes.pool, shapes.prompt_length), *empty(shapes.slots, shapes.suffix_length)))


def _blank(model, shapes: Shapes, params) -> jax.Array:
    """Views [S, V, H, W, 3] of slots that were shown nothing."""
    views_SxVxHxWx3 = jnp.zeros((shapes.slots, shapes.views, *model(params).config.view_size, 3), jnp.uint8)
    return constrain(views_SxVxHxWx3, "batch")


def _see(views_SxVxHxWx3, new_nxRxHxWx3, slot_n, place_nxR) -> jax.Array:
    """Takes in new views of slots (S: none) at their places (V: none)."""
    return views_SxVxHxWx3.at[slot_n[:, None], place_nxR].set(new_nxRxHxWx3, mode="drop")


def _encode(model, capacity: int, params, views_SxVxHxWx3, index_n) -> jax.Array:
    """Features [F, E, W] of the views named by index_n into [S*V] (S*V: none), in that order; F = capacity, 0 from n on."""
    shards = shard_count()

    def take(views_SxVxHxWx3, index_n):
        return views_SxVxHxWx3.reshape(-1, *views_SxVxHxWx3.shape[2:]).at[index_n].get(mode="fill", fill_value=0)

    def padded(features_nxExW):
        missing = capacity // shards - len(features_nxExW)
        return jnp.pad(features_nxExW, ((0, missing), (0, 0), (0, 0)))

    features_nxExW = model(params).encode_images(by_shard(take)(views_SxVxHxWx3, index_n))
    return by_shard(padded)(constrain(features_nxExW, "batch"))


def _pick(features_FxExW, seen_nxN) -> jax.Array:
    """[n, N, E, W]; 0 for F."""
    return features_FxExW.at[seen_nxN].get(mode="fill", fill_value=0)


def _put(to, rows, index):
    """Writes rows at their index, one past the end: nowhere."""
    return jax.tree.map(lambda to, rows: to.at[index].set(rows, mode="drop"), to, rows)


def _take(of, index):
    return jax.tree.map(lambda x: x.at[index].get(mode="clip"), of)


def _prefill(model, params, state: State, opening: Packed, features_FxExW) -> State:
    """Runs prompts once, for all rows of their groups."""
    model, opening = model(params), opening.unpack()
    features = by_shard(_pick)(features_FxExW, opening.seen)
    _, prompt = model.prefill(opening.tokens_PxL, opening.count, features)
    pool = by_shard(_put)(state[:2], (prompt.keys, prompt.values), opening.entry)
    return _laid_out(State(*pool, *state[2:]))


def _extend(model, params, state: State, told: Packed, features_FxExW) -> State:
    """Appends what rows are told to their keys and values."""
    model, told = model(params), told.unpack()
    positions, _ = model.positions(told.tokens_nxX, told.count, told.position)
    x_nxXxW = model.embed(told.tokens_nxX, by_shard(_pick)(features_FxExW, told.seen))
    prefix = Prefix(*by_shard(_take)(state[:2], told.entry), told.prompt_count)
    cache = Suffix(*by_shard(_take)(state[2:], told.slot), told.length)
    _, suffix = model.decode(x_nxXxW, positions, prefix=prefix, cache=cache, count_B=told.count)
    return _laid_out(State(*state[:2], *by_shard(_put)(state[2:], suffix[:2], told.slot)))


def _move(state: State, from_n: jax.Array, to_n: jax.Array) -> State:
    """Rows change their slots (S: none)."""
    moved = by_shard(_put)(state[2:], by_shard(_take)(state[2:], from_n), to_n)
    return _laid_out(State(*state[:2], *moved))


def _decode(
    model,
    group,
    most,
    end_of_turn,
    params,
    state: State,
    going: Packed,
    prompt_count_M,
    banned_V,
    length: int,
) -> tuple[State, Drawn]:
    """Draws tokens for the slots that have any left, at most K, until each has drawn `end_of_turn` or all that were left.

    It also ends as soon as fewer than `least` slots go on: the host has something better to do than to wait for the last. `going`
    may name the first slots only, and `length` be less than a row may hold: the others, and what lies beyond, are left alone.
    """
    model, going = model(params), going.unpack()
    S = len(going.left)

    def rows_of(seat_S, prompt_count_M):
        nobody = jnp.full(len(prompt_count_M) * group, len(seat_S), jnp.int32)
        return nobody.at[seat_S].set(jnp.arange(len(seat_S)), mode="drop").reshape(-1, group)

    prefix = Prefix(*state[:2], prompt_count_M, going.seat, by_shard(rows_of)(going.seat, prompt_count_M))

    def draw_rows(logits_SxV, place_S):
        # Logits come split over the vocabulary and rows are drawn whole, some on each device; without the first line the compiler
        # would rather gather the head's weights for every token.
        logits_SxV = constrain(constrain(logits_SxV, "batch", "vocab"), "spread")
        drawn = draw(logits_SxV, going.name, constrain(place_S, "batch"), going.sampling, banned_V)
        return tuple(constrain(x, "batch") for x in drawn)

    def goes_on(drawn: Drawn):
        return (drawn.count < going.left) & ~drawn.ended

    least = jnp.maximum(going.least.max(), 1)

    def more(carry):
        t, _, _, drawn = carry
        return (t < most) & (goes_on(drawn).sum() >= least)

    def step(carry):
        t, token_S, suffix, drawn = carry
        on_S = goes_on(drawn)
        x_Sx1xD = model.language_model.embed_tokens(token_S[:, None])
        position_S = going.position + suffix.length - going.length  # no image is ever drawn
        place_S = suffix.length  # of the new token in the row, the prompt's last token being in front
        hidden, suffix = model.decode(
            x_Sx1xD, position_S[:, None], prefix=prefix, cache=suffix, count_B=on_S.astype(jnp.int32)
        )
        new_S, logprob_S = draw_rows(model.logits(hidden[:, 0]), place_S)
        write = lambda array_SxK, value_S: jax.lax.dynamic_update_index_in_dim(
            array_SxK, jnp.where(on_S, value_S, jnp.zeros_like(value_S)), t, axis=1
        )
        drawn = Drawn(
            write(drawn.tokens, new_S),
            write(drawn.logprobs, logprob_S),
            drawn.count + on_S.astype(jnp.int32),
            drawn.ended | (on_S & (new_S == end_of_turn)),
        )
        return t + 1, jnp.where(on_S, new_S, token_S), suffix, drawn

    nothing = Drawn(
        jnp.zeros((S, most), jnp.int32), jnp.zeros((S, most), jnp.float32), jnp.zeros(S, jnp.int32), jnp.zeros(S, bool)
    )
    nothing = jax.tree.map(lambda x: constrain(x, "batch"), nothing)
    # Cut out once a call, put back once: every token reads what the loop carries.
    cut = by_shard(
        lambda cache, seat: (
            jax.tree.map(lambda k: k[: len(seat), :, :, :length], cache[0]),
            jax.tree.map(lambda v: v[: len(seat), :, :length], cache[1]),
        )
    )
    paste = by_shard(
        lambda cache, part: jax.tree.map(
            lambda x, new: jax.lax.dynamic_update_slice(x, new, (0,) * x.ndim), cache, part
        )
    )
    suffix = Suffix(*cut(state[2:], going.seat), going.length)
    _, _, suffix, drawn = jax.lax.while_loop(more, step, (jnp.int32(0), going.pending, suffix, nothing))
    drawn = jax.tree.map(lambda x: constrain(x, "batch"), drawn)
    return _laid_out(State(*state[:2], *paste(state[2:], suffix[:2]))), drawn
