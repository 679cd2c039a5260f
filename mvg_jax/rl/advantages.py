"""Group-relative advantages (GRPO, arXiv 2402.03300, eq. 2; unscaled: Dr. GRPO, arXiv 2503.20783)."""

import jax
import jax.numpy as jnp


def group_advantages(rewards_PxG: jax.Array, scale: str) -> jax.Array:
    """Rewards less their group's mean, float32 [P, G]; scale "std" divides by the group's standard deviation, "none" does not.

    A group whose rewards are all equal says nothing: its advantages are exactly 0.
    """
    centred_PxG = rewards_PxG - rewards_PxG.mean(axis=1, keepdims=True)
    std_Px1 = rewards_PxG.std(axis=1, keepdims=True)
    centred_PxG = jnp.where(std_Px1 > 1e-6, centred_PxG, 0.0)
    if scale == "none":
        return centred_PxG
    if scale == "std":
        return centred_PxG / (std_Px1 + 1e-4)
    raise ValueError(f"advantage scale {scale!r}: use 'std' or 'none'")
