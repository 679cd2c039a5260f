"""Packing: whole trajectories, prompt and suffix, laid behind one another into rows of one length, so that little is padding.

    row      | prompt a | turn | observation | turn | prompt b | turn | ... padding |
    first      0  0  0    0 ...                       21 21 21   21 ...               where a token's own trajectory begins
    targets               ^^^^                 ^^^^              ^^^^                  the tokens that carry a loss

Every token attends from the first of its trajectory to itself. Logits are made for the targets alone.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from mvg_jax.mesh import agree, local_shards, put_rows, shard_count
from mvg_jax.rollout.engine import bucket
from mvg_jax.trajectory import Trajectories

KINDS = ("call", "answer")  # what a turn of a demonstration is


class Packed(NamedTuple):
    """M microbatches of r rows of L tokens, K targets and N images each; n: packed views of a microbatch.

    target: places of the targets in their row, in order, 0 where mask is False (a row's first token is never one).
    kind: index in KINDS of what a target's turn is. view_index: as in `learner.Batch`.
    """

    tokens: jax.Array  # [M, r, L] int32
    positions: jax.Array  # [M, r, L] int32, or [M, r, L, 3] under M-RoPE
    first: jax.Array  # [M, r, L] int32
    target: jax.Array  # [M, r, K] int32
    mask: jax.Array  # [M, r, K] bool
    kind: jax.Array  # [M, r, K] int8
    views: jax.Array  # [M, n, H, W, 3] uint8
    view_index: jax.Array  # [M, r, N] int32


@dataclasses.dataclass(frozen=True)
class PackShapes:
    """microbatches: M. length: L. rows, targets: bucket tables of the rows of all microbatches and of K. images: N.
    view_batches: bucket table of n."""

    microbatches: int
    length: int
    rows: tuple[int, ...]
    targets: tuple[int, ...]
    images: int
    view_batches: tuple[int, ...]


def pack_shapes(microbatches: int, length: int, trajectories: int, tokens_per_image: int, views: int) -> PackShapes:
    """Tables that hold the worst case: no two of the `trajectories` (of all processes) share a row, each shows `views` views."""
    unit = microbatches * shard_count()
    eighths = {-(-trajectories * i // (8 * unit)) * unit for i in range(1, 9)}
    most = -(-trajectories // unit) * views * shard_count()
    sizes = {-(-most * i // (6 * shard_count())) * shard_count() for i in range(1, 7)}
    return PackShapes(
        microbatches,
        length,
        tuple(sorted(eighths)),
        tuple(sorted({-(-length * i // 8) for i in (1, 2, 3, 4, 8)})),
        max(length // tokens_per_image, 1),
        tuple(sorted(sizes)),
    )


def first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Rows of item indices, longest item first, each into the first row with room for it. ValueError for one longer than `room`."""
    rows: list[list[int]] = []
    left: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if lengths[i] > room:
            raise ValueError(f"a trajectory of {lengths[i]} tokens does not fit a packed row of {room}")
        row = next((r for r, space in enumerate(left) if space >= lengths[i]), None)
        if row is None:
            rows.append([])
            left.append(room)
            row = len(rows) - 1
        rows[row].append(i)
        left[row] -= lengths[i]
    return [sorted(row) for row in rows]


def pack(t: Trajectories, kind_BxL: np.ndarray, shapes: PackShapes) -> Packed:
    """Packs this process's ledger, each shard's rows for itself. kind_BxL int8: of the suffix tokens.

    ValueError for a trajectory longer than shapes.length, or more rows, targets or views than the tables hold.
    """
    S, M, B = local_shards(), shapes.microbatches, len(t.tokens_BxL)
    length_B = np.repeat(t.prompt_length_P, t.group_size) + t.length_B
    shares = [range(s * B // S, (s + 1) * B // S) for s in range(S)]
    packed = [[[share[i] for i in row] for row in first_fit(length_B[share], shapes.length)] for share in shares]
    marks = t.loss_mask_BxL.sum(axis=1)
    views_of = lambda b: [*_prompt_views(t, b), *t.views_BxNxSxSx3[b, : t.view_count_B[b]]]
    micro = [[rows[m::M] for m in range(M)] for rows in packed]  # of each shard
    images = [[[v for row in part for b in row for v in views_of(b)] for part in parts] for parts in micro]
    most_rows, most_targets, most_views = agree(
        max(len(part) for parts in micro for part in parts),
        max(int(marks[row].sum()) for rows in packed for row in rows),
        max(len(part) for parts in images for part in parts),
    )
    r = bucket(shapes.rows, most_rows * M * shard_count(), "packed rows") // (M * shard_count())
    K = bucket(shapes.targets, most_targets, "packed targets")
    n = bucket(shapes.view_batches, most_views * shard_count(), "packed views") // shard_count()
    L, axes = shapes.length, t.positions_BxL.shape[2:]
    batch = Packed(
        tokens=np.zeros((M, S, r, L), np.int32),
        positions=np.zeros((M, S, r, L, *axes), np.int32),
        first=np.broadcast_to(np.arange(L, dtype=np.int32), (M, S, r, L)).copy(),  # padding attends to itself
        target=np.zeros((M, S, r, K), np.int32),
        mask=np.zeros((M, S, r, K), bool),
        kind=np.zeros((M, S, r, K), np.int8),
        views=np.zeros((M, S, n, *t.views_BxNxSxSx3.shape[2:]), np.uint8),
        view_index=np.zeros((M, S, r, shapes.images), np.int32),
    )
    prompt_positions, row_positions = t.prompt_positions_PxL, t.positions_BxL
    for s, m in np.ndindex(S, M):
        shown = 0
        for place, row in enumerate(micro[s][m]):
            out = jax.tree.map(lambda x: x[m, s, place], batch._replace(views=batch.view_index))  # noqa: B023 - used here
            at, learnt, held = 0, 0, 0
            for b in row:
                p, own, ahead = b // t.group_size, int(t.length_B[b]), int(t.prompt_length_P[b // t.group_size])
                body, end = at + ahead, at + ahead + own
                out.tokens[at:body], out.tokens[body:end] = t.prompts_PxL[p, :ahead], t.tokens_BxL[b, :own]
                out.positions[at:body] = prompt_positions[p, :ahead]
                out.positions[body:end] = row_positions[b, :own]
                out.first[at:end] = at
                where = np.flatnonzero(t.loss_mask_BxL[b])
                some = slice(learnt, learnt + len(where))
                out.target[some], out.mask[some], out.kind[some] = body + where, True, kind_BxL[b, where]
                count = len(views_of(b))
                out.view_index[held : held + count] = shown + np.arange(count)
                at, learnt, held, shown = end, learnt + len(where), held + count, shown + count
        if images[s][m]:
            batch.views[m, s, : len(images[s][m])] = images[s][m]
    return put_rows(jax.tree.map(lambda x: x.reshape(M, -1, *x.shape[3:]), batch), axis=1)


def _prompt_views(t: Trajectories, b: int) -> np.ndarray:
    """The views of row b's prompt that have placeholders there."""
    p = b // t.group_size
    placeholders = (t.prompts_PxL[p, : t.prompt_length_P[p]] == t.image_token_id).sum()
    return t.prompt_views_PxNxSxSx3[p, : placeholders // t.tokens_per_image]
