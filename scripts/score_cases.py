"""Run a file of scoring cases against our scorers: python scripts/score_cases.py FILE.jsonl

One JSON object a line: dataset, question_type, prediction, gold (a text, or a list of accepted ones), options (null, a
list, or a dict of letter to text; {"0": [...]} are the candidates of an open question), evaluator, metric, note, and
expected_score, or null where the published rule draws at random (stochastic) or raises an error (raises).
Prints every mismatch and a summary. Exits with 1 if there is a mismatch or a line that cannot be run.
"""

import json
import math
import re
import sys
from collections.abc import Iterator
from typing import Any

from mvg_jax.scoring import PROTOCOLS
from mvg_jax.scoring.medevalkit import tagged
from mvg_jax.scoring.question import BOX, CHOICE, CLOSED, DRAWN, LIST, NUMBER, OPEN, RAISED, YES_NO, Question

# Expected scores are rounded to six digits.
ROUNDING = 1e-6

_EVALUATORS = {
    "strict": "strict",
    "medevalkit": "medevalkit",
    "lmmseval": "lmms_eval",
    "lmms": "lmms_eval",
    "lmmsslake": "lmms_eval",
    "mmmu": "mmmu",
    "mmmuofficial": "mmmu",
    "vlmeval": "vlmevalkit",
    "vlmevalmcq": "vlmevalkit",
    "vlmevalkit": "vlmevalkit",
    "llavamed": "llava_med",
    "medxpertqa": "medxpertqa",
    "medxpertqaofficial": "medxpertqa",
    "medvlthinker": "medvlthinker",
    "medvlsynther": "medvlthinker",
    "closedmcq": "medvlthinker",
}
_DATASETS = {
    "vqarad": "vqa_rad",
    "rad": "vqa_rad",
    "slake": "slake",
    "pathvqa": "path_vqa",
    "pmcvqa": "pmc_vqa",
    "mmmu": "mmmu",
    "medxpertqa": "medxpertqa",
    "omni": "omnimedvqa",
    "phantom": "phantom",
}
_TYPES = {
    "closedyesno": YES_NO,
    "yesno": YES_NO,
    "closed": CLOSED,
    "open": OPEN,
    "openended": OPEN,
    "shortanswer": OPEN,
    "multiplechoice": CHOICE,
    "mcq": CHOICE,
    "choice": CHOICE,
    "number": NUMBER,
    "list": LIST,
    "box": BOX,
}
_METRICS = {
    "acc": "accuracy",
    "hit": "accuracy",
    "score": "accuracy",
    "em": "exact_match",
    "exactmatch": "exact_match",
    "openaccuracy": "open_accuracy",
    "openacc": "open_accuracy",
    "closedaccuracy": "closed_accuracy",
    "closeaccuracy": "closed_accuracy",
    "closedacc": "closed_accuracy",
    "yesnoaccuracy": "closed_accuracy",
    "slakeaccuracy": "accuracy",
    "slakeopenaccuracy": "open_accuracy",
    "slakeclosedaccuracy": "closed_accuracy",
    "mmmuacc": "accuracy",
    "bleuscore": "bleu",
    "bleuscore1": "bleu1",
    "bleuscore2": "bleu2",
    "bleuscore3": "bleu3",
    "f1score": "f1",
}


def main(path: str) -> int:
    try:
        with open(path, encoding="utf-8") as file:
            cases = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        print(f"{path}: {e}", file=sys.stderr)
        return 1
    mismatches = unusable = 0
    for number, line in cases:
        try:
            for mismatch in run_case(line):
                mismatches += 1
                print(f"{path}:{number}: {mismatch}")
        except ValueError as e:
            unusable += 1
            print(f"{path}:{number}: cannot be run: {e}", file=sys.stderr)
    print(f"{len(cases)} cases, {mismatches} mismatches, {unusable} lines that cannot be run")
    return int(not cases or mismatches > 0 or unusable > 0)


def run_case(line: str) -> Iterator[str]:
    """What does not match, in words. ValueError for a line that cannot be run."""
    try:
        case = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(case, dict):
        raise ValueError("not a JSON object")
    protocol = PROTOCOLS[_named(case, "evaluator", _EVALUATORS)]
    metric = _metric(_text(case, "metric"))
    expected = _expected(case)
    question = _question(case)
    prediction = _text(case, "prediction")
    scores = protocol.score(question, tagged(prediction, "answer") if protocol.text == "answer" else prediction)
    flags = {DRAWN: case.get("stochastic", False), RAISED: case.get("raises", False)}
    context = f"{protocol.name} {metric} of {case['prediction']!r}, gold {case['gold']!r} ({case.get('note', '')})"
    for flag, wanted in flags.items():
        if bool(scores.get(flag, 0.0)) != wanted:
            yield f"expected {'' if wanted else 'not '}{flag}, got {scores}: {context}"
    if expected is None:
        return
    if metric not in scores:
        raise ValueError(f"metric {case['metric']!r}: {protocol.name} gives {', '.join(scores)} here")
    if not math.isclose(scores[metric], expected, rel_tol=0.0, abs_tol=ROUNDING):
        yield f"expected {expected:g}, got {scores[metric]:g}: {context}"


def _question(case: dict[str, Any]) -> Question:
    """The question itself is not in the file; a drawn letter is seeded by what is."""
    golds = _texts("gold", case["gold"] if isinstance(case.get("gold"), list) else [case.get("gold")])
    dataset, options = _dataset(_text(case, "dataset")), _options(case)
    lettered = isinstance(case.get("options"), dict) and "0" not in case["options"]
    answer_type = CHOICE if lettered else _named(case, "question_type", _TYPES)
    return Question(dataset, answer_type, "", "", golds[0], options, golds[1:], id=_text(case, "prediction"))


def _dataset(text: str) -> str:
    """The first data set that the text names; texts such as "VQA-RAD/SLAKE/PathVQA closed" name several alike."""
    for name in re.split(r"[/,\s]", text):
        for start, dataset in _DATASETS.items():
            if _key(name).startswith(start):
                return dataset
    raise ValueError(f"dataset {text!r}; known are {', '.join(_DATASETS)}")


def _options(case: dict[str, Any]) -> tuple[str, ...]:
    options = case.get("options")
    if isinstance(options, dict) and list(options) == ["0"]:
        options = options["0"]
    if isinstance(options, dict):
        letters = [chr(ord("A") + i) for i in range(len(options))]
        if sorted(options) != letters:
            raise ValueError(f"options have the letters {sorted(options)}, not {letters}")
        options = [options[letter] for letter in letters]
    return () if options is None else _texts("options", options)


def _texts(field: str, values: Any) -> tuple[str, ...]:
    """Numbers count as their texts."""
    if not isinstance(values, list) or not values or any(type(x) not in (str, int, float) for x in values):
        raise ValueError(f"{field}: {values!r} are not texts")
    return tuple(map(str, values))


def _expected(case: dict[str, Any]) -> float | None:
    expected = case.get("expected_score", "missing")
    for flag in ("stochastic", "raises"):
        if not isinstance(case.get(flag, False), bool):
            raise ValueError(f"{flag} is {case[flag]!r}, neither true nor false")
    undecided = case.get("stochastic", False) or case.get("raises", False)
    if expected is None and undecided:
        return None
    if isinstance(expected, bool) or not isinstance(expected, int | float) or not math.isfinite(expected):
        raise ValueError(f"expected_score is {expected!r}, not a number")
    return float(expected)


def _metric(text: str) -> str:
    """reported_f1(=true recall, bug) -> f1: what is said of a name in brackets does not count."""
    name = _key(re.sub(r"\(.*", "", text)).removeprefix("reported")
    return _METRICS.get(name, name)


def _named(case: dict[str, Any], field: str, names: dict[str, str]) -> str:
    """The name in a field, whatever its case and signs; brackets after it do not count."""
    key = _key(re.sub(r"\(.*", "", _text(case, field)))
    if key not in names:
        raise ValueError(f"{field} {case[field]!r}; known are {', '.join(names)}")
    return names[key]


def _text(case: dict[str, Any], field: str) -> str:
    value = case.get(field)
    if not isinstance(value, str):
        raise ValueError(f"{field} is {value!r}, not a text")
    return value


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
