"""The tiny model on real images: one brain, eleven structures, held out by the position of slices.

    bash scripts/real_images.sh data/real
    python -m mvg_jax.train --config=configs/brain.py --workdir=workdir/brain --config.data.root=data/real

First the embedded model learns to see brains (stage `vision`), then what to ask and say from scripted trajectories, good and bad
(`sft`), and then when to look closer (`grpo`). One brain: what comes out says nothing about other patients.
"""

import dataclasses

from ml_collections import ConfigDict

from mvg_jax.config import Config


def get_config() -> ConfigDict:
    c = ConfigDict(dataclasses.asdict(Config()))
    c.stages = ("vision", "sft", "grpo")
    # The embedded model's ids, some of which spell words of the brain here.
    c.model.checkpoint, c.model.tokenizer = "asset:tiny_internvl", "data/real/tokenizer"
    c.data.sets, c.eval.sets, c.data.root = ("volume",), ("volume",), "data/real"
    c.data.shuffle = True
    c.data.image_height = c.data.image_width = 264
    c.data.bits = 8

    c.vision.steps, c.vision.prompts, c.vision.views = 200, 8, 4
    c.vision.optimizer.learning_rate = 1e-3
    c.vision.optimizer.warmup_steps = 20
    c.vision.optimizer.schedule = "cosine"

    c.sft.steps, c.sft.right_first = 160, 120
    c.sft.prompts, c.sft.group = 48, 1
    c.sft.mixture = {"direct": 0.35, "right": 0.45, "off_target": 0.1, "needless": 0.15}
    c.sft.optimizer.learning_rate = 1.5e-3
    c.sft.optimizer.warmup_steps = 20
    c.sft.optimizer.schedule = "cosine"
    c.sft.learner.microbatches = 1

    # A zoom takes 17 tokens, its observation 28, an answer 7.
    c.rollout.turn_tokens, c.rollout.prompt_length, c.rollout.suffix_length = 20, 56, 112
    c.rollout.encode_batches = (64, 128, 192, 256)
    c.sft.learner.suffix_lengths, c.sft.learner.view_batches = (64, 112), (48, 96, 144)
    c.grpo.learner.suffix_lengths, c.grpo.learner.view_batches = (64, 112), (128, 384)

    c.grpo.steps = 60
    c.grpo.optimizer.learning_rate = 4e-4
    c.grpo.optimizer.warmup_steps = 3
    c.grpo.learner.microbatches = 1
    c.grpo.learner.freeze = ("vision_tower", "multi_modal_projector")
    c.eval.tasks = 1000  # all there are
    c.checkpoint.every = 20
    return c
