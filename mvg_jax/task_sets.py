"""From a config to tasks: what the stages train on, what is held out, and whether the two share images."""

import dataclasses
import hashlib
import sys
from collections.abc import Sequence

from mvg_jax.collection.store import read as read_trajectories
from mvg_jax.config import Config, Mixture
from mvg_jax.data import phantom
from mvg_jax.data.catalog import EMBEDDED, choose, find_root, keep, open_source
from mvg_jax.data.files import Files
from mvg_jax.data.fit import Bucket
from mvg_jax.data.images import BadImage
from mvg_jax.data.labelled_volume import VolumeLessons
from mvg_jax.data.leakage import OverlapReport, drop_overlapping, find_overlap, refuse_or_allow
from mvg_jax.data.phantom.views import Overview
from mvg_jax.data.pipeline import Phase, Sound, Subset
from mvg_jax.data.readers.volume import open_volumes
from mvg_jax.data.records import DataSet
from mvg_jax.data.task import Demonstration, Task, Turn
from mvg_jax.env.episode import Limits
from mvg_jax.env.protocol import Protocol
from mvg_jax.errors import RunError
from mvg_jax.tools import ViewFormat


@dataclasses.dataclass(frozen=True, eq=False)
class TaskSets:
    """The tasks of a config, for an environment: data sets that fit its shapes."""

    config: Config
    protocol: Protocol
    limits: Limits
    view: ViewFormat

    @property
    def bucket(self) -> Bucket:
        """What native images are brought to."""
        data = self.config.data
        return Bucket(data.image_height, data.image_width, data.channels, data.bits, data.images)

    def source(self, name: str, split: str, first: int, size: int):
        """Random access to the tasks of a data set that fit the shapes; the report of a DataSet says what was dropped."""
        side = min(self.config.data.image_height, self.config.data.image_width)
        overview = Overview(side, min(self.view.height, self.view.width), self.view.resample)
        source = open_source(name, split, self.config.data.root, first, size, overview)
        if not isinstance(source, DataSet):
            return source
        length = self.config.rollout.prompt_length
        source = keep(source, lambda r: len(r.images) <= self.config.data.images, "more than config.data.images")
        fits = lambda r: max(len(self.protocol.prompt_ids(r, on)) for on in (True, False)) <= length
        source = keep(source, fits, "longer than config.rollout.prompt_length")
        if not source:
            raise RunError(f"no task of {name} fits\n{source.report}")
        return source

    def training_phases(self) -> tuple[list[Phase], OverlapReport | None]:
        """The mixture of tasks to train on, and those that take its place later; and what published data among them share with the
        evaluation's (None: nothing was compared). RunError for shared images, unless config.data.overlap says otherwise."""
        data, evaluation = self.config.data, self.config.eval
        mixtures = [(m.first, [choose(text) for text in m.sets]) for m in (Mixture(0, data.sets), *data.curriculum)]
        opened = {
            (name, split): self.source(name, split or "train", data.first, data.size)
            for name, split in dict.fromkeys(choice[:2] for _, choices in mixtures for choice in choices)
        }
        judged = [
            self.source(name, split or evaluation.split, 0, sys.maxsize)
            for name, split, _ in map(choose, evaluation.sets)
            if name not in EMBEDDED
        ]
        published = [source for source in opened.values() if isinstance(source, DataSet)]
        overlap = find_overlap(published, judged) if published and judged else None
        if overlap and data.overlap == "drop":
            opened = {key: drop_overlapping(s, overlap) if s in published else s for key, s in opened.items()}
        elif overlap:
            refuse_or_allow(overlap, data.overlap == "allow")
        phases = [
            Phase(first, tuple(opened[c[:2]] for c in choices), tuple(c.weight for c in choices))
            for first, choices in mixtures
        ]
        return phases, overlap

    def lessons(self):
        """Random access to labelled images for stage `vision`: of the volumes to train on, or else phantoms."""
        data = self.config.data
        if "volume" not in [choose(text).name for text in data.sets]:
            return phantom.PhantomLessons(data.size)
        return VolumeLessons(open_volumes(Files(find_root("volume", data.root))), "train")

    def demonstrations(self) -> tuple[Subset, list[Demonstration]]:
        """What config.sft.trajectories holds: to imitate, and of other tasks held out. All of it is looked through but for its
        pixels: RunError for what cannot be imitated, and for too few to hold out."""
        c = self.config.sft
        store = read_trajectories(*map(str.strip, c.trajectories.split(",")), registry=self.protocol.registry)
        by_task: dict[str, list[int]] = {}
        for i in range(len(store)):
            outline = store.outline(i)
            self._check_turns(outline.demonstration.turns, f"{c.trajectories}: trajectory {i}")
            by_task.setdefault(outline.task.id, []).append(i)
        # Any order will do that is always the same and says nothing of the tasks.
        order = sorted(by_task, key=lambda name: hashlib.sha256(name.encode()).digest())
        held: list[int] = []
        while order and len(held) < c.validation:
            held += by_task[order.pop()]
        held = held[: len(held) // c.prompts * c.prompts]
        if c.validation and not held:
            raise RunError(
                f"config.sft.validation {c.validation}: at least one batch of config.sft.prompts {c.prompts}"
            )
        train = Subset(store, tuple(sorted(i for name in order for i in by_task[name])))
        if len(train) < c.prompts:
            raise RunError(
                f"{c.trajectories}: {len(store)} trajectories, of which config.sft.validation {c.validation} leaves {len(train)} to "
                f"imitate: fewer than config.sft.prompts {c.prompts}"
            )
        try:
            return train, [self.bucket.fit_demonstration(store[i]) for i in held]
        except BadImage as error:
            raise RunError(f"{c.trajectories}: a held-out trajectory does not fit: {error}") from error

    def _check_turns(self, turns: Sequence[Turn], what: str) -> None:
        """RunError unless the turns fit the limits of the run."""
        longest, room = max(len(self.protocol.turn_ids(turn)) + 1 for turn in turns), self.config.rollout.turn_tokens
        if longest > room or len(turns) > self.limits.max_turns:
            raise RunError(
                f"{what} has {len(turns)} turns of up to {longest} tokens, more than "
                f"config.env.max_turns {self.limits.max_turns} or config.rollout.turn_tokens {room}"
            )

    def held_out(self) -> list[Task]:
        """The evaluation's tasks, ready for the rollout."""
        tasks, c = [], self.config.eval
        for name, split, _ in map(choose, c.sets):
            endless = name in EMBEDDED
            source = self.source(name, split or c.split, 0, c.tasks if endless else sys.maxsize)
            count = min(c.tasks, len(source))
            tasks += [Sound(source, self.bucket.fit)[i * len(source) // count].task for i in range(count)]
        return tasks
