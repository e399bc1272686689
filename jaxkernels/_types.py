"""Types that several modules share."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import jax
import numpy as np
from jaxtyping import ArrayLike

Numbers: TypeAlias = ArrayLike | Sequence[Any]
"""Numbers from a user, before they are checked: a scalar, an array or nested lists."""

Network: TypeAlias = Callable[..., Any]
"""A network: (x, t) -> an array of x's shape, batched over x, with a scalar time t.

A conditional one is told the conditions of all rows as well. Libraries return the array alone, or
in an object of their own.
"""

Rows: TypeAlias = slice | Sequence[int] | np.ndarray | jax.Array
"""Which rows: a slice or indices."""

if TYPE_CHECKING:
    AnyArray: TypeAlias = jax.Array
else:
    AnyArray = jax.Array | np.ndarray
"""An array of either library.

Concrete parameters are kept in NumPy, which has float64 whatever JAX's flag, and become JAX arrays
inside a transformation; a type checker sees the JAX arrays that they stand for.
"""


def constant(value: object) -> AnyArray:
    """`value` in NumPy and float64, as concrete parameters are kept."""
    return cast(AnyArray, np.asarray(value, np.float64))
