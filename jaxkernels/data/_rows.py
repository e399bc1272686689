"""Samples in rows that are read when they are asked for."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class Rows:
    """Samples of which any may be read.

    `read` takes increasing indices, and a function that it calls once for every sample read.
    """

    count: int
    read: Callable[[Int[np.ndarray, " n"], Callable[[], None]], Float[np.ndarray, "n *sample"]]


def num_samples(name: str, shape: tuple[int, ...]) -> int:
    """The number of samples in an array, one per row."""
    if len(shape) < 2:
        raise ValueError(
            f"{name} holds an array of shape {shape}; samples are (n, ...), one per row. For the "
            "eigenvalues of a covariance use load_spectrum (--spectrum)."
        )
    return shape[0]


def array_rows(name: str, values: np.ndarray) -> Rows:
    """The rows of an array."""

    def read(index: np.ndarray, done: Callable[[], None]) -> np.ndarray:
        del done
        return values if index.size == len(values) else values[index]

    return Rows(num_samples(name, values.shape), read)


def joined_rows(parts: Sequence[Rows]) -> Rows:
    """The rows of several files, one after another."""
    ends = np.cumsum([part.count for part in parts])

    def read(index: np.ndarray, done: Callable[[], None]) -> np.ndarray:
        found = []
        for part, end in zip(parts, ends, strict=True):
            begin = end - part.count
            local = index[(index >= begin) & (index < end)] - begin
            if local.size:
                found.append(part.read(local, done))
        return stacked(found)

    return Rows(int(ends[-1]), read)


def stacked(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Blocks of samples one after another."""
    shapes = sorted({block.shape[1:] for block in blocks})
    if len(shapes) > 1:
        raise ValueError(f"samples must have one shape; found {shapes[0]} and {shapes[1]}.")
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def listed(names: Sequence[str]) -> str:
    """Names in a message, without the middle of many."""
    return ", ".join(names if len(names) <= 6 else [*names[:3], "...", names[-1]])
