"""LoRA (arXiv 2106.09685): a frozen linear map plus a learnt one of low rank, y = x W + b + (alpha / rank) (x A) B.

`add_lora` puts adapters into a model, `merge_lora` folds them into its weights, and `without_lora` is the base as a policy of its
own: it shares every array but the small B, which it sets to zero.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

ADAPTERS = ("lora_a", "lora_b")


class LoRALinear(nnx.Linear):
    """A linear map with an adapter. It takes over kernel and bias of `base`; A is normal, B is zero: nothing changes at first."""

    def __init__(self, base: nnx.Linear, rank: int, alpha: float, rngs: nnx.Rngs):
        super().__init__(base.in_features, base.out_features, use_bias=base.bias is not None, rngs=nnx.Rngs(0))
        self.kernel, self.bias = base.kernel, base.bias
        self.scale = alpha / rank
        dtype = base.kernel[...].dtype
        self.lora_a = nnx.Param(
            base.in_features**-0.5 * jax.random.normal(rngs.params(), (base.in_features, rank), dtype)
        )
        self.lora_b = nnx.Param(jnp.zeros((rank, base.out_features), dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x) + (x @ self.lora_a[...]) @ self.lora_b[...] * self.scale


def add_lora(model: nnx.Module, targets: tuple[str, ...], rank: int, alpha: float, seed: int) -> None:
    """Gives every linear map whose attribute name is in `targets` an adapter, in place. ValueError for a name without any."""
    if rank < 1:
        raise ValueError(f"a LoRA rank of {rank}: at least 1 is needed")
    rngs, found = nnx.Rngs(seed), set()
    for parent, name, linear in list(_linears(model)):
        if name in targets:
            setattr(parent, name, LoRALinear(linear, rank, alpha, rngs))
            found.add(name)
    if missing := sorted(set(targets) - found):
        names = sorted({name for _, name, _ in _linears(model)})
        raise ValueError(f"no linear map is called {missing[0]!r}; LoRA can take {', '.join(names)}")


def merge_lora(model: nnx.Module) -> None:
    """Folds the adapters into the weights, in place: plain linear maps again, the same function up to rounding."""
    for parent, name, linear in list(_linears(model)):
        if isinstance(linear, LoRALinear):
            kernel = linear.kernel[...].astype(jnp.float32)
            delta = linear.lora_a[...].astype(jnp.float32) @ linear.lora_b[...].astype(jnp.float32) * linear.scale
            plain = nnx.Linear(1, 1, use_bias=linear.bias is not None, rngs=nnx.Rngs(0))
            plain.in_features, plain.out_features = linear.in_features, linear.out_features
            plain.kernel = nnx.Param((kernel + delta).astype(linear.kernel[...].dtype))
            plain.bias = linear.bias
            setattr(parent, name, plain)


def is_adapter(path: tuple) -> bool:
    """Whether a parameter path is an adapter's."""
    return path[-1] in ADAPTERS


def without_lora(params: nnx.State) -> nnx.State:
    """The parameters of the base policy: the same arrays, but B = 0."""

    def off(path, leaf):
        return leaf.replace(jnp.zeros_like(leaf[...])) if path[-1] == "lora_b" else leaf

    flat = nnx.to_flat_state(params)
    return nnx.from_flat_state([(path, off(path, leaf)) for path, leaf in flat])


def _linears(model: nnx.Module) -> Iterator[tuple[nnx.Module, str, nnx.Linear]]:
    """(owner, attribute, linear map) of every linear map that is an attribute of a module."""
    for _, module in nnx.iter_modules(model):
        for name, value in list(vars(module).items()):
            if isinstance(value, nnx.Linear):
                yield module, name, value
