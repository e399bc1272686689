"""What a PyTorch network is told beside x and t: tensors with one row per condition."""

from collections.abc import Mapping, Sequence
from typing import Any

from ._torch import Tensor


def rows_of(value: Any, count: int, rows: Sequence[int]) -> Any:
    """`value` with these rows of every tensor in it that has `count` of them.

    Goes into dictionaries, lists and tuples; anything else is shared by all rows.
    """
    if isinstance(value, Mapping):
        return {key: rows_of(item, count, rows) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [rows_of(item, count, rows) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if is_tensor(value) and value.ndim and value.shape[0] == count:
        return value[list(rows)]
    return value


def count_rows(conditions: Mapping[str, Tensor], argument: str) -> int:
    """Number of conditions in tensors that all have as many rows."""
    counts = {name: value.shape[0] for name, value in conditions.items() if _has_rows(value)}
    if len(set(counts.values())) > 1:
        raise ValueError(f"{argument} must have equally many rows; got {counts}.")
    return next(iter(counts.values()), 1)


def is_tensor(value: Any) -> bool:
    """Whether it is a tensor of PyTorch."""
    return hasattr(value, "is_floating_point")


def _has_rows(value: Any) -> bool:
    """Whether it is a tensor with rows."""
    return is_tensor(value) and value.ndim > 0
