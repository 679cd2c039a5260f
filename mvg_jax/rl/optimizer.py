"""The optimiser of every stage, from its config."""

import optax

from mvg_jax import config
from mvg_jax.errors import RunError


def make_optimizer(c: config.Optimizer, steps: int) -> optax.GradientTransformation:
    """AdamW behind global-norm clipping, with warm-up and the named schedule over `steps` updates."""
    after = max(steps - c.warmup_steps, 1)
    shapes = {
        "constant": optax.constant_schedule(c.learning_rate),
        "cosine": optax.cosine_decay_schedule(c.learning_rate, after),
    }
    if c.schedule not in shapes:
        raise RunError(f"optimizer.schedule {c.schedule!r}: use one of {', '.join(shapes)}")
    warmup = optax.linear_schedule(0.0, c.learning_rate, max(c.warmup_steps, 1))
    rate = (
        optax.join_schedules([warmup, shapes[c.schedule]], [c.warmup_steps]) if c.warmup_steps else shapes[c.schedule]
    )
    return optax.chain(
        optax.clip_by_global_norm(c.clip_norm), optax.adamw(rate, b1=0.9, b2=c.b2, weight_decay=c.weight_decay)
    )
