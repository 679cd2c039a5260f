"""A model that looks once and answers: the start of the ablation. It has never seen a tool, a call or a second view.

    python -m mvg_jax.train --config=configs/tiny_base.py --workdir=workdir/tiny_base

The eyes are made as in configs/tiny_sft.py; then the decoder learns to answer at once, from prompts that offer nothing else. Half of
its images are close-ups: it reads what it is shown, but nobody has told it that it could ask for a closer look.
"""

from ml_collections import ConfigDict

from configs import tiny_sft


def get_config() -> ConfigDict:
    c = tiny_sft.get_config()
    c.data.sets = ("phantom", "phantom_closeup=2")
    c.sft.steps, c.sft.right_first = 500, 0
    c.sft.mixture = {"direct": 1.0}
    c.sft.tools_off = 1.0
    c.sft.pack_length = 256
    return c
