"""The embedded experiment: a 1.4 M parameter model learns when to use a tool, which one and where, on two CPU cores.

python -m mvg_jax.train --config=configs/tiny.py --workdir=workdir/tiny
"""

import dataclasses

from ml_collections import ConfigDict

from mvg_jax.config import Config


def get_config() -> ConfigDict:
    c = ConfigDict(dataclasses.asdict(Config()))
    c.stages = ("grpo",)
    c.model.checkpoint = "asset:tiny_internvl"

    c.data.first = 500_000  # scenes that the warm-up has not seen
    c.data.size = 500_000

    # A zoom takes 17 tokens, its observation 28 or 46, an answer 7; most rows are through after 80. The last entry of a table
    # holds the worst case, whatever the model does.
    c.rollout.turn_tokens, c.rollout.prompt_length, c.rollout.suffix_length = 28, 50, 128
    c.rollout.observation_lengths = (28, 46)
    # All rows at once, in two lanes, one for each core; as rows end, the others move together, and decode works on fewer slots.
    c.rollout.lanes, c.rollout.idle = 2, 0.33
    c.rollout.decode_slots, c.rollout.decode_lengths = (16, 32, 48), (64,)
    c.rollout.prefill_prompts, c.rollout.extend_rows, c.rollout.encode_batches = 4, (4, 8, 16), (4, 8, 16, 32)
    c.grpo.learner.microbatches = 1
    c.grpo.learner.suffix_lengths, c.grpo.learner.view_batches = (80, 128), (128, 384)

    c.grpo.steps = 80
    # At a constant rate a run could end in a bad moment: one of three seeds forgot a tool on the way and was not done with it.
    c.grpo.optimizer.learning_rate, c.grpo.optimizer.schedule = 5e-4, "cosine"
    c.grpo.optimizer.warmup_steps = 3
    # The warm model can see; what it lacks is judgement.
    c.grpo.learner.freeze = ("vision_tower", "multi_modal_projector")
    c.checkpoint.every = 10
    return c
