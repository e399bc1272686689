"""The array that is meant by what a network returns."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

_USUAL = "sample"
"""Where libraries keep it in an output object."""


def take_output(
    value: Any, shape: Sequence[int], source: str, hint: str, name: str | int | None = None
) -> Any:
    """The prediction in what a network returned, an array or tensor of `shape`.

    Of an output object it is the member `name`, or by default `.sample` or the only member that
    fits. Of twice as many channels (a learned variance) it is the first half.

    **Arguments:** `value`, what was returned; `shape`, that of the network's input; `source` and
    `hint`, for messages: who returned it, and how to take one member of an output object.

    **Raises:** ValueError that names what was returned, and what to do.
    """
    shape = tuple(shape)
    found = value if _is_array(value) else _member(value, shape, source, hint, name)
    axis = _axis_of_channels(found, shape)
    if axis is None:
        raise ValueError(
            f"{source} returned shape {tuple(found.shape)} for x of shape {shape}, in "
            f"{found.dtype}; it must return one real number per entry of x, or twice as many "
            "channels (axis 1 or the last), of which the first half is taken."
        )
    if tuple(found.shape) == shape:
        return found
    first = [slice(None)] * len(shape)
    first[axis] = slice(shape[axis])
    return found[tuple(first)]


def _member(
    value: Any, shape: tuple[int, ...], source: str, hint: str, name: str | int | None
) -> Any:
    """The member of an output object that holds the prediction."""
    members = {key: item for key, item in _members(value).items() if _is_array(item)}
    fitting = [key for key, item in members.items() if _axis_of_channels(item, shape) is not None]
    if name is None and _USUAL in members:
        name = _USUAL
    elif name is None and len(fitting) == 1:
        name = fitting[0]
    if name in members:
        return members[name]
    listed = ", ".join(f"{key!r}: {_described(item)}" for key, item in _members(value).items())
    held = f" with {listed}" if listed else ""
    asked = "" if name is None else f", which has no array {name!r}"
    raise ValueError(
        f"{source} returned a {type(value).__name__}{held}{asked}, for x of shape {shape}; {hint}."
    )


def _members(value: Any) -> dict[Any, Any]:
    """What an output object holds, by name or index."""
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "_asdict"):
        return value._asdict()
    if isinstance(value, tuple | list):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {_USUAL: value.sample} if hasattr(value, _USUAL) else {}


def _is_array(value: Any) -> bool:
    """Whether it is an array or tensor."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _is_real(value: Any) -> bool:
    """Whether it is an array or tensor of floating type."""
    if hasattr(value, "is_floating_point"):
        return value.is_floating_point()
    return jnp.issubdtype(value.dtype, jnp.floating)


def _axis_of_channels(value: Any, shape: tuple[int, ...]) -> int | None:
    """The axis along which the prediction is cut from an array, or None if it does not fit."""
    found = tuple(value.shape)
    if not _is_real(value) or len(found) != len(shape):
        return None
    if found == shape:
        return 0
    for axis in {1, len(shape) - 1} if len(shape) > 1 else ():
        if found == (*shape[:axis], 2 * shape[axis], *shape[axis + 1 :]):
            return axis
    return None


def _described(value: Any) -> str:
    """An array or tensor by type and shape, anything else by its type."""
    if _is_array(value):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return type(value).__name__
