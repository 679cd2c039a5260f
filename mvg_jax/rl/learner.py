"""The update: ledger -> device batch -> log-probs -> loss -> optimiser, one compiled program a shape.

Microbatches are scanned; every sum is divided by the token count of the whole batch.

On a mesh (see mesh.py) every shard of rows has its part of each microbatch, and packs the views of its own rows.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mvg_jax.errors import RunError
from mvg_jax.mesh import abstract, agree, constrain, local_shards, put_rows, shard_count
from mvg_jax.models.axes import constrain_parameters, place
from mvg_jax.models.lora import is_adapter
from mvg_jax.rl.advantages import group_advantages
from mvg_jax.rl.logprobs import Forward, TokenLogprobs, cast, token_logprobs
from mvg_jax.rl.objective import Objective, policy_loss
from mvg_jax.rl.packing import KINDS, Packed
from mvg_jax.rollout.engine import Shapes, bucket
from mvg_jax.trajectory import Trajectories


class Batch(NamedTuple):
    """A ledger on the device, cut into M microbatches of p prompts and b = p·G rows. n: packed views of a microbatch.

    view_index counts from the first of the views that the row's shard packed.
    """

    prompts: jax.Array  # [M, p, L0] int32
    prompt_length: jax.Array  # [M, p] int32
    prompt_views: jax.Array  # [M, p, N0, H, W, 3] uint8
    tokens: jax.Array  # [M, b, L] int32
    positions: jax.Array  # [M, b, L] int32, or [M, b, L, 3] under M-RoPE
    mask: jax.Array  # [M, b, L] bool
    behaviour: jax.Array  # [M, b, L] float32
    reference: jax.Array  # [M, b, L] float32
    views: jax.Array  # [M, n, H, W, 3] uint8
    view_index: jax.Array  # [M, b, N] int32
    reward: jax.Array  # [M, p, G] float32
    temperature: jax.Array  # [M, b] float32


class TrainState(NamedTuple):
    """learned and frozen: the weights that updates change, and the others. opt_state: over `learned`. step: int32 updates done.

    An update consumes the arrays of learned, opt_state and step; the frozen ones are shared freely.
    """

    learned: nnx.State
    frozen: nnx.State
    opt_state: optax.OptState
    step: jax.Array

    @property
    def params(self) -> nnx.State:
        """All weights."""
        return nnx.merge_state(self.learned, self.frozen)

    def kept(self) -> "TrainState":
        """What a checkpoint holds: all but the frozen weights, with which the stage starts."""
        return self._replace(frozen=None)

    def regained(self, kept: "TrainState") -> "TrainState":
        """What a checkpoint held, with the frozen weights of this one."""
        return kept._replace(frozen=self.frozen)


@dataclasses.dataclass(frozen=True)
class LearnerShapes:
    """Bucket tables of the update: suffix length L, packed views n a microbatch; and the number M of microbatches."""

    microbatches: int
    suffix_lengths: tuple[int, ...]
    view_batches: tuple[int, ...]


def make_batch(
    trajectories: Trajectories,
    reward_B: np.ndarray,
    temperature_B: np.ndarray,
    shapes: LearnerShapes,
) -> Batch:
    """Cuts and packs this process's ledger; padding is trimmed to the bucket that holds the longest row of all processes.

    The reference is the behaviour.
    """
    t, M, S = trajectories, shapes.microbatches, local_shards()
    P, G = len(t.prompts_PxL), t.group_size
    if P % (M * S):
        raise ValueError(f"{P} prompts cannot be cut into {M} microbatches" + (f" on {S} shards" if S > 1 else ""))

    def cut(x: np.ndarray) -> np.ndarray:
        """[rows, ...] -> [M, rows/M, ...], of each shard's rows the same number in every microbatch."""
        pieces = x.reshape(S, M, len(x) // (S * M), *x.shape[1:]).swapaxes(0, 1)
        return pieces.reshape(M, len(x) // M, *x.shape[1:])

    count_MxSxr = cut(t.view_count_B).reshape(M, S, -1)
    longest, most = agree(t.length_B.max(), count_MxSxr.sum(axis=2).max())
    L = bucket(shapes.suffix_lengths, longest, "learner.suffix_lengths")
    n = bucket(shapes.view_batches, most * shard_count(), "learner.view_batches") // shard_count()
    tokens = t.tokens_BxL[:, :L]
    behaviour = t.logprob_BxL[:, :L]
    N = t.views_BxNxSxSx3.shape[1]
    has_MxSxrxN = np.arange(N)[None, None, None] < count_MxSxr[..., None]
    place_MxSxrxN = np.cumsum(has_MxSxrxN.reshape(M, S, -1), axis=2).reshape(has_MxSxrxN.shape) - 1
    index = np.where(has_MxSxrxN, place_MxSxrxN, 0)
    views = np.zeros((M, S, n, *t.views_BxNxSxSx3.shape[2:]), np.uint8)
    micro, shard, row, slot = np.nonzero(has_MxSxrxN)
    own = cut(t.views_BxNxSxSx3).reshape(*has_MxSxrxN.shape, *t.views_BxNxSxSx3.shape[2:])
    views[micro, shard, index[micro, shard, row, slot]] = own[micro, shard, row, slot]
    batch = Batch(
        cut(t.prompts_PxL),
        cut(t.prompt_length_P),
        cut(t.prompt_views_PxNxSxSx3),
        cut(tokens),
        cut(t.positions_BxL[:, :L]),
        cut(t.loss_mask_BxL[:, :L]),
        cut(behaviour),
        cut(behaviour),
        views.reshape(M, S * n, *views.shape[3:]),
        index.reshape(M, -1, N).astype(np.int32),
        cut(reward_B.astype(np.float32).reshape(P, G)),
        cut(temperature_B.astype(np.float32)),
    )
    return put_rows(batch, axis=1)


def trainable(freeze: tuple[str, ...], adapters_only: bool = False) -> Callable:
    """A filter over parameter paths: all but those under a module named in `freeze`; of these only LoRA adapters, if asked for."""
    return lambda path, _: not any(part in freeze for part in path) and (is_adapter(path) or not adapters_only)


class Learner:
    """Compiled update and scoring programs of one model. loss: "policy" (GRPO family) or "cross_entropy" (SFT)."""

    def __init__(
        self,
        graph: nnx.GraphDef,
        optimizer: optax.GradientTransformation,
        banned_V: np.ndarray,
        *,
        loss: str,
        objective: Objective,
        advantage_scale: str,
        freeze: tuple[str, ...],
        adapters_only: bool = False,
        forward: Forward,
    ):
        self.graph = graph
        self.optimizer = optimizer
        self.freeze, self.filter = freeze, trainable(freeze, adapters_only)
        banned_V = jnp.asarray(banned_V)
        terms = {
            "policy": functools.partial(_policy_terms, objective, advantage_scale),
            "cross_entropy": _imitation_terms,
        }
        self._update = jax.jit(
            functools.partial(_update, graph, optimizer, terms[loss], banned_V, forward),
            donate_argnames=("learned", "opt_state", "step"),
        )
        self.score = jax.jit(functools.partial(_score, graph, banned_V, forward))
        self.imitation_sums = jax.jit(functools.partial(_imitation_sums, graph, banned_V, forward))

    def init(self, params: nnx.State) -> TrainState:
        names = {str(part) for path, _ in nnx.to_flat_state(params) for part in path}
        if unknown := [name for name in self.freeze if name not in names]:
            raise RunError(f"learner.freeze names {unknown}, which no module of the model is called")
        learned, frozen = nnx.split_state(params, self.filter, ...)
        if not jax.tree.leaves(learned):
            raise RunError("nothing is left to train: see learner.freeze and model.lora.targets of the config")
        return place(TrainState(learned, frozen, self.optimizer.init(learned), jnp.int32(0)))

    def update(self, state: TrainState, batch: Batch | Packed) -> tuple[TrainState, dict]:
        """One optimiser step. `state` is used up, but for its frozen weights."""
        new, metrics = self._update(**state._asdict(), batch=batch)
        return state._replace(**new), metrics

    def lower(
        self,
        state: TrainState,
        shapes: LearnerShapes,
        rollout: Shapes,
        view_size: tuple[int, int],
        with_reference: bool,
    ) -> list[tuple[str, jax.stages.Lowered]]:
        """The update (and the reference's score) for every bucket, each with its name, on abstract shapes.

        Ready for `compiles.compile_all`. view_size: (H, W).
        """
        M = shapes.microbatches
        of = lambda shape, dtype: abstract(shape, dtype, None, "batch")
        p, b = rollout.prompts // M, rollout.rows // M
        view = (*view_size, 3)
        axes = () if nnx.merge(self.graph, state.params).config.text.mrope_section is None else (3,)
        lowered = []
        for L in shapes.suffix_lengths:
            for n in shapes.view_batches:
                row = lambda dtype, L=L: of((M, b, L), dtype)
                batch = Batch(
                    prompts=of((M, p, rollout.prompt_length), jnp.int32),
                    prompt_length=of((M, p), jnp.int32),
                    prompt_views=of((M, p, rollout.prompt_images, *view), jnp.uint8),
                    tokens=row(jnp.int32),
                    positions=of((M, b, L, *axes), jnp.int32),
                    mask=row(bool),
                    behaviour=row(jnp.float32),
                    reference=row(jnp.float32),
                    views=of((M, n, *view), jnp.uint8),
                    view_index=of((M, b, rollout.views), jnp.int32),
                    reward=of((M, p, rollout.group), jnp.float32),
                    temperature=of((M, b), jnp.float32),
                )
                lowered.append((f"update/{L}/{n}", self._update.lower(**state._asdict(), batch=batch)))
                if with_reference:
                    lowered.append((f"score/{L}/{n}", self.score.lower(state.params, batch)))
        return lowered


def _policy_terms(objective, advantage_scale, micro: Batch, found: TokenLogprobs):
    advantage = group_advantages(micro.reward, advantage_scale).reshape(-1)
    return policy_loss(objective, found.logprob, micro.behaviour, micro.reference, advantage, micro.mask)


def _imitation_terms(micro: Batch | Packed, found: TokenLogprobs):
    """Cross-entropy of the demonstrated tokens. Every row weighs by its tokens."""
    sums = _sums_by_kind(micro, found) if isinstance(micro, Packed) else {}
    return -found.logprob.sum(), jax.lax.stop_gradient(sums)


def _sums_by_kind(micro: Packed, found: TokenLogprobs) -> dict[str, jax.Array]:
    """Over the targets whose turn is of each kind: sums of loss and hits, and their number."""
    sums = {}
    for index, kind in enumerate(KINDS):
        chosen = (micro.mask & (micro.kind == index)).astype(jnp.float32)
        sums |= {
            f"loss/{kind}": -(found.logprob * chosen).sum(),
            f"token_accuracy/{kind}": (found.likeliest * chosen).sum(),
            f"tokens/{kind}": chosen.sum(),
        }
    return sums


def _imitation_sums(graph, banned_V, forward, params, batch: Packed) -> dict[str, jax.Array]:
    """Sums over a packed batch: loss, token_accuracy, tokens, and each by kind of turn."""
    params = cast(params, forward.compute_dtype)

    def of(micro: Packed):
        found = token_logprobs(graph, params, micro, banned_V, forward)
        total = {"loss": -found.logprob.sum(), "token_accuracy": found.likeliest.sum(), "tokens": micro.mask.sum()}
        return total | _sums_by_kind(micro, found)

    return jax.tree.map(lambda x: x.sum(), jax.lax.map(of, batch))


def _update(
    graph, optimizer, terms, banned_V, forward, learned, frozen, opt_state, step, batch: Batch | Packed
) -> tuple[dict, dict]:
    frozen = cast(frozen, forward.compute_dtype)  # once, not for every microbatch
    tokens = jnp.maximum(batch.mask.sum(), 1).astype(jnp.float32)

    def micro_loss(learned, frozen, micro: Batch | Packed):
        found = token_logprobs(graph, nnx.merge_state(learned, frozen), micro, banned_V, forward)
        loss, sums = terms(micro, found)
        behaviour = 0.0 if isinstance(micro, Packed) else micro.behaviour
        gap = jnp.abs(jnp.where(micro.mask, found.logprob - behaviour, 0.0)).max()
        sums |= {"entropy": found.entropy.sum(), "token_accuracy": found.likeliest.sum()}
        return loss / tokens, {"gap": gap, "sums": sums}

    def accumulate(carry, micro):
        weights = learned, frozen
        if len(batch.mask) > 1:  # or weights would be gathered whole before the loop, and held for all of it
            weights, micro = jax.lax.optimization_barrier((weights, micro))
        (loss, aux), gradient = jax.value_and_grad(micro_loss, has_aux=True)(*weights, micro)
        return jax.tree.map(jnp.add, carry, (constrain_parameters(gradient), loss)), aux

    zero = (jax.tree.map(jnp.zeros_like, learned), jnp.float32(0))
    (gradient, loss), aux = jax.lax.scan(accumulate, zero, batch)
    updates, opt_state = optimizer.update(gradient, opt_state, learned)
    new = {"learned": optax.apply_updates(learned, updates), "opt_state": opt_state, "step": step + 1}
    new = constrain_parameters(new)
    sums = {name: value.sum() for name, value in aux["sums"].items()}
    metrics = {
        name: value / _count(sums, name, tokens) for name, value in sums.items() if not name.startswith("tokens")
    }
    metrics |= {
        "loss": loss,
        "gradient_norm": optax.tree.norm(gradient),
        "logprob_gap": aux["gap"].max(),
        "tokens": tokens,
    }
    return new, metrics


def _count(sums: dict, name: str, tokens: jax.Array) -> jax.Array:
    """How many tokens a sum of this name is over: those of its kind of turn, or all."""
    return jnp.maximum(sums.get(f"tokens/{name.rpartition('/')[2]}", tokens), 1)


def _score(graph, banned_V, forward, params, batch: Batch) -> jax.Array:
    """Log-probs [M, b, L] of a batch's tokens; used for the reference policy."""
    params = cast(params, forward.compute_dtype)
    logprobs = jax.lax.map(lambda micro: token_logprobs(graph, params, micro, banned_V, forward).logprob, batch)
    return constrain(logprobs, None, "batch")
