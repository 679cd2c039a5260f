"""The run behind `mvg_jax.collect`: shards are sampled one after the other, then the balance chooses among all of them."""

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm

from mvg_jax import program
from mvg_jax.collection.chat_client import ChatClient, EndpointSpeaker
from mvg_jax.collection.converse import Speaker, Table
from mvg_jax.collection.samplers import RolloutSampler, Sampler, TextSampler, expert_speaks, model_speaks
from mvg_jax.collection.select import (
    KEPT,
    choose,
    count,
    judge,
    keyed,
    must_measure,
    read_weights,
    tool_label,
    verdict,
)
from mvg_jax.collection.store import Played, StoredTrajectories, read, read_notes, write
from mvg_jax.config import Config
from mvg_jax.data import catalog
from mvg_jax.data.images import BadImage
from mvg_jax.data.records import DataSet
from mvg_jax.data.task import Task
from mvg_jax.errors import RunError
from mvg_jax.experiment import Experiment, build, enter_mesh, outline
from mvg_jax.metrics import write_atomically, write_summary
from mvg_jax.tools import ViewFormat

SHARD_ROWS = 256


def collect(config: Config, who: str, out: pathlib.Path) -> dict[str, Any]:
    """Samples, filters and balances; the statistics. who: "model", "expert" or "endpoint"."""
    # ---- who speaks, and where ------------------------------------------------------------------------------------
    c = config.collect
    balance = {name: read_weights(getattr(c, name), f"config.collect.{name}") for name in ("tools", "kinds")}
    digest = claim(config, who, out)
    crew = gather_crew(config, who, out)
    try:
        sources = open_sources(crew.experiment)
        places = [(source, i) for source, indices in sources for i in indices]

        # ---- sample, a shard at a time: a finished one is a file ------------------------------------------------------
        shards = [places[start : start + c.shard] for start in range(0, len(places), c.shard)]
        with tqdm.tqdm(total=len(places), unit="task", disable=not sys.stderr.isatty()) as bar:
            for number, shard in enumerate(shards):
                path = out / "sampled" / f"{number:05d}.parquet"
                if not path.exists():
                    kept, tries = sample_shard(crew, config, shard, path, digest, bar)
                    tqdm.tqdm.write(f"shard {number + 1}/{len(shards)}: {kept} of {tries} kept", file=sys.stdout)
                elif read_notes(path)[0] != digest:
                    raise RunError(f"{path} was sampled with another config; remove it, or choose another --out")
                else:
                    bar.update(len(shard))
    finally:
        crew.close()

    # ---- choose, write, count -------------------------------------------------------------------------------------
    paths = [out / "sampled" / f"{number:05d}.parquet" for number in range(len(shards))]
    sampled = read(*paths)
    outlines = [sampled.outline(i) for i in range(len(sampled))]
    verdicts = choose(outlines, keep=c.keep, chains_per_kind=c.filters.chains_per_kind, seed=config.seed, **balance)
    kept = [i for i, why in enumerate(verdicts) if why == KEPT]
    (out / "statistics.json").unlink(missing_ok=True)  # until all is written, nothing says that it is
    write_shards(sampled, kept, out, digest)
    statistics = summarise([read_notes(path)[1] for path in paths], outlines, verdicts)
    statistics |= {"source": crew.sampler.name, "config": digest}
    write_summary(out / "statistics.json", statistics)
    return statistics


def sample_shard(
    crew: "Crew", config: Config, shard: Sequence[tuple[Any, int]], path: pathlib.Path, digest: str, bar: tqdm.tqdm
) -> tuple[int, int]:
    """Tries the tasks of a shard and writes what the filters keep of them, with the counts of what they did not.

    Returns how many tries were kept, of how many.
    """
    settings = config.collect.filters
    tasks, bad = load(crew.experiment, shard)
    bar.update(len(bad))
    groups = []
    for group in crew.sampler.sample(tasks, True):
        groups.append(group)
        bar.update()
    unknown = [
        p for p, group in enumerate(groups) if must_measure(group, [verdict(x, settings) for x in group], settings)
    ]
    for p, tries in zip(unknown, crew.sampler.sample([tasks[p] for p in unknown], False), strict=True):
        wrong = float(np.mean([candidate.played.terms["accuracy"] <= 0 for candidate in tries]))
        groups[p] = [dataclasses.replace(candidate, wrong_without=wrong) for candidate in groups[p]]
    judged = [
        (candidate, why) for group in groups for candidate, why in zip(group, judge(group, settings), strict=True)
    ]
    notes = {
        "version": version(),
        "tasks": len(tasks),
        "bad": bad,
        "measured": len(unknown),
        "measured_needed": sum(groups[p][0].wrong_without >= settings.needed for p in unknown),
        "correct": sum(candidate.played.terms["accuracy"] > 0 for candidate, _ in judged),
        "refused": crew.refusals(),
        "counts": count([candidate.played.task.kind for candidate, _ in judged], [why for _, why in judged]),
    }
    kept = [candidate.played for candidate, why in judged if why == KEPT]
    write(path, kept, digest=digest, notes=notes)
    return len(kept), len(judged)


def load(experiment: Experiment, shard: Sequence[tuple[Any, int]]) -> tuple[list[Task], list[str]]:
    """The tasks, and a line for each one whose images cannot be used."""
    tasks, bad = [], []
    for source, index in shard:
        try:
            tasks.append(experiment.tasks.bucket.fit(source[index]))
        except BadImage as error:
            bad.append(str(error))
    return tasks, bad


def open_sources(experiment: Experiment) -> list[tuple[Any, list[int]]]:
    """(source, indices) of each data set of the config: the first tasks of the phantom, tasks from all over the others."""
    config, opened = experiment.config, []
    (phase, *_), overlap = experiment.tasks.training_phases()
    if overlap:
        program.say(str(overlap))
    for text, source, weight in zip(config.data.sets, phase.sources, phase.weights, strict=True):
        size = min(len(source), round(config.collect.tasks * weight / sum(phase.weights)))
        if isinstance(source, DataSet):
            program.say(str(source.report))
            order = np.random.default_rng(keyed(config.seed, *catalog.choose(text)[:2])).permutation(len(source))
            opened.append((source, sorted(order[:size].tolist())))
        else:
            opened.append((source, list(range(size))))
    return opened


@dataclasses.dataclass(frozen=True, eq=False)
class Crew:
    """Who samples: the environment, the sampler, and the endpoint's client and speaker where there is one."""

    experiment: Experiment
    sampler: Sampler
    client: ChatClient | None = None
    speaker: Speaker | None = None

    def refusals(self) -> list[str]:
        """Requests that the endpoint refused since the last call."""
        if not isinstance(self.speaker, EndpointSpeaker):
            return []
        found, self.speaker.refused = sorted(self.speaker.refused), []
        return found

    def close(self) -> None:
        if self.client is not None:
            self.client.close()
        self.sampler.close()


def gather_crew(config: Config, who: str, out: pathlib.Path) -> Crew:
    """RunError when a part is missing or does not fit."""
    c = config.collect
    if who == "model":
        enter_mesh(config)
        experiment, params = build(config)
        world = experiment.world(c.prompts, c.samples)
        draw = {"temperature": c.temperature, "seed": config.seed, "top_k": c.top_k, "top_p": c.top_p}
        speak = model_speaks(experiment.engine(world), params, **draw)
        return Crew(experiment, RolloutSampler(world, pathlib.PurePath(config.model.checkpoint).name, speak))
    experiment = outline(config)
    protocol, r = experiment.protocol, config.rollout
    if who == "expert":
        speak = expert_speaks(protocol, r.turn_tokens, c.decisions, config.seed)
        return Crew(experiment, RolloutSampler(experiment.world(c.prompts, c.samples), "expert", speak))
    client = ChatClient(c.endpoint, out / "requests")
    speaker = EndpointSpeaker(client, c.endpoint, protocol.registry, c.temperature, config.seed, c.top_p)
    side, data = c.endpoint.view_size, config.data
    view = ViewFormat(side, side, "bicubic") if side else experiment.view
    place = Table(protocol.registry, experiment.limits, view, (data.image_height, data.image_width), data.images)
    sampler = TextSampler(speaker, place, protocol, r, c.samples, c.endpoint.concurrency)
    return Crew(experiment, sampler, client, speaker)


def claim(config: Config, who: str, out: pathlib.Path) -> str:
    """Makes the folder this config's, or refuses; the digest of all that decides what is sampled."""
    settings = dataclasses.asdict(config)
    decides = {name: settings[name] for name in ("seed", "model", "data", "env", "rollout", "collect")}
    for name in ("tools", "kinds", "keep"):
        del decides["collect"][name]
    del decides["collect"]["filters"]["chains_per_kind"]
    if config.data.overlap == "drop":
        decides["eval"] = {"sets": config.eval.sets, "split": config.eval.split}
    for name in ("url", "key_variable", "timeout", "retries", "requests_per_minute", "concurrency"):
        del decides["collect"]["endpoint"][name]
    text = json.dumps({"who": who} | decides, indent=2, sort_keys=True) + "\n"
    path = out / "collect.json"
    try:
        held = path.read_text() if path.exists() else None
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    if held not in (None, text) and any((out / "sampled").glob("*.parquet")):
        raise RunError(f"{out} holds trajectories of another config (see {path}); choose another --out")
    write_atomically(path, text)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_shards(sampled: StoredTrajectories, kept: Sequence[int], out: pathlib.Path, digest: str) -> None:
    """The chosen trajectories, and nothing else, in shards of SHARD_ROWS."""
    starts = range(0, len(kept), SHARD_ROWS)
    names = [f"{number:05d}.parquet" for number in range(len(starts))]
    for name, start in zip(names, starts, strict=True):
        rows: list[Played] = [sampled.played(i) for i in kept[start : start + SHARD_ROWS]]
        write(out / name, rows, digest=digest, notes={"version": version()})
    for path in out.glob("*.parquet"):
        if path.name not in names:
            path.unlink()


def summarise(notes: Sequence[dict[str, Any]], outlines: Sequence[Played], verdicts: Sequence[str]) -> dict[str, Any]:
    """What was kept and why the rest was not: the counts of all shards, with the last choice in place of what it chose from."""
    rows: dict[str, Counter[str]] = {}
    for note in notes:
        for kind, row in note["counts"].items():
            rows.setdefault(kind, Counter()).update(row)
    for episode, why in zip(outlines, verdicts, strict=True):
        rows[episode.task.kind].update({KEPT: -1})
        rows[episode.task.kind].update({why: 1})
    counts = {kind: {why: n for why, n in sorted(row.items()) if n} for kind, row in sorted(rows.items())}
    kept = [episode for episode, why in zip(outlines, verdicts, strict=True) if why == KEPT]
    labels = [[record.call.name for record in episode.records if record.call] for episode in kept]
    total = lambda name: sum(note[name] for note in notes)
    return {
        "tasks": total("tasks"),
        "sampled": sum(sum(row.values()) for row in counts.values()),
        "correct": total("correct"),
        "kept": len(kept),
        "tasks_with_a_kept_one": len({episode.task.id for episode in kept}),
        "measured_without_tools": total("measured"),
        "measured_needed": total("measured_needed"),
        "counts": counts,
        "tools": dict(sorted(Counter(map(tool_label, labels)).items())),
        "tokens": float(np.mean([episode.tokens for episode in kept])) if kept else None,
        "turns": float(np.mean([len(episode.records) for episode in kept])) if kept else None,
        "bad_images": [line for note in notes for line in note["bad"]],
        "refused": [line for note in notes for line in note["refused"]],
    }


def version() -> str:
    try:
        return importlib.metadata.version("mvg_jax")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
