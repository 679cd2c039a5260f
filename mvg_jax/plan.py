"""Will it fit? The memory of an experiment on devices that need not be there; no weights are made or read.

    python -m mvg_jax.plan --config=configs/internvl3_8b.py:fsdp=8 --device=h100-80g --count=8
    python -m mvg_jax.plan --config=configs/qwen3_vl_4b.py:lora --device=rtx4090-24g --count=1

Weights, optimiser state and KV cache are counted from their shapes and shardings. What programs need beside them comes from
compiling each for its largest bucket on as many virtual CPU devices, in float32, at two depths, drawn out to the model's (and
halved for bfloat16): the partitioner and the buffer assignment are XLA's own, but another backend fuses and schedules otherwise, so
that this part is an estimate. Exit status 0: it fits; 2: it does not. A minute or more a setting that is tried.
"""

import dataclasses
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import flags
from flax import nnx
from ml_collections import config_flags

from mvg_jax import config as configs
from mvg_jax import program
from mvg_jax.config import Config
from mvg_jax.errors import RunError
from mvg_jax.experiment import folder, learner_shapes, policy_learner, random_shape, rollout_shapes
from mvg_jax.mesh import make_mesh
from mvg_jax.metrics import write_atomically
from mvg_jax.models import hf
from mvg_jax.models.axes import check_tensor_axis, sampling_shardings, shardings
from mvg_jax.models.config import VLMConfig, with_view_size
from mvg_jax.models.hf import FAMILIES
from mvg_jax.models.lora import add_lora, is_adapter
from mvg_jax.models.vlm import ShapesOnly
from mvg_jax.rl.learner import Learner, LearnerShapes, TrainState
from mvg_jax.rollout.engine import Engine
from mvg_jax.tools.spec import MAX_VIEWS

# Memory in GiB as the drivers report it.
DEVICES = {
    "rtx4090-24g": 24,
    "l40s-48g": 45,
    "a100-40g": 40,
    "a100-80g": 80,
    "h100-80g": 80,
    "h200-141g": 140,
    "b200-180g": 178,
    "tpu-v4-32g": 32,
    "tpu-v5e-16g": 16,
    "tpu-v5p-95g": 95,
    "tpu-v6e-32g": 32,
}
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device. *_program: the largest program's need beside its arguments."""

    weights: int
    optimiser: int
    reference: int
    sampling_weights: int  # a copy of its own; 0 where the training weights serve
    kv_cache: int
    rollout_program: int
    update_program: int

    @property
    def rollout(self) -> int:
        """Peak while sampling."""
        held = self.weights + self.optimiser + self.reference
        return held + self.sampling_weights + self.kv_cache + self.rollout_program

    @property
    def update(self) -> int:
        """Peak of an update; the sampler's weights and cache are gone by then."""
        return self.weights + self.optimiser + self.reference + self.update_program

    @property
    def peak(self) -> int:
        return max(self.rollout, self.update)


class Parts(NamedTuple):
    """What a run holds and runs, on abstract arrays that carry their shardings."""

    engine: Engine
    learner: Learner
    state: TrainState
    sampling: list[jax.ShapeDtypeStruct]
    shapes: LearnerShapes


def model_shape(config: Config) -> VLMConfig:
    """The model's config, from the checkpoint folder if it is there, else of `config.model.shape`."""
    checkpoint = config.model.checkpoint and folder(config.model.checkpoint)
    try:
        if checkpoint and (checkpoint / "config.json").exists():
            return with_view_size(hf.read_config(checkpoint), config.model.view_size)
        return with_view_size(random_shape(config.model.shape), config.model.view_size)
    except (ValueError, OSError) as error:
        raise RunError(str(error)) from error


def make_parts(config: Config, model: VLMConfig) -> Parts:
    """Everything of stage `grpo`, its bucket tables cut down to their largest entries."""
    lora = config.model.lora

    def make() -> nnx.Module:
        made = FAMILIES[model.model_type].model(model, ShapesOnly(0))
        if lora.rank:
            add_lora(made, lora.targets, lora.rank, lora.alpha, ShapesOnly(0))
        return made

    graph, made = nnx.split(nnx.eval_shape(make))
    dtype = lambda path: "float32" if is_adapter(path) else config.model.dtype
    made = nnx.from_flat_state(
        [(path, x.replace(jax.ShapeDtypeStruct(x.shape, dtype(path)))) for path, x in nnx.to_flat_state(made)]
    )
    params = _laid_out(made, shardings(made))
    banned_V = np.zeros(model.text.vocab_size, bool)
    learner = policy_learner(config, graph, banned_V)
    learned, frozen = nnx.split_state(params, learner.filter, ...)
    moments = jax.eval_shape(learner.optimizer.init, learned)
    state = TrainState(learned, frozen, _laid_out(moments, shardings(moments)), jax.ShapeDtypeStruct((), jnp.int32))

    r = rollout_shapes(config, config.rollout.prompts, config.rollout.group)
    s = learner_shapes(config.grpo.learner, r, "grpo.learner")
    r = dataclasses.replace(
        r,
        observation_lengths=r.observation_lengths[-1:],
        encode_batches=r.encode_batches[-1:],
        extend_rows=r.extend_rows[-1:],
        decode_slots=r.decode_slots[-1:],
        decode_lengths=r.decode_lengths[-2:],  # the largest works in place, the next holds what it cuts out
    )
    s = dataclasses.replace(s, suffix_lengths=s.suffix_lengths[-1:], view_batches=s.view_batches[-1:])
    compute = jnp.dtype(config.model.compute_dtype)
    sampling = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, compute), made)
    sampling = jax.tree.leaves(_laid_out(sampling, sampling_shardings(sampling, model.text)))
    return Parts(Engine(graph, r, 0, banned_V, compute), learner, state, sampling, s)


def held(config: Config, model: VLMConfig) -> Memory:
    """What is held between programs; nothing is compiled."""
    parts = make_parts(config, model)
    weights = jax.tree.leaves(parts.state.params)
    copied = [
        _bytes(copy)
        for copy, own in zip(jax.tree.leaves(parts.sampling), weights, strict=True)
        if copy.dtype != own.dtype or not copy.sharding.is_equivalent_to(own.sharding, own.ndim)
    ]
    reference = _bytes(parts.state.learned) if config.grpo.kl else 0
    return Memory(
        weights=_bytes(parts.state.params),
        optimiser=_bytes(parts.state.opt_state),
        reference=reference,
        sampling_weights=sum(copied),
        kv_cache=_state_bytes(config, model),
        rollout_program=0,
        update_program=0,
    )


def _state_bytes(config: Config, model: VLMConfig) -> int:
    """Of what stays on a device between turns. Every decoder layer adds the same, so that two shallow models tell."""
    text, vision = least_depth(model)

    def state_of(layers: int) -> int:
        parts = make_parts(config, with_depth(model, layers, vision))
        return parts.engine.shapes.lanes * _bytes(parts.engine.abstract_state(parts.sampling))

    one = state_of(text)
    return one + (state_of(text + 1) - one) * (model.text.num_hidden_layers - text)


def least_depth(model: VLMConfig) -> tuple[int, int]:
    """Decoder and vision layers of the smallest model that holds all that is particular to a layer."""
    least = max(2, len(getattr(model.vision, "deepstack_visual_indexes", ())))
    return least, least


def with_programs(memory: Memory, config: Config, model: VLMConfig, which: Sequence[str]) -> Memory:
    """`memory` with the needs of the "rollout" and "update" programs named: measured at two depths, drawn out to the model's."""
    # In float32: a CPU would convert bfloat16 weights and caches whole, which no accelerator does.
    plain = dataclasses.replace(config.model, dtype="float32", compute_dtype="float32")
    plain = dataclasses.replace(config, model=plain)
    text, vision = least_depth(model)
    depth = model.text.num_hidden_layers, vision_depth(model)
    points = [(text, vision), (text + 2, vision), (text, vision + 2)]
    lowered = []
    for point in points:
        parts = make_parts(plain, with_depth(model, *(min(a, b) for a, b in zip(point, depth, strict=True))))
        programs = {
            "rollout": lambda p=parts: p.engine.lower(p.sampling, model.view_size, MAX_VIEWS),
            "update": lambda p=parts: p.learner.lower(
                p.state, p.shapes, p.engine.shapes, model.view_size, config.grpo.kl > 0
            ),
        }
        # What these two make is held already: the empty cache, and views (which are small).
        held = ("start", "blank views")
        lowered += [(name, point, one) for name in which for made, one in programs[name]() if made not in held]
    need: dict[tuple, int] = {}
    for name, point, one in tqdm.tqdm(lowered, desc="compile", unit="program", disable=not sys.stderr.isatty()):
        found = one.compile().memory_analysis()
        own = found.temp_size_in_bytes + max(found.output_size_in_bytes - found.alias_size_in_bytes, 0)
        need[name, point] = max(need.get((name, point), 0), own)

    def drawn_out(name: str) -> int:
        base, by_text, by_vision = (need[name, point] for point in points)
        slope = lambda more, layers: max(more - base, 0) / 2 * max(layers, 0)
        return round(base + slope(by_text, depth[0] - text) + slope(by_vision, depth[1] - vision))

    if config.model.compute_dtype == "float32":
        return dataclasses.replace(memory, **{f"{name}_program": drawn_out(name) for name in which})
    # Half for bfloat16, but for the sums of the gradient, and with the weights cast for the pass.
    learned = _bytes(make_parts(plain, model).state.learned)
    beside = {"rollout": 0, "update": learned + (memory.weights // 2 if config.model.dtype == "float32" else 0)}
    return dataclasses.replace(memory, **{f"{name}_program": drawn_out(name) // 2 + beside[name] for name in which})


def vision_depth(model: VLMConfig) -> int:
    return model.vision.num_hidden_layers if model.model_type == "internvl" else model.vision.depth


def with_depth(model: VLMConfig, text: int, vision: int) -> VLMConfig:
    """The model with other numbers of decoder and vision layers."""
    if model.model_type == "internvl":
        tower = dataclasses.replace(model.vision, num_hidden_layers=vision)
    else:
        deep = tuple(range(len(model.vision.deepstack_visual_indexes)))
        full = model.vision.fullatt_block_indexes and (0,)
        tower = dataclasses.replace(
            model.vision, depth=vision, deepstack_visual_indexes=deep, fullatt_block_indexes=full
        )
    return dataclasses.replace(model, vision=tower, text=dataclasses.replace(model.text, num_hidden_layers=text))


def changes(config: Config, count: int) -> Iterator[tuple[str, Config]]:
    """Changes that save memory, those first that cost the least; each as the option that makes it."""

    def changed(section: str, **fields) -> Config:
        names, new = section.split("."), fields
        owners = [config]
        for name in names:
            owners.append(getattr(owners[-1], name))
        value = dataclasses.replace(owners.pop(), **new)
        for name, owner in zip(reversed(names), reversed(owners), strict=True):
            value = dataclasses.replace(owner, **{name: value})
        return value

    learner, mesh, rollout = config.grpo.learner, config.mesh, config.rollout
    if not learner.remat:
        yield "--config.grpo.learner.remat=True", changed("grpo.learner", remat=True)
    if not 0 < learner.logit_positions <= 64:
        yield "--config.grpo.learner.logit_positions=64", changed("grpo.learner", logit_positions=64)
    if config.model.compute_dtype == "float32":
        yield "--config.model.compute_dtype=bfloat16", changed("model", compute_dtype="bfloat16")
    shards = mesh.data * mesh.fsdp
    for more in (2, 4, 8):
        if rollout.prompts % (learner.microbatches * more * shards) == 0:
            microbatches = learner.microbatches * more
            yield (
                f"--config.grpo.learner.microbatches={microbatches}",
                changed("grpo.learner", microbatches=microbatches),
            )
    for tensor in (1, 2, 4, 8):
        if count % tensor == 0 and (mesh.fsdp, mesh.tensor) != (count // tensor, tensor):
            yield (
                f"--config.mesh.data=1 --config.mesh.fsdp={count // tensor} --config.mesh.tensor={tensor}",
                changed("mesh", data=1, fsdp=count // tensor, tensor=tensor),
            )
    for less in (2, 4):
        if rollout.prompts % (less * shards) == 0 and learner.microbatches % less == 0:
            fewer = dataclasses.replace(rollout, prompts=rollout.prompts // less)
            smaller = changed("grpo.learner", microbatches=learner.microbatches // less)
            yield (
                f"--config.rollout.prompts={fewer.prompts} --config.grpo.learner.microbatches={learner.microbatches // less}",
                dataclasses.replace(smaller, rollout=fewer),
            )
    if not config.model.lora.rank:
        adapters = dataclasses.replace(config.model.lora, rank=64, alpha=128.0)
        yield (
            "--config.model.lora.rank=64 --config.model.lora.alpha=128.0 --config.model.dtype=bfloat16",
            changed("model", lora=adapters, dtype="bfloat16"),
        )


def estimate(config: Config, model: VLMConfig, which: Sequence[str] = ("rollout", "update")) -> Memory:
    """Memory on each device of the config's mesh. RunError when the mesh does not fit the model or the batch."""
    mesh = config.mesh
    check_tensor_axis(mesh.tensor, model.text)
    shards = mesh.data * mesh.fsdp
    if config.rollout.prompts % (shards * config.grpo.learner.microbatches):
        raise RunError(
            f"config.rollout.prompts {config.rollout.prompts} cannot be cut into {config.grpo.learner.microbatches} "
            f"microbatches on {shards} shards"
        )
    with _mesh(config):
        return with_programs(held(config, model), config, model, which)


def nearest(config: Config, model: VLMConfig, memory: Memory, usable: int, count: int) -> str | None:
    """The first change, alone or on top of those before it, that makes it fit; as command line options."""
    too_much = [name for name in ("rollout", "update") if getattr(memory, name) > usable]
    together, so_far = [], config
    for collecting in (False, True):
        for option, single in changes(config, count):
            base = so_far if collecting else config
            tried = next((new for name, new in changes(base, count) if name == option), None) if collecting else single
            if tried is None:
                continue
            try:
                found = estimate(tried, model, too_much)
            except RunError:
                continue
            names = [*together, option] if collecting else [option]
            if all(getattr(found, name) <= usable for name in too_much):
                return " ".join(names)
            if collecting and max(getattr(found, name) for name in too_much) < max(
                getattr(memory, name) for name in too_much
            ):
                together, so_far, memory = names, tried, found
    return None


def _mesh(config: Config):
    return jax.set_mesh(make_mesh(dataclasses.asdict(config.mesh)))


def _laid_out(tree, layout):
    return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree, layout)


def _bytes(tree) -> int:
    """On each device."""

    def own(x: jax.ShapeDtypeStruct) -> int:
        shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        return math.prod(shape) * x.dtype.itemsize

    return sum(map(own, jax.tree.leaves(tree)))


def report(config: Config, model: VLMConfig, memory: Memory, device: str, count: int) -> str:
    """The table that is printed."""
    with _mesh(config):
        parts = make_parts(config, model)
    size = lambda tree: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
    mesh, shapes = config.mesh, parts.engine.shapes
    rows = [
        (f"weights, {config.model.dtype}", memory.weights, True, True),
        ("optimiser state", memory.optimiser, True, True),
        ("reference policy", memory.reference, True, True),
        (f"weights for sampling, {config.model.compute_dtype}", memory.sampling_weights, True, False),
        ("KV cache", memory.kv_cache, True, False),
        ("programs: gradients, activations, logits ...", memory.rollout_program, True, False),
        ("", memory.update_program, False, True),
    ]
    merged = {}
    for name, value, in_rollout, in_update in rows:
        name = name or rows[-2][0]
        old = merged.get(name, (None, None))
        merged[name] = (value if in_rollout else old[0], value if in_update else old[1])
    cell = lambda value: f"{'-' if value is None else f'{value / GIB:.2f}':>10}"
    lines = [
        f"{model.model_type}: {size(parts.state.params) / 1e9:.3f} B parameters, {size(parts.state.learned) / 1e9:.3f} B trained",
        f"{count} x {device}: data {mesh.data} x fsdp {mesh.fsdp} x tensor {mesh.tensor}; {shapes.prompts} prompts x "
        f"{shapes.group} rows, {config.grpo.learner.microbatches} microbatches",
        "",
        f"{'GiB on each device':<48}{'rollout':>10}{'update':>10}",
    ]
    lines += [f"{name:<48}{cell(a)}{cell(b)}" for name, (a, b) in merged.items()]
    return "\n".join([*lines, f"{'peak':<48}{cell(memory.rollout)}{cell(memory.update)}"])


_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.", lock_config=True)
_DEVICE = flags.DEFINE_enum("device", "h100-80g", sorted(DEVICES), "The kind of device.")
_COUNT = flags.DEFINE_integer("count", 1, "How many of them.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "Write the bytes on each device to this JSON file too.")


def main() -> None:
    count, usable = _COUNT.value, round(DEVICES[_DEVICE.value] * GIB * program.MEMORY)
    pretend_devices(count)
    config = configs.from_dict(_CONFIG.value.to_dict())
    model = model_shape(config)
    asked = config.mesh.data * config.mesh.fsdp * config.mesh.tensor
    if asked != count:
        raise RunError(f"config.mesh asks for {asked} devices, --count is {count}; e.g. --config.mesh.fsdp={count}")
    memory = estimate(config, model)
    print(report(config, model, memory, _DEVICE.value, count))
    if _JSON.value:
        figures = dataclasses.asdict(memory) | {"rollout": memory.rollout, "update": memory.update, "usable": usable}
        write_atomically(_JSON.value, json.dumps(figures, indent=2, sort_keys=True) + "\n")
    if memory.peak <= usable:
        print(f"\nfits: {memory.peak / GIB:.1f} of {usable / GIB:.1f} GiB that can be used")
        return
    print(f"\ndoes not fit: {memory.peak / GIB:.1f} GiB where {usable / GIB:.1f} can be used", flush=True)
    option = nearest(config, model, memory, usable, count)
    print(
        f"nearest change that fits: {option}"
        if option
        else "no change of the settings fits: take more or larger devices"
    )
    sys.exit(2)


def pretend_devices(count: int) -> None:
    """Makes JAX see `count` CPU devices; to be called before it looks."""
    flag = "--xla_force_host_platform_device_count"
    others = re.sub(rf"{flag}=\d+", "", os.environ.get("XLA_FLAGS", ""))
    # A CPU would drop what keeps recomputed layers apart from those kept.
    os.environ["XLA_FLAGS"] = f"{others} {flag}={count} --xla_disable_hlo_passes=cse_barrier_expander".strip()
    jax.config.update("jax_platforms", "cpu")


if __name__ == "__main__":
    program.run(main, required=("config",))
