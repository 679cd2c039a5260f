"""The tiny model on real images: one brain, eleven structures, held out by the position of slices. scripts/real_images.sh runs it.

    python -m mvg_jax.train --config=configs/brain.py:vision --workdir=workdir/brain/vision
    python -m mvg_jax.collect --config=configs/brain.py:sft --expert --out=workdir/brain/trajectories
    python -m mvg_jax.train --config=configs/brain.py:sft --workdir=workdir/brain/sft
    python -m mvg_jax.train --config=configs/brain.py:grpo --workdir=workdir/brain/grpo

First the embedded model learns to see brains, then the wire format and the words from collected trajectories, and then when to
look closer. One brain: what comes out says nothing about other patients.
"""

import dataclasses

from ml_collections import ConfigDict

from mvg_jax.config import Config
from mvg_jax.errors import RunError

START = {"vision": "asset:tiny_internvl", "sft": "workdir/brain/vision", "grpo": "workdir/brain/sft"}


def get_config(stage: str = "vision") -> ConfigDict:
    if stage not in START:
        raise RunError(f"configs/brain.py:{stage}: use one of :{', :'.join(START)}")
    c = ConfigDict(dataclasses.asdict(Config()))
    c.stages = (stage,)
    # The embedded model's ids, some of which spell words of the brain here.
    c.model.checkpoint, c.model.tokenizer = START[stage], "data/real/tokenizer"
    c.data.sets, c.data.root = ("volume",), "data/real"
    c.eval.sets, c.eval.tasks = ("volume:val", "volume:test"), 1000  # all there are
    c.data.overlap = "drop"  # a slice or two are much like one that is held out, 5 mm away
    c.data.shuffle = True
    c.data.image_height = c.data.image_width = 264
    c.data.bits = 8

    c.vision.steps, c.vision.prompts, c.vision.views = 200, 8, 4
    c.vision.optimizer.learning_rate = 1e-3
    c.vision.optimizer.warmup_steps = 20
    c.vision.optimizer.schedule = "cosine"

    # The teacher guesses most of the time, and nobody tells the filter where a tool is needed: it keeps what came out right, lucky
    # guesses too. So what imitates them can do everything, but would rather guess; to judge is left to reinforcement learning.
    c.collect.tasks, c.collect.samples, c.collect.prompts, c.collect.shard = 2700, 3, 64, 300
    c.collect.decisions = {"direct": 0.7, "right": 0.18, "off_target": 0.06, "needless": 0.06}
    c.collect.filters.needed = -1.0

    c.sft.trajectories = "workdir/brain/trajectories"
    c.sft.steps, c.sft.prompts, c.sft.group, c.sft.pack_length = 300, 48, 1, 192
    c.sft.validation, c.sft.validate_every, c.sft.patience = 144, 50, 2
    c.sft.optimizer.learning_rate = 1.5e-3
    c.sft.optimizer.warmup_steps = 20
    c.sft.optimizer.schedule = "cosine"
    c.sft.learner.microbatches = 1

    # A zoom takes 17 tokens, its observation 28, an answer 7.
    c.rollout.turn_tokens, c.rollout.prompt_length, c.rollout.suffix_length = 20, 56, 112
    c.sft.learner.suffix_lengths, c.sft.learner.view_batches = (64, 112), (48, 96, 144)
    c.grpo.learner.suffix_lengths, c.grpo.learner.view_batches = (64, 112), (128, 384)

    c.grpo.steps = 80
    c.grpo.optimizer.learning_rate = 4e-4
    c.grpo.optimizer.warmup_steps = 3
    c.grpo.learner.microbatches = 1
    c.grpo.learner.freeze = ("vision_tower", "multi_modal_projector")
    c.checkpoint.every = 20
    return c
