import itertools
import math

import numpy as np
import pytest

from mvg_jax.report import statistics
from mvg_jax.report.statistics import bootstrap, majority, paired_bootstrap, pass_at_k


def plain_bootstrap(values, resamples=20_000):
    """By drawing tasks one by one."""
    drawn = np.random.default_rng(1).integers(0, len(values), (resamples, len(values)))
    return np.quantile(np.asarray(values)[drawn].mean(axis=1), (0.025, 0.975))


@pytest.mark.parametrize(
    "values", [[1.0] * 30 + [0.0] * 10, [0.1, 0.5, 0.5, 0.9, 0.2, 0.3, 0.3, 0.8], list(np.arange(50.0) / 50)]
)
def test_intervals_are_those_of_drawing_tasks_one_by_one(values):
    found = bootstrap(values)
    assert found.mean == pytest.approx(np.mean(values))
    np.testing.assert_allclose((found.low, found.high), plain_bootstrap(values), atol=0.02)
    assert found.low < found.mean < found.high


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    inside = [
        low <= 0.3 <= high for _, low, high in (bootstrap(rng.random(100) < 0.3, resamples=1000) for _ in range(300))
    ]
    assert 0.90 <= np.mean(inside) <= 0.98


def test_intervals_are_repeatable_and_do_not_depend_on_the_order_of_tasks():
    values = np.random.default_rng(0).random(40)
    assert bootstrap(values, seed=3) == bootstrap(values[::-1], seed=3)
    assert bootstrap(values, seed=3) != bootstrap(values, seed=4)


def test_many_different_values_are_drawn_in_parts(monkeypatch):
    values = np.random.default_rng(0).random(40)
    whole = bootstrap(values)
    monkeypatch.setattr(statistics, "_CELLS", 100)
    assert bootstrap(values) == whole


def test_samples_of_a_task_are_drawn_together():
    """Ten equal samples of a task say no more than one."""
    values = np.random.default_rng(0).integers(0, 2, 30).astype(float)
    assert bootstrap(np.repeat(values[:, None], 10, axis=1)) == bootstrap(values)


def test_pairs_take_out_what_both_find_hard():
    rng = np.random.default_rng(0)
    hard = rng.random(200)
    a, b = (hard > 0.45).astype(float), (hard > 0.5).astype(float)
    found = paired_bootstrap(a, b)
    assert found.mean == pytest.approx(a.mean() - b.mean())
    assert found.low > 0
    alone = bootstrap(a).low - bootstrap(b).high
    assert alone < 0, "unpaired, the two could not be told apart"
    reverse = paired_bootstrap(b, a)
    assert reverse.mean == pytest.approx(-found.mean)
    assert paired_bootstrap(a, a) == (0, 0, 0)
    shuffled = paired_bootstrap(a, rng.permutation(b))
    assert shuffled.low < 0 < shuffled.high


@pytest.mark.parametrize("values", [[], [math.nan, 1.0], [[[1.0]]]])
def test_what_has_no_mean_is_refused(values):
    with pytest.raises(ValueError, match="finite values"):
        bootstrap(values)


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match="3 tasks beside 2"):
        paired_bootstrap([1, 0, 1], [1, 0])


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_share_of_choices_with_a_right_one(k):
    right = np.array(list(itertools.product([0, 1], repeat=5)))
    expected = [np.mean([any(row[list(c)]) for c in itertools.combinations(range(5), k)]) for row in right]
    np.testing.assert_allclose(pass_at_k(right, k), expected, atol=1e-12)


def test_pass_at_k_of_many_samples_is_finite_and_needs_enough_of_them():
    right = np.zeros((1, 2000))
    right[0, 0] = 1
    assert pass_at_k(right, 1000)[0] == pytest.approx(0.5)
    for k in (0, 2001):
        with pytest.raises(ValueError, match=f"pass@{k} of 2000 samples"):
            pass_at_k(right, k)


@pytest.mark.parametrize(
    ("votes", "winner"),
    [(["a", "b", "b"], 1), (["a", "b"], 0), ([None, None, "c"], 2), ([None], None), ([None, "b", "a", "a", "b"], 1)],
)
def test_the_majority_is_the_most_frequent_answer_and_of_equals_the_first(votes, winner):
    assert majority(votes) == winner
