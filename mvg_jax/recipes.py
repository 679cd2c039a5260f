"""What the configs of real models have in common, and the options after a config's colon: `configs/NAME.py:lora,fsdp=8,tp=2`."""

import dataclasses

from ml_collections import ConfigDict

from mvg_jax.config import Config

OBSERVATION_TEXT = 48  # tokens of an observation beside its views
VIEW_MARKS = 2  # the ids around a view's placeholders
KEYS = 64  # lengths of caches are multiples of it: only then does a GPU read keys 16 bytes at a time


@dataclasses.dataclass(frozen=True)
class Options:
    """lora: train adapters only. dp, fsdp, tp: devices along the mesh's axes data, fsdp and tensor."""

    lora: bool = False
    dp: int = 1
    fsdp: int = 1
    tp: int = 1


def parse_options(text: str | None) -> Options:
    """ "lora,fsdp=8,tp=2" as Options. ValueError names what is not one."""
    values = {}
    for part in filter(None, (text or "").split(",")):
        name, _, value = part.partition("=")
        if part == "lora":
            values["lora"] = True
        elif name in ("dp", "fsdp", "tp") and value.isdecimal() and int(value) > 0:
            values[name] = int(value)
        else:
            raise ValueError(f"config option {part!r}: there are lora, dp=N, fsdp=N and tp=N")
    return Options(**values)


def real_model(checkpoint: str, shape: str, tokens_per_view: int, options: Options) -> ConfigDict:
    """GRPO from a pretrained model: four turns of at most 512 tokens, two views a call, the vision side frozen.

    A prompt and its group of 8 stay on one device, and each device works on four of them a step, one at a time in the update.
    """
    c = ConfigDict(dataclasses.asdict(Config()))
    c.stages = ("grpo",)
    c.model.checkpoint, c.model.shape = checkpoint, shape
    c.env.style = "full"
    c.env.max_turns, c.env.max_images = 4, 7
    c.mesh.data, c.mesh.fsdp, c.mesh.tensor = options.dp, options.fsdp, options.tp

    shards, micro = options.dp * options.fsdp, 4
    c.rollout.prompts, c.rollout.group = micro * shards, 8
    rows, view = c.rollout.prompts * c.rollout.group, tokens_per_view + VIEW_MARKS
    keys = lambda length: -(-length // KEYS) * KEYS
    c.rollout.prompt_length = keys(1024 + view)
    c.rollout.turn_tokens = 512
    c.rollout.observation_lengths = (64, OBSERVATION_TEXT + view, OBSERVATION_TEXT + 2 * view)
    c.rollout.suffix_length = keys(4 * 512 + 3 * (OBSERVATION_TEXT + 2 * view))
    suffix = c.rollout.suffix_length
    c.rollout.decode_lengths, c.rollout.decode_slots = (keys(suffix // 4), keys(suffix // 2)), (rows // 4,)
    c.rollout.prefill_prompts, c.rollout.decode_tokens = micro * shards, 64
    c.rollout.extend_rows = (4 * shards, 16 * shards)
    c.rollout.encode_batches = (4 * shards, 8 * shards, 32 * shards)

    c.grpo.steps = 500
    c.grpo.optimizer.learning_rate = 1e-6
    c.grpo.optimizer.warmup_steps = 10
    learner = c.grpo.learner
    learner.microbatches = micro
    learner.suffix_lengths = (1024, 2048, c.rollout.suffix_length)
    learner.view_batches = tuple(rows // micro * views for views in (1, 2, 6))
    learner.freeze = ("vision_tower", "multi_modal_projector")
    # float32 masters, everything computed in bfloat16; one layer's activations and 64 positions' logits at a time.
    c.model.compute_dtype, learner.remat, learner.logit_positions = "bfloat16", True, 64
    if options.lora:  # the base is never updated, so that bfloat16 is enough to hold it
        c.model.dtype, c.model.lora.rank, c.model.lora.alpha = "bfloat16", 64, 128.0
        c.grpo.optimizer.learning_rate = 2e-5

    c.eval.tasks, c.eval.prompts = 512, c.rollout.prompts
    c.checkpoint.every = 50
    return c
