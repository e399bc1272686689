"""Sizes that arrays are padded to, so that few shapes are compiled."""

import numpy as np
from jaxtyping import Float


def bucket(size: int, smallest: int = 16) -> int:
    """The smallest power of two, at least `smallest`, that is >= size."""
    return max(smallest, 1 << (size - 1).bit_length())


def pad_last(values: Float[np.ndarray, "*rows n"], size: int) -> Float[np.ndarray, "*rows size"]:
    """`values` with the last entry repeated along the last axis, up to `size` entries."""
    widths = [(0, 0)] * (values.ndim - 1) + [(0, size - values.shape[-1])]
    return np.pad(values, widths, mode="edge")
