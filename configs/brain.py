"""prototype"""
import dataclasses

from ml_collections import ConfigDict

from mvg_jax.config import Config


def get_config() -> ConfigDict:
    c = ConfigDict(dataclasses.asdict(Config()))
    c.stages = ("vision", "sft", "grpo")
    c.model.checkpoint = "asset:tiny_internvl"
    c.data.sets, c.eval.sets, c.data.root = ("volume",), ("volume",), "data"
    c.data.shuffle = True
    c.data.image_height = c.data.image_width = 224
    c.data.bits = 8

    c.vision.steps, c.vision.prompts, c.vision.views = 200, 8, 4
    c.vision.optimizer.learning_rate = 1e-3
    c.vision.optimizer.warmup_steps = 20
    c.vision.optimizer.schedule = "cosine"

    c.sft.steps, c.sft.right_first = 200, 150
    c.sft.prompts, c.sft.group = 32, 1
    c.sft.mixture = {"direct": 0.45, "right": 0.35, "off_target": 0.06, "needless": 0.2}
    c.sft.optimizer.learning_rate = 1e-3
    c.sft.optimizer.warmup_steps = 20
    c.sft.optimizer.schedule = "cosine"
    c.sft.learner.microbatches = 1

    c.rollout.turn_tokens, c.rollout.prompt_length, c.rollout.suffix_length = 32, 84, 144
    c.sft.learner.suffix_lengths = (96, 144)
    c.sft.learner.view_batches = (32, 64, 96)
    c.rollout.encode_batches = (64, 128, 192, 256)
    c.grpo.learner.microbatches = 1
    c.grpo.learner.suffix_lengths, c.grpo.learner.view_batches = (96, 144), (128, 384)
    c.grpo.steps = 40
    c.grpo.optimizer.learning_rate = 5e-4
    c.grpo.optimizer.warmup_steps = 3
    c.grpo.learner.freeze = ("vision_tower", "multi_modal_projector")
    c.checkpoint.every = 50
    c.eval.tasks = 384
    return c
