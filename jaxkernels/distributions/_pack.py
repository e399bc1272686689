"""A Gaussian as named arrays, for files."""

from collections.abc import Mapping

import equinox as eqx
import numpy as np

from ._gaussian import Gaussian

_PREFIX = "target_"
_FIELDS = ("mean", "eigenvalues", "weights", "basis", "kurtosis")


def pack_target(target: Gaussian) -> dict[str, np.ndarray]:
    """Write a Gaussian as arrays by name.

    **Arguments:**

    - `target`: a Gaussian that is not compressed.

    **Returns:** its fields by name, without those that are None.

    **Raises:** ValueError for a compressed one, whose `compression` would be lost.
    """
    if target.compression is not None:
        raise ValueError(
            "target is compressed; keep the measurement with the full one and compress it when "
            "used."
        )
    fields = {name: getattr(target, name) for name in _FIELDS}
    return {
        _PREFIX + name: np.asarray(value) for name, value in fields.items() if value is not None
    }


def unpack_target(content: Mapping[str, np.ndarray]) -> Gaussian | None:
    """Read the Gaussian that `pack_target` wrote.

    **Arguments:**

    - `content`: arrays by name, other names among them.

    **Returns:** the Gaussian, or None if there is none.
    """
    if _PREFIX + "mean" not in content:
        return None
    fields = {name: content.get(_PREFIX + name) for name in _FIELDS}
    target = Gaussian(0.0, content[_PREFIX + "eigenvalues"], content[_PREFIX + "weights"])
    # set as they are: a basis of thousands of columns takes seconds to check, and was checked when
    # made
    return eqx.tree_at(
        lambda g: (g.mean, g.basis, g.kurtosis),
        target,
        (fields["mean"], fields["basis"], fields["kurtosis"]),
        is_leaf=lambda leaf: leaf is None,
    )
