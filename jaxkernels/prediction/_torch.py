"""Networks of other libraries as functions of JAX arrays."""

import importlib
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from .._types import AnyArray

Moved: TypeAlias = Array | SymbolicZero


Tensor: TypeAlias = Any
"""A torch.Tensor: PyTorch is not needed to read or check this file."""


def from_torch(module: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Array, Array], Array]:
    """A PyTorch network as a `score_fn(x, t)`, for everything in this library that takes one.

    `module(x, t)`, a `torch.nn.Module` in evaluation mode or any function of tensors, is given x in float32,
    (batch, ...), and t repeated to (batch,); it must return a tensor of x's shape. Whatever else it wants (a scaled or
    discrete time, a class label, guidance) belongs into a small function of yours around it:

        score_fn = jk.from_torch(lambda x, t: unet(x, 999 * t).sample)
        jk.sample(score_fn, process, "ddim", schedule, key, x_init, kind="epsilon")

    PyTorch is called back by the running JAX program, on the device of a module's parameters (a function gets
    tensors on the CPU); the result has x's dtype. Works under jit, and under vmap by one call per element. First
    derivatives in x and t, forward and reverse, come from `torch.func`, so the network must be one that it can
    differentiate; parameters are constants. Second derivatives raise NotImplementedError.

    **Raises:** ImportError without PyTorch; ValueError for a module in training mode, whose dropout or batch statistics
    would make it another function at every call. An output of another shape raises when it is met.
    """
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        raise ImportError(
            "from_torch needs PyTorch, which is not installed: pip install torch."
        ) from None
    device = torch.device("cpu")
    if isinstance(module, torch.nn.Module):
        built: Any = module
        if built.training:
            raise ValueError(
                "module is in training mode, where its output may be random; call module.eval() first."
            )
        device = next((p.device for p in built.parameters()), device)

    def network(x: Tensor, t: Tensor) -> Tensor:
        value = module(x, t.expand(x.shape[0]))
        if value.shape != x.shape:
            raise ValueError(
                f"module returned shape {tuple(value.shape)} for x of shape {tuple(x.shape)}."
            )
        return value

    def called(fn: Callable[..., Tensor], *values: Array) -> Array:
        """`fn` of tensors, as JAX sees it: an array like the first one."""

        def host(*values: AnyArray) -> np.ndarray:
            tensors = (torch.from_numpy(np.array(value, np.float32)).to(device) for value in values)
            return fn(*tensors).detach().cpu().numpy().astype(values[0].dtype)

        like = jax.ShapeDtypeStruct(values[0].shape, values[0].dtype)
        return jax.pure_callback(host, like, *values, vmap_method="sequential")

    def evaluate(x: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            return network(x, t)

    def push(dx: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return torch.func.jvp(lambda v: network(v, t), (x,), (dx,))[1]

    def pull(cotangent: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return torch.func.vjp(lambda v: network(v, t), x)[1](cotangent)[0]

    def rate(x: Tensor, t: Tensor) -> Tensor:
        return torch.func.jvp(lambda v: network(x, v), (t,), (torch.ones_like(t),))[1]

    @jax.custom_jvp
    def call(x: Array, t: Array) -> Array:
        return called(evaluate, x, t)

    def derivative(
        primals: tuple[Array, Array], tangents: tuple[Moved, Moved]
    ) -> tuple[Array, Array]:
        x, t = primals
        dx, dt = tangents
        moved = jnp.zeros_like(x)
        if not isinstance(dx, SymbolicZero):
            # a linear map with its transpose, which JAX takes (also under vmap) as the solution of linear equations
            moved = jax.lax.custom_linear_solve(
                lambda v: v * _constant_once(x, t),
                dx,
                solve=lambda _, v: called(push, v, x, t),
                transpose_solve=lambda _, v: called(pull, v, x, t),
            )
        if not isinstance(dt, SymbolicZero):
            moved = moved + called(rate, x, t) * dt
        return call(x, t), moved

    call.defjvp(derivative, symbolic_zeros=True)

    def score_fn(x: Array, t: Array) -> Array:
        x = jnp.asarray(x)
        return call(x, jnp.asarray(t, x.dtype))

    return score_fn


@jax.custom_jvp
def _constant_once(x: Array, t: Array) -> Array:
    """1, which refuses to be differentiated: what depends on it would be wrong."""
    del t
    return jnp.ones((), x.dtype)


@_constant_once.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    del primals, tangents
    raise NotImplementedError("second derivatives of a network of from_torch are not available.")
