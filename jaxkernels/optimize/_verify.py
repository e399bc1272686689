"""The choice between candidate schedules by running them through the network."""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._linalg import matmul
from .._numerics import as_inexact
from .._progress import Progress
from .._types import AnyArray, Network, Numbers
from ..comparison import (
    Comparison,
    Reference,
    check_schedules,
    compare_to,
    comparison_nfe,
    reference_steps,
    solve_reference,
)
from ..distributions import Gaussian, GaussianMixture
from ..prediction import Denoiser
from ..processes import AbstractProcess
from ..samplers import AbstractSampler
from ..schedules import Schedule, TimeCoordinate
from ..trajectories import TrajectoryRecord, record
from ._refine import REFINED, refined

OPTIMUM, HALFWAY, NOISY = "optimised", ", halfway to ", ", stochasticity 1"


# of a mixture, whose evaluations are cheap
_DRAWS, _TRAJECTORIES, _NODES = 8192, 256, 48


# noises of a choice by default: on a network; on a mixture, where the tail of few dimensions needs many
_VERIFY, _VERIFY_MIXTURE, _VERIFY_MOST = 256, 8000, 8192


# gradient steps through a mixture by default: fewer where each takes seconds
_REFINE, _REFINE_LEAST, _REFINE_WHOLE = 40, 8, 256


def candidates(
    monotone: TimeCoordinate, optima: dict[str, Schedule], named: dict[str, Schedule]
) -> dict[str, Schedule]:
    """The optima, the named grids, and the schedules halfway between each of the two: a model is rarely all wrong.

    Halfway in the coordinate of `TimeCoordinate`, log sigma where that is finite, and in the squared stochasticity.
    """
    middle = {}
    for label, optimum in optima.items():
        for name, grid in named.items():
            level = 0.5 * (monotone.coordinate(optimum.times) + monotone.coordinate(grid.times))
            times = np.array(monotone.time(level))
            times[[0, -1]] = np.asarray(optimum.times)[[0, -1]]
            squared = 0.5 * (
                np.asarray(optimum.stochasticity_squared) + np.asarray(grid.stochasticity_squared)
            )
            middle[f"{label}{HALFWAY}{name}"] = Schedule.from_squared(times, squared)
    return {**optima, **middle, **named}


class Choice(NamedTuple):
    """The name of the best schedule, all that were run, what they did on fresh noises, and what it cost."""

    name: str
    schedules: dict[str, Schedule]
    comparison: Comparison
    evaluations: int


class Verification(NamedTuple):
    """What candidates are run through. Half of the noises chooses, the rest is evidence."""

    score_fn: Network
    kind: str
    on_network: bool
    """False for the exact score of a mixture."""
    x_init: Float[Array, "noises *shape"]
    data: AnyArray | None
    key: Array

    def choose(
        self,
        process: AbstractProcess,
        sampler: AbstractSampler,
        monotone: TimeCoordinate,
        schedules: dict[str, Schedule],
        baselines: list[str],
        by: str,
        refine: int,
        progress: bool,
    ) -> Choice:
        """The best of the schedules (`Comparison.best`), and of what so many gradient steps from there make of it."""
        middle = self.x_init.shape[0] // 2
        halves = self.x_init[:middle], self.x_init[middle:]
        steps = reference_steps(max(schedule.num_steps for schedule in schedules.values()))
        ends = check_schedules(process, sampler, schedules, stochastic=self.data is not None)
        with Progress("comparing: fine reference", progress) as line:

            def fine(half: int) -> Reference:
                line.update("comparing: reference solution")
                denoiser = Denoiser(self.score_fn, process, self.kind)
                return solve_reference(denoiser, halves[half], steps, ends, self.data)

            def compared(half: int, exact: Reference, some: dict[str, Schedule]) -> Comparison:
                key = jax.random.fold_in(self.key, half)
                return compare_to(exact, sampler, some, key=key, line=line)

            exact = fine(0)
            found = compared(0, exact, schedules)
            name, spent = found.best(baselines, by), comparison_nfe(sampler, schedules, middle)
            start = schedules[name]
            if refine and start.num_steps > 1:
                run = self.score_fn, self.kind, process, sampler, monotone
                better, more = refined(
                    *run, start, exact, found.take(baselines), halves[0], by, refine, line
                )
                schedules = {**schedules, REFINED: better}
                name = found.joined(compared(0, exact, {REFINED: better})).best(baselines, by)
                spent += more + middle * sampler.nfe_per_step * better.num_steps
            # the evidence comes from noises that decided nothing
            comparison = compared(1, fine(1), schedules)
            spent += comparison_nfe(sampler, schedules, len(halves[1]))
        return Choice(name, schedules, dataclasses.replace(comparison, selected=name), spent)


def verification(
    target: Gaussian,
    mixture: GaussianMixture | None,
    process: AbstractProcess,
    stochastic: bool,
    score_fn: Network | None,
    kind: str,
    verify: int | AnyArray | None,
    data: Numbers | None,
    shape: tuple[int, ...] | None,
    key: Array,
) -> Verification:
    """By the network if there is one, with noises of `shape` if given; else by the mixture, in its eigenbasis."""
    if verify is None:
        many = int(_VERIFY_MIXTURE / np.sqrt(target.eigenvalues.shape[0]))
        verify = _VERIFY if score_fn is not None else min(max(many, _VERIFY), _VERIFY_MOST)
    x_init, steps_key = noises(target, process, verify, key), jax.random.fold_in(key, 1)
    if shape is not None and isinstance(verify, int | np.integer):
        x_init = x_init.reshape(-1, *shape)
    expected = ", ".join(map(str, x_init.shape[1:]))
    if score_fn is not None:
        law = None if data is None else _checks.array("data", data)
        if law is not None and (law.shape[1:] != x_init.shape[1:] or len(law) < 2):
            raise ValueError(f"data has shape {law.shape}; it must be (n, {expected}) with n >= 2.")
        if stochastic and law is None:
            raise ValueError(
                "score_fn with a stochasticity needs data: samples with whose law to compare, (n, ...)."
            )
        return Verification(score_fn, kind, True, x_init, law, steps_key)
    assert mixture is not None
    if data is not None:
        raise ValueError("data is for score_fn: a mixture is compared with its own law.")
    if kind != "score":
        raise ValueError(f"kind = {kind!r} is for score_fn, which is not given.")
    dim = mixture.means.shape[1]
    if x_init.shape[1:] != (dim,):
        raise ValueError(
            f"verify has shape {x_init.shape}; noises for a mixture of {dim} dimensions must be (n, {dim})."
        )
    turned = mixture.in_eigenbasis()
    if turned is not mixture and not isinstance(verify, int | np.integer):
        x_init = matmul(x_init, jnp.asarray(mixture.bases, x_init.dtype))
    law = turned.sample(jax.random.fold_in(key, 2), _DRAWS) if stochastic else None
    return Verification(_Denoiser(turned, process), "x0", False, x_init, law, steps_key)


def recorded(
    target: Gaussian,
    mixture: GaussianMixture,
    process: AbstractProcess,
    t_min: float,
    key: Array,
    progress: bool,
) -> TrajectoryRecord:
    """Trajectories of the mixture's exact denoiser, from noises of their own; `target` has its mean and covariance."""
    x = noises(target, process, _TRAJECTORIES // 2, jax.random.fold_in(key, 3))
    return record(
        mixture.in_eigenbasis().denoiser(process),
        x,
        t_min=t_min,
        nodes=_NODES,
        batch=_TRAJECTORIES // 4,
        progress=progress,
    )


def refinement(dim: int) -> int:
    """Gradient steps through a mixture by default."""
    return max(_REFINE_LEAST, min(_REFINE, _REFINE * _REFINE_WHOLE // dim))


class _Denoiser(eqx.Module):
    """A mixture as a network that predicts x0."""

    mixture: GaussianMixture
    process: AbstractProcess

    def __call__(self, x: Array, t: Array) -> Array:
        mixture, process = jax.tree.map(
            lambda a: jnp.asarray(a, x.dtype), (self.mixture, self.process)
        )
        return mixture.predict(process, x, t).x0


def noises(target: Gaussian, process: AbstractProcess, verify: int | AnyArray, key: Array) -> Array:
    """Initial points, twice as many as are used to choose."""
    if not isinstance(verify, int | np.integer):
        checked = _checks.array("verify", verify)
        if checked.ndim < 2 or checked.shape[0] < 8:
            raise ValueError(
                f"verify has shape {checked.shape}; it must be a whole number, or noises (n, ...) with n >= 8."
            )
        return as_inexact(verify)
    count = _checks.count("verify", verify, at_least=4)
    if np.any(np.asarray(target.weights) != 1):
        raise ValueError(
            "target's modes have weights, so the network's input shape is unknown: pass verify=noises."
        )
    scale = jnp.sqrt(process.prior_variance(jnp.asarray(process.t_max, float)))
    return scale * jax.random.normal(key, (2 * count, target.eigenvalues.shape[0]))
