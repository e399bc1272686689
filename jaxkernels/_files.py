"""Files of named arrays, with a format and a version, that appear whole or not at all."""

import io
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

# the version that this release writes and reads, by format
_VERSIONS = {
    "jaxkernels.measurement": 1,
    "jaxkernels.measure.state": 3,
    "jaxkernels.record": 1,
    "jaxkernels.denoised_record": 1,
}
_DAMAGE = (ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error)


def write(path: str | os.PathLike[str], format: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name. Raises ValueError, naming the path, if that cannot be done."""
    buffer = io.BytesIO()
    head = {"format": np.array(format), "version": np.array(_VERSIONS[format])}
    np.savez(buffer, **head, **arrays)  # pyright: ignore[reportArgumentType]
    write_atomically(path, buffer.getvalue())


def read(path: str | os.PathLike[str], format: str) -> dict[str, np.ndarray]:
    """The arrays that `write` wrote. Raises ValueError naming the path and the fault."""
    name = os.fspath(path)
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            content = dict(archive.items())
    except OSError as error:
        raise ValueError(f"cannot read {name}: {error.strerror or error}.") from None
    except _DAMAGE as error:
        raise ValueError(f"{name} is damaged, cut off or no .npz file: {error}.") from None
    if str(content.pop("format", "")) != format:
        raise ValueError(f"{name} is another kind of file (no format {format!r} in it).")
    version = content.pop("version", None)
    if version != _VERSIONS[format]:
        raise ValueError(
            f"{name} has version {version}; this release reads version {_VERSIONS[format]}."
        )
    return content


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write to a temporary file beside `path`, then rename it into place."""
    path = Path(path)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise ValueError(f"cannot write {path}: {error.strerror}.") from None


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
