"""Sums of a pass so far, kept in a file from which an interrupted measurement goes on."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .. import _files
from .._types import AnyArray
from ..distributions import Gaussian, pack_target, unpack_target
from ..prediction import AbstractDenoiser, Denoiser

_FORMAT = "jaxkernels.measure.state"
# relative difference of a network's outputs on two devices
_SAME_OUTPUT = 1e-3


class RunningSums:
    """Sums by name over `done` batches, and after them over times."""

    def __init__(
        self,
        target: Gaussian,
        done: int = 0,
        sums: dict[str, np.ndarray] | None = None,
    ):
        self.target = target
        self.done = done
        self.sums = {} if sums is None else sums

    def add(self, times: np.ndarray, found: dict[str, np.ndarray]) -> None:
        """Add what one step found; ValueError naming the time for a NaN or infinity."""
        found = {name: np.asarray(value, np.float64) for name, value in found.items()}
        per_time = found["mode_error"] if "mode_error" in found else found["lipschitz"]
        finite = np.isfinite(per_time).all(1)
        if not np.all(finite):
            t = times[np.argmin(finite)]
            raise ValueError(
                "the denoiser returned NaN or infinity, or numbers too large to square, "
                f"at t = {t:g}."
            )
        for name, value in found.items():
            self.sums[name] = np.asarray(self.sums.get(name, 0.0) + value)
        self.done += 1

    def count(self, nfe: int) -> None:
        """Count evaluations that add nothing to other sums."""
        self.sums["nfe"] = np.asarray(self.sums.get("nfe", 0.0) + nfe)


class Checkpoint:
    """The file of a measurement that can be resumed, or none (path None)."""

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        settings: dict[str, Any],
        probe: np.ndarray | None = None,
    ):
        self.path = path
        self.settings = settings
        self.probe = np.zeros(0) if probe is None else probe

    def load(self) -> RunningSums | None:
        """The sums in the file, or None. ValueError if it was begun with other settings."""
        if self.path is None or not Path(self.path).exists():
            return None
        content = _files.read(self.path, _FORMAT)
        begun = json.loads(str(content["settings"]))
        other = [name for name, value in self.settings.items() if begun.get(name) != value]
        if not other and not _same_output(self.probe, content["probe"]):
            other = ["network"]
        if other:
            raise ValueError(
                f"{os.fspath(self.path)} was begun with other arguments ({', '.join(other)}); use "
                "the same, or another file for resume."
            )
        target = unpack_target(content)
        assert target is not None
        sums = {
            name.removeprefix("sum_"): value
            for name, value in content.items()
            if name.startswith("sum_")
        }
        return RunningSums(target, int(content["done"]), sums)

    def save(self, sums: RunningSums) -> None:
        """Write the sums, if there is a file."""
        if self.path is None:
            return
        arrays = {
            "settings": np.array(json.dumps(self.settings)),
            "probe": self.probe,
            "done": np.array(sums.done),
        }
        arrays |= {f"sum_{name}": value for name, value in sums.sums.items()}
        _files.write(self.path, _FORMAT, arrays | pack_target(sums.target))


def describe_inputs(
    denoiser: AbstractDenoiser,
    samples: np.ndarray,
    times: np.ndarray,
    key: Array,
    target: Gaussian | None,
) -> dict[str, str]:
    """Fingerprints of what a measurement depends on, by the name of the argument."""
    process = denoiser.process
    predicts = denoiser.prediction_type if isinstance(denoiser, Denoiser) else "x0"
    return {
        "samples": digest(samples),
        "times": digest(times),
        "process": str(jax.tree.structure(process)) + digest(*jax.tree.leaves(process)),
        "network": digest(*network_arrays(denoiser)),
        "key": digest(_key_data(key)),
        "target": "" if target is None else digest(*jax.tree.leaves(target)),
        "prediction_type": predicts,
        "precision": str(jnp.zeros(()).dtype),
    }


def network_arrays(denoiser: AbstractDenoiser) -> list[AnyArray]:
    """The arrays that tell one network from another; none of a plain function."""
    network: Any = denoiser
    if isinstance(denoiser, Denoiser):
        network = (denoiser.fn, denoiser.conditions, denoiser.condition_rows)
    return jax.tree.leaves(eqx.filter(network, eqx.is_array))


def _same_output(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two outputs at one point are those of one network, maybe on another device."""
    if one.shape != other.shape:
        return False
    scale = np.sqrt(np.mean(one**2)) if one.size else 0.0
    return bool(np.all(np.abs(one - other) <= _SAME_OUTPUT * scale))


def digest(*values: object) -> str:
    """A fingerprint of arrays."""
    found = hashlib.sha256()
    for value in values:
        array = np.asarray(value)
        found.update(f"{array.shape} {array.dtype}".encode())
        # row by row, so that a memory-mapped array is never copied as a whole
        for part in array if array.ndim > 1 else [array]:
            found.update(np.ascontiguousarray(part).tobytes())
    return found.hexdigest()


def _key_data(key: Array) -> Array:
    """The numbers of a random key."""
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
