"""Compiled programs kept from one process to the next, so that nothing is traced for them again.

JAX's own cache finds a compiled program by its text, which takes longer to write (tracing and
lowering) than all else in a short run. Here it is found by what the text follows from:

* the source of this package, the versions of Python and of the libraries below it, the processor,
* JAX's configuration and XLA's flags,
* the function, the shapes and types of the arrays in its arguments, and all else in these.

What is not known by its source (a user's function or class) has no such key, and is traced as ever.
So is everything on accelerators and where there are several devices. A file that is missing,
damaged or of another version is as good as none: the program is compiled and written anew.

A program calls functions outside of it by address. Those of LAPACK are registered before a program
is read; a program that calls any other, such as back into Python, is not kept.

Programs run as machine code: a folder to which other users can write is not used.
"""

import contextlib
import contextvars
import functools
import hashlib
import importlib.metadata
import io
import os
import pickle
import platform
import re
import shutil
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache as jax_cache
from jax.experimental.serialize_executable import deserialize_and_load, serialize
from jaxtyping import PyTree

from ._files import write_atomically

Program = Callable[..., PyTree]

_LIBRARIES = ("jax", "jaxlib", "numpy", "scipy", "equinox", "optax", "jaxtyping")
# modules whose functions and classes are known by the versions above
_KNOWN = ("builtins", "functools", *_LIBRARIES)
_FOLDER = "programs-"
# names of functions outside of a program, in its text
_CALLED = re.compile(r"custom_call @(\w+)")
_LAPACK = "lapack_"
_DIGEST = hashlib.sha256().digest_size


class _Shape(NamedTuple):
    """What a program depends on of an array."""

    shape: tuple[int, ...]
    dtype: str
    weak: bool


class _Call(NamedTuple):
    """A call of a function: its arguments without the values of arrays, and these values.

    `rest` has, for every leaf of the arguments, a `_Shape` or the leaf itself.
    """

    treedef: Any
    rest: tuple[Any, ...]
    arrays: list[Any]

    @classmethod
    def of(cls, filtered: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "_Call":
        """Take arguments apart; if `filtered`, leaves other than arrays are not values."""
        leaves, treedef = jax.tree.flatten((args, kwargs))
        is_value = [not filtered or eqx.is_array(leaf) for leaf in leaves]
        rest = tuple(_shape(a) if v else a for a, v in zip(leaves, is_value, strict=True))
        return cls(treedef, rest, [a for a, v in zip(leaves, is_value, strict=True) if v])

    def arguments(self, arrays: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments again, with other values."""
        values = iter(arrays)
        leaves = [next(values) if isinstance(a, _Shape) else a for a in self.rest]
        return jax.tree.unflatten(self.treedef, leaves)


class ProgramStore:
    """Programs in a folder, and those of them that this process has loaded."""

    def __init__(self, folder: Path):
        self._folder = folder / f"{_FOLDER}{_version()}"
        self._loaded: dict[Any, Program | None] = {}

    def find(
        self,
        fn: Callable[..., PyTree],
        filtered: bool,
        options: dict[str, Any] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Callable[[], PyTree] | None:
        """The call fn(*args, **kwargs), by a program of this store; None if it cannot keep it.

        **Arguments:**

        - `fn`: jittable; all leaves of what it returns are arrays.
        - `filtered`: whether leaves of the arguments may be other than arrays.
        - `options`: of the compiler.
        - `args`, `kwargs`: its arguments.
        """
        call = _Call.of(filtered, args, kwargs)
        signature = (fn, call.treedef, call.rest, bool(jax.config.jax_enable_x64))  # pyright: ignore[reportAttributeAccessIssue]
        if signature not in self._loaded:
            self._loaded[signature] = self._program(fn, options, call)
        program = self._loaded[signature]
        return None if program is None else functools.partial(program, *call.arrays)

    def _program(
        self, fn: Callable[..., PyTree], options: dict[str, Any] | None, call: _Call
    ) -> Program | None:
        """A program from its file, or compiled and written."""
        key = _key(fn, options, call)
        if key is None:
            return None
        path = self._folder / f"{fn.__name__}-{key}"
        return _read(path) or _compile(fn, options, call, path)


_ACTIVE: contextvars.ContextVar[ProgramStore | None] = contextvars.ContextVar("store", default=None)


@contextlib.contextmanager
def stored_programs(folder: Path) -> Iterator[None]:
    """Keep programs that are run inside in a folder, and run what is there."""
    before = _ACTIVE.set(ProgramStore(folder))
    try:
        yield
    finally:
        _ACTIVE.reset(before)


def active_store() -> ProgramStore | None:
    """The store, where there is one and programs are for a single CPU."""
    store = _ACTIVE.get()
    if store is None or jax.default_backend() != "cpu" or jax.device_count() > 1:
        return None
    return store


def _shape(leaf: Any) -> _Shape:
    abstract = jax.typeof(leaf)
    return _Shape(abstract.shape, str(abstract.dtype), abstract.weak_type)


@functools.cache
def _version() -> str:
    """Of everything that programs follow from besides their arguments and JAX's configuration."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    versions = [importlib.metadata.version(name) for name in _LIBRARIES]
    digest.update(repr((versions, platform.python_version(), _processor())).encode())
    return digest.hexdigest()[:16]


def _processor() -> tuple[str, str]:
    """What instructions this machine has, as a folder may be shared with others."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return platform.machine(), line
    return platform.machine(), platform.processor()


class _Pickler(pickle.Pickler):
    """Pickles what is known by its source, and refuses the rest."""

    def reducer_override(self, obj: Any) -> Any:
        named = obj if isinstance(obj, type) or hasattr(obj, "__qualname__") else type(obj)
        if not _is_known(named):
            raise pickle.PicklingError(f"{obj!r} is not of a library whose version is known")
        if not isinstance(obj, types.FunctionType) or "<locals>" not in obj.__qualname__:
            return NotImplemented
        # a function made by another one is its place in the source, and what it holds
        place = (obj.__module__, obj.__qualname__, obj.__code__.co_firstlineno)
        held = [cell.cell_contents for cell in obj.__closure__ or ()]
        return tuple, ((*place, obj.__defaults__, obj.__kwdefaults__, held),)


def _is_known(named: Any) -> bool:
    """Whether the source of a function or class is that of a library with a version."""
    module = str(getattr(named, "__module__", "")).partition(".")[0]
    return module in (*_KNOWN, __package__)


def _key(fn: Callable[..., PyTree], options: dict[str, Any] | None, call: _Call) -> str | None:
    """What a program is found by; None if an argument is not known by its source."""
    if not _is_known(fn):
        return None
    buffer = io.BytesIO()
    rest = jax.tree.unflatten(call.treedef, call.rest)
    # what is set for a block of code is an attribute
    settings = [(n, getattr(jax.config, n, v)) for n, v in sorted(jax.config.values.items())]
    surroundings = repr((settings, os.environ.get("XLA_FLAGS"), options))
    try:
        _Pickler(buffer, protocol=5).dump((fn.__module__, fn.__qualname__, rest, surroundings))
    except (pickle.PicklingError, TypeError, AttributeError, ValueError, RecursionError):
        return None
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def _read(path: Path) -> Program | None:
    """The program of a file; None if there is none that can be used."""
    try:
        if not _is_closed(path.parent):
            return None
        content = path.read_bytes()
        if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
            return None
        result, *parts = pickle.loads(content[_DIGEST:])
        _register_lapack()
        compiled = deserialize_and_load(*parts)
    # whatever is wrong with a file, the program can be compiled
    except Exception:
        return None
    return _with_result(compiled, jax.tree.structure(result))


@functools.cache
def _register_lapack() -> None:
    """Register LAPACK's functions, as JAX does when it lowers one of them."""
    jax.jit(jnp.linalg.cholesky).lower(np.eye(1))


def _compile(
    fn: Callable[..., PyTree], options: dict[str, Any] | None, call: _Call, path: Path
) -> Program | None:
    """A new program, written to a file; None if it cannot be."""
    structures: list[Any] = []

    def flat(*arrays: Any) -> list[Any]:
        args, kwargs = call.arguments(arrays)
        leaves, structure = jax.tree.flatten(fn(*args, **kwargs))
        structures.append(structure)
        return leaves

    flat.__name__ = fn.__name__
    lowered = jax.jit(flat).lower(*call.arrays)
    if not all(name.startswith(_LAPACK) for name in _CALLED.findall(lowered.as_text())):
        return None
    with _without_cache():
        compiled = lowered.compile(compiler_options=options)
    structure = structures[-1]
    result = jax.tree.unflatten(structure, range(structure.num_leaves))
    with contextlib.suppress(Exception):
        payload = pickle.dumps((result, *serialize(compiled)))
        _make_folder(path.parent)
        if _is_closed(path.parent):
            write_atomically(path, hashlib.sha256(payload).digest() + payload)
    return _with_result(compiled, structure)


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """No cache of JAX: what was read from it lacks a part when it is written again."""
    name = "jax_enable_compilation_cache"
    before = getattr(jax.config, name)
    try:
        jax.config.update(name, False)
        jax_cache.reset_cache()
        yield
    finally:
        jax.config.update(name, before)
        jax_cache.reset_cache()


def _with_result(compiled: Program, structure: Any) -> Program:
    """A program that returns what the function does, and not its leaves."""
    return lambda *arrays: jax.tree.unflatten(structure, compiled(*arrays))


def _is_closed(folder: Path) -> bool:
    """Whether nobody else can write to a folder, where the system says so."""
    if os.name != "posix":
        return True
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def _make_folder(folder: Path) -> None:
    """Make the folder of this version, closed to others, and remove those of other versions."""
    if folder.exists():
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for other in folder.parent.glob(f"{_FOLDER}*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
