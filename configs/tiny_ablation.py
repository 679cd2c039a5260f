"""The paper's experiment in miniature: from a model that answers at once to one that uses tools. scripts/ablation.sh runs all of it.

python -m mvg_jax.train --config=configs/tiny_base.py --workdir=workdir/ablation/base
python -m mvg_jax.collect --config=configs/tiny_ablation.py --expert --out=workdir/ablation/trajectories
python -m mvg_jax.train --config=configs/tiny_ablation.py:sft --workdir=workdir/ablation/sft
python -m mvg_jax.train --config=configs/tiny_ablation.py:grpo --workdir=workdir/ablation/grpo
"""

from ml_collections import ConfigDict

from configs import tiny
from mvg_jax.errors import RunError


def get_config(stage: str = "sft") -> ConfigDict:
    if stage not in ("sft", "grpo"):
        raise RunError(f"configs/tiny_ablation.py:{stage}: use :sft or :grpo")
    c = tiny.get_config()
    c.stages = (stage,)
    c.model.checkpoint = f"workdir/ablation/{'base' if stage == 'sft' else 'sft'}"
    c.grpo.optimizer.schedule = "constant"  # as measured
    c.eval.tasks = 200  # scripts/ablation.sh evaluates on the test split

    # Of 12,000 trajectories from scenes that neither the base nor GRPO sees, those that came out right. The teacher guesses most of
    # the time, and nobody tells the filter where a tool is needed, so that lucky guesses stay in: to judge is left to GRPO.
    c.collect.decisions, c.collect.filters.needed = {"direct": 0.8, "right": 0.2}, -1.0
    c.collect.tasks, c.collect.samples, c.collect.prompts, c.collect.shard = 12_000, 1, 64, 640
    if stage == "sft":
        c.data.first = 300_000
        c.data.shuffle = True  # the one thing that a seed changes in SFT

    c.sft.trajectories = "workdir/ablation/trajectories"
    c.sft.steps, c.sft.prompts, c.sft.group, c.sft.pack_length = 600, 64, 1, 256
    c.sft.validation, c.sft.validate_every, c.sft.patience = 256, 50, 3
    c.sft.optimizer.learning_rate = 1.5e-3
    c.sft.optimizer.warmup_steps = 30
    c.sft.optimizer.schedule = "cosine"
    c.sft.learner.microbatches = 1
    # The eyes were made densely before; what is learnt here is what to do with them.
    c.sft.learner.freeze = ("vision_tower",)
    c.sft.learner.suffix_lengths, c.sft.learner.view_batches = (80, 128), (64, 192)
    return c
