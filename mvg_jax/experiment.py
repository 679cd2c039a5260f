"""From a config to the objects of an experiment: model, environment, shapes, stages. What every program starts with."""

import dataclasses
import importlib.resources
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mvg_jax.config import GRPO, SFT, Config
from mvg_jax.config import Learner as LearnerConfig
from mvg_jax.data import experts
from mvg_jax.data.labelled_volume import VolumeLessons
from mvg_jax.env.chat import load_protocol
from mvg_jax.env.episode import Limits
from mvg_jax.env.protocol import Protocol
from mvg_jax.env.rewards import check_weights
from mvg_jax.errors import RunError
from mvg_jax.mesh import make_mesh, shard_count
from mvg_jax.models import config as model_shapes
from mvg_jax.models import hf
from mvg_jax.models.attention import DECODE, LEAST, VISION, Kernels
from mvg_jax.models.axes import check_tensor_axis, place, place_array
from mvg_jax.models.lora import add_lora, merge_lora
from mvg_jax.models.tokenizer import load_tokenizer, named_token
from mvg_jax.rl.grpo import GRPOStage
from mvg_jax.rl.imitation import Scripted, SFTStage, stored
from mvg_jax.rl.learner import Learner, LearnerShapes
from mvg_jax.rl.logprobs import Forward, cast
from mvg_jax.rl.objective import Objective
from mvg_jax.rl.optimizer import make_optimizer
from mvg_jax.rl.packing import PackShapes, pack_shapes
from mvg_jax.rl.vision import VisionStage, draw_part, draw_view
from mvg_jax.rollout.engine import Engine, Shapes
from mvg_jax.rollout.scheduler import World
from mvg_jax.task_sets import TaskSets
from mvg_jax.tools import ViewFormat, default_registry
from mvg_jax.tools.spec import MAX_VIEWS

# What a folder holds beside the model, and other tools want to read.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "video_preprocessor_config.json",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """The parts that all stages share. graph: the model's structure; weights travel apart, as its nnx.State. None: no model."""

    config: Config
    graph: nnx.GraphDef | None
    model: model_shapes.VLMConfig
    tokenizer_folder: pathlib.Path
    protocol: Protocol
    limits: Limits

    @property
    def view(self) -> ViewFormat:
        return ViewFormat(*self.model.view_size, self.model.resample)

    @property
    def banned_V(self) -> np.ndarray:
        """bool [V]: ids that are never sampled, the unused rows of a padded vocabulary among them."""
        banned = np.zeros(self.model.text.vocab_size, bool)
        banned[list(self.protocol.vocabulary.banned_ids)] = True
        return banned

    def world(self, prompts: int, group: int) -> World:
        """The environment for batches of prompts x group rows, over all processes."""
        r, data = self.config.rollout, self.config.data
        shapes = rollout_shapes(self.config, prompts, group)
        if self.protocol.observation_width() > max(r.observation_lengths):
            raise RunError(
                f"an observation may take {self.protocol.observation_width()} tokens; raise "
                f"config.rollout.observation_lengths {r.observation_lengths}"
            )
        return World(
            self.protocol,
            self.limits,
            shapes,
            self.view,
            (data.image_height, data.image_width, data.channels),
            np.uint8 if data.bits == 8 else np.uint16,
            self.model.position_grids,
        )

    def engine(self, world: World) -> Engine:
        dtype, kernels = jnp.dtype(self.config.model.compute_dtype), rollout_kernels(self.config, world.shapes)
        return Engine(self.graph, world.shapes, self.protocol.vocabulary.end_of_turn, self.banned_V, dtype, kernels)

    @property
    def tasks(self) -> TaskSets:
        """What there is to train on and to judge by."""
        return TaskSets(self.config, self.protocol, self.limits, self.view)

    def vision_stage(self) -> VisionStage:
        c, lessons = self.config, self.tasks.lessons()
        return VisionStage(
            self.graph,
            make_optimizer(c.vision.optimizer, c.vision.steps),
            len(lessons.classes),
            tuple(lessons.classes.index(name) for name in lessons.findings),
            tuple(lessons.classes.index(name) for name in lessons.alike),
            c.vision.views,
            self.view,
            (c.data.image_height, c.data.image_width),
            c.vision.steps,
            c.seed,
            draw_part if isinstance(lessons, VolumeLessons) else draw_view,
        )

    def sft_stage(self) -> SFTStage:
        c = self.config.sft
        world = self.world(c.prompts, c.group)
        learner = make_learner(
            self.config,
            c,
            self.graph,
            self.banned_V,
            loss="cross_entropy",
            objective=Objective(),
            advantage_scale="none",
        )
        scripted = Scripted(experts.mixture, c.mixture, c.tools_off, c.right_first, c.group, self.config.seed)
        shapes = learner_shapes(c.learner, world.shapes, "sft.learner")
        return SFTStage(world, learner, shapes, stored if c.trajectories else scripted, self.pack_shapes(world.shapes))

    def pack_shapes(self, rollout: Shapes) -> PackShapes | None:
        """Shapes of packed demonstrations, None where they are not packed. RunError when a row may not hold one."""
        c = self.config.sft
        if not c.pack_length:
            return None
        if c.pack_length < rollout.prompt_length + rollout.suffix_length:
            raise RunError(
                f"config.sft.pack_length {c.pack_length}: a trajectory may need prompt_length + suffix_length = "
                f"{rollout.prompt_length + rollout.suffix_length} of config.rollout"
            )
        views = rollout.prompt_images + rollout.views
        return pack_shapes(c.learner.microbatches, c.pack_length, rollout.rows, self.protocol.tokens_per_image, views)

    def grpo_stage(self, params: nnx.State) -> GRPOStage:
        c, r = self.config.grpo, self.config.rollout
        world = self.world(r.prompts, r.group)
        learner = policy_learner(self.config, self.graph, self.banned_V)
        reference = None
        if c.kl > 0:  # an update uses up the weights that it changes; the others are shared
            learned, frozen = nnx.split_state(params, learner.filter, ...)
            reference = nnx.merge_state(jax.tree.map(jnp.copy, learned), frozen)
        return GRPOStage(
            world,
            self.engine(world),
            learner,
            learner_shapes(c.learner, world.shapes, "grpo.learner"),
            self.config.env.rewards,
            r.temperature,
            self.config.seed,
            reference,
        )


def rollout_shapes(config: Config, prompts: int, group: int) -> Shapes:
    """The static shapes of rollouts of prompts x group rows, over all processes."""
    r = config.rollout
    _require_shards("the prompts of a batch", (prompts,))
    whole = lambda number, most: min(-(-number // shard_count()) * shard_count(), most)
    lanes = min(r.lanes, prompts // shard_count())
    share = whole(-(-prompts // lanes), prompts)  # a lane's prompts
    slots = whole(-(-r.slots // lanes) or share * group, share * group)
    prefill_prompts = whole(r.prefill_prompts, share)
    # Where slots are filled singly, more groups are under way than fit side by side: the last rows of some, the first of others.
    likely = share if slots == share * group else max(2 * -(-slots // group), prefill_prompts)
    extend_rows = tuple(sorted({whole(n, slots) for n in r.extend_rows}))
    needed = max(max(extend_rows) * MAX_VIEWS, prefill_prompts * config.data.images)
    encode_batches = tuple(sorted({whole(n, needed) for n in r.encode_batches}))
    if needed > max(encode_batches):
        raise RunError(
            f"{max(extend_rows)} rows or {prefill_prompts} prompts at a time (config.rollout.extend_rows, prefill_prompts) may have "
            f"{needed} views; raise config.rollout.encode_batches {r.encode_batches}"
        )
    return Shapes(
        prompts=prompts,
        group=group,
        slots=slots,
        pool=whole(-(-r.pool // lanes) or likely, share),
        prompt_length=r.prompt_length,
        turn_tokens=r.turn_tokens,
        suffix_length=r.suffix_length,
        prompt_images=config.data.images,
        views=config.env.max_images - 1,
        prefill_prompts=prefill_prompts,
        extend_rows=extend_rows,
        observation_lengths=tuple(sorted(set(r.observation_lengths))),
        encode_batches=encode_batches,
        decode_slots=tuple(sorted({whole(n, slots) for n in (*r.decode_slots, slots)})),
        decode_lengths=tuple(sorted({min(n, r.suffix_length) for n in (*r.decode_lengths, r.suffix_length)})),
        decode_tokens=min(r.decode_tokens, r.turn_tokens),
        idle=r.idle,
        lanes=lanes,
    )


def rollout_kernels(config: Config, shapes: Shapes) -> Kernels:
    """The ways to compute attention that the config names. RunError for unknown ones, and for shapes that they cannot take."""
    r = config.rollout
    for name, known in (("vision_kernel", VISION), ("decode_kernel", DECODE)):
        if getattr(r, name) not in known:
            raise RunError(f"config.rollout.{name} {getattr(r, name)!r}: one of {', '.join(known)}")
    if (r.vision_kernel, r.decode_kernel) != ("plain", "plain") and config.mesh.tensor > 1:
        raise RunError("config.rollout: kernels other than plain do not split heads over config.mesh.tensor")
    if r.decode_kernel == "pallas" and min(*shapes.decode_lengths, shapes.prompt_length) < LEAST:
        raise RunError(
            f"config.rollout.decode_kernel pallas: no entry of decode_lengths, nor prompt_length, may be less than {LEAST}"
        )
    return Kernels(r.vision_kernel, r.decode_kernel)


def policy_learner(config: Config, graph: nnx.GraphDef, banned_V: np.ndarray) -> Learner:
    """The learner of stage `grpo`."""
    c = config.grpo
    objective = Objective(ratio=c.ratio, clip_low=c.clip_low, clip_high=c.clip_high, kl=c.kl)
    return make_learner(
        config, c, graph, banned_V, loss="policy", objective=objective, advantage_scale=c.advantage_scale
    )


def make_learner(config: Config, c: SFT | GRPO, graph: nnx.GraphDef, banned_V: np.ndarray, **loss) -> Learner:
    """The learner of a stage's settings `c`; loss: see `Learner`."""
    if config.model.dtype == "bfloat16" and not config.model.lora.rank:
        raise RunError(
            "config.model.dtype bfloat16 rounds most updates of a weight away: train with float32 (and compute_dtype bfloat16), "
            "or adapters with config.model.lora.rank"
        )
    forward = Forward(config.model.compute_dtype, c.learner.remat, c.learner.logit_positions)
    return Learner(
        graph,
        make_optimizer(c.optimizer, c.steps),
        banned_V,
        freeze=c.learner.freeze,
        adapters_only=config.model.lora.rank > 0,
        forward=forward,
        **loss,
    )


def learner_shapes(c: LearnerConfig, rollout: Shapes, where: str) -> LearnerShapes:
    """The update's bucket tables. RunError unless their last entries hold whatever the rows may do."""
    if c.microbatches < 1 or rollout.prompts % (c.microbatches * shard_count()):
        shards = f" over {shard_count()} shards of config.mesh" if shard_count() > 1 else ""
        raise RunError(
            f"config.{where}.microbatches {c.microbatches} does not divide {rollout.prompts} prompts{shards}"
        )
    views = rollout.rows // c.microbatches * rollout.views
    for name, table, needed in (
        ("suffix_lengths", c.suffix_lengths, rollout.suffix_length),
        ("view_batches", c.view_batches, views),
    ):
        if max(table, default=0) < needed:
            raise RunError(f"config.{where}.{name} {table}: a batch may need {needed}; enlarge the last entry")
    _require_shards(f"config.{where}.view_batches", c.view_batches)
    return LearnerShapes(c.microbatches, c.suffix_lengths, c.view_batches)


def _require_shards(what: str, sizes: tuple[int, ...]) -> None:
    if any(size % shard_count() for size in sizes):
        raise RunError(f"{what} {sizes}: all must be multiples of data x fsdp = {shard_count()} of config.mesh")


def enter_mesh(config: Config) -> None:
    """Makes config.mesh the mesh of everything that follows; on one device there is none. RunError when it does not fit."""
    shape = dataclasses.asdict(config.mesh)
    mesh = make_mesh(shape)
    if mesh.size > 1:
        jax.set_mesh(mesh)


def folder(name: str) -> pathlib.Path:
    """A path, or "asset:NAME" for a folder inside the package, or a run's workdir for the model it wrote. RunError if it did not."""
    if name.startswith("asset:"):
        return pathlib.Path(str(importlib.resources.files("mvg_jax"))) / "assets" / name.removeprefix("asset:")
    path = pathlib.Path(name)
    if (path / "model" / "config.json").exists():
        return path / "model"
    if (path / "versions.json").exists():
        raise RunError(
            f"{path} is a run that has not come to its end, where it writes model/: go on with it (--resume)"
        )
    return path


def random_shape(name: str) -> model_shapes.VLMConfig:
    """The model that `config.model.shape` names."""
    if name not in model_shapes.SHAPES:
        raise RunError(f"config.model.shape {name!r}: use one of {', '.join(model_shapes.SHAPES)}")
    return model_shapes.SHAPES[name]()


def outline(config: Config) -> Experiment:
    """The experiment before a weight is read: its environment is ready, its graph is None. RunError as for `build`."""
    try:
        check_weights(config.env.rewards)
        registry = default_registry(config.env.tools)
        tokenizer_folder = folder(config.model.tokenizer or config.model.checkpoint)
        tokenizer = load_tokenizer(tokenizer_folder)
        if config.model.checkpoint:
            shape = hf.read_config(folder(config.model.checkpoint))
        else:
            placeholder = tokenizer.id(named_token(tokenizer_folder, "context_image_token"))
            shape = model_shapes.with_tokens(random_shape(config.model.shape), tokenizer.size, placeholder)
        check_tensor_axis(config.mesh.tensor, shape.text)
        shape = model_shapes.with_view_size(shape, config.model.view_size)
        protocol = load_protocol(tokenizer_folder, tokenizer, shape, registry, config.env.style)
        limits = Limits(config.env.max_turns, config.env.max_images, config.env.max_errors)
    except (ValueError, OSError, KeyError) as error:
        raise RunError(str(error.args[0] if isinstance(error, KeyError) else error)) from error
    return Experiment(config, None, shape, tokenizer_folder, protocol, limits)


def build(config: Config) -> tuple[Experiment, nnx.State]:
    """The experiment and the weights it starts from. RunError when a part is missing or does not fit."""
    experiment, lora = outline(config), config.model.lora
    try:
        if config.model.checkpoint:
            model = hf.load(folder(config.model.checkpoint), jnp.dtype(config.model.dtype), place_array)
            model.config = experiment.model
        else:
            model = hf.FAMILIES[experiment.model.model_type].model(experiment.model, nnx.Rngs(config.seed))
            nnx.update(model, cast(nnx.state(model), config.model.dtype))
        if lora.rank:
            add_lora(model, lora.targets, lora.rank, lora.alpha, nnx.Rngs(config.seed))
    except (ValueError, OSError, KeyError) as error:
        raise RunError(str(error.args[0] if isinstance(error, KeyError) else error)) from error
    graph, params = nnx.split(model)
    return dataclasses.replace(experiment, graph=graph), place(params)


def export(experiment: Experiment, params: nnx.State, directory: pathlib.Path) -> None:
    """Writes the model as a Hugging Face folder, adapters merged, tokenizer included."""
    vocabulary = experiment.protocol.vocabulary
    model = nnx.merge(experiment.graph, params)
    merge_lora(model)
    try:
        hf.save(
            model,
            directory,
            dtype=jnp.dtype(experiment.config.model.dtype),
            end_of_turn=vocabulary.end_of_turn,
            pad=vocabulary.pad,
        )
        for name in TOKENIZER_FILES if jax.process_index() == 0 else ():
            if (experiment.tokenizer_folder / name).exists() and experiment.tokenizer_folder != directory:
                shutil.copyfile(experiment.tokenizer_folder / name, directory / name)
    except OSError as error:
        raise RunError(f"cannot write the model to {directory}: {error.strerror}") from error
