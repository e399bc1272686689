"""Types that several rooms share."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import ArrayLike

Numbers: TypeAlias = ArrayLike | Sequence[Any]
"""Numbers from a user, before they are checked: a scalar, an array or nested lists."""

AnyArray: TypeAlias = jax.Array | np.ndarray
"""An array of either library."""
