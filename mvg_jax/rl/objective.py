"""Policy objectives over the ledger's model tokens.

    tokens   prompt … | <think> … <|im_end|> | observation … | <think> … <|im_end|>
    mask       0  0   |    1    1     1      |   0   0   0   |    1    1     1
    A                 |    A    A     A      |               |    A    A     A       one advantage a row
    r                 |   exp(logp - behaviour logp)                                 per token, or one a row
    loss = - sum over masked tokens of min(r A, clip(r, 1-low, 1+high) A) / N        N = masked tokens of the whole batch

N is counted over the batch, not over the microbatch at hand, so that the number of microbatches does not change a gradient.
Sources: PPO-clip (arXiv 1707.06347, eq. 7), separate bounds (DAPO, arXiv 2503.14476, eq. 8), sequence ratio (GSPO, arXiv
2507.18071, eq. 7), k3 estimate of the KL to a reference (GRPO, arXiv 2402.03300, eq. 4).
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Objective:
    """A policy objective as data. ratio: "token" (GRPO) or "sequence" (GSPO). kl: weight of the k3 penalty."""

    ratio: str = "token"
    clip_low: float = 0.2
    clip_high: float = 0.28
    kl: float = 0.0

    def __post_init__(self):
        if self.ratio not in ("token", "sequence"):
            raise ValueError(f"objective.ratio {self.ratio!r}: use 'token' or 'sequence'")
        if not (0 < self.clip_low < 1 and self.clip_high > 0 and self.kl >= 0):
            raise ValueError("objective: 0 < clip_low < 1, clip_high > 0 and kl >= 0 are needed")


def policy_loss(
    objective: Objective,
    logprob_BxL: jax.Array,
    behaviour_BxL: jax.Array,
    reference_BxL: jax.Array,
    advantage_B: jax.Array,
    mask_BxL: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Summed (not averaged) loss over the masked tokens, float32, and summed statistics to be divided by the token count."""
    mask = mask_BxL.astype(jnp.float32)
    log_ratio = (logprob_BxL - behaviour_BxL) * mask
    if objective.ratio == "sequence":
        mean_B = log_ratio.sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1.0)
        # The value of the row's ratio, the gradient of each token's own log-prob (GSPO-token).
        log_ratio = jax.lax.stop_gradient(mean_B)[:, None] + logprob_BxL - jax.lax.stop_gradient(logprob_BxL)
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - objective.clip_low, 1.0 + objective.clip_high)
    advantage = advantage_B[:, None]
    gain = jnp.minimum(ratio * advantage, clipped * advantage)
    toward_reference = (reference_BxL - logprob_BxL) * mask
    k3 = jnp.exp(toward_reference) - toward_reference - 1.0
    loss = -(gain * mask).sum() + objective.kl * (k3 * mask).sum()
    outside = (ratio * advantage > clipped * advantage) * mask
    return loss, {
        "clip_fraction": outside.sum(),
        "kl_behaviour": ((ratio - 1.0 - log_ratio) * mask).sum(),
        "kl_reference": (k3 * mask).sum(),
    }
