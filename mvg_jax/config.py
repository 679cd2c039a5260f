"""An experiment as frozen dataclasses: built once from the ConfigDict of a config file; unknown keys and ill-typed values fail."""

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from mvg_jax.errors import RunError

FLOATS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Adapters on the linear maps whose dotted path fits a pattern of `targets`; then nothing else is trained. rank 0: none."""

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = ("language_model.*_proj",)


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices: data·fsdp·tensor of them. Rows lie over data and fsdp, weights and optimiser state over fsdp and tensor."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class Model:
    """What to start from. checkpoint: Hugging Face folder or the workdir of a run ("" = random weights of `shape`);
    tokenizer: folder of tokenizer.json ("" = the checkpoint's). "asset:NAME" names a folder inside the package.
    view_size: (height, width) in pixels of the views the model is shown (() = the family's own; only Qwen-VL has a choice).
    dtype: of the weights, in memory and when the model is written; LoRA adapters are always float32. compute_dtype: of every pass
    through the model, the sampler's and the learner's alike."""

    checkpoint: str = "asset:tiny_internvl"
    tokenizer: str = ""
    shape: str = "tiny"
    dtype: str = "float32"
    compute_dtype: str = "float32"
    view_size: tuple[int, ...] = ()
    lora: LoRA = LoRA()

    def __post_init__(self):
        for name in ("dtype", "compute_dtype"):
            if getattr(self, name) not in FLOATS:
                raise RunError(f"config.model.{name} {getattr(self, name)!r}: use one of {', '.join(FLOATS)}")


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A phase of a curriculum: from step `first` (counted from 0) on, tasks are drawn from `sets`."""

    first: int = 0
    sets: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Data:
    """Where tasks come from.

    sets: names of data sets (data.catalog), each NAME, NAME:SPLIT, NAME=WEIGHT or NAME:SPLIT=WEIGHT; more than one are mixed by
    their weights (1 where none is said). curriculum: mixtures that take its place later. root: the folder that holds a folder or
    a zip of each published data set, named like it. first, size: range of each training split. shuffle: draw in random order.
    overlap: training images that the evaluation shows too: "refuse" to train, "drop" their questions, or "allow" them.
    image_height, image_width: larger native images are shrunk to these. channels (1, 3), bits (8, 16): what all are brought to.
    images: most in one question. prefetch: steps read ahead, by `threads` in each of `workers` processes (0: in this one).
    """

    sets: tuple[str, ...] = ("phantom",)
    curriculum: tuple[Mixture, ...] = ()
    root: str = "data"
    first: int = 0
    size: int = 1_000_000
    shuffle: bool = False
    overlap: str = "refuse"
    image_height: int = 512
    image_width: int = 512
    channels: int = 1
    bits: int = 16
    images: int = 1
    prefetch: int = 4
    threads: int = 1
    workers: int = 0

    def __post_init__(self):
        if self.channels not in (1, 3) or self.bits not in (8, 16) or self.images < 1:
            raise RunError("config.data: channels must be 1 or 3, bits 8 or 16, images at least 1")
        if self.overlap not in ("refuse", "drop", "allow"):
            raise RunError(f"config.data.overlap {self.overlap!r}: use 'refuse', 'drop' or 'allow'")
        if not all((self.sets, *(mixture.sets for mixture in self.curriculum))):
            raise RunError("config.data: sets, also those of a curriculum, name at least one data set")


@dataclasses.dataclass(frozen=True)
class Env:
    """The environment: tools on offer, prompt style ("compact" | "full"), limits a row, and reward terms with their weights."""

    tools: tuple[str, ...] = ("image_zoom_in_tool", "window_level_tool", "image_flip_tool", "image_rotate_tool")
    style: str = "compact"
    max_turns: int = 3
    max_images: int = 4
    max_errors: int = 3
    rewards: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"accuracy": 1.0, "format": 0.1, "needless_call": -0.1}
    )


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Static shapes and the schedule of a rollout (see rollout.engine.Shapes), and the sampling temperature.

    decode_slots, decode_lengths: () for the largest only, which all tables are filled up with.
    slots: rows in the cache at a time (0: all). pool: prompts (0: as many as rows in the slots are likely to need). Both, and what
    prefill, extend and encode take at a time, are rounded up to as many for each shard of the mesh. lanes: parts of the batch, each
    with its share of slots and pool; all tables are of one lane. On one CPU device the programs of some run while the host and the
    tools work for another; elsewhere there is nothing to gain.
    vision_kernel, decode_kernel: ways to compute attention, see models.attention; `scripts/bench_kernels.py` says which is fastest.
    """

    prompts: int = 16
    group: int = 8
    prompt_length: int = 72
    turn_tokens: int = 40
    observation_lengths: tuple[int, ...] = (32, 48)
    encode_batches: tuple[int, ...] = (4, 8, 16, 32)
    suffix_length: int = 160
    temperature: float = 1.0
    slots: int = 0
    pool: int = 0
    prefill_prompts: int = 4
    extend_rows: tuple[int, ...] = (4, 16)
    decode_slots: tuple[int, ...] = ()
    decode_lengths: tuple[int, ...] = ()
    decode_tokens: int = 32
    idle: float = 0.25
    lanes: int = 1
    vision_kernel: str = "plain"
    decode_kernel: str = "plain"

    def __post_init__(self):
        if not 0 < self.idle <= 1 or min(self.slots, self.pool) < 0:
            raise RunError("config.rollout: 0 < idle <= 1, slots and pool at least 0")
        if min(self.prefill_prompts, self.decode_tokens, self.turn_tokens, self.lanes) < 1:
            raise RunError("config.rollout: prefill_prompts, decode_tokens, turn_tokens and lanes are at least 1")
        for name in ("extend_rows", "encode_batches", "observation_lengths", "decode_slots", "decode_lengths"):
            table = getattr(self, name)
            if (not table and not name.startswith("decode")) or min(table, default=1) < 1:
                raise RunError(f"config.rollout.{name} {table}: a table of sizes, each at least 1")
        if min(self.prompts, self.group) < 1 or self.temperature < 0:
            raise RunError("config.rollout: prompts and group are at least 1, temperature at least 0")
        if self.suffix_length < self.turn_tokens:
            raise RunError(f"config.rollout.suffix_length {self.suffix_length}: a turn alone takes {self.turn_tokens}")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW with linear warm-up, then constant ("constant") or cosine decay to 0 ("cosine"); global-norm clipping."""

    learning_rate: float = 3e-4
    warmup_steps: int = 0
    schedule: str = "constant"
    weight_decay: float = 0.0
    b2: float = 0.95
    clip_norm: float = 1.0


@dataclasses.dataclass(frozen=True)
class Learner:
    """Shapes of the update, what it leaves alone (module names whose parameters stay frozen), and how it runs the model
    (rl.logprobs.Forward): layers recomputed or kept, positions whose logits exist at a time (0: all)."""

    microbatches: int = 2
    suffix_lengths: tuple[int, ...] = (96, 160)
    view_batches: tuple[int, ...] = (32, 64, 128, 256)
    freeze: tuple[str, ...] = ()
    remat: bool = False
    logit_positions: int = 0

    def __post_init__(self):
        if self.logit_positions < 0:
            raise RunError(f"config: learner.logit_positions {self.logit_positions}: at least 0")


@dataclasses.dataclass(frozen=True)
class Vision:
    """Stage `vision`: the tower alone learns to segment views; `views` of each of `prompts` images a step."""

    steps: int = 0
    prompts: int = 8
    views: int = 8
    optimizer: Optimizer = Optimizer()


@dataclasses.dataclass(frozen=True)
class SFT:
    """Stage `sft`: imitation of collected trajectories or, where none are named, of scripted ones.

    trajectories: folders that mvg_jax.collect wrote ("A,B"). Of their tasks as many are held out as make `validation` trajectories
    (0: none), looked at every `validate_every` steps; after `patience` looks without a lower loss it is over (0: never), and the
    weights of the lowest loss are what comes out.
    Scripted: mixture: decision -> weight (see data.phantom.expert); tools_off: share of batches whose prompt offers no tools and
    whose answers are direct; right_first: steps at the beginning that imitate right trajectories only.
    pack_length: tokens of a row that several trajectories share (0: none do).
    """

    steps: int = 0
    prompts: int = 16
    group: int = 4
    trajectories: str = ""
    validation: int = 0
    validate_every: int = 50
    patience: int = 0
    mixture: dict[str, float] = dataclasses.field(default_factory=lambda: {"right": 1.0})
    tools_off: float = 0.1
    right_first: int = 0
    pack_length: int = 0
    optimizer: Optimizer = Optimizer()
    learner: Learner = Learner()

    def __post_init__(self):
        if self.trajectories and self.group != 1:
            raise RunError(f"config.sft.group {self.group}: collected trajectories are a task each; set it to 1")
        if min(self.validation, self.patience, self.pack_length) < 0 or self.validate_every < 1:
            raise RunError("config.sft: validation, patience and pack_length are at least 0, validate_every at least 1")
        if self.patience and not self.validation:
            raise RunError("config.sft.patience looks at held-out trajectories; config.sft.validation holds out none")
        if self.validation and not (self.trajectories and self.pack_length):
            raise RunError(
                "config.sft.validation holds out collected trajectories, packed: set trajectories and pack_length"
            )


@dataclasses.dataclass(frozen=True)
class GRPO:
    """Stage `grpo`: end-to-end reinforcement learning. ratio, clip_*, kl: see rl.objective; advantage_scale: "std" | "none"."""

    steps: int = 0
    ratio: str = "token"
    clip_low: float = 0.2
    clip_high: float = 0.28
    kl: float = 0.0
    advantage_scale: str = "std"
    optimizer: Optimizer = Optimizer()
    learner: Learner = Learner()

    def __post_init__(self):
        if self.ratio not in ("token", "sequence"):
            raise RunError(f"config.grpo.ratio {self.ratio!r}: use 'token' or 'sequence'")
        if self.advantage_scale not in ("std", "none"):
            raise RunError(f"config.grpo.advantage_scale {self.advantage_scale!r}: use 'std' or 'none'")
        if not (0 < self.clip_low < 1 and self.clip_high > 0 and self.kl >= 0):
            raise RunError("config.grpo: 0 < clip_low < 1, clip_high > 0 and kl >= 0 are needed")


@dataclasses.dataclass(frozen=True)
class Eval:
    """Held-out evaluation before and after training. tasks: how many, evenly spread over `split` of each of `sets` (NAME or
    NAME:SPLIT); temperature 0 = greedy; top_k (0 = off) and top_p (1 = off) filter what is sampled; prompts: rows of a batch, of
    which several are one task's if it is answered several times."""

    sets: tuple[str, ...] = ("phantom",)
    tasks: int = 800
    split: str = "val"
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    prompts: int = 64

    def __post_init__(self):
        if min(self.prompts, self.tasks) < 1 or self.temperature < 0:
            raise RunError("config.eval: prompts and tasks are at least 1, temperature at least 0")
        _check_filters("config.eval", self.top_k, self.top_p)


def _check_filters(where: str, top_k: int, top_p: float) -> None:
    if top_k < 0 or not 0 < top_p <= 1:
        raise RunError(
            f"{where}: top_k {top_k} and top_p {top_p} filter what is sampled: top_k at least 0 (off), 0 < top_p <= 1 (off)"
        )


OFF = -1  # switches a filter off


@dataclasses.dataclass(frozen=True)
class Filters:
    """What a sampled trajectory must be like to be kept (collection.select); -1 switches a filter off.

    correct: least score of the answer. errors: most turns that got a typed error. redundant: a view that overlaps an earlier image
    by more (intersection over union) shows nothing new. needed: a tool is needed where the task says so, or where it says nothing
    and at least this share of the answers without tools is wrong; kept is who called a tool where one is needed, and only there.
    turns, tokens: most of each. chains_per_task, chains_per_kind: most trajectories with the same calls.
    """

    correct: float = 1.0
    errors: int = 0
    redundant: float = 0.9
    needed: float = 0.75
    turns: int = OFF
    tokens: int = OFF
    chains_per_task: int = 2
    chains_per_kind: int = OFF

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            most = 1 if name in ("correct", "redundant", "needed") else math.inf
            if value != OFF and not 0 <= value <= most:
                raise RunError(f"config.collect.filters.{name} {value}: from 0 to {most}, or {OFF} for none")


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible chat endpoint. url: up to and with /v1 ("" = none). key_variable: the environment variable that holds the
    key ("" = no key). retries: tries beyond the first. requests_per_minute: 0 = no limit; concurrency: requests under way.
    timeout: seconds for one reply. view_size: side in pixels of the views it is shown (0 = what the student is shown)."""

    url: str = ""
    model: str = ""
    key_variable: str = ""
    timeout: float = 120.0
    retries: int = 6
    requests_per_minute: float = 0.0
    concurrency: int = 8
    max_tokens: int = 1024
    view_size: int = 0

    def __post_init__(self):
        fits = self.timeout > 0 and self.retries >= 0 and self.requests_per_minute >= 0 and self.view_size >= 0
        if not fits or self.concurrency < 1 or self.max_tokens < 1:
            raise RunError("config.collect.endpoint: a number is below what makes sense")


@dataclasses.dataclass(frozen=True)
class Collect:
    """Trajectory sampling: `samples` tries at each of `tasks` tasks of config.data.sets (by their weights; training splits).

    top_k, top_p: as of config.eval; a chat endpoint is told top_p and knows no top_k, an expert heeds neither.
    prompts: tasks played at a time; shard: tasks between two files, which is what an interruption may cost. tools, kinds: weights of
    tool chains ("none", a tool's name, names joined by "+") and of kinds of questions, each NAME=WEIGHT, "*" for all others;
    () = as they come. keep: share of the filtered trajectories that is kept; the smaller, the nearer to those weights.
    decisions: what a scripted expert does, by weight (see data.experts).
    """

    tasks: int = 256
    samples: int = 4
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    prompts: int = 16
    shard: int = 64
    filters: Filters = Filters()
    tools: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    keep: float = 1.0
    decisions: dict[str, float] = dataclasses.field(default_factory=lambda: {"right": 1.0})
    endpoint: Endpoint = Endpoint()

    def __post_init__(self):
        if (
            min(self.tasks, self.samples, self.prompts, self.shard) < 1
            or not 0 < self.keep <= 1
            or self.temperature < 0
        ):
            raise RunError(
                "config.collect: tasks, samples, prompts and shard are at least 1, temperature at least 0, 0 < keep <= 1"
            )
        _check_filters("config.collect", self.top_k, self.top_p)
        if self.top_k and self.endpoint.url:
            raise RunError(f"config.collect.top_k {self.top_k}: a chat endpoint knows top_p only; set it to 0")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """every: steps between checkpoints of a stage; keep: how many to keep."""

    every: int = 10
    keep: int = 2

    def __post_init__(self):
        if min(self.every, self.keep) < 1:
            raise RunError("config.checkpoint: every and keep are at least 1")


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment."""

    seed: int = 0
    stages: tuple[str, ...] = ("grpo",)
    mesh: Mesh = Mesh()
    model: Model = Model()
    data: Data = Data()
    env: Env = Env()
    rollout: Rollout = Rollout()
    vision: Vision = Vision()
    sft: SFT = SFT()
    grpo: GRPO = GRPO()
    collect: Collect = Collect()
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    compile_cache: str = ""

    def __post_init__(self):
        if not 0 <= self.seed < 2**32:
            raise RunError(f"config.seed {self.seed}: from 0 to 2**32 - 1")
        unknown = set(self.stages) - {"vision", "sft", "grpo"}
        if unknown or not self.stages:
            raise RunError(f"config.stages {self.stages}: name one or more of 'vision', 'sft', 'grpo'")
        if self.data.images >= self.env.max_images:
            raise RunError(
                f"config.env.max_images {self.env.max_images} counts the question's images too: "
                f"more than config.data.images {self.data.images}"
            )
        if "vision" in self.stages and self.mesh != Mesh():
            raise RunError(f"config.stages {self.stages}: 'vision' runs on one device; config.mesh is {self.mesh}")


def from_dict(values: Mapping[str, Any], kind: type = Config, path: str = "config") -> Any:
    """A (nested) config from plain values. RunError names the key that is unknown or of the wrong type, and what is legal."""
    hints = _hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise RunError(f"unknown key {path}.{unknown[0]}; {path} has {', '.join(sorted(hints))}")
    needed = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in needed if name not in values]:
        raise RunError(f"{path}.{missing[0]} is missing")
    return kind(**{key: _value(value, hints[key], f"{path}.{key}") for key, value in values.items()})


_hints = functools.cache(typing.get_type_hints)


def _value(value: Any, hint: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise RunError(f"{path} must be a group of values, not {value!r}")
        return from_dict(value, hint, path)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_value(item, args[0], path) for item in value)
    if origin is dict and isinstance(value, Mapping):
        return {str(key): _value(item, args[1], f"{path}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (
        not isinstance(hint, types.GenericAlias)
        and isinstance(value, hint)
        and not (hint is int and isinstance(value, bool))
    ):
        return value
    raise RunError(f"{path} must be {getattr(hint, '__name__', hint)}, not {value!r}")


def to_json(config: Config) -> str:
    """The resolved config, sorted and indented: what workdir/config.json holds."""
    return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True) + "\n"
