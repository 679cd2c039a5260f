"""InternVL3-1B learns to look with tools, from a checkpoint folder as downloaded (OpenGVLab/InternVL3-1B-hf).

    python -m mvg_jax.train --config=configs/internvl3_1b.py:fsdp=8 --workdir=workdir/internvl3_1b
    python -m mvg_jax.train --config=configs/internvl3_1b.py:lora --workdir=workdir/internvl3_1b_lora \
        --config.model.checkpoint=/models/InternVL3-1B-hf

Options after the colon: lora, dp=N, fsdp=N, tp=N (devices = dp x fsdp x tp).
"""

from ml_collections import ConfigDict

from mvg_jax.recipes import parse_options, real_model


def get_config(options: str | None = None) -> ConfigDict:
    return real_model(
        "checkpoints/InternVL3-1B-hf", "internvl3_1b", tokens_per_view=256, options=parse_options(options)
    )
