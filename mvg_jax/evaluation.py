"""Held-out evaluation: tasks played through the training environment and engine, and what came of each."""

import dataclasses
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import tqdm
from flax import nnx

from mvg_jax.data.catalog import EMBEDDED, choose
from mvg_jax.data.images import BadImage
from mvg_jax.data.records import DataSet
from mvg_jax.data.task import Task, Turn, question_of
from mvg_jax.env.episode import Episodes, Stop
from mvg_jax.env.protocol import Malformed, Protocol
from mvg_jax.env.rewards import row_facts, tool_statistics
from mvg_jax.errors import RunError
from mvg_jax.experiment import Experiment
from mvg_jax.mesh import agree, gather_texts, shard_count
from mvg_jax.report import predictions as reports
from mvg_jax.report.predictions import STRICT, Called, Prediction
from mvg_jax.rollout.engine import Engine
from mvg_jax.rollout.policies import GuidedPolicy, SampledPolicy, ScriptedPolicy
from mvg_jax.rollout.scheduler import Phases, World, rollout
from mvg_jax.tools import Registry
from mvg_jax.trajectory import Trajectories

TOOLS_ON, TOOLS_OFF = "on", "off"


@dataclasses.dataclass(frozen=True)
class Results:
    """One entry a task. correct, called: bool. choice, box: tool_choice and box_hit (NaN where undefined). stop: Stop."""

    kinds: np.ndarray
    needed: np.ndarray
    chance: np.ndarray
    correct: np.ndarray
    called: np.ndarray
    choice: np.ndarray
    box: np.ndarray
    stop: np.ndarray
    tokens: np.ndarray
    views: np.ndarray

    @classmethod
    def of(cls, predictions: Sequence[Prediction]) -> "Results":
        """The figures of predictions, in their order."""
        number = lambda value: math.nan if value is None else value
        columns = {
            "kinds": [p.kind for p in predictions],
            "needed": [p.needs_tool is True for p in predictions],
            "chance": [p.chance for p in predictions],
            "correct": [p.correct > 0 for p in predictions],
            "called": [len(p.calls) > 0 for p in predictions],
            "stop": [Stop[p.stop] for p in predictions],
            "tokens": [p.tokens for p in predictions],
            "views": [p.views for p in predictions],
        }
        choice = np.array([number(p.tool_choice) for p in predictions], np.float32)
        box = np.array([number(p.box_hit) for p in predictions], np.float32)
        return cls(**{name: np.array(column) for name, column in columns.items()}, choice=choice, box=box)

    def accuracy(self, rows: np.ndarray | None = None) -> float:
        """Share of right answers, of all or of the given rows."""
        return float(np.mean(self.correct if rows is None else self.correct[rows]))

    def summary(self) -> dict[str, float | None]:
        """The figures a run reports; None where no task says anything about one."""
        figures = {
            "accuracy": self.accuracy(),
            "answered": float(np.mean(self.stop == Stop.ANSWER)),
            "tokens": float(self.tokens.mean()),
            "views": float(self.views.mean()),
            "tool_choice": _mean(self.choice[self.needed]),
            "box_hit": _mean(self.box[self.needed]),
        }
        for name, rows in (("needed", self.needed), ("not_needed", ~self.needed)):
            figures |= {
                f"accuracy/{name}": _mean(self.correct[rows]),
                f"chance/{name}": _mean(self.chance[rows]),
                f"tool_rate/{name}": _mean(self.called[rows]),
                f"items/{name}": int(rows.sum()),
            }
        return figures

    def table(self) -> str:
        """Accuracy, tool use and box hits by question kind."""
        lines = [
            f"{'kind':<12}{'items':>6}{'chance':>8}{'accuracy':>10}{'tool rate':>11}{'tool choice':>13}{'box hit':>9}"
        ]
        for kind in [*dict.fromkeys(self.kinds.tolist()), "all"]:
            rows = np.ones(len(self.kinds), bool) if kind == "all" else self.kinds == kind
            shown = lambda values, digits=3: "-" if (mean := _mean(values)) is None else f"{mean:.{digits}f}"
            lines.append(
                f"{kind:<12}{rows.sum():>6}{shown(self.chance[rows], 2):>8}{self.accuracy(rows):>10.3f}"
                f"{shown(self.called[rows]):>11}{shown(self.choice[rows]):>13}{shown(self.box[rows]):>9}"
            )
        return "\n".join(lines)


def _mean(values: np.ndarray) -> float | None:
    """The mean of the values that are not NaN, None if there are none."""
    there = values[~np.isnan(values.astype(np.float32))]
    return float(there.mean(dtype=np.float64)) if len(there) else None  # equal also after a way through JSON


def evaluate(
    world: World,
    engine: Engine,
    params: nnx.State,
    tasks: Sequence[Task],
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int,
    tools_on: bool,
    guided: bool = False,
    title: str = "evaluate",
    benchmark: str = "",
    split: str = "",
    tools: str = "",
    unreadable: list[str] | None = None,
) -> tuple[Prediction, ...]:
    """world.shapes.group samples of every task, task by task in their order, with their strict scores.

    Batches are of world.shapes.prompts tasks; the last is filled up with repeats, which are not counted. What is drawn depends on
    (seed, task, sample) only, so that the predictions are the same whatever the batches and devices.
    params: in the learner's layout. Every process is given all tasks and plays its share of each batch.
    tasks: any sequence; they are loaded a batch ahead. One whose image cannot be used is left out; `unreadable` is told which and why
    (without such a list it is an error).
    guided: tasks that need a tool get the views of their minimal chain first; the others answer as usual.
    title: of the progress bar. benchmark, split, tools: what the predictions are to say of themselves.
    """
    shapes, processes = world.shapes, jax.process_count()
    P, G = shapes.prompts, shapes.group
    own = P // processes
    first = own * jax.process_index()
    params = engine.weights(params)
    predictions: list[Prediction] = []
    right = 0.0
    first_process = jax.process_index() == 0
    hidden = not (sys.stderr.isatty() and first_process)
    if first_process:
        print(f"{title}: {len(tasks)} tasks, {P} at a time; the first ones compile", flush=True)
    with tqdm.tqdm(total=len(tasks), desc=title, unit="task", disable=hidden) as bar:
        for chunk, lost in _batches(tasks, P, unreadable):
            filled = list(itertools.islice(itertools.cycle(chunk), P))[first : first + own]
            policy = SampledPolicy(
                engine,
                params,
                seed=seed,
                step=0,
                sample_B=np.tile(np.arange(G, dtype=np.int32), own),
                temperature_B=np.full(own * G, temperature, np.float32),
                top_k=top_k,
                top_p=top_p,
            )
            if guided:
                script = [[Turn("", call) for call in task.chain or ()] for task in filled for _ in range(G)]
                scripted = ScriptedPolicy(world.protocol, script, shapes.turn_tokens)
                (longest,) = agree(max(map(len, script)))
                policy = GuidedPolicy(scripted, policy, longest)
            trajectories, episodes = rollout(world, policy, world.prepare(filled, tools_on), Phases())
            about = {"benchmark": benchmark, "split": split, "tools": tools, "prompt": world.protocol.style}
            rows = _predictions(world.protocol, trajectories, episodes, about)
            predictions += _gathered(rows)[: len(chunk) * G]
            right += sum(row.correct for row in predictions[-len(chunk) * G :])
            bar.set_postfix(accuracy=f"{right / len(predictions):.3f}", refresh=False)
            bar.update(len(chunk) + lost)
            done = len(predictions) // G
            if hidden and first_process and done * 10 // len(tasks) > (done - len(chunk)) * 10 // len(tasks):
                print(f"{title}: {done} of {len(tasks)} tasks, accuracy {right / len(predictions):.3f}", flush=True)
    return tuple(predictions)


def _batches(tasks: Sequence[Task], size: int, unreadable: list[str] | None) -> Iterator[tuple[list[Task], int]]:
    """(up to `size` tasks, how many before them were left out), in order; the next batch is loaded while one is played."""
    places = iter(range(len(tasks)))

    def load() -> tuple[list[Task], list[str]]:
        batch, lost = [], []
        while len(batch) < size and (i := next(places, None)) is not None:
            try:
                batch.append(tasks[i])
            except BadImage as error:
                if unreadable is None:
                    raise
                lost.append(str(error))
        return batch, lost

    with ThreadPoolExecutor(1) as loader:
        ahead = loader.submit(load)
        while True:
            batch, lost = ahead.result()
            if unreadable is not None:
                unreadable += lost
            if not batch:
                return
            ahead = loader.submit(load)
            yield batch, len(lost)


def _predictions(
    protocol: Protocol, trajectories: Trajectories, episodes: Episodes, about: dict[str, str]
) -> list[Prediction]:
    """What this process's rows came to, with their strict scores."""
    statistics = tool_statistics(episodes)
    G = trajectories.group_size
    number = lambda value: None if math.isnan(value) else float(value)
    rows = []
    for b, facts in enumerate(row_facts(episodes)):
        task, mine_L = facts.task, trajectories.loss_mask_BxL[b]
        last_L = mine_L & (trajectories.turn_BxL[b] == len(facts.records) - 1)
        calls = [Called(record.call.name, record.error) for record in facts.records if record.call is not None]
        row = Prediction(
            **about,
            **question_of(task)._asdict(),
            sample=b % G,
            modality=task.modality,
            images=len(task.images),
            needs_tool=task.needs_tool,
            chance=task.chance,
            response=protocol.decode(trajectories.tokens_BxL[b, last_L].tolist()),
            answer=facts.answer,
            stop=facts.stop.name,
            turns=len(facts.records),
            malformed=sum(isinstance(record.turn, Malformed) for record in facts.records),
            tokens=int(mine_L.sum()),
            views=int(trajectories.view_count_B[b]),
            calls=tuple(calls),
            tool_choice=number(statistics["tool_choice"][b]),
            box_hit=number(statistics["box_hit"][b]),
        )
        rows.append(reports.scored(row, (STRICT,)))
    return rows


def _gathered(rows: list[Prediction]) -> list[Prediction]:
    """The rows of all processes, process by process."""
    if jax.process_count() == 1:
        return rows
    return [reports.from_json(line, "a row of another process") for line in gather_texts(map(reports.to_json, rows))]


def evaluation_parts(experiment: Experiment, samples: int = 1) -> tuple[World, Engine]:
    """The environment and engine of an evaluation: batches of config.eval.prompts rows, `samples` rows a task.

    The samples of a task share its prefix in the KV cache. Where config.eval.prompts is no multiple, a batch has fewer rows; it never
    has fewer tasks than rows are cut into shards.
    """
    shards = shard_count()
    prompts = max(experiment.config.eval.prompts // (samples * shards), 1) * shards if samples > 1 else None
    world = experiment.world(prompts or experiment.config.eval.prompts, samples)
    return world, experiment.engine(world)


@dataclasses.dataclass(frozen=True, eq=False)
class Benchmark(Sequence):
    """Tasks to be played, loaded when asked for (BadImage). left_out: lines about questions that were not taken in."""

    name: str
    split: str
    source: Sequence[Task]
    places: Sequence[int]
    fit: Callable[[Task], Task]
    left_out: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Task:
        return self.fit(self.source[self.places[index]])

    def check(self, protocols: Sequence[str]) -> None:
        """RunError names a question that cannot be scored, or that shares its id with another: before anything is played."""
        records = self.source.records if isinstance(self.source, DataSet) else ()
        seen = set()
        for record in records:
            if record.id in seen:  # noise and predictions are named by the task's id
                raise RunError(f"{self.name}: two questions have the id {record.id!r}")
            seen.add(record.id)
            reports.scores(question_of(record), None, "", protocols)


# The split that others report on, where it is not "test".
TEST_SPLITS = {"pmc_vqa": "test_clean", "mmmu": "validation", "omnimedvqa": "open_access"}


def open_benchmark(experiment: Experiment, text: str, most: int | None = None) -> Benchmark:
    """The benchmark that NAME or NAME:SPLIT names; see TEST_SPLITS for its usual split.

    most: as many tasks, evenly spread; None: all (of the embedded ones: config.eval.tasks).
    RunError names a data set or split that is not there, or that holds no question that fits.
    """
    name, split, _ = choose(text)
    c = experiment.config.eval
    if name in EMBEDDED:  # they never end
        split, size = split or c.split, most or c.tasks
    else:
        split, size = split or TEST_SPLITS.get(name, "test"), sys.maxsize
    source = experiment.tasks.source(name, split, 0, size)
    count = min(len(source), most or len(source))
    places = [i * len(source) // count for i in range(count)]
    dropped = source.report.dropped if isinstance(source, DataSet) else {}
    left_out = tuple(f"{number} {reason}" for reason, number in dropped.items())
    return Benchmark(name, split, source, places, experiment.tasks.bucket.fit, left_out)


def with_tools(world: World, names: Sequence[str]) -> World:
    """The same world offering only the tools of these names, which must be among its own."""
    kept = tuple(tool for tool in world.protocol.registry.tools if tool.name in names)
    protocol = dataclasses.replace(world.protocol, registry=Registry(kept))
    return dataclasses.replace(world, protocol=protocol)
