"""A Gaussian as named arrays, for files."""

from collections.abc import Mapping

import equinox as eqx
import numpy as np

from ._gaussian import Gaussian

_TARGET = ("mean", "eigenvalues", "weights", "basis", "kurtosis")


def pack_target(target: Gaussian) -> dict[str, np.ndarray]:
    """A target as arrays by name. ValueError for a compressed one, whose record is not kept."""
    if target.compression is not None:
        raise ValueError(
            "target is compressed; keep the measurement with the full one and compress it when used."
        )
    fields = {name: getattr(target, name) for name in _TARGET}
    return {
        f"target_{name}": np.asarray(value) for name, value in fields.items() if value is not None
    }


def unpack_target(content: Mapping[str, np.ndarray]) -> Gaussian | None:
    """The target that `pack_target` packed, or None."""
    if "target_mean" not in content:
        return None
    mean, eigenvalues, weights, basis, kurtosis = (
        content.get(f"target_{name}") for name in _TARGET
    )
    assert mean is not None
    assert eigenvalues is not None
    # the fields as they were: a basis of thousands of columns was checked when it was made
    target = Gaussian(mean, eigenvalues, weights)
    return eqx.tree_at(
        lambda g: (g.basis, g.kurtosis), target, (basis, kurtosis), is_leaf=lambda x: x is None
    )
