"""Makes the embedded warm model from nothing: first its eyes, then its manners.

    python -m mvg_jax.train --config=configs/tiny_sft.py --workdir=workdir/tiny_sft

workdir/tiny_sft/model is what lies in mvg_jax/assets/tiny_internvl. The warm model reads what it is shown and knows the wire
format and every tool, but not when to use which: its demonstrations mix good, bad and needless calls with plain guesses, so
that reinforcement learning finds all of them in its samples and is left to choose.
"""

import dataclasses

from ml_collections import ConfigDict

from mvg_jax.config import Config


def get_config() -> ConfigDict:
    c = ConfigDict(dataclasses.asdict(Config()))
    c.stages = ("vision", "sft")
    c.model.checkpoint, c.model.tokenizer, c.model.shape = "", "asset:tiny_internvl", "tiny"

    # Tower and projector alone, densely supervised: trained jointly from the start it stays on a plateau for hundreds of steps.
    c.vision.steps, c.vision.prompts, c.vision.views = 1600, 20, 4
    c.vision.optimizer.learning_rate = 2e-3
    c.vision.optimizer.warmup_steps = 20
    c.vision.optimizer.schedule = "cosine"

    c.sft.steps, c.sft.right_first = 1000, 500
    # One row a task: twins share their lesion's place, and places are what takes longest to learn.
    c.sft.prompts, c.sft.group = 64, 1
    # Guessing at once is the commonest, so that the warm model's own habit is to look once and guess.
    c.sft.mixture = {"direct": 0.45, "right": 0.35, "wrong_tool": 0.08, "off_target": 0.06, "needless": 0.35}
    c.sft.optimizer.learning_rate = 1.5e-3
    c.sft.optimizer.warmup_steps = 50
    c.sft.optimizer.schedule = "cosine"
    c.sft.learner.microbatches = 1

    c.rollout.turn_tokens, c.rollout.prompt_length, c.rollout.suffix_length = 28, 56, 128
    c.sft.learner.suffix_lengths = (80, 128)
    c.sft.learner.view_batches = (64, 96, 128, 192)
    c.checkpoint.every = 100
    return c
