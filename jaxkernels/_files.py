"""Files of named arrays, with a format and a version, that appear whole or not at all."""

import io
import os
import zipfile
import zlib
from collections.abc import Mapping

import equinox as eqx
import numpy as np

from .schedules import write_atomically
from .target import Gaussian

_VERSIONS = {"jaxkernels.measurement": 1, "jaxkernels.measure.state": 2, "jaxkernels.record": 1}
_TARGET = ("mean", "eigenvalues", "weights", "basis", "kurtosis")


def write(path: str | os.PathLike[str], kind: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name. Raises ValueError, naming the path, if that cannot be done."""
    buffer = io.BytesIO()
    head = {"format": np.array(kind), "version": np.array(_VERSIONS[kind])}
    np.savez(buffer, **head, **arrays)  # pyright: ignore[reportArgumentType]
    write_atomically(path, buffer.getvalue())


def read(path: str | os.PathLike[str], kind: str) -> dict[str, np.ndarray]:
    """The arrays that `write` wrote. Raises ValueError naming the path and the fault."""
    name = os.fspath(path)
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            content = dict(archive.items())
    except OSError as error:
        raise ValueError(f"cannot read {name}: {error.strerror or error}.") from None
    except (ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{name} is damaged, cut off or no .npz file: {error}.") from None
    if str(content.pop("format", "")) != kind:
        raise ValueError(f"{name} is another kind of file (no format {kind!r} in it).")
    version = content.pop("version", None)
    if version != _VERSIONS[kind]:
        raise ValueError(f"{name} has version {version}; this release reads version {_VERSIONS[kind]}.")
    return content


def pack_target(target: Gaussian) -> dict[str, np.ndarray]:
    """A target as arrays by name. ValueError for a compressed one, whose record is not kept."""
    if target.compression is not None:
        raise ValueError("target is compressed; keep the measurement with the full one and compress it when used.")
    fields = {name: getattr(target, name) for name in _TARGET}
    return {f"target_{name}": np.asarray(value) for name, value in fields.items() if value is not None}


def unpack_target(content: Mapping[str, np.ndarray]) -> Gaussian | None:
    """The target that `pack_target` packed, or None."""
    if "target_mean" not in content:
        return None
    mean, eigenvalues, weights, basis, kurtosis = (content.get(f"target_{name}") for name in _TARGET)
    assert mean is not None
    assert eigenvalues is not None
    # the fields as they were: a basis of thousands of columns was checked when it was made
    target = Gaussian(mean, eigenvalues, weights)
    return eqx.tree_at(lambda g: (g.basis, g.kurtosis), target, (basis, kurtosis), is_leaf=lambda x: x is None)
