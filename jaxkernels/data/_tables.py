"""Columns of Parquet and Arrow files as samples."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._extras import missing_extra
from ._images import read_images
from ._readers import select_array
from ._rows import Rows, listed, stacked

if TYPE_CHECKING:
    import pyarrow

TABLE_SUFFIXES = (".parquet", ".arrow")


def table_rows(path: Path, key: str | None, report: Callable[[str], None]) -> Rows:
    """The samples in a file, from one column, or from all columns if they hold single numbers."""
    pyarrow = _import_pyarrow(path)
    try:
        schema, count, batches = _open(path)
        columns = _columns(path, schema, key)
        if len(columns) > 1:
            report(f"{path}: a sample is the numbers of {len(columns)} columns: {listed(columns)}")

        def read(index: np.ndarray, done: Callable[[], None]) -> np.ndarray:
            return stacked(
                [_values(path, part, columns, done) for part in _taken(batches(), index)]
            )

    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged or cut off: {error}.") from None
    return Rows(count, read)


def _import_pyarrow(path: Path) -> Any:
    """The library, which is an extra."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra(f"reading {path}", "pyarrow", "formats") from None
    return pyarrow


def _open(
    path: Path,
) -> "tuple[pyarrow.Schema, int, Callable[[], Iterable[pyarrow.RecordBatch]]]":
    """The columns, the number of rows, and a function that goes through them."""
    import pyarrow
    import pyarrow.parquet

    if path.suffix.lower() == ".parquet":
        file = pyarrow.parquet.ParquetFile(path)
        return file.schema_arrow, file.metadata.num_rows, file.iter_batches
    # mapped, not read: Hugging Face's datasets writes streams, others files
    source = pyarrow.memory_map(str(path))
    try:
        table = pyarrow.ipc.open_stream(source).read_all()
    except pyarrow.ArrowInvalid:
        table = pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all()
    return table.schema, table.num_rows, table.to_batches


def _columns(path: Path, schema: "pyarrow.Schema", key: str | None) -> list[str]:
    """The columns that hold the samples."""
    import pyarrow.types as types

    names = [name for name in schema.names if not name.startswith("__index_level_")]
    if key is not None:
        return [select_array(str(path), key, names)]
    storage = {name: _storage(schema.field(name).type) for name in names}
    arrays = [name for name in names if _is_image(storage[name]) or _is_list(storage[name])]
    if arrays:
        return [select_array(str(path), None, arrays)]
    for name in names:
        kind = storage[name]
        if not (types.is_integer(kind) or types.is_floating(kind)):
            raise ValueError(
                f"{path}: the column {name!r} holds {kind}, not numbers; select a column by key: "
                f"{', '.join(names)}."
            )
    return names


def _storage(kind: "pyarrow.DataType") -> "pyarrow.DataType":
    """A type, without the name of an extension."""
    return getattr(kind, "storage_type", kind)


def _is_list(kind: "pyarrow.DataType") -> bool:
    import pyarrow.types as types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _is_image(kind: "pyarrow.DataType") -> bool:
    """Encoded files, or the pairs of file and path of Hugging Face's datasets."""
    import pyarrow.types as types

    if types.is_struct(kind):
        return {kind.field(i).name for i in range(kind.num_fields)} >= {"bytes", "path"}
    return types.is_binary(kind) or types.is_large_binary(kind)


def _taken(
    batches: "Iterable[pyarrow.RecordBatch]", index: np.ndarray
) -> "Iterator[pyarrow.RecordBatch]":
    """The rows of increasing indices, batch by batch."""
    begin = 0
    for batch in batches:
        local = index[(index >= begin) & (index < begin + batch.num_rows)] - begin
        begin += batch.num_rows
        if local.size:
            yield batch.take(local)


def _values(
    path: Path, batch: "pyarrow.RecordBatch", columns: list[str], done: Callable[[], None]
) -> np.ndarray:
    """The samples of some rows."""
    if len(columns) > 1:
        found = np.stack([_numbers(path, name, batch.column(name)) for name in columns], 1)
    else:
        column = batch.column(columns[0])
        column = getattr(column, "storage", column)
        if _is_image(column.type):
            found = _images(path, column)
        else:
            found = _numbers(path, columns[0], column)
    for _ in range(batch.num_rows):
        done()
    return found


def _images(path: Path, column: "pyarrow.Array") -> np.ndarray:
    """Decoded images."""
    cells = column.to_pylist()
    contents = [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]
    if any(content is None for content in contents):
        raise ValueError(f"{path} names images without holding them.")
    return read_images([f"{path}, image {i}" for i in range(len(contents))], contents)


def _numbers(path: Path, name: str, column: "pyarrow.Array") -> np.ndarray:
    """Numbers, or nested lists of them of one shape."""
    if column.null_count:
        raise ValueError(f"{path}: the column {name!r} has empty cells.")
    if not _is_list(column.type):
        return column.to_numpy(zero_copy_only=False)
    inner = column.flatten()
    lengths = set(np.asarray(column.value_lengths())) if hasattr(column, "value_lengths") else None
    if lengths is not None and len(lengths) > 1:
        raise ValueError(f"{path}: the lists of the column {name!r} have several lengths.")
    values = _numbers(path, name, getattr(inner, "storage", inner))
    return values.reshape(len(column), -1, *values.shape[1:])
