"""Schedules compared on a network: the distance of their samples to a reference solution."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .. import _checks
from .._nfe import cost_text
from .._progress import Progress
from .._types import AnyArray, Numbers
from ..prediction import AbstractDenoiser, check_denoiser
from ..processes import AbstractProcess
from ..samplers import (
    AbstractSampler,
    as_sampler,
    check_noise,
    check_schedule,
    sampling_nfe,
)
from ..schedules import Schedule
from ._comparison import Comparison
from ._reference import (
    Reference,
    reference_nfe,
    reference_steps,
    sample_ends,
    solve_reference,
)


def compare_schedules(
    denoiser: AbstractDenoiser,
    sampler: AbstractSampler | str,
    schedules: Mapping[str, Schedule],
    noise: Float[AnyArray, "n *shape"],
    *,
    data: Numbers | None = None,
    key: Array | None = None,
    progress: bool = True,
) -> Comparison:
    """Compare schedules by the distance of their samples to a reference solution.

    The reference starts from the same initial noise and takes max(200, 20 K) steps of
    DPM-Solver++(2M), uniform in log-SNR (`schedules.log_snr`, with its rules where log-SNR is
    infinite at an end), K the largest number of steps of `schedules`. NFE per sample: those, half
    as many for the reference's error, and those of all schedules; the status line shows the total
    from the start.

    **Arguments:**

    - `denoiser`: a `Denoiser`, or `target.denoiser(process)` for the exact one of a distribution.
    - `sampler`: a sampler or its name, such as "ddim".
    - `schedules`: {name: Schedule}, all with the same first and last time.
    - `noise`: initial noise (n, ...) with n >= 2, as for `sample`.
    - `data`: samples (n, ...) to whose distribution sliced W2 is measured, instead of to that of
      the reference. The reference has the network's errors, some of which noise may repair:
      stochastic schedules need data.
    - `key`: for the noise of stochastic steps, the same for all schedules; fixed by default.
    - `progress`: show a status line on a terminal.

    **Returns:** a `Comparison`.

    **Raises:** ValueError naming the argument; also if samples become non-finite.

    **Example:**

    ```python
    >>> denoiser = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
    >>> schedules = {n: make(jk.VP(), 5, 1e-3) for n, make in jk.schedules.BASELINES.items()}
    >>> jk.compare_schedules(denoiser, "ddim", schedules, np.eye(2)).best() in schedules
    True
    ```
    """
    process = check_denoiser(denoiser).process
    sampler = as_sampler(sampler)
    span = check_schedules(process, sampler, schedules, stochastic=data is not None)
    noise = check_finite_noise(noise)
    key = None if key is None else _checks.random_key("key", key)
    steps = reference_steps(max(schedule.num_steps for schedule in schedules.values()))
    planned = denoiser.nfe * comparison_nfe(process, sampler, schedules, len(noise))
    with Progress(f"comparing, NFE {planned:,}: reference solution", progress) as line:
        reference = solve_reference(denoiser, noise, steps, span, data)
        return compare_to(reference, sampler, schedules, key=key, line=line, planned=planned)


def check_schedules(
    process: AbstractProcess,
    sampler: AbstractSampler,
    schedules: Mapping[str, Schedule],
    span: tuple[float, float] | None = None,
    *,
    stochastic: bool,
) -> tuple[float, float]:
    """Check that schedules can be compared.

    **Arguments:**

    - `process`: that the schedules are for.
    - `sampler`: that is to run them.
    - `schedules`: {name: Schedule}.
    - `span`: first and last time that all must have. Default: those of the first schedule.
    - `stochastic`: whether schedules may be stochastic.

    **Returns:** the first and the last time.

    **Raises:** ValueError naming the schedule.
    """
    if not isinstance(schedules, Mapping) or not schedules:
        raise ValueError(f"schedules = {schedules!r} must be {{name: Schedule}}, not empty.")
    for name, schedule in schedules.items():
        if not isinstance(name, str):
            raise ValueError(f"schedules has the name {name!r}; names of schedules are strings.")
        _checks.instance(f"schedules[{name!r}]", schedule, Schedule)
        check_schedule(process, sampler, schedule)
        times = np.asarray(schedule.times, np.float64)
        if span is None:
            span = float(times[0]), float(times[-1])
        if not times[0] > process.trained_t_min:
            raise ValueError(
                f"schedules[{name!r}] starts at t = {times[0]:g}, where {type(process).__name__} "
                f"ends: its network was trained from t = {process.trained_t_min:g} to "
                f"{float(process.t_max):g}. Are its times those of another process?"
            )
        if not stochastic and schedule.is_stochastic:
            raise ValueError(
                f"schedules[{name!r}] is stochastic: its samples have no reference from the same "
                "noise; pass data, to compare distributions."
            )
        if not np.allclose(times[[0, -1]], span, rtol=1e-5):
            raise ValueError(
                f"schedules[{name!r}] runs from {times[0]:g} to {times[-1]:g}, the others from "
                f"{span[0]:g} to {span[1]:g}; they must agree."
            )
    assert span is not None
    return span


def check_finite_noise(noise: Float[AnyArray, "n *shape"]) -> Float[Array, "n *shape"]:
    """Finite initial noise of at least two samples, as a JAX array."""
    x = check_noise(noise, at_least=2)
    if not jnp.all(jnp.isfinite(x)):
        raise ValueError("noise holds NaN or infinity; it must be finite.")
    return x


def compare_to(
    reference: Reference,
    sampler: AbstractSampler,
    schedules: Mapping[str, Schedule],
    *,
    key: Array | None,
    line: Progress,
    planned: int | None,
) -> Comparison:
    """Compare checked schedules with a given reference solution.

    **Arguments:**

    - `reference`: of the denoiser and the initial noise to compare with.
    - `sampler`: runs all schedules.
    - `schedules`: {name: Schedule}, as `check_schedules` accepts them.
    - `key`: for the noise of stochastic steps, the same for all schedules; None for a fixed one.
    - `line`: the status line.
    - `planned`: the NFE of everything that the status line is of; None for a model.

    **Returns:** a `Comparison`.
    """
    key = jax.random.key(0) if key is None else key
    process = reference.denoiser.process
    found = {}
    for name, schedule in schedules.items():
        steps = _checks.counted(schedule.num_steps, "step")
        setting = f"{type(sampler).__name__}, {steps}, {name}"
        line.update(f"comparing, {cost_text(planned)}: {setting}")
        found[name] = sample_ends(reference.denoiser, sampler, schedule, reference.noise, key)
    compared = compare_ends(reference, found, _total_nfe(process, sampler, schedules))
    # a stochastic schedule has no reference from the same noise
    stochastic = np.array([schedule.is_stochastic for schedule in schedules.values()])
    errors = np.where(stochastic[:, None], np.nan, compared.errors)
    return dataclasses.replace(compared, errors=errors)


def compare_ends(
    reference: Reference, ends: Mapping[str, Float[np.ndarray, "n d"]], per_sample: int
) -> Comparison:
    """Compare samples with a given reference solution.

    **Arguments:**

    - `reference`: from the initial noise of the samples.
    - `ends`: {name: samples}.
    - `per_sample`: calls of the denoiser of all of them for each row of noise.

    **Returns:** a `Comparison`.
    """
    moved = [samples + reference.offset for samples in ends.values()]
    errors = [np.linalg.norm(m - reference.ends, axis=1) / reference.scale for m in moved]
    return Comparison(
        tuple(ends),
        np.stack(errors),
        np.stack([m @ reference.directions for m in moved]),
        reference.ends @ reference.directions,
        reference.error,
        reference.data_projections,
        sampling_nfe=len(reference.noise) * per_sample * reference.denoiser.nfe,
        reference_nfe=reference.nfe,
        conditions=_conditions(reference),
    )


def _conditions(reference: Reference) -> Int[np.ndarray, " n"] | None:
    """The number of each sample's condition, if there are several."""
    numbers = np.resize(reference.denoiser.condition_numbers, len(reference.noise))
    return numbers if len(np.unique(numbers)) > 1 else None


def comparison_nfe(
    process: AbstractProcess, sampler: AbstractSampler, schedules: Mapping[str, Schedule], n: int
) -> int:
    """Count the NFE of a comparison of schedules from n samples of noise, its reference included.

    **Arguments:**

    - `process`: of the network.
    - `sampler`: runs all schedules.
    - `schedules`: {name: Schedule}.
    - `n`: number of samples.

    **Returns:** evaluations of the network at one point each.
    """
    steps = reference_steps(max(schedule.num_steps for schedule in schedules.values()))
    return n * (reference_nfe(steps) + _total_nfe(process, sampler, schedules))


def _total_nfe(
    process: AbstractProcess, sampler: AbstractSampler, schedules: Mapping[str, Schedule]
) -> int:
    """NFE per sample of all schedules."""
    return sum(sampling_nfe(process, sampler, schedule) for schedule in schedules.values())
