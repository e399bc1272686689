"""Contents of files as arrays, by suffix; every fault is a ValueError that names the file."""

import io
import json
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from .. import _checks
from .._extras import missing_extra
from ._rows import Rows, num_samples

Decoder: TypeAlias = Callable[[str, bytes, str | None], np.ndarray]
"""(name of the file, its content, name of an array in it) -> an array."""

_SAFETENSORS_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": jnp.dtype("bfloat16"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "U64": np.dtype("<u8"),
    "F8_E4M3": jnp.dtype("float8_e4m3fn"),
    "F8_E5M2": jnp.dtype("float8_e5m2"),
}
HDF5_SUFFIXES = (".h5", ".hdf5")

# suffixes of files that hold several arrays by name
KEYED = (".npz", ".pt", ".pth", ".safetensors", *HDF5_SUFFIXES, ".parquet", ".arrow", ".tar")


def check_key(name: str, key: str | None) -> None:
    """ValueError for a key where nothing has a name."""
    if key is not None and Path(name).suffix.lower() not in KEYED:
        raise ValueError(
            f"key = {key!r} is for .npz files and others that hold several arrays "
            f"({', '.join(KEYED[1:])}); got {name}."
        )


def decode(
    name: str,
    content: Callable[[], bytes],
    key: str | None,
    decoders: Mapping[str, Decoder],
) -> np.ndarray:
    """The array in a file, by its suffix."""
    try:
        return decoders[Path(name).suffix.lower()](name, content(), key)
    except OSError as error:
        raise ValueError(f"cannot read {name}: {error.strerror or error}.") from None
    except (EOFError, UnicodeDecodeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{name} is damaged or cut off: {error}.") from None


def select_array(name: str, key: str | None, names: Sequence[str]) -> str:
    """The name that was asked for, or the only one."""
    if not names:
        raise ValueError(f"{name} holds no array.")
    if key is not None:
        return _checks.one_of("key", key, names)
    if len(names) != 1:
        raise ValueError(
            f"{name} holds {len(names)} arrays; select one by key: {', '.join(names)}."
        )
    return names[0]


def _npy(name: str, content: bytes, key: str | None) -> np.ndarray:
    """The array of a .npy file."""
    del key
    values = _numpy(name, content)
    if not isinstance(values, np.ndarray):
        raise ValueError(f"{name} is a .npz archive by content; give it that suffix.")
    return values


def _npz(name: str, content: bytes, key: str | None) -> np.ndarray:
    """The only array of an archive, or that of a name."""
    archive = _numpy(name, content)
    if isinstance(archive, np.ndarray):
        raise ValueError(f"{name} is a .npy file by content; give it that suffix.")
    selected = select_array(name, key, archive.files)
    try:
        return archive[selected]
    except ValueError as error:
        raise ValueError(
            f"{selected} in {name} is damaged or not a plain NumPy array: {error}."
        ) from None


def _numpy(name: str, content: bytes) -> "np.ndarray | np.lib.npyio.NpzFile":
    """What NumPy finds in a file."""
    try:
        return np.load(io.BytesIO(content), allow_pickle=False)
    except ValueError as error:
        raise ValueError(
            f"{name} is damaged, cut off or not a plain NumPy array: {error}."
        ) from None


def _torch(name: str, content: bytes, key: str | None) -> np.ndarray:
    """A tensor, the tensor of a name, or a list of tensors of one shape."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise missing_extra(f"reading {name}", "PyTorch", "formats") from None
    try:
        with warnings.catch_warnings():
            # that it takes time to check the indices of sparse tensors
            warnings.filterwarnings("ignore", "Validating sparse tensor", UserWarning)
            found: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        fault = str(error).split(". ")[0].splitlines()[0]
        raise ValueError(
            f"{name} is damaged, cut off or holds more than tensors: {fault}."
        ) from None
    if isinstance(found, Mapping):
        tensors = {str(k): v for k, v in found.items() if isinstance(v, torch.Tensor)}
        found = tensors[select_array(name, key, list(tensors))]
    elif key is not None:
        raise ValueError(f"key = {key!r}: {name} holds no tensors by name.")
    if isinstance(found, list | tuple) and found:
        if len({getattr(tensor, "shape", None) for tensor in found}) > 1:
            raise ValueError(f"{name} holds a list of tensors of several shapes.")
        found = torch.stack(list(found))
    if not isinstance(found, torch.Tensor):
        raise ValueError(f"{name} must hold a tensor; it holds a {type(found).__name__}.")
    return _checks.without_torch(found)


def _safetensors(name: str, content: bytes, key: str | None) -> np.ndarray:
    """The only tensor of a file, or that of a name."""
    try:
        import safetensors
    except ImportError:
        raise missing_extra(f"reading {name}", "safetensors", "formats") from None
    try:
        found = dict(safetensors.deserialize(content))
    except safetensors.SafetensorError as error:
        raise ValueError(f"{name} is damaged or cut off: {error}.") from None
    tensor = found[select_array(name, key, sorted(found))]
    kind = tensor["dtype"]
    if kind not in _SAFETENSORS_DTYPES:
        raise ValueError(f"{name} holds numbers of dtype {kind}, which are not read.")
    values = np.frombuffer(tensor["data"], _SAFETENSORS_DTYPES[kind]).reshape(tensor["shape"])
    return values.astype(np.float32) if kind == "BF16" else values


def hdf5_rows(path: Path, key: str | None, report: Callable[[str], None]) -> Rows:
    """The samples in the only data set of a file, or that of a name, read from disk when asked.

    Nothing is inferred that could be reported.
    """
    del report
    try:
        import h5py
    except ImportError:
        raise missing_extra(f"reading {path}", "h5py", "formats") from None
    names: list[str] = []

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            names.append(name)

    def read(index: np.ndarray, done: Callable[[], None]) -> np.ndarray:
        del done
        with h5py.File(path, "r") as file:
            found: Any = file[selected]
            return np.asarray(found[index])

    try:
        with h5py.File(path, "r") as file:
            file.visititems(note)
            selected = select_array(str(path), key, names)
            found: Any = file[selected]
            return Rows(num_samples(str(path), found.shape), read)
    except OSError as error:
        raise ValueError(f"{path} is damaged or cut off: {error}.") from None


def _json(name: str, content: bytes, key: str | None) -> np.ndarray:
    """A JSON list of numbers."""
    del key
    try:
        found = json.loads(content.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not a complete JSON file: {error}.") from None
    if not isinstance(found, list):
        raise ValueError(f"{name} must hold a list of numbers; it holds a {type(found).__name__}.")
    return np.asarray(_checks.array(name, found)) if found else np.empty(0)


# of one sample in a folder or a shard, or of all samples
ARRAY_DECODERS: dict[str, Decoder] = {
    ".npy": _npy,
    ".npz": _npz,
    ".pt": _torch,
    ".pth": _torch,
    ".safetensors": _safetensors,
}
# of one list of numbers
LIST_DECODERS: dict[str, Decoder] = {**ARRAY_DECODERS, ".json": _json}
