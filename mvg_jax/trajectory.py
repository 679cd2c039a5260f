"""The ledger: what happened in a batch of multi-turn episodes, token by token. Everything else is derived from it.

A row's conversation is its group's prompt followed by its own suffix, which grows by whole pieces and is never edited:

    prompt (shared by the group)      | model turn       | observation             | model turn    |
    <|im_start|>system … assistant\\n | <think>…<|im_end|>| \\n<|im_start|>user … \\n | <think>…<|im_end|>|
    origin    -  -  -  -  -  -  -     | M  M  M  M  M    | E  E  E  E  E  E  E     | M  M  M  M    |
    loss      0  0  0  0  0  0  0     | 1  1  1  1  1    | 0  0  0  0  0  0  0     | 1  1  1  1    |
    log-prob                          | behaviour policy | 0                       | behaviour …   |

Image placeholders stand in prompts and observations only; the j-th image of a row fills its j-th span of E placeholders.
"""

import dataclasses

import numpy as np

from mvg_jax.positions import token_positions

PAD, MODEL, ENVIRONMENT = 0, 1, 2


class LedgerError(ValueError):
    """A ledger that contradicts itself: always a programming error, never the model's doing."""


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """P prompts with G = B/P rows each; row b belongs to prompt b // G. All arrays are host numpy.

    prompts_PxL int32, prompt_length_P int32, prompt_views_PxNxSxSx3 uint8: what the group shares.
    tokens_BxL int32, origin_BxL int8 (PAD | MODEL | ENVIRONMENT), turn_BxL int8, logprob_BxL float32 (0 but for MODEL),
    length_B int32, views_BxNxSxSx3 uint8, view_count_B int32: each row's suffix and the views in it.
    position_grids: of a model with M-RoPE, the grid of its views [1, 1, 2]; see `token_positions`.
    """

    image_token_id: int
    tokens_per_image: int
    prompts_PxL: np.ndarray
    prompt_length_P: np.ndarray
    prompt_views_PxNxSxSx3: np.ndarray
    tokens_BxL: np.ndarray
    origin_BxL: np.ndarray
    turn_BxL: np.ndarray
    logprob_BxL: np.ndarray
    length_B: np.ndarray
    views_BxNxSxSx3: np.ndarray
    view_count_B: np.ndarray
    position_grids: np.ndarray | None = None

    def __post_init__(self):
        P, B, L = len(self.prompts_PxL), *self.tokens_BxL.shape
        _require(P > 0 and B % P == 0, f"{B} rows cannot be shared among {P} prompts")
        inside_BxL = np.arange(L)[None] < self.length_B[:, None]
        _require(
            ((self.origin_BxL != PAD) == inside_BxL).all(), "origin must name every token of a row and nothing after it"
        )
        image_BxL = (self.tokens_BxL == self.image_token_id) & inside_BxL
        _require(not (image_BxL & (self.origin_BxL == MODEL)).any(), "an image placeholder of model origin")
        _require(
            (self.logprob_BxL[self.origin_BxL != MODEL] == 0).all(), "a log-prob on a token the model did not draw"
        )
        _require(
            np.isfinite(self.logprob_BxL).all() and (self.logprob_BxL <= 0).all(), "a log-prob above 0 or not finite"
        )
        _check_spans(image_BxL, self.view_count_B, self.tokens_per_image)
        _require((self.view_count_B <= self.views_BxNxSxSx3.shape[1]).all(), "a row with more image spans than images")
        inside_PxL = np.arange(self.prompts_PxL.shape[1])[None] < self.prompt_length_P[:, None]
        image_PxL = (self.prompts_PxL == self.image_token_id) & inside_PxL
        _check_spans(image_PxL, image_PxL.sum(1) // self.tokens_per_image, self.tokens_per_image)
        _require(
            (image_PxL.sum(1) <= self.prompt_views_PxNxSxSx3.shape[1] * self.tokens_per_image).all(),
            "a prompt with more image spans than images",
        )

    @property
    def group_size(self) -> int:
        """G: rows a prompt."""
        return len(self.tokens_BxL) // len(self.prompts_PxL)

    @property
    def loss_mask_BxL(self) -> np.ndarray:
        """True on the tokens the model drew: the only ones that carry a gradient."""
        return self.origin_BxL == MODEL

    @property
    def prompt_positions_PxL(self) -> np.ndarray:
        """Rotary positions [P, L] or [P, L, 3] of the prompts' tokens."""
        return self._prompt_positions()[0].astype(np.int32)

    def _prompt_positions(self) -> tuple[np.ndarray, np.ndarray]:
        """Those, and the position after each prompt [P]."""
        rule = self.image_token_id, self.position_grids
        return token_positions(self.prompts_PxL, self.prompt_length_P, np.zeros_like(self.prompt_length_P), *rule)

    @property
    def positions_BxL(self) -> np.ndarray:
        """Rotary positions [B, L] or [B, L, 3] of the suffix tokens: they go on where the row's own prompt ends."""
        rule = self.image_token_id, self.position_grids
        start_B = np.repeat(self._prompt_positions()[1], self.group_size)
        return token_positions(self.tokens_BxL, self.length_B, start_B, *rule)[0].astype(np.int32)

    @property
    def image_slot_BxL(self) -> np.ndarray:
        """Index of the row's view that a placeholder belongs to; -1 elsewhere."""
        image_BxL = (self.tokens_BxL == self.image_token_id) & (self.origin_BxL == ENVIRONMENT)
        return np.where(image_BxL, (np.cumsum(image_BxL, axis=1) - 1) // self.tokens_per_image, -1)

    def picture(self, row: int) -> str:
        """One character a token: M model, E environment, I image placeholder. For tests and eyes."""
        letters = np.where(self.image_slot_BxL[row] >= 0, "I", np.where(self.loss_mask_BxL[row], "M", "E"))
        return "".join(letters[: self.length_B[row]])


def _require(true: bool, what: str) -> None:
    if not true:
        raise LedgerError(what)


def _check_spans(image_BxL: np.ndarray, count_B: np.ndarray, E: int) -> None:
    """Every run of placeholders is a whole number of spans of E tokens, and a row has as many spans as images."""
    _require((image_BxL.sum(1) == count_B * E).all(), "image spans and images differ in number")
    edges = np.diff(np.pad(image_BxL.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    starts, ends = np.argwhere(edges == 1), np.argwhere(edges == -1)
    _require(((ends[:, 1] - starts[:, 1]) % E == 0).all(), "a partial image span")


class Ledger:
    """Builds Trajectories by appending whole pieces to rows; the only way a suffix grows.

    length: tokens of a suffix at most. views: (views of a row at most, height, width, 3).
    """

    def __init__(
        self,
        prompts_PxL: np.ndarray,
        prompt_length_P: np.ndarray,
        rows: int,
        length: int,
        views: tuple[int, ...],
        image_token_id: int,
        tokens_per_image: int,
        position_grids: np.ndarray | None = None,
    ):
        self._prompts = (prompts_PxL, prompt_length_P)
        self._image_token_id, self._tokens_per_image = image_token_id, tokens_per_image
        self._position_grids = position_grids
        self._tokens = np.zeros((rows, length), np.int32)
        self._origin = np.zeros((rows, length), np.int8)
        self._turn = np.zeros((rows, length), np.int8)
        self._logprob = np.zeros((rows, length), np.float32)
        self._views = np.zeros((rows, *views), np.uint8)
        self.length_B = np.zeros(rows, np.int32)
        self.view_count_B = np.zeros(rows, np.int32)

    def append(
        self,
        row_n: np.ndarray,
        tokens_nxT: np.ndarray,
        count_n: np.ndarray,
        origin: int,
        turn_n: np.ndarray,
        logprob_nxT: np.ndarray | None = None,
    ) -> None:
        """Appends the first count_n tokens to each of these rows, all different."""
        T = tokens_nxT.shape[1]
        if (self.length_B[row_n] + count_n > self._tokens.shape[1]).any():
            raise LedgerError(f"a row outgrows the ledger's {self._tokens.shape[1]} tokens")
        which, step = np.nonzero(np.arange(T)[None] < count_n[:, None])
        row, place = row_n[which], self.length_B[row_n][which] + step
        self._tokens[row, place] = tokens_nxT[which, step]
        self._origin[row, place] = origin
        self._turn[row, place] = turn_n[which]
        if logprob_nxT is not None:
            self._logprob[row, place] = logprob_nxT[which, step]
        self.length_B[row_n] += count_n

    def append_views(self, row_n: np.ndarray, views_nxRxSxSx3: np.ndarray, count_n: np.ndarray) -> None:
        """Appends the first count_n views to each of these rows."""
        if (self.view_count_B[row_n] + count_n > self._views.shape[1]).any():
            raise LedgerError(f"a row outgrows the ledger's {self._views.shape[1]} views")
        which, slot = np.nonzero(np.arange(views_nxRxSxSx3.shape[1])[None] < count_n[:, None])
        self._views[row_n[which], self.view_count_B[row_n][which] + slot] = views_nxRxSxSx3[which, slot]
        self.view_count_B[row_n] += count_n

    def close(self, prompt_views_PxNxSxSx3: np.ndarray) -> Trajectories:
        """The finished, checked ledger."""
        return Trajectories(
            self._image_token_id,
            self._tokens_per_image,
            *self._prompts,
            prompt_views_PxNxSxSx3,
            self._tokens,
            self._origin,
            self._turn,
            self._logprob,
            self.length_B,
            self._views,
            self.view_count_B,
            self._position_grids,
        )
