import json

import pytest

from mvg_jax.errors import RunError
from mvg_jax.report import predictions
from mvg_jax.scoring import PROTOCOLS


def test_lines_come_back_as_they_were(made, tmp_path):
    rows = (
        made(
            calls=[("image_zoom_in_tool", None), ("\ud800 \u2028 x", "E2")],
            needs_tool=True,
            tool_choice=1.0,
            box_hit=0.5,
        ),
        made(answer=None, sample=1, stop="MAX_TOKENS", response="是\n", options=("Left", "Right"), language="zh"),
        made(protocols=("strict", "medevalkit"), id="rad/1"),
    )
    path = tmp_path / "deep" / predictions.FILE
    predictions.write(path, rows)
    assert predictions.read(path) == rows
    assert len(path.read_text().splitlines()) == 3


def test_a_line_says_all_that_scoring_needs(made):
    """Scored again from the line, by other protocols, without a model."""
    row = made(answer="No", gold="no", answer_type="yes_no", response="<think>abnormal</think><answer>No.</answer>")
    line = predictions.to_json(row)
    again = predictions.scored(predictions.from_json(line, "here"), ("strict", "medevalkit", "llava_med"))
    assert again.scores["strict"] == row.scores["strict"] == {"accuracy": 1.0}
    question = again.as_question()
    for name in ("medevalkit", "llava_med"):
        assert again.scores[name] == PROTOCOLS[name].score(question, row.response)
    assert again.correct == 1.0


def test_a_protocol_scores_only_what_it_was_published_for(made):
    assert set(made(protocols=("strict", "medevalkit", "mmmu")).scores) == {"strict", "medevalkit"}
    assert set(made(protocols=("strict", "medevalkit"), dataset="phantom").scores) == {"strict"}


def test_protocols_that_cannot_be_computed_are_refused():
    assert predictions.check_protocols([], ["phantom"]) == ("strict",)
    assert predictions.check_protocols(["mmmu", "strict", "mmmu"], ["slake", "mmmu"]) == ("strict", "mmmu")
    with pytest.raises(RunError, match=r"--protocol: there is no 'bleurt'; use strict, .*medevalkit"):
        predictions.check_protocols(["bleurt"], ["slake"])
    with pytest.raises(RunError, match="--protocol=medxpertqa was published for medxpertqa, not for slake, phantom"):
        predictions.check_protocols(["medxpertqa"], ["slake", "phantom"])


def test_a_question_that_cannot_be_scored_is_named(made):
    with pytest.raises(RunError, match=r"vqa_rad: question rad/0: strict: gold answer 'Left' is none"):
        made(options=("up", "down"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: [], "not a JSON object"),
        (lambda v: v | {"colour": 1}, "colour"),
        (lambda v: {k: v[k] for k in v if k != "gold"}, "gold is missing"),
        (lambda v: v | {"sample": "0"}, "sample must be int"),
        (lambda v: v | {"answer": 3}, "answer must be"),
        (lambda v: v | {"options": "ab"}, "options must be"),
        (lambda v: v | {"calls": [{"name": "x"}]}, "calls.error is missing"),
        (lambda v: v | {"scores": {"strict": 1.0}}, "scores.strict must be"),
        (lambda v: v | {"answer_type": "guess"}, "answer_type 'guess'"),
        (lambda v: v | {"answer": "Right"}, "twice"),
    ],
)
def test_a_file_that_is_not_right_is_refused_by_line_and_field(made, tmp_path, change, words):
    good = json.loads(predictions.to_json(made()))
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(change(good)) + "\n")
    with pytest.raises(RunError, match=rf"p\.jsonl:2.*{words}"):
        predictions.read(path)


@pytest.mark.parametrize(
    ("text", "words"), [("", "no predictions"), ("[" * 100_000, ":1: not a line of JSON"), ("{", ":1: not")]
)
def test_a_file_without_predictions_is_refused(tmp_path, text, words):
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(RunError, match=words):
        predictions.read(path)
    with pytest.raises(RunError, match="cannot read"):
        predictions.read(tmp_path / "none")
