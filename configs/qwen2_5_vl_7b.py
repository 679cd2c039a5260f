"""Qwen2.5-VL-7B learns to look with tools, from a checkpoint folder as downloaded (Qwen/Qwen2.5-VL-7B-Instruct).

    python -m mvg_jax.train --config=configs/qwen2_5_vl_7b.py:fsdp=8 --workdir=workdir/qwen2_5_vl_7b
    python -m mvg_jax.train --config=configs/qwen2_5_vl_7b.py:lora --workdir=workdir/qwen2_5_vl_7b_lora \
        --config.model.checkpoint=/models/Qwen2.5-VL-7B-Instruct

Options after the colon: lora, dp=N, fsdp=N, tp=N (devices = dp x fsdp x tp).
"""

from ml_collections import ConfigDict

from mvg_jax.recipes import parse_options, real_model


def get_config(options: str | None = None) -> ConfigDict:
    return real_model(
        "checkpoints/Qwen2.5-VL-7B-Instruct", "qwen2_5_vl_7b", tokens_per_view=256, options=parse_options(options)
    )
