"""What a model said to each question, one line of JSON a sample: enough to score it again without the model."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Sequence

from mvg_jax import config as configs
from mvg_jax.errors import RunError
from mvg_jax.metrics import write_atomically
from mvg_jax.scoring import PROTOCOLS
from mvg_jax.scoring.question import ANSWER_TYPES, Question

FILE = "predictions.jsonl"
STRICT = "strict"  # the headline, always computed


@dataclasses.dataclass(frozen=True)
class Called:
    """A call of a tool that the model made. error: E1..E4, or None. name: as the model wrote it; not trusted."""

    name: str
    error: str | None


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One sample of one task.

    benchmark, split: what the task was taken from. tools: which were on offer ("on" = all, "off", or one tool's name).
    prompt: the prompt's style. images: of the question. needs_tool, chance: see Task.
    response: text of the model's last turn; answer: the final answer in it, None if it ended without one; stop: name of a Stop.
    turns, malformed, tokens, views: turns taken, how many of them broke the wire format, tokens drawn, images that tools added.
    tool_choice, box_hit: see env.rewards.tool_statistics; None where undefined. scores: protocol -> metric -> value.
    """

    benchmark: str
    split: str
    tools: str
    prompt: str
    id: str
    sample: int
    dataset: str
    kind: str
    answer_type: str
    modality: str
    language: str
    question: str
    gold: str
    options: tuple[str, ...]
    accepted: tuple[str, ...]
    tolerance: float
    images: int
    needs_tool: bool | None
    chance: float
    response: str
    answer: str | None
    stop: str
    turns: int
    malformed: int
    tokens: int
    views: int
    calls: tuple[Called, ...]
    tool_choice: float | None
    box_hit: float | None
    scores: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

    @property
    def correct(self) -> float:
        """The strict score: 0 or 1."""
        return self.scores[STRICT]["accuracy"]

    def as_question(self) -> Question:
        """As a scorer sees it."""
        return Question(**{name: getattr(self, name) for name in Question._fields})


def covers(protocol: str, dataset: str) -> bool:
    """Whether the protocol was published for the data set."""
    datasets = PROTOCOLS[protocol].datasets
    return datasets is None or dataset in datasets


def check_protocols(names: Sequence[str], datasets: Iterable[str]) -> tuple[str, ...]:
    """The protocols to compute, strict first. RunError for one that is unknown or was published for none of the data sets."""
    datasets = tuple(dict.fromkeys(datasets))
    for name in names:
        if name not in PROTOCOLS:
            raise RunError(f"--protocol: there is no {name!r}; use {', '.join(PROTOCOLS)}")
        if not any(covers(name, dataset) for dataset in datasets):
            published = ", ".join(sorted(PROTOCOLS[name].datasets))
            raise RunError(f"--protocol={name} was published for {published}, not for {', '.join(datasets)}")
    return tuple(dict.fromkeys((STRICT, *names)))


def scores(
    question: Question, answer: str | None, response: str, protocols: Iterable[str]
) -> dict[str, dict[str, float]]:
    """The scores by those protocols that cover the question's data set. RunError names a question that cannot be scored."""
    found = {}
    for name in protocols:
        protocol = PROTOCOLS[name]
        if covers(name, question.dataset):
            try:
                found[name] = protocol.score(question, (answer or "") if protocol.text == "answer" else response)
            except ValueError as error:
                raise RunError(f"{question.dataset}: question {question.id}: {name}: {error}") from error
    return found


def scored(prediction: Prediction, protocols: Iterable[str]) -> Prediction:
    """The prediction with the scores of these protocols instead of those that it had; see `scores`."""
    given = scores(prediction.as_question(), prediction.answer, prediction.response, protocols)
    return dataclasses.replace(prediction, scores=given)


def to_json(prediction: Prediction) -> str:
    """One line."""
    return json.dumps(dataclasses.asdict(prediction), sort_keys=True, allow_nan=False)


def from_json(line: str, where: str) -> Prediction:
    """The inverse of to_json. RunError, beginning with `where`, names what is not as it should be."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{where}: not a line of JSON: {error}") from error
    if not isinstance(values, dict):
        raise RunError(f"{where}: not a JSON object")
    prediction = configs.from_dict(values, Prediction, where)
    if prediction.answer_type not in ANSWER_TYPES:
        raise RunError(f"{where}.answer_type {prediction.answer_type!r}: use one of {', '.join(ANSWER_TYPES)}")
    return prediction


def write(path: pathlib.Path, predictions: Iterable[Prediction]) -> None:
    """One line a prediction."""
    write_atomically(path, "".join(to_json(prediction) + "\n" for prediction in predictions))


def read(path: pathlib.Path) -> tuple[Prediction, ...]:
    """What `write` wrote. RunError names the line and field that are wrong, samples given twice, and a file without any."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"cannot read {path}: {error}") from error
    predictions, seen = [], set()
    for number, line in enumerate(lines, start=1):
        prediction = from_json(line, f"{path}:{number}")
        name = (prediction.benchmark, prediction.split, prediction.tools, prediction.id, prediction.sample)
        if name in seen:
            raise RunError(f"{path}:{number}: sample {prediction.sample} of task {prediction.id} is there twice")
        seen.add(name)
        predictions.append(prediction)
    if not predictions:
        raise RunError(f"{path} holds no predictions")
    return tuple(predictions)
