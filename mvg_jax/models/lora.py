"""LoRA (arXiv 2106.09685): a frozen linear map plus a learnt one of low rank, y = x W + b + (alpha / rank) (x A) B.

`add_lora` puts adapters into a model, `merge_lora` folds them into its weights.
"""

import fnmatch
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

ADAPTERS = ("lora_a", "lora_b")


class LoRALinear(nnx.Linear):
    """A linear map with an adapter. It takes over kernel and bias of `base`; A is normal, B is zero: nothing changes at first."""

    def __init__(self, base: nnx.Linear, rank: int, alpha: float, rngs: nnx.Rngs):
        super().__init__(1, 1, use_bias=base.bias is not None, rngs=rngs)
        self.in_features, self.out_features, self.kernel, self.bias = (
            base.in_features,
            base.out_features,
            base.kernel,
            base.bias,
        )
        self.scale = alpha / rank
        # Small and learnt: float32, whatever the frozen base is held in.
        self.lora_a = nnx.Param(base.in_features**-0.5 * jax.random.normal(rngs.params(), (base.in_features, rank)))
        self.lora_b = nnx.Param(jnp.zeros((rank, base.out_features)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x) + self.adapted(x)

    def adapted(self, x: jax.Array) -> jax.Array:
        """What the adapter adds."""
        a, b = (w[...].astype(x.dtype) for w in (self.lora_a, self.lora_b))
        return (x @ a) @ b * self.scale


def add_lora(model: nnx.Module, targets: tuple[str, ...], rank: int, alpha: float, rngs: nnx.Rngs) -> None:
    """Gives every linear map whose dotted path fits a pattern of `targets` (as "language_model.*_proj") an adapter, in place.

    ValueError for a pattern that fits none.
    """
    if rank < 1:
        raise ValueError(f"a LoRA rank of {rank}: at least 1 is needed")
    linears = list(_linears(model))
    for target in targets:
        if not any(fnmatch.fnmatchcase(path, target) for path, _, _ in linears):
            raise ValueError(f"no linear map fits the LoRA target {target!r}; there is {linears[-1][0]!r}, for example")
    for path, owner, linear in linears:
        if any(fnmatch.fnmatchcase(path, target) for target in targets):
            setattr(owner, path.rpartition(".")[2], LoRALinear(linear, rank, alpha, rngs))


def merge_lora(model: nnx.Module) -> None:
    """Folds the adapters into the weights, in place: plain linear maps again, the same function up to rounding."""
    for path, owner, linear in list(_linears(model)):
        if isinstance(linear, LoRALinear):
            kernel = linear.kernel[...].astype(jnp.float32)
            delta = jnp.matmul(linear.lora_a[...], linear.lora_b[...], precision="highest") * linear.scale
            plain = nnx.Linear(1, 1, use_bias=linear.bias is not None, rngs=nnx.Rngs(0))
            plain.in_features, plain.out_features = linear.in_features, linear.out_features
            plain.kernel = nnx.Param((kernel + delta).astype(linear.kernel[...].dtype))
            plain.bias = linear.bias
            setattr(owner, path.rpartition(".")[2], plain)


def is_adapter(path: tuple) -> bool:
    """Whether a parameter path is an adapter's."""
    return path[-1] in ADAPTERS


def _linears(model: nnx.Module) -> Iterator[tuple[str, nnx.Module, nnx.Linear]]:
    """(dotted path, owner, linear map) of every linear map that is an attribute of a module."""
    for path, module in nnx.iter_modules(model):
        for name, value in list(vars(module).items()):
            if isinstance(value, nnx.Linear):
                yield ".".join(map(str, (*path, name))), module, value
