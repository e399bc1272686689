"""Checks of arguments whose values are known when a function is called.

Each raises a ValueError that names the argument, the value found and what is allowed. Values that
are traced by a surrounding transformation pass: their check belongs inside the computation.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ._precision import is_traced
from ._types import AnyArray, Numbers

T = TypeVar("T")

# what NumPy would turn into numbers, by the kind of its type
_NO_NUMBERS = {"b": "booleans", "S": "text", "U": "text", "m": "dates", "M": "dates"}

# share of letters in common from which another name is a misspelling
_ALIKE = 0.65
# letters beyond which a known name is a word of a longer one, as "heun" in "heun_2nd"
_WORD = 3

# negative variances of this size, relative to the largest, are rounding of a float32 decomposition
_ROUNDING = 1e-6
# types of floating numbers that PyTorch and NumPy have
_TORCH_AND_NUMPY = ("torch.float16", "torch.float32", "torch.float64")


def lookup(argument: str, name: str, known: Mapping[str, T]) -> T:
    """`known[name]`, or an error with the nearest known name."""
    if name in known:
        return known[name]
    near = _nearest(name, known) if isinstance(name, str) else []
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{argument}={shown(name)} is not known.{hint} Known: {', '.join(known)}.")


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    """Known names that a name may stand for: those that it begins, that begin it, or are alike."""
    known = list(known)
    begun = [other for other in known if len(name) > 1 and other.startswith(name)]
    longer = [other for other in known if len(other) > _WORD and name.startswith(other)]
    # of a name of two or three letters one may be wrong
    alike = min(_ALIKE, 1.0 - 1.0 / max(len(name), 2))
    near = difflib.get_close_matches(name, known, 1, alike)
    return begun or sorted(longer, key=len)[-1:] or near


def shown(value: object) -> str:
    """`value` for a message: its repr, or its type where that is long or has several lines."""
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else type(value).__name__


def counted(number: int, noun: str) -> str:
    """A number of things for a message: "1 step", "2 steps"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def brief(value: object, most: int = 6) -> str:
    """Numbers for a repr: a few of them, or their type where they are not known."""
    if not isinstance(value, Array | np.ndarray | np.number) or is_traced(value) or value.ndim > 1:
        return eqx.tree_pformat(value)
    numbers = [f"{number:.4g}" for number in np.atleast_1d(np.asarray(value)).tolist()]
    if value.ndim == 0:
        return numbers[0]
    if len(numbers) > most:
        numbers = [*numbers[: most - 2], "...", numbers[-1]]
    return f"[{', '.join(numbers)}]"


def without_torch(value: Any) -> Any:
    """`value`, or the numbers of a tensor of PyTorch of any layout and precision, on any device."""
    if not hasattr(value, "detach"):
        return value
    tensor = value.detach().cpu()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    tensor = tensor.to_dense()
    if tensor.is_floating_point() and str(tensor.dtype) not in _TORCH_AND_NUMPY:
        tensor = tensor.float()
    return tensor.numpy()


def _has_booleans(value: object) -> bool:
    """Whether booleans are among the entries of a list, where NumPy makes them 0 and 1."""
    if isinstance(value, list | tuple):
        return any(map(_has_booleans, value))
    return isinstance(value, bool) or getattr(getattr(value, "dtype", None), "kind", "") == "b"


def on_host(argument: str, value: Any) -> np.ndarray:
    """`value` as an array of NumPy, in its own precision where NumPy has that."""
    try:
        out = np.asarray(without_torch(value))
        if np.ma.is_masked(value):
            raise TypeError("masked entries")
        kinds = {out.dtype.kind}
        if out.dtype.kind == "O":
            kinds = {np.asarray(entry).dtype.kind for entry in out.flat}
        if _has_booleans(value):
            kinds.add("b")
        for kind in kinds & set(_NO_NUMBERS):
            raise TypeError(_NO_NUMBERS[kind])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{argument} must be an array of real numbers; got {error}.") from None
    return out


def array(argument: str, value: object) -> AnyArray:
    """`value` as a real float64 array without NaN or infinity."""
    out = on_host(argument, value)
    try:
        if np.iscomplexobj(out):
            raise TypeError("complex numbers")
        out = out.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{argument} must be an array of real numbers; got {error}.") from None
    if not np.all(np.isfinite(out)):
        bad = np.argwhere(~np.isfinite(out))[0]
        where = f"[{', '.join(map(str, bad))}]" if out.ndim else ""
        raise ValueError(f"{argument}{where} = {out[tuple(bad)]}: every number must be finite.")
    return cast(AnyArray, out)


def variances(argument: str, value: object) -> AnyArray:
    """`value` as an array of variances >= 0; what rounding made negative is 0."""
    out = array(argument, value)
    if out.size and out.min() < -_ROUNDING * max(out.max(), 0.0):
        index = ", ".join(map(str, np.unravel_index(int(np.argmin(out)), out.shape)))
        where = f"[{index}]" if out.ndim else ""
        raise ValueError(f"{argument}{where} = {out.min():g} is negative; variances are >= 0.")
    return cast(AnyArray, np.maximum(out, 0.0))


def scalar(
    argument: str,
    value: object,
    *,
    above: float = -np.inf,
    below: float = np.inf,
    at_least: float = -np.inf,
    at_most: float = np.inf,
) -> AnyArray:
    """`value` as a 0-d float64 array inside the stated range (strict and weak bounds)."""
    out = array(argument, value)
    if out.ndim:
        raise ValueError(f"{argument} must be a single number; got shape {out.shape}.")
    bounds = [(above, ">"), (at_least, ">="), (below, "<"), (at_most, "<=")]
    wanted = " and ".join(f"{sign} {b:g}" for b, sign in bounds if np.isfinite(b))
    if not (above < out < below and at_least <= out <= at_most):
        raise ValueError(f"{argument} = {float(out):g} must be {wanted}.")
    return out


def parameter(argument: str, value: Numbers, **bounds: float) -> AnyArray:
    """A field of a module: checked like `scalar` if it is concrete, kept as it is if traced."""
    return cast(AnyArray, value) if is_traced(value) else scalar(argument, value, **bounds)


def count(argument: str, value: object, *, at_least: int = 1, at_most: int | None = None) -> int:
    """`value` as an int in the stated range."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{argument} = {value!r} must be an integer.")
    if value < at_least:
        raise ValueError(f"{argument} = {value} must be at least {at_least}.")
    if at_most is not None and value > at_most:
        raise ValueError(f"{argument} = {value} must be at most {at_most}.")
    return int(value)


def random_key(argument: str, value: object) -> Array:
    """`value` as one random key, of either kind that JAX has."""
    wanted = f"{argument} must be a random key such as jax.random.key(0)"
    if not isinstance(value, Array):
        raise ValueError(f"{wanted}; got {shown(value)}.")
    typed = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    if not typed and value.dtype != np.uint32:
        raise ValueError(f"{wanted}; got an array of {value.dtype}.")
    # the numbers of an untyped key are a row
    own = 0 if typed else 1
    if value.ndim != own:
        raise ValueError(f"{wanted}, one alone; got an array of keys, or of none, {value.shape}.")
    return value


def instance(argument: str, value: object, kind: type[T]) -> T:
    """`value`, which must be an instance of a class."""
    if not isinstance(value, kind):
        name = kind.__name__
        article = "an" if name[0] in "AEIOU" else "a"
        raise ValueError(f"{argument} must be {article} {name}; got {type(value).__name__}.")
    return value


def one_of(argument: str, value: object, allowed: Iterable[str]) -> str:
    """`value`, which must be among the allowed names."""
    names = {name: name for name in allowed}
    return lookup(argument, cast(str, value), names)
