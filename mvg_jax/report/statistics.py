"""Figures of repeated samples, and how sure they are: pass@k, majority votes, bootstrap intervals. Numpy only."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
_CELLS = 2**20  # counts drawn at a time


class Interval(NamedTuple):
    """A mean and its bootstrap percentile interval."""

    mean: float
    low: float
    high: float


def bootstrap(
    values: np.ndarray | Sequence, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """The mean of values [T] or [T, S] and its percentile interval (Efron 1979), tasks drawn with replacement.

    What belongs to one task (its S samples, or its results under S seeds of training) is drawn together. A mean over resampled tasks
    depends only on how often each distinct value comes, so the counts are drawn at once, from their multinomial distribution:
    10,000 resamples of 30,000 right or wrong answers cost 10,000 binomial draws. Few tasks, or tasks that are all right, give an
    interval that is too narrow (of equal values: none at all). ValueError on no values, or values not finite.
    """
    values = np.asarray(values, np.float64)
    if not values.size or values.ndim not in (1, 2) or not np.isfinite(values).all():
        raise ValueError(f"a bootstrap needs finite values [T] or [T, S], got shape {values.shape}")
    values_T = values if values.ndim == 1 else values.mean(axis=1)
    distinct, counts = np.unique(values_T, return_counts=True)
    rng, T, at_once = np.random.default_rng(seed), len(values_T), max(1, _CELLS // len(distinct))
    means = np.empty(resamples)
    for start in range(0, resamples, at_once):
        part = means[start : start + at_once]
        drawn = rng.multinomial(T, counts / T, size=len(part))
        # A sum of products, not a matmul: the result must not depend on how a BLAS splits its work.
        part[:] = (drawn * distinct).sum(axis=1) / T
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return Interval(float((counts * distinct).sum() / T), float(low), float(high))


def paired_bootstrap(
    a: np.ndarray | Sequence,
    b: np.ndarray | Sequence,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """mean(a) - mean(b) and its interval, where a[t] and b[t] ([T] or [T, S]) are two systems' results on one task t.

    Tasks are drawn as pairs, so that what makes a task hard for both cancels. An interval that excludes 0 is a difference.
    ValueError unless a and b speak of equally many tasks.
    """
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    if len(a) != len(b):
        raise ValueError(f"pairs are needed: {len(a)} tasks beside {len(b)}")
    a_T, b_T = (x if x.ndim == 1 else x.mean(axis=1) for x in (a, b))
    return bootstrap(a_T - b_T, seed=seed, resamples=resamples, level=level)


def pass_at_k(right_TxS: np.ndarray, k: int) -> np.ndarray:
    """Chance that at least one of k samples is right, [T], without bias: 1 - C(S - c, k) / C(S, k) for c right ones of S.

    Chen et al. 2021, eq. 1 (arXiv 2107.03374), as their product, which does not overflow. ValueError unless 1 <= k <= S.
    """
    right_TxS = np.asarray(right_TxS, bool)
    S = right_TxS.shape[1]
    if not 1 <= k <= S:
        raise ValueError(f"pass@{k} of {S} samples")
    wrong_T = S - right_TxS.sum(axis=1)
    # C(n - c, k) / C(n, k) = prod over i in n-c+1 .. n of (1 - k / i)
    i = np.arange(1, S + 1)
    factors = np.where(i[None] > wrong_T[:, None], np.clip(1 - k / i, 0, 1), 1.0)
    return np.where(wrong_T < k, 1.0, 1 - factors.prod(axis=1))


def majority(votes: Sequence[Hashable | None]) -> int | None:
    """The first sample that gave the most frequent answer; of equally frequent ones the first given. None has no vote.

    None when nobody voted.
    """
    counts = Counter(vote for vote in votes if vote is not None)
    return votes.index(counts.most_common(1)[0][0]) if counts else None
