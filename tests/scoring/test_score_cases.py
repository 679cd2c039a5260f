"""scripts/score_cases.py: the reference cases, and every way a file can be bad."""

import json
import pathlib

import pytest
import score_cases

CASES = pathlib.Path(__file__).parent / "scoring_cases.jsonl"
CASE = {
    "dataset": "VQA-RAD",
    "question_type": "closed_yesno",
    "prediction": "Yes",
    "gold": "yes",
    "options": None,
    "expected_score": 1.0,
    "evaluator": "medevalkit",
    "metric": "accuracy",
    "note": "a note",
    "stochastic": False,
}


@pytest.fixture
def run(tmp_path, capsys):
    def write_and_run(*cases):
        path = tmp_path / "cases.jsonl"
        path.write_text("\n".join(case if isinstance(case, str) else json.dumps(case) for case in cases))
        code = score_cases.main(str(path))
        return code, *capsys.readouterr()

    return write_and_run


def test_every_reference_case_is_met(capsys):
    assert score_cases.main(str(CASES)) == 0
    assert capsys.readouterr().out == "169 cases, 0 mismatches, 0 lines that cannot be run\n"


def test_a_reference_case_is_missed_if_another_score_is_expected(run):
    cases = [json.loads(line) for line in CASES.read_text().splitlines()]
    for case in cases:
        if case["expected_score"] is None:
            case |= {"stochastic": False, "raises": False}
        case["expected_score"] = 0.25
    code, out, err = run(*cases)
    assert code == 1
    assert not err
    assert {line.split(":")[1] for line in out.splitlines()[:-1]} == {str(i + 1) for i in range(len(cases))}


def test_a_mismatch_names_line_score_and_note(run):
    code, out, err = run(CASE, "", CASE | {"expected_score": 0.0})
    assert code == 1
    assert not err
    mismatch, summary = out.splitlines()
    assert ":3: expected 0, got 1" in mismatch
    assert "a note" in mismatch
    assert summary == "2 cases, 1 mismatches, 0 lines that cannot be run"


@pytest.mark.parametrize(
    "evaluator", ["strict", "MedEvalKit", "lmms_eval", "vlmevalkit", "VLMEvalKit(exact_matching)", "llava-med", "mmmu"]
)
def test_evaluators_by_any_spelling(run, evaluator):
    mcq = {"question_type": "multiple-choice", "prediction": "A", "gold": "A", "options": ["x", "y"], "dataset": "MMMU"}
    case = CASE | ({"dataset": "SLAKE"} if evaluator == "lmms_eval" else {})
    assert run(case | {"evaluator": evaluator} | (mcq if evaluator[0] in "vVm" else {}))[0] == 0


@pytest.mark.parametrize(
    "metric", ["reported_f1(=true recall, bug)", "F1", "em", "bleu-1", "BLEU4", "rouge-1", "rougeL", "recall"]
)
def test_metrics_by_any_spelling(run, metric):
    case = {"question_type": "open", "prediction": "a b c d", "gold": "a b c d", "metric": metric}
    assert run(CASE | case)[0] == 0


def test_strict_reads_the_answer_in_its_tags(run):
    assert run(CASE | {"evaluator": "strict", "prediction": "<think>no</think><answer>Yes</answer>"})[0] == 0


BAD = {
    "not JSON": ("{", "Expecting"),
    "nested": ("[" * 100_000, "nested too deeply"),
    "a list": ("[]", "not a JSON object"),
    "evaluator": (CASE | {"evaluator": "gpt-4"}, "evaluator 'gpt-4'"),
    "no evaluator": ({k: v for k, v in CASE.items() if k != "evaluator"}, "evaluator is None"),
    "metric": (CASE | {"metric": "cider"}, "metric 'cider'"),
    "metric of other questions": (CASE | {"metric": "bleu1"}, "metric 'bleu1'"),
    "dataset": (CASE | {"dataset": "ImageNet"}, "dataset 'ImageNet'"),
    "question type": (CASE | {"question_type": "essay"}, "question_type 'essay'"),
    "prediction": (CASE | {"prediction": None}, "prediction is None"),
    "no gold": (CASE | {"gold": None}, "gold: [None]"),
    "gold of lists": (CASE | {"gold": [["a"]]}, "gold: [['a']]"),
    "options": (CASE | {"options": "A"}, "options: 'A'"),
    "letters": (CASE | {"options": {"A": "x", "C": "y"}}, "letters ['A', 'C']"),
    "choice without options": (CASE | {"question_type": "mcq", "dataset": "MMMU"}, "has 0 options"),
    "expected text": (CASE | {"expected_score": "1"}, "expected_score is '1'"),
    "expected NaN": (CASE | {"expected_score": float("nan")}, "expected_score is nan"),
    "expected nothing": (CASE | {"expected_score": None}, "expected_score is None"),
    "flag": (CASE | {"stochastic": "no"}, "stochastic is 'no'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_line_that_cannot_be_run_is_one_clear_line(run, name):
    line, message = BAD[name]
    code, out, err = run(CASE, line)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert ":2: cannot be run: " in err
    assert message in err
    assert out == "2 cases, 0 mismatches, 1 lines that cannot be run\n"


@pytest.mark.parametrize("flag", ["stochastic", "raises"])
def test_a_draw_and_an_error_must_be_told(run, flag):
    assert "expected " in run(CASE | {flag: True})[1]
    drawn = CASE | {"evaluator": "mmmu", "question_type": "mcq", "prediction": "b", "gold": "B", "options": ["x", "y"]}
    raised = CASE | {"question_type": "open", "prediction": "", "gold": "lung", "metric": "exact_match"}
    case = drawn if flag == "stochastic" else raised
    assert run(case | {flag: True, "expected_score": None})[0] == 0
    assert run(case | {"expected_score": 0.0})[0] == 1


def test_no_file_and_no_case_are_errors(run, capsys):
    assert score_cases.main("no/such/file.jsonl") == 1
    assert "no/such/file.jsonl" in capsys.readouterr().err
    assert run("")[0] == 1
