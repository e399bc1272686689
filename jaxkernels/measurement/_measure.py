"""Measuring a denoiser on samples of the data."""

import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from .. import _checks
from .._nfe import EVALUATION
from .._progress import Progress
from .._types import Numbers
from ..distributions import Gaussian
from ..prediction import AbstractDenoiser, check_denoiser, check_one_condition
from ._forward_pass import (
    check_output,
    mode_coordinates,
    noise_steps,
    probe_network,
    sum_batch,
)
from ._levels import Levels, check_resolution, noise_levels
from ._lipschitz import ITERATION_NFE, MAX_ITERATIONS, lipschitz_constants
from ._measurement import Measurement
from ._running_sums import Checkpoint, RunningSums, describe_inputs, network_arrays
from ._samples import (
    check_samples,
    check_target,
    dimensions,
    draw_points,
    fit_gaussian,
    read_batch,
)
from ._statistics import pass_statistics


class _Sizes(NamedTuple):
    """How much is measured."""

    batch: int
    draws: int
    lipschitz_points: int


def measure(
    denoiser: AbstractDenoiser,
    samples: Numbers,
    times: Numbers,
    *,
    key: PRNGKeyArray | Array,
    target: Gaussian | None = None,
    batch: int = 128,
    draws: int = 1,
    lipschitz_points: int = 4,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Measurement:
    """Run a denoiser once over noised samples and return what it reveals, see `Measurement`.

    Every sample is followed along `draws` forward trajectories, whose noise grows by independent
    increments, so that statistics of two times belong to one trajectory. Then the spectral norm of
    the Jacobian dD/dx is found by power iteration on J^T J (jvp and vjp) until it changes by less
    than 1e-4, at most 40 times: a lower bound. Runs in JAX's default precision.

    NFE: m `draws` for every sample, rows that fill up the last batch included; then 5 for every
    time, `lipschitz_points` and iteration. The status line shows the total, which is an upper bound
    for the iterations; `Measurement.nfe` has those that were spent.

    **Arguments:**

    - `denoiser`: a `Denoiser`, or `target.denoiser(process)`.
    - `samples`: (n, ...), n >= 2, in the coordinates the network sees; converted batch by batch.
    - `times`: (m,) decreasing times of the denoiser's process, > 0.
    - `key`: a random key.
    - `target`: the Gaussian along whose modes to measure; default: that of `samples`, unshrunk.
    - `batch`: samples per step, >= 1. Memory grows with m * batch * draws * d and m^2 * d.
    - `draws`: forward trajectories per sample, >= 1.
    - `lipschitz_points`: noised samples per time at which the Jacobian is measured; 0 for none.
    - `resume`: a file written after every batch. A call with the same arguments continues from it
      to the same result. A network's arrays are compared if it is a pytree (an Equinox module), and
      what it returns at one point if it is a plain function: one NFE more for every call.
    - `progress`: show a line of progress.

    **Returns:** a `Measurement` with all statistics.

    **Raises:** ValueError naming the argument; for a denoiser that returns another shape, no
    floating numbers, NaN or infinity (naming the time); for a time at which the prediction leaves
    the denoised point open (a score or noise where the signal is 0, or too small to resolve); for
    a `resume` file that is damaged or was begun with other arguments.

    **Example:**

    ```python
    >>> exact = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
    >>> samples = np.random.default_rng(0).standard_normal((64, 2))
    >>> jk.measure(exact, samples, [0.5, 0.1], key=jax.random.key(0), progress=False).error.shape
    (2,)
    ```
    """
    rows = check_samples(samples)
    levels = noise_levels(check_one_condition(check_denoiser(denoiser)).process, times)
    sizes = _check_sizes(len(rows), batch, draws, lipschitz_points)
    check_target(target, dimensions(rows))
    key = _checks.random_key("key", key)
    check_output(denoiser, (min(sizes.batch, len(rows)) * sizes.draws, *rows.shape[1:]))
    checkpoint = _checkpoint(denoiser, rows, levels, key, target, sizes, resume)
    sums = checkpoint.load()
    with Progress("measuring: spectrum of the data", progress) as line:
        if sums is None:
            sums = RunningSums(fit_gaussian(rows) if target is None else target)
        check_resolution(denoiser, levels, sums.target)
        if checkpoint.probe.size:
            sums.count(denoiser.nfe * EVALUATION)
        checkpoint.save(sums)  # a path that cannot be written is told before the work
        key_batch, key_points = jax.random.split(key)
        _add_batches(denoiser, rows, levels, sizes, sums, checkpoint, key_batch, line)
        if sizes.lipschitz_points:
            _add_lipschitz(denoiser, rows, levels, sizes, sums, checkpoint, key_points, line)
    statistics = pass_statistics(sums.sums, len(rows), levels, sums.target)
    return Measurement(*levels, sums.target, statistics)


def _checkpoint(
    denoiser: AbstractDenoiser,
    rows: np.ndarray,
    levels: Levels,
    key: Array,
    target: Gaussian | None,
    sizes: _Sizes,
    path: str | os.PathLike[str] | None,
) -> Checkpoint:
    """The file of a measurement, with what the network returns at a point if it has no arrays."""
    if path is None:
        return Checkpoint(None, {})
    settings = describe_inputs(denoiser, rows, levels.times, key, target) | sizes._asdict()
    plain = not network_arrays(denoiser)
    return Checkpoint(path, settings, probe_network(denoiser, rows, levels) if plain else None)


def _check_sizes(count: int, batch: int, draws: int, lipschitz_points: int) -> _Sizes:
    """The sizes, checked, for `count` samples."""
    sizes = _Sizes(
        _checks.count("batch", batch),
        _checks.count("draws", draws),
        _checks.count("lipschitz_points", lipschitz_points, at_least=0),
    )
    if sizes.lipschitz_points > count:
        raise ValueError(
            f"lipschitz_points = {lipschitz_points} must be at most the number of samples, {count}."
        )
    return sizes


def _num_batches(rows: np.ndarray, sizes: _Sizes) -> int:
    """Batches of a pass, the last one perhaps not full."""
    return -(-len(rows) // sizes.batch)


def _batch_size(rows: np.ndarray, sizes: _Sizes) -> int:
    """Rows of every batch, those that fill up the last one included."""
    return min(sizes.batch, len(rows))


def _planned_nfe(rows: np.ndarray, levels: Levels, sizes: _Sizes) -> int:
    """NFE of the batches, and of as many iterations as there may be."""
    batches = _num_batches(rows, sizes) * _batch_size(rows, sizes) * sizes.draws * EVALUATION
    iterations = MAX_ITERATIONS * ITERATION_NFE * sizes.lipschitz_points
    return levels.times.size * (batches + iterations)


def _add_batches(
    denoiser: AbstractDenoiser,
    rows: np.ndarray,
    levels: Levels,
    sizes: _Sizes,
    sums: RunningSums,
    checkpoint: Checkpoint,
    key: Array,
    line: Progress,
) -> None:
    """Add the batches that are still to be run."""
    steps = noise_steps(levels, sums.target)
    modes = mode_coordinates(sums.target)
    total = _num_batches(rows, sizes)
    size = _batch_size(rows, sizes)
    planned = denoiser.nfe * _planned_nfe(rows, levels, sizes)
    for i in range(sums.done, total):
        line.update(f"measuring, NFE at most {planned:,}: batch {i + 1}/{total}")
        x0, weight = read_batch(rows, i * sizes.batch, size)
        key_here = jax.random.fold_in(key, i)
        found = sum_batch(denoiser, steps, modes, x0, weight, key_here, sizes.draws)
        sums.add(levels.times, found)
        checkpoint.save(sums)


def _add_lipschitz(
    denoiser: AbstractDenoiser,
    rows: np.ndarray,
    levels: Levels,
    sizes: _Sizes,
    sums: RunningSums,
    checkpoint: Checkpoint,
    key: Array,
    line: Progress,
) -> None:
    """Add the Lipschitz constants at the times that are still to be run."""
    num_times = levels.times.size
    first = sums.done - _num_batches(rows, sizes)
    if first >= num_times:
        return
    points = draw_points(rows, key, sizes.lipschitz_points)
    planned = denoiser.nfe * _planned_nfe(rows, levels, sizes)
    for j in range(first, num_times):
        line.update(
            f"measuring, NFE at most {planned:,}: Lipschitz constant, time {j + 1}/{num_times}"
        )
        time, signal, noise = (jnp.asarray(values[j], float) for values in levels)
        key_here = jax.random.fold_in(key, j)
        norms, iterations = lipschitz_constants(denoiser, points, time, signal, noise, key_here)
        here = np.arange(num_times) == j
        found = {
            "lipschitz": np.where(here[:, None], norms, 0.0),
            "iterations": here * iterations,
            "nfe": np.asarray(denoiser.nfe * len(points) * iterations * ITERATION_NFE),
        }
        sums.add(levels.times, found)
        checkpoint.save(sums)
