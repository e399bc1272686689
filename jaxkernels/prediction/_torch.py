"""PyTorch networks as functions of JAX arrays."""

import importlib
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from .._types import AnyArray

Tangent: TypeAlias = Array | SymbolicZero

Tensor: TypeAlias = Any
"""A torch.Tensor: PyTorch is not needed to read or check this file."""


def from_torch(module: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Array, Array], Array]:
    """Wrap a PyTorch network as the function of JAX arrays that a `Denoiser` takes.

    PyTorch is called back by the running JAX program, on the device of a module's parameters (a
    function gets tensors on the CPU). Works under jit, and under vmap by one call per element.
    First derivatives in x and t, forward and reverse, come from `torch.func`, so the network must
    be one that it can differentiate; parameters are constants.

    **Arguments:**

    - `module`: a `torch.nn.Module` in evaluation mode, or any function of tensors. `module(x, t)`
      is given x in float32, (batch, ...), and t repeated to (batch,), and returns a tensor of x's
      shape. Whatever else a network takes (a scaled or discrete time, a class label, guidance)
      belongs into a small function around it.

    **Returns:** a function (x, t) -> an array of x's shape and precision. Its second derivatives
    raise NotImplementedError.

    **Raises:** ImportError without PyTorch; ValueError for a module in training mode, whose dropout
    or batch statistics would make it another function at every call. An output of another shape
    raises when the function is called.

    **Example:**

    ```python
    >>> network = jk.from_torch(lambda x, t: -x)  # doctest: +SKIP
    >>> denoiser = jk.Denoiser(network, jk.VP(), "epsilon")  # doctest: +SKIP
    ```
    """
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        raise ImportError(
            "from_torch needs PyTorch, which is not installed: pip install torch."
        ) from None
    return _differentiable(_TorchNetwork(torch, module))


class _TorchNetwork:
    """A network and its first derivatives as functions of tensors, called back from JAX."""

    def __init__(self, torch: Any, module: Any):
        self.torch = torch
        self.module = module
        self.device = torch.device("cpu")
        if isinstance(module, torch.nn.Module):
            if module.training:
                raise ValueError(
                    "module is in training mode, where its output may be random; call "
                    "module.eval() first."
                )
            self.device = next((p.device for p in module.parameters()), self.device)

    def call(self, fn: Callable[..., Tensor], *values: Array) -> Array:
        """`fn` of tensors, as JAX sees it: an array like the first of the values."""

        def host(*values: AnyArray) -> np.ndarray:
            arrays = (np.array(value, np.float32) for value in values)
            tensors = (self.torch.from_numpy(array).to(self.device) for array in arrays)
            return fn(*tensors).detach().cpu().numpy().astype(values[0].dtype)

        like = jax.ShapeDtypeStruct(values[0].shape, values[0].dtype)
        return jax.pure_callback(host, like, *values, vmap_method="sequential")

    def network(self, x: Tensor, t: Tensor) -> Tensor:
        """The output, of x's shape."""
        value = self.module(x, t.expand(x.shape[0]))
        if value.shape != x.shape:
            raise ValueError(
                f"module returned shape {tuple(value.shape)} for x of shape {tuple(x.shape)}."
            )
        return value

    def evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        """The output, without a graph for derivatives."""
        with self.torch.no_grad():
            return self.network(x, t)

    def push(self, dx: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The derivative along dx."""
        return self.torch.func.jvp(lambda v: self.network(v, t), (x,), (dx,))[1]

    def pull(self, cotangent: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The transposed derivative in x, of a cotangent."""
        return self.torch.func.vjp(lambda v: self.network(v, t), x)[1](cotangent)[0]

    def rate(self, x: Tensor, t: Tensor) -> Tensor:
        """The derivative in t."""
        one = self.torch.ones_like(t)
        return self.torch.func.jvp(lambda v: self.network(x, v), (t,), (one,))[1]


def _differentiable(torch_network: _TorchNetwork) -> Callable[[Array, Array], Array]:
    """A function of JAX arrays with first derivatives."""

    @jax.custom_jvp
    def call(x: Array, t: Array) -> Array:
        return torch_network.call(torch_network.evaluate, x, t)

    def derivative(
        primals: tuple[Array, Array], tangents: tuple[Tangent, Tangent]
    ) -> tuple[Array, Array]:
        x, t = primals
        dx, dt = tangents
        moved = jnp.zeros_like(x)
        if not isinstance(dx, SymbolicZero):
            # a linear map with its transpose, which JAX takes (also under vmap) as the solution of
            # linear equations
            moved = jax.lax.custom_linear_solve(
                lambda v: v * _constant_once(x, t),
                dx,
                solve=lambda _, v: torch_network.call(torch_network.push, v, x, t),
                transpose_solve=lambda _, v: torch_network.call(torch_network.pull, v, x, t),
            )
        if not isinstance(dt, SymbolicZero):
            moved = moved + torch_network.call(torch_network.rate, x, t) * dt
        return call(x, t), moved

    call.defjvp(derivative, symbolic_zeros=True)

    def network(x: Array, t: Array) -> Array:
        x = jnp.asarray(x)
        return call(x, jnp.asarray(t, x.dtype))

    return network


@jax.custom_jvp
def _constant_once(x: Array, t: Array) -> Array:
    """1, which refuses to be differentiated: what depends on it would be wrong."""
    del t
    return jnp.ones((), x.dtype)


@_constant_once.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """No derivative: an error."""
    del primals, tangents
    raise NotImplementedError("second derivatives of a network of from_torch are not available.")
