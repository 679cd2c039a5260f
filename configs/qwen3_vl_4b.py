"""Qwen3-VL-4B learns to look with tools, from a checkpoint folder as downloaded (Qwen/Qwen3-VL-4B-Instruct).

    python -m mvg_jax.train --config=configs/qwen3_vl_4b.py:fsdp=8 --workdir=workdir/qwen3_vl_4b
    python -m mvg_jax.train --config=configs/qwen3_vl_4b.py:lora --workdir=workdir/qwen3_vl_4b_lora \
        --config.model.checkpoint=/models/Qwen3-VL-4B-Instruct

Options after the colon: lora, dp=N, fsdp=N, tp=N (devices = dp x fsdp x tp).
"""

from ml_collections import ConfigDict

from mvg_jax.recipes import parse_options, real_model


def get_config(options: str | None = None) -> ConfigDict:
    return real_model(
        "checkpoints/Qwen3-VL-4B-Instruct", "qwen3_vl_4b", tokens_per_view=256, options=parse_options(options)
    )
