"""The typed numbers agree with the averages that stand beside them in their sources, and only equals stand beside each other."""

from collections import Counter

import pytest

from mvg_jax.scoring.published import PUBLISHED, UNSAID, Setting, beside

# The last column of block B, as published.
AVERAGES = {
    "GPT-4o": 63.74, "GPT-4o-mini": 58.24, "Qwen2.5-VL-7B": 53.50, "MedGemma-4B": 50.86, "LLaVA-Med-v1.5": 44.05,
    "HuatuoGPT-Vision-7B": 54.69, "MedVLThinker-7B": 54.88, "MedVLThinker-32B": 63.12, "MedVLSynther-7B": 58.15,
}  # fmt: skip
TEST = Setting("medxpertqa", "medevalkit", "test", "en", "lettered choices", 2000)


@pytest.mark.parametrize("model", AVERAGES)
def test_a_row_of_block_b_has_its_published_average(model):
    numbers = [row.number for row in PUBLISHED if row.block == "B" and row.model == model]
    assert sum(numbers) / 6 == pytest.approx(AVERAGES[model], abs=0.006)


def test_no_number_is_lost_or_given_twice():
    assert Counter(row.block for row in PUBLISHED) == {"A": 13 * 7 - 4, "B": 54, "C": 96, "D": 12, "E": 17, "M": 5}
    assert len({(row.block, row.model, row.setting) for row in PUBLISHED}) == len(PUBLISHED)
    assert all(5 < row.number < 100 for row in PUBLISHED)


def test_only_numbers_of_the_same_setting_stand_together():
    rows = beside(TEST)
    assert [row.model for row in rows[:3]] == ["GPT-5", "GPT-4.1", "GPT-4o"]
    assert len(rows) == 11
    assert {row.block for row in rows} == {"A"}
    for change in (
        {"benchmark": "slake"}, {"protocol": "strict"}, {"split": "dev"}, {"languages": "en+zh"}, {"form": "as asked"},
        {"items": 1999}, {"metric": "recall"},
    ):  # fmt: skip
        assert beside(TEST._replace(**change)) == ()


def test_what_is_not_said_equals_nothing():
    assert beside(TEST._replace(items=None)) == ()
    gym = [row.setting for row in PUBLISHED if row.block == "M"]
    assert all(UNSAID in setting for setting in gym)
    assert all(beside(setting) == () for setting in gym)
