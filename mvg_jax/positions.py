"""Rotary positions of a conversation's tokens: one rule for sampler, learner and ledger."""

from typing import Any

Array = Any  # of numpy or of jax: the ledger is on the host, the engine on the device


def token_positions(
    tokens_BxT: Array, count_B: Array, start_B: Array, image_token_id: int, grids_BxNx2: Array | None
) -> tuple[Array, Array]:
    """Positions of T tokens a row that go on at start_B, and the position after the first count_B of them [B].

    grids None: every token counts up by one; positions [B, T]. Else M-RoPE (Qwen2-VL, arXiv 2409.12191, 2.1): positions
    [B, T, 3] in time, height and width. A text token has three equal ones; the placeholders of an image lie on its grid,
    row by row; what follows it goes on after its longer side. grids_BxNx2: rows and columns of each row's images in
    order (the first axis may be 1), the last for all that follow.
    """
    xp = tokens_BxT.__array_namespace__()
    step_T = xp.arange(tokens_BxT.shape[1])[None]
    if grids_BxNx2 is None:
        return start_B[:, None] + step_T, start_B + count_B
    image_BxT = tokens_BxT == image_token_id
    place_BxT = xp.cumsum(image_BxT, axis=1) - 1  # among the row's placeholders
    grids = xp.broadcast_to(xp.asarray(grids_BxNx2), (len(tokens_BxT), *grids_BxNx2.shape[1:]))
    size_BxN = grids[..., 0] * grids[..., 1]
    end_BxN = xp.cumsum(size_BxN, axis=1)
    which_BxT = xp.minimum((place_BxT[..., None] >= end_BxN[:, None]).sum(axis=-1), grids.shape[1] - 1)
    of_image = lambda x_BxN: xp.take_along_axis(x_BxN, which_BxT, axis=1)
    size, rows, columns = of_image(size_BxN), of_image(grids[..., 0]), of_image(grids[..., 1])
    inside_BxT = (place_BxT - of_image(end_BxN - size_BxN)) % size
    advance = xp.where(image_BxT, xp.where(inside_BxT == size - 1, xp.maximum(rows, columns), 0), 1)
    before = start_B[:, None] + xp.cumsum(advance, axis=1) - advance
    down, right = (xp.where(image_BxT, x, 0) for x in (inside_BxT // columns, inside_BxT % columns))
    after = start_B + xp.where(step_T < count_B[:, None], advance, 0).sum(axis=1)
    return xp.stack([before, before + down, before + right], axis=-1), after
