"""Compiled programs kept between runs, in the user's cache folder."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from .._stored import stored_programs

# Small programs are kept as well: together they take most of the time.
_SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}

# With each program that it reads XLA prints kilobytes of errors: its compiler names preferences,
# such as "prefer-no-gather", beside the instructions of the processor. What fails is raised.
_QUIET = "CRITICAL"


def cache_folder() -> Path:
    """Where compiled programs are kept: XDG_CACHE_HOME, or where the platform keeps caches."""
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "jaxkernels"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "jaxkernels"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (
            (Path(local) if local else Path.home() / "AppData" / "Local") / "jaxkernels" / "Cache"
        )
    return Path.home() / ".cache" / "jaxkernels"


@contextlib.contextmanager
def compilation_cache(enabled: bool) -> Iterator[None]:
    """Keep what is compiled inside, or read it if it has been kept before.

    That is JAX's cache, and `stored_programs` in the same folder. A cache that the user has
    configured for JAX is left as it is, unless `enabled` is False. Without a folder that can be
    written nothing is kept. JAX's configuration is restored afterwards.
    """
    changes = _changes(enabled)
    before = {name: getattr(jax.config, name) for name in changes}
    try:
        _configure(changes)
        folder = changes.get("jax_compilation_cache_dir")
        with contextlib.nullcontext() if folder is None else stored_programs(Path(str(folder))):
            yield
    finally:
        _configure(before)


def _changes(enabled: bool) -> dict[str, object]:
    """The configuration to set."""
    if not enabled:
        return {"jax_enable_compilation_cache": False}
    if jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        return {}
    folder = _writable_folder()
    if folder is None:
        return {}
    unset = jax.config.jax_logging_level in (None, "NOTSET")  # pyright: ignore[reportAttributeAccessIssue]
    return {
        "jax_compilation_cache_dir": str(folder),
        **_SETTINGS,
        **({"jax_logging_level": _QUIET} if unset else {}),
    }


def _writable_folder() -> Path | None:
    """The cache folder, made if need be and closed to other users, or None if it cannot be written.

    JAX runs what it finds there, so nobody else may write to it.
    """
    try:
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a user without a home has no folder to expand
        return None
    return folder if os.access(folder, os.R_OK | os.W_OK | os.X_OK) else None


def _configure(values: dict[str, object]) -> None:
    """Set JAX's configuration; the cache reads it anew only when it is reset."""
    for name, value in values.items():
        jax.config.update(name, value)
    if values:
        jax_cache.reset_cache()
