"""No scripted cheat earns what honest play earns; and the audit would notice if one did."""

import pytest

from mvg_jax.env import rewards
from mvg_jax.env.audit import CHEATS, audit, honest, winners
from mvg_jax.env.episode import Limits
from mvg_jax.env.protocol import Malformed, parse_turn

LIMITS = Limits(max_turns=3, max_images=4, max_errors=3)
DEFAULT = {"accuracy": 1.0, "format": 0.1, "needless_call": -0.1}


@pytest.fixture
def tasks(tiny):
    """Every option is the answer equally often; yes/no and open questions too; half of them need no tool."""
    rows = []
    for chain in ((), (tiny.zoom(380, 380, 520, 520),)):
        for gold in ("homogeneous", "calcified", "septated"):
            rows.append(tiny.task(len(rows), answer=gold, chain=chain))
        for gold in ("yes", "no"):
            rows.append(
                tiny.task(len(rows), question="Is it abnormal?", answer=gold, options=("yes", "no"), chain=chain)
            )
            rows.append(tiny.task(len(rows), question="Is it abnormal?", answer=gold, options=(), chain=chain))
        rows.append(tiny.task(len(rows), question="What is it?", answer="left kidney", options=(), chain=chain))
    return rows


def test_cheats_lose_on_the_default_weights(tasks, protocol):
    table = audit(tasks, DEFAULT, protocol, LIMITS)
    assert [row.name for row in table] == ["honest", *CHEATS]
    assert table[0].reward == pytest.approx(1.1)
    assert winners(table) == []
    # None comes near: the best there is, is a lucky guess.
    assert min(row.margin for row in table[1:]) > 0.4
    by_name = {row.name: row for row in table}
    assert by_name["tool spam"].reward <= 0
    assert by_name["tool spam"].calls == 3
    for name in ("empty answer", "special tokens", "no think", "long answer", "two answers", "call and answer"):
        assert by_name[name].reward == 0, "it is not even a turn"
    for name in ("all options", "echo the observation", "normal", "yes and no", "repeat the question"):
        assert by_name[name].terms["accuracy"] == 0
    assert by_name["whole image, then guess"].reward < by_name["guess"].reward


def test_the_audit_notices_a_reward_that_pays_for_nothing(tasks, protocol):
    table = audit(tasks, {"format": 0.1, "needless_call": -0.1}, protocol, LIMITS)
    assert "guess" in winners(table)


def test_the_audit_notices_a_lenient_scorer(tasks, protocol, monkeypatch):
    lenient = {**rewards.TERMS, "accuracy": lambda facts: float(facts.task.answer in (facts.answer or ""))}
    monkeypatch.setattr(rewards, "TERMS", lenient)
    table = audit(tasks, {"accuracy": 1.0}, protocol, LIMITS)
    by_name = {row.name: row for row in table}
    assert by_name["all options"].reward > by_name["guess"].reward


def test_honest_play_follows_the_chain(tiny):
    task = tiny.task()
    assert parse_turn(honest(task, 0, "")).action == task.chain[0]
    assert parse_turn(honest(task, 1, "")).action == "calcified"
    assert parse_turn(honest(tiny.task(chain=None), 0, "")).action == "calcified"


def test_cheats_are_what_they_say(tiny):
    task = tiny.task()
    assert isinstance(parse_turn(CHEATS["long answer"](task, 0, "")), Malformed)
    assert len(CHEATS["long answer"](task, 0, "")) > 5000
    assert parse_turn(CHEATS["all options"](task, 0, "")).action == "homogeneous, calcified, septated"
    assert parse_turn(CHEATS["echo the observation"](task, 1, "Zoomed view.")).action == "Zoomed view."
    assert parse_turn(CHEATS["two calls, then guess"](task, 2, "")).action == "homogeneous"
