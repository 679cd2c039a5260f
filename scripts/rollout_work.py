"""What the rollout benchmark plays: PhantomVQA's val tasks, or work of exactly given lengths.

Fixed work goes through the real loop, tools and ledger. Three things make its lengths exact: a protocol whose marks are filled up
with padding tokens, and that reads every turn, whatever the model said, as the same zoom; no end of turn, so that each turn takes all
the tokens it may; and limits that end a row with its last turn.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mvg_jax.config import Config
from mvg_jax.data.task import NativeImage, Task, Turn
from mvg_jax.env.episode import Limits, StepResult
from mvg_jax.env.protocol import Protocol, render_turn
from mvg_jax.errors import RunError
from mvg_jax.experiment import Experiment, build, folder, outline
from mvg_jax.models import hf
from mvg_jax.models.axes import place, place_array
from mvg_jax.models.config import QwenVLConfig
from mvg_jax.models.vlm import ShapesOnly
from mvg_jax.rl.grpo import sample_index
from mvg_jax.rollout.engine import Engine
from mvg_jax.rollout.policies import SampledPolicy
from mvg_jax.rollout.scheduler import Phases, Policy, Prompts, Turns, World
from mvg_jax.tools.spec import MAX_VIEWS, OK_ZOOM, ToolCall, observation_text

BOX = (250, 250, 750, 750)  # where every zoom of fixed work goes, of 1000


@dataclasses.dataclass(frozen=True)
class Work:
    """Rows in groups, each of exactly so many turns and tokens. images: views in each observation; a prompt has one.

    An observation comes after every turn but the last.
    """

    rows: int = 32
    group: int = 4
    turns: int = 3
    images: int = 1
    prompt_tokens: int = 320
    observation_tokens: int = 80
    turn_tokens: int = 32

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise RunError(f"--{name}={value}: at least 1")
        if self.rows % self.group:
            raise RunError(f"--rows={self.rows}: not a multiple of --group={self.group}")
        if self.images > MAX_VIEWS:
            raise RunError(f"--images={self.images}: a call returns at most {MAX_VIEWS}")


class Setting(NamedTuple):
    """All that a rollout takes. params: as the engine wants them. stored: as a checkpoint holds them. endless: see `Endless`."""

    experiment: Experiment
    world: World
    engine: Engine
    params: list[jax.Array]
    stored: nnx.State
    tasks: tuple[Task, ...]
    endless: bool

    @property
    def sample_B(self) -> np.ndarray:
        return sample_index(self.tasks, self.world.shapes.group)

    @property
    def temperature_B(self) -> np.ndarray:
        return np.full(self.world.shapes.rows, self.experiment.config.rollout.temperature, np.float32)

    def policy(self) -> Policy:
        """Whoever samples this rollout; the same tokens each time."""
        policy = SampledPolicy(
            self.engine,
            self.params,
            seed=self.experiment.config.seed,
            step=0,
            sample_B=self.sample_B,
            temperature_B=self.temperature_B,
        )
        return Endless(policy) if self.endless else policy


class Endless:
    """A policy whose turns count as ended although no end of turn was drawn."""

    def __init__(self, policy: Policy):
        self._policy = policy

    def begin(self, world: World, prompts: Prompts, phases: Phases) -> None:
        self._policy.begin(world, prompts, phases)

    def turns(self, phases: Phases) -> Turns | None:
        turns = self._policy.turns(phases)
        return None if turns is None else turns._replace(ended=turns.count > 0)

    def observe(self, row_n: np.ndarray, step: StepResult, running_n: np.ndarray, phases: Phases) -> None:
        self._policy.observe(row_n, step, running_n, phases)


@dataclasses.dataclass(frozen=True, eq=False)
class Scripted(Protocol):
    """Reads every turn as the text `said`, having decoded it like any other."""

    said: str = ""

    def decode(self, ids) -> str:
        super().decode(ids)
        return self.said


def natural(config: Config, rows: int | None = None, group: int | None = None) -> Setting:
    """PhantomVQA's val tasks on the config's model and shapes: its batch, or so many rows, in as many slots as its batch takes."""
    r = config.rollout
    slots, group = r.slots or r.prompts * r.group, group or r.group
    rows = rows or r.prompts * r.group
    prompts = rows // group
    if prompts < 1 or rows % group:
        raise RunError(f"--rows={rows}: not a multiple of the group, {group}")
    config = dataclasses.replace(config, rollout=dataclasses.replace(r, slots=min(slots, rows)))
    experiment, stored = load(config, None)
    world = experiment.world(prompts, group)
    engine = experiment.engine(world)
    source = experiment.tasks.source("phantom", "val", 0, prompts)
    tasks = tuple(experiment.tasks.bucket.fit(source[i]) for i in range(prompts))
    return Setting(experiment, world, engine, engine.weights(stored), stored, tasks, False)


def fixed(config: Config, work: Work, view_side: int | None = None) -> Setting:
    """Work of exactly these lengths on the config's model. view_side: pixels a side of the views, where the family has no choice.

    RunError where the images and the words around them are longer than they may be.
    """
    own = work.turns * work.turn_tokens + (work.turns - 1) * work.observation_tokens
    images = 1 + work.images * (work.turns - 1)
    env = dataclasses.replace(
        config.env,
        tools=("image_zoom_in_tool",),
        style="compact",
        max_turns=work.turns,
        max_images=max(images, 2),
    )
    r = dataclasses.replace(
        config.rollout,
        prompts=work.rows // work.group,
        group=work.group,
        prompt_length=work.prompt_tokens,
        turn_tokens=work.turn_tokens,
        suffix_length=own,
    )
    data = dataclasses.replace(config.data, images=1)
    experiment, stored = load(dataclasses.replace(config, env=env, data=data, rollout=r), view_side)
    tasks = tuple(blank_task(experiment.config, i) for i in range(r.prompts))
    protocol = filled(experiment.protocol, work, tasks[0])
    # What no row will see need not fit this work's observations; the world asks for room for all.
    widths = (work.observation_tokens, protocol.observation_width())
    config = dataclasses.replace(experiment.config, rollout=dataclasses.replace(r, observation_lengths=widths))
    experiment = dataclasses.replace(
        experiment, config=config, protocol=protocol, limits=Limits(work.turns, env.max_images, env.max_errors)
    )
    world = experiment.world(r.prompts, r.group)
    world = dataclasses.replace(
        world, shapes=dataclasses.replace(world.shapes, observation_lengths=(work.observation_tokens,))
    )
    engine = dataclasses.replace(experiment, config=config).engine(world)
    engine.banned_V = engine.banned_V.at[protocol.vocabulary.end_of_turn].set(True)
    return Setting(experiment, world, engine, engine.weights(stored), stored, tasks, True)


def filled(protocol: Protocol, work: Work, task: Task) -> Protocol:
    """The protocol with padding in its marks, so that prompts and observations have exactly the lengths of `work`."""
    vocabulary = protocol.vocabulary
    pad = next(text for text, i in vocabulary.special.items() if i == vocabulary.pad)
    box = list(BOX) if work.images == 1 else [list(BOX)] * work.images
    said = render_turn(Turn("", ToolCall("image_zoom_in_tool", {"bbox_2d": box, "img_idx": 0})))

    def with_padding(question: int, observed: int) -> Scripted:
        marks = protocol.marks._replace(
            answer=pad * question + protocol.marks.answer, observed=pad * observed + protocol.marks.observed
        )
        parts = {field.name: getattr(protocol, field.name) for field in dataclasses.fields(Protocol)}
        return Scripted(**parts | {"marks": marks}, said=said)

    def padding(length_with: Callable[[int], int], length: int, images: int, flag: str) -> int:
        # A padding token adds one id, and the first may change how the words beside it are cut.
        least = length_with(0)
        for count in (length - least, length - length_with(1) + 1):
            if count >= 0 and length_with(count) == length:
                return count
        raise RunError(
            f"--{flag}={length}: at least {least}, of which images take {images * (protocol.tokens_per_image + 2)}; "
            "smaller views of an InternVL (--view_side) take fewer"
        )

    text = observation_text(OK_ZOOM, work.images)
    question = padding(lambda n: len(with_padding(n, 0).prompt_ids(task)), work.prompt_tokens, 1, "prompt_tokens")
    observed = padding(
        lambda n: len(with_padding(0, n).observation_ids(work.images, text)),
        work.observation_tokens,
        work.images,
        "observation_tokens",
    )
    return with_padding(question, observed)


def blank_task(config: Config, i: int) -> Task:
    """A question of no words about noise."""
    data = config.data
    shape = (data.image_height, data.image_width, *((3,) if data.channels == 3 else ()))
    dtype = {8: np.uint8, 16: np.uint16}[data.bits]
    pixels = np.random.default_rng(i).integers(0, 256, shape).astype(dtype)
    return Task(f"blank/{i}", "blank", "blank", (NativeImage(pixels),), "", "")


def load(config: Config, view_side: int | None) -> tuple[Experiment, nnx.State]:
    """The experiment and its weights: of the checkpoint, or random ones of `config.model.shape`. view_side: see `fixed`."""
    # Rollouts have weights in the type they compute in, and no others.
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=config.model.compute_dtype))
    if config.model.checkpoint and view_side is None:
        return build(config)
    experiment = outline(config)
    model_config = experiment.model if view_side is None else with_view_side(experiment.model, view_side)
    if config.model.checkpoint:
        model = hf.load(folder(config.model.checkpoint), jnp.dtype(config.model.dtype), place_array)
        model.config = model_config
        positions = 1 + (view_side // model_config.vision.patch_size) ** 2
        model.vision_tower.position_embeddings = nnx.Param(model.vision_tower.position_embeddings[...][:, :positions])
    else:
        model = random_model(model_config, jnp.dtype(config.model.dtype))
    graph, params = nnx.split(model)
    protocol = dataclasses.replace(experiment.protocol, tokens_per_image=model_config.tokens_per_image)
    return dataclasses.replace(experiment, graph=graph, model=model_config, protocol=protocol), place(params)


def with_view_side(model, side: int):
    """An InternVL for smaller views than its own; what it sees means nothing, but it takes the time that such a model takes."""
    if isinstance(model, QwenVLConfig):
        raise RunError("--view_side: a Qwen-VL has config.model.view_size")
    unit = round(model.vision.patch_size / model.downsample_ratio)
    if not 0 < side <= model.vision.image_size or side % unit:
        raise RunError(f"--view_side={side}: a multiple of {unit}, at most {model.vision.image_size}")
    return dataclasses.replace(model, vision=dataclasses.replace(model.vision, image_size=side))


def random_model(config, dtype: jnp.dtype) -> nnx.Module:
    """A model of random weights, made one array at a time on the device."""
    graph, state = nnx.split(nnx.eval_shape(lambda: hf.FAMILIES[config.model_type].model(config, ShapesOnly(0))))
    made = [
        (path, leaf.replace(0.02 * jax.random.normal(jax.random.key(i), leaf.shape, dtype)))
        for i, (path, leaf) in enumerate(nnx.to_flat_state(state))
    ]
    return nnx.merge(graph, nnx.from_flat_state(made))
