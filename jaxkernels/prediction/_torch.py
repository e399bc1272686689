"""PyTorch networks as functions of JAX arrays."""

import importlib
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from .. import _checks
from .._precision import working_dtype
from .._types import AnyArray
from ._output import take_output

Tangent: TypeAlias = Array | SymbolicZero

Tensor: TypeAlias = Any
"""A torch.Tensor: PyTorch is not needed to read or check this file."""

_HINT = "name it, as in from_torch(module, output='prediction')"


def from_torch(
    module: Callable[[Tensor, Tensor], object], *, output: str | int | None = None
) -> Callable[[Array, Array], Array]:
    """Wrap a PyTorch network as the function of JAX arrays that a `Denoiser` takes.

    PyTorch is called back by the running JAX program, on the device and in the precision of a
    module's parameters (a function gets float32 on the CPU). Works under jit, and under vmap by one
    call per element. First derivatives in x and t, forward and reverse, come from `torch.func`, so
    the network must be one that it can differentiate; parameters are constants.

    **Arguments:**

    - `module`: a `torch.nn.Module` in evaluation mode, or any function of tensors. `module(x, t)`
      is given x (batch, ...) and t (batch,), float32 or better, or int64 if the function is called
      with integers. It returns a tensor of x's shape, or of twice its channels, of which the first
      half is taken.
    - `output`: the name or index of the prediction in an output object, tuple or dict. Default:
      "sample", or the only member that fits.

    **Returns:** a function (x, t) -> an array of x's shape and precision, for t a scalar or
    (batch,). Its second derivatives raise NotImplementedError. To tell the network something else,
    convert t: `lambda x, t: network(x, jnp.log(process.sigma(t)))` for a logarithm of sigma,
    `network(x, jnp.rint(t).astype(int) - 1)` for the integer timesteps of `DiscreteVP`.

    **Raises:** ImportError without PyTorch; ValueError for what is no network, for a module in
    training mode, whose dropout or batch statistics would make it another function at every call,
    and, when the function is called, for an output of another form, naming it.

    **Example:**

    ```python
    >>> network = jk.from_torch(lambda x, t: -x)  # doctest: +SKIP
    >>> denoiser = jk.Denoiser(network, jk.VP(), "epsilon")  # doctest: +SKIP
    ```
    """
    torch = import_torch("from_torch")
    device, dtype = placement(torch, check_network("module", module))

    def network(x: Tensor, t: Tensor, conditions: np.ndarray) -> Tensor:
        del conditions
        return take_output(module(x, t), x.shape, "module", _HINT, output)

    return TorchNetwork(torch, network, device, dtype).as_function()


def import_torch(user: str) -> Any:
    """PyTorch, or an ImportError that says what needs it."""
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise ImportError(
            f"{user} needs PyTorch, which is not installed: pip install torch."
        ) from None


def check_network(argument: str, value: Any) -> Any:
    """`value`, which must be a module or a function, not a class of them."""
    if isinstance(value, type):
        raise ValueError(f"{argument} must be a network, not the class {value.__name__}: make one.")
    if not callable(value):
        raise ValueError(
            f"{argument} must be a network, a module or a function; got {_checks.shown(value)}."
        )
    return value


def placement(torch: Any, module: Any) -> tuple[Any, Any]:
    """Device and dtype of the points that a module in evaluation mode, or a function, is given."""
    parameters = ()
    if isinstance(module, torch.nn.Module):
        if module.training:
            raise ValueError(
                "module is in training mode, where its output may be random; call module.eval() "
                "first."
            )
        parameters = module.parameters()
    for parameter in parameters:
        if parameter.is_floating_point():
            return parameter.device, parameter.dtype
    return torch.device("cpu"), torch.float32


class TorchNetwork:
    """A network and its first derivatives as functions of tensors, called back from JAX.

    **Arguments:** `torch`, the package; `network`, a function (x, t, conditions) -> a tensor of x's
    shape, of x (rows, ...), t (rows,) and the number of each row's condition; `device` and `dtype`
    of x; `batch`, the rows of a call at most, halved if a GPU's memory does not suffice.
    """

    def __init__(
        self,
        torch: Any,
        network: Callable[[Tensor, Tensor, np.ndarray], Tensor],
        device: Any,
        dtype: Any,
        batch: int | None = None,
    ):
        self.torch = torch
        self.network = network
        self.device = device
        self.dtype = dtype
        self.batch = batch
        self._checked: set[tuple[tuple[int, ...], Any]] = set()

    def check(self, shape: tuple[int, ...], dtype: Any) -> None:
        """Call the network once, so that an error is not one of the program that calls back."""
        key = (shape, dtype)
        if key not in self._checked:
            # any time will do; 0 is an integer timestep
            t = np.zeros if jnp.issubdtype(dtype, jnp.integer) else np.ones
            try:
                x = np.ones(shape, np.float32)
                self._in_batches(self.network, x, t((), dtype), np.zeros((), int))
            except self.torch.cuda.OutOfMemoryError:
                raise
            except (RuntimeError, TypeError, IndexError) as error:
                raise ValueError(
                    f"the network cannot be called with x of shape {shape}: {error}"
                ) from error
            self._checked.add(key)

    def call(self, fn: Callable[..., Tensor], *values: Array) -> Array:
        """`fn` of tensors, as JAX sees it: an array like the first of the values."""

        def host(*values: AnyArray) -> np.ndarray:
            return self._in_batches(fn, *values).astype(values[0].dtype)

        like = jax.ShapeDtypeStruct(values[0].shape, values[0].dtype)
        return jax.pure_callback(host, like, *values, vmap_method="sequential")

    def _in_batches(self, fn: Callable[..., Tensor], *values: Any) -> np.ndarray:
        """`fn(*points, t, conditions)` of all rows, as many at a time as fit."""
        *points, t, conditions = (np.asarray(value) for value in values)
        rows = points[0].shape[0]
        t = np.broadcast_to(t, (rows,))
        conditions = np.broadcast_to(conditions, (rows,))
        parts = []
        row = 0
        while row < rows:
            size = min(self.batch or rows, rows)
            part = slice(row, row + size)
            try:
                # parameters are constants: outside of torch.func there is nothing to differentiate
                with self.torch.no_grad():
                    tensors = [self._tensor(p[part], self.dtype) for p in points]
                    found = fn(*tensors, self._time(t[part]), conditions[part])
                if not self.torch.is_tensor(found):
                    raise ValueError(
                        f"the network returned a {type(found).__name__} of NumPy; it must return a "
                        "tensor of PyTorch, which has derivatives."
                    )
                parts.append(found.to("cpu", self._host_dtype).numpy())
            except self.torch.cuda.OutOfMemoryError:
                if size == 1:
                    raise
                self.batch = size // 2
                continue
            row += size
        return np.concatenate(parts) if parts else np.zeros_like(points[0])

    @property
    def _host_dtype(self) -> Any:
        """The precision in which tensors come and go: NumPy has no bfloat16."""
        wide = self.dtype == self.torch.float64
        return self.torch.float64 if wide else self.torch.float32

    def _tensor(self, value: np.ndarray, dtype: Any) -> Tensor:
        """A tensor of this dtype on the network's device."""
        wide = self._host_dtype == self.torch.float64
        host = np.array(value, np.float64 if wide else np.float32)
        return self.torch.from_numpy(host).to(self.device, dtype)

    def _time(self, t: np.ndarray) -> Tensor:
        """Times in float32 or better, or integers."""
        if np.issubdtype(t.dtype, np.integer):
            return self.torch.from_numpy(np.array(t, np.int64)).to(self.device)
        return self._tensor(t, self._host_dtype)

    def push(self, dx: Tensor, x: Tensor, t: Tensor, conditions: np.ndarray) -> Tensor:
        """The derivative along dx."""
        with self._differentiable_attention():
            return self.torch.func.jvp(lambda v: self.network(v, t, conditions), (x,), (dx,))[1]

    def pull(self, cotangent: Tensor, x: Tensor, t: Tensor, conditions: np.ndarray) -> Tensor:
        """The transposed derivative in x, of a cotangent."""
        value, transposed = self.torch.func.vjp(lambda v: self.network(v, t, conditions), x)
        return transposed(cotangent.to(value.dtype))[0]

    def rate(self, x: Tensor, t: Tensor, conditions: np.ndarray) -> Tensor:
        """The derivative in t."""
        one = self.torch.ones_like(t)
        with self._differentiable_attention():
            return self.torch.func.jvp(lambda v: self.network(x, v, conditions), (t,), (one,))[1]

    def _differentiable_attention(self) -> Any:
        """A context in which attention has forward derivatives: its fast kernels have none."""
        attention = importlib.import_module("torch.nn.attention")
        return attention.sdpa_kernel(attention.SDPBackend.MATH)

    def as_function(self) -> Callable[..., Array]:
        """A function of JAX arrays (x, t), or (x, t, conditions), with first derivatives."""

        @jax.custom_jvp
        def call(x: Array, t: Array, conditions: Array) -> Array:
            return self.call(self.network, x, t, conditions)

        def derivative(
            primals: tuple[Array, Array, Array], tangents: tuple[Tangent, Tangent, Tangent]
        ) -> tuple[Array, Array]:
            x, t, conditions = primals
            dx, dt, _ = tangents
            moved = jnp.zeros_like(x)
            if not isinstance(dx, SymbolicZero):
                # a linear map with its transpose, which JAX takes (also under vmap) as the solution
                # of linear equations
                moved = jax.lax.custom_linear_solve(
                    lambda v: v * _constant_once(x, t),
                    dx,
                    solve=lambda _, v: self.call(self.push, v, x, t, conditions),
                    transpose_solve=lambda _, v: self.call(self.pull, v, x, t, conditions),
                )
            if not isinstance(dt, SymbolicZero):
                dt = dt.reshape(dt.shape + (1,) * (x.ndim - 1 if dt.ndim else 0))
                moved = moved + self.call(self.rate, x, t, conditions) * dt.astype(x.dtype)
            return call(x, t, conditions), moved

        call.defjvp(derivative, symbolic_zeros=True)

        def network(x: Array, t: Array, conditions: Array | int = 0) -> Array:
            x = jnp.asarray(x)
            t = jnp.asarray(t)
            if not jnp.issubdtype(t.dtype, jnp.integer):
                t = t.astype(working_dtype(x.dtype))
            self.check(x.shape, t.dtype)
            return call(x, t, jnp.asarray(conditions))

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
