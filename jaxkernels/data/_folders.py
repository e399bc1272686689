"""Folders of samples, and tar shards: many files of one kind, read when they are asked for."""

import dataclasses
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ._images import IMAGE_SUFFIXES, read_images
from ._readers import ARRAY_DECODERS, HDF5_SUFFIXES, check_key, decode, hdf5_rows
from ._rows import Rows, joined_rows, listed
from ._tables import TABLE_SUFFIXES, table_rows

# arrays of more axes hold several samples: images, with a channel axis, have three
_SAMPLE_AXES = 3


@dataclasses.dataclass(frozen=True)
class _File:
    """A file, in a folder or in an archive."""

    name: str
    content: Callable[[], bytes]


def folder_rows(folder: Path, key: str | None, report: Callable[[str], None]) -> Rows:
    """The samples in the files of a folder and its subfolders, in the order of their names."""
    _check_splits(folder)
    paths = _saved_files(folder)
    if paths is None:
        paths = sorted(p for p in _files_below(folder) if _is_sample(p.relative_to(folder)))
    kind = _kind_of_files(str(folder), [path.name for path in paths])
    paths = [path for path in paths if _kind(path.name) == kind]
    if kind in READERS:
        if len(paths) > 1:
            names = [str(path.relative_to(folder)) for path in paths]
            report(f"{folder}: {len(paths)} {kind} files are taken together: {listed(names)}")
        read = READERS[kind]
        # what is inferred of one file holds for all
        tell = [report, *[_ignore] * (len(paths) - 1)]
        return joined_rows([read(path, key, told) for path, told in zip(paths, tell)])
    subfolders = len({path.parent for path in paths} - {folder})
    if subfolders > 1:
        report(f"{folder}: the files of {subfolders} subfolders are taken together")
    return _file_rows([_File(str(path), path.read_bytes) for path in paths], kind, key, report)


def _files_below(folder: Path) -> list[Path]:
    """The files of a folder and its subfolders, also those that are links; each folder once."""
    found: list[Path] = []
    seen = {folder.resolve()}
    for place, subfolders, names in os.walk(folder, followlinks=True):
        found += [Path(place, name) for name in names]
        # a link to a folder above would have no end
        new = {Path(place, name).resolve(): name for name in sorted(subfolders)}
        subfolders[:] = [name for real, name in new.items() if real not in seen]
        seen.update(new)
    return found


def _ignore(text: str) -> None:
    """Say nothing."""
    del text


def tar_rows(path: Path, key: str | None, report: Callable[[str], None]) -> Rows:
    """The samples in a shard, one file each; `key` is their extension where there are several."""
    try:
        # not compressed, so that a member is a part of the file
        with tarfile.open(path, "r:") as archive:
            members = [member for member in archive.getmembers() if member.isfile()]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{path} is damaged, cut off or compressed: {error}.") from None
    members = [m for m in members if _is_sample(PurePosixPath(m.name))]
    members = _of_extension(str(path), members, key)
    kind = _kind_of_files(str(path), [m.name for m in members])
    if kind in READERS:
        raise ValueError(f"{path} holds {kind} files, each of several samples; unpack it.")

    def content(member: tarfile.TarInfo) -> bytes:
        with path.open("rb") as file:
            file.seek(member.offset_data)
            return file.read(member.size)

    files = [
        _File(f"{path}/{m.name}", lambda m=m: content(m)) for m in members if _kind(m.name) == kind
    ]
    return _file_rows(files, kind, None, report)


def _of_extension(
    place: str, members: Sequence[tarfile.TarInfo], key: str | None
) -> list[tarfile.TarInfo]:
    """The one file of every sample in a shard; its extension begins at the name's first dot."""
    samples: dict[str, list[tarfile.TarInfo]] = {}
    for member in members:
        stem = member.name.rpartition("/")[2].partition(".")[0]
        samples.setdefault(f"{member.name.rpartition('/')[0]}/{stem}", []).append(member)
    extensions = sorted({_extension(member) for member in members})
    if key is None:
        several = next((found for found in samples.values() if len(found) > 1), None)
        if several is not None:
            raise ValueError(
                f"{place} holds several files of each sample; select one by key, its extension: "
                f"{listed(extensions)}."
            )
        return list(members)
    wanted = [m for m in members if _extension(m) == key.removeprefix(".")]
    if members and not wanted:
        raise ValueError(
            f"key = {key!r} is no extension of a sample in {place}; there are {listed(extensions)}."
        )
    return wanted


def _extension(member: tarfile.TarInfo) -> str:
    """What follows the first dot of a file's name, as webdataset reads it."""
    return member.name.rpartition("/")[2].partition(".")[2]


def _check_splits(folder: Path) -> None:
    """ValueError for a data set of several splits, of which one is to be given."""
    index = folder / "dataset_dict.json"
    if index.is_file():
        splits = json.loads(index.read_text())["splits"]
        paths = ", ".join(os.fspath(folder / split) for split in splits)
        raise ValueError(f"{folder} holds several splits of a data set; give one of {paths}.")


def _saved_files(folder: Path) -> list[Path] | None:
    """The files of a data set that Hugging Face's `datasets` saved, without those of its cache."""
    state = folder / "state.json"
    if not state.is_file():
        return None
    try:
        return [folder / file["filename"] for file in json.loads(state.read_text())["_data_files"]]
    except (ValueError, KeyError, TypeError):
        return None  # another program's


def _is_sample(path: Path | PurePosixPath) -> bool:
    """Whether a file may be a sample: of a known kind, and not hidden, as those of a Mac are."""
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return not hidden and _kind(path.name) is not None


def _kind(name: str) -> str | None:
    """The suffix of a file, ".png" for every image; None for one that holds no samples."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return IMAGE_SUFFIXES[0]
    return suffix if suffix in (*ARRAY_DECODERS, *READERS) else None


def _kind_of_files(place: str, names: Sequence[str]) -> str:
    """The one kind of files in a folder or shard."""
    kinds = Counter(kind for name in names if (kind := _kind(name)) is not None)
    if not kinds:
        known = (*IMAGE_SUFFIXES, *ARRAY_DECODERS, *READERS)
        raise ValueError(f"{place} holds no images or arrays ({', '.join(known)}).")
    if len(kinds) > 1:
        found = ", ".join(
            f"{count} {'images' if kind == IMAGE_SUFFIXES[0] else kind}"
            for kind, count in kinds.items()
        )
        raise ValueError(f"{place} must hold samples of one kind; it holds {found}.")
    return next(iter(kinds))


def _file_rows(
    files: Sequence[_File], kind: str, key: str | None, report: Callable[[str], None]
) -> Rows:
    """One sample per file, or the samples in arrays of several each."""
    check_key(files[0].name, key)
    if kind == IMAGE_SUFFIXES[0]:
        return Rows(len(files), lambda index, done: _read_images(files, index, done))

    def read(i: int) -> np.ndarray:
        return decode(files[i].name, files[i].content, key, ARRAY_DECODERS)

    shapes = [read(i).shape for i in sorted({0, len(files) - 1})]
    if min(map(len, shapes)) == 0 or (shapes[0] != shapes[-1] and max(map(len, shapes)) == 1):
        raise ValueError(
            f"samples must have one shape, of one axis at least; {files[0].name} has {shapes[0]} "
            f"and {files[-1].name} has {shapes[-1]}."
        )
    one = {shape for shape in shapes if len(shape) <= _SAMPLE_AXES}
    if len(one) == 1 and shapes[0] == shapes[-1]:
        report(f"{len(files)} {kind} files of one sample each, of shape {shapes[0]}")
        return Rows(len(files), lambda index, done: _read_arrays(files, read, index, done))
    counts = [len(read(i)) for i in range(len(files))]
    report(f"{len(files)} {kind} files of several samples each, of shape {shapes[0][1:]}")
    return joined_rows([_shard(count, read, i) for i, count in enumerate(counts)])


def _read_images(files: Sequence[_File], index: np.ndarray, done: Callable[[], None]) -> np.ndarray:
    """Images by index."""

    def contents():
        for i in index.tolist():
            try:
                yield files[i].content()
            except OSError as error:
                raise ValueError(f"cannot read {files[i].name}: {error.strerror}.") from None
            done()

    return read_images([files[i].name for i in index.tolist()], contents())


def _read_arrays(
    files: Sequence[_File],
    read: Callable[[int], np.ndarray],
    index: np.ndarray,
    done: Callable[[], None],
) -> np.ndarray:
    """Arrays by index, of one shape."""
    found = []
    names = [files[i].name for i in index.tolist()]
    for i, name in zip(index.tolist(), names, strict=True):
        found.append(read(i))
        if found[-1].shape != found[0].shape:
            raise ValueError(
                f"samples must have one shape; {names[0]} has {found[0].shape} and {name} has "
                f"{found[-1].shape}."
            )
        done()
    return np.stack(found)


def _shard(count: int, read: Callable[[int], np.ndarray], i: int) -> Rows:
    """The samples in one array of several."""

    def read_rows(index: np.ndarray, done: Callable[[], None]) -> np.ndarray:
        block = read(i)[index]
        for _ in index:
            done()
        return block

    return Rows(count, read_rows)


# of files that hold several samples each, where they are not arrays
READERS: dict[str, Callable[[Path, str | None, Callable[[str], None]], Rows]] = {
    **dict.fromkeys(HDF5_SUFFIXES, hdf5_rows),
    **dict.fromkeys(TABLE_SUFFIXES, table_rows),
    ".tar": tar_rows,
}
