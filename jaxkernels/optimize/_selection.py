"""Selecting among candidate schedules by running them through a network."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._linalg import matmul
from .._numerics import as_inexact
from .._progress import Progress
from .._types import AnyArray, Numbers
from ..comparison import (
    BALANCED,
    STATISTICS,
    Comparison,
    Reference,
    check_schedules,
    compare_to,
    comparison_nfe,
    reference_steps,
    solve_reference,
)
from ..prediction import AbstractDenoiser, check_denoiser
from ..processes import AbstractProcess
from ..samplers import AbstractSampler
from ..schedules import Schedule
from ..trajectories import TrajectoryRecord
from ._candidates import FINE_TUNED, Candidate, Origin, by_label
from ._fine_tune import default_fine_tuning, fine_tune
from ._model import Model, draw_start
from ._solver import Optax
from ._space import ScheduleSpace

# initial noise that selects, by default: of a network; of a mixture, whose tail in few dimensions
# needs many samples (divided by the root of the dimension)
_NOISE = 256
_NOISE_MIXTURE = 8000
_NOISE_MOST = 8192
# draws of a mixture that sliced W2 of stochastic schedules is measured to
_MIXTURE_DRAWS = 8192
# steps of fine-tuning through a mixture by default: fewer in many dimensions, as each is slow
_FINE_TUNE = 40
_FINE_TUNE_LEAST = 8
_FINE_TUNE_DIMENSION = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Set how the schedule is selected: on which network, and by what criterion.

    Half of the initial noise selects; the other half gives the evidence in `comparison` of the
    result.

    **Arguments:**

    - `denoiser`: the network. Default: the target, if that is a denoiser, else the exact denoiser
      of the mixture that the target is or that is fitted to the samples.
    - `noise`: the number of samples of initial noise that select (as many again give the evidence),
      or the noise itself (n, ...), n >= 8, in the network's shape; on a sub-range of a process
      noised data. Default: 256; for a mixture 8000 / sqrt(d), between 256 and 8192.
    - `data`: samples (n, ...) to whose distribution sliced W2 is measured, instead of to that of
      the reference solution. Needed for stochastic schedules on a network, and to start a network
      that is the target from noised data; by default the target's samples.
    - `criterion`: "balanced" (default) or a statistic, see `Comparison.best`.
    - `record`: a `TrajectoryRecord` of the same network, whose optima become candidates. By default
      trajectories of a mixture, or of a network that is the target, are recorded; False for none.
    - `fine_tune`: number of gradient steps on the criterion through the network, or an `Optax`
      solver. The result is one more candidate. Default: 40 through a mixture (fewer above 256
      dimensions), 0 through a network, which must be differentiable by JAX.
    - `key`: a random key for noise, data and directions; fixed by default.

    **Raises:** ValueError naming the argument and its value.

    **Example:**

    ```python
    >>> jk.Selection(criterion="rms", noise=512).criterion
    'rms'
    ```
    """

    denoiser: AbstractDenoiser | None = None
    noise: int | AnyArray | None = None
    data: Numbers | None = None
    criterion: str = BALANCED
    record: TrajectoryRecord | bool | None = None
    fine_tune: int | Optax | None = None
    key: Array | None = None

    def __post_init__(self):
        if self.denoiser is not None:
            check_denoiser(self.denoiser)
        _checks.one_of("criterion", self.criterion, (BALANCED, *STATISTICS))
        if not isinstance(self.record, TrajectoryRecord | bool | None):
            raise ValueError(
                "record must be a TrajectoryRecord, of jk.record, or False; got "
                f"{type(self.record).__name__}."
            )
        if self.fine_tune is not None and not isinstance(self.fine_tune, Optax):
            _checks.count("fine_tune", self.fine_tune, at_least=0)
        if self.noise is not None:
            _check_noise(self.noise)

    def random_key(self, number: int) -> Array:
        """Return one of several independent random keys.

        **Arguments:**

        - `number`: which one, >= 0; 0 is `key` itself.

        **Returns:** the key.
        """
        key = jax.random.key(0) if self.key is None else self.key
        return key if number == 0 else jax.random.fold_in(key, number)

    def bind(
        self, model: Model, process: AbstractProcess, initialization: str, stochastic: bool
    ) -> "BoundSelection":
        """Bind this selection to its network, initial noise and data.

        **Arguments:**

        - `model`: the target, with the mixture, the samples or the network that come with it.
        - `process`: the forward process.
        - `initialization`: what sampling starts from, "standard_normal" or "marginal", noised data.
        - `stochastic`: whether a candidate may inject noise.

        **Returns:** a selection that is ready to run candidates.

        **Raises:** ValueError if there is no network to select on, or if noise or data do not fit
        it.
        """
        network = self.denoiser or model.denoiser
        if network is None:
            return self._on_mixture(model, process, initialization, stochastic)
        shape = None if model.samples is None else model.samples.shape[1:]
        noise = self._noise(model, process, initialization, _NOISE, shape)
        data = model.samples if self.data is None and stochastic else self.data
        if stochastic and data is None:
            raise ValueError(
                "data: a stochastic schedule on a network needs Selection(data=...), samples to "
                "whose distribution to compare, (n, ...)."
            )
        _check_data(data, noise)
        solver = self._solver(0)
        return BoundSelection(network, noise, data, self.criterion, solver, self.random_key(1))

    def _on_mixture(
        self, model: Model, process: AbstractProcess, initialization: str, stochastic: bool
    ) -> "BoundSelection":
        mixture = model.mixture
        if mixture is None:
            raise ValueError(
                "selection: a Gaussian target has no network to select on; pass "
                "Selection(denoiser=...), or leave selection out."
            )
        if self.data is not None:
            raise ValueError(
                "data is for a network: a mixture is compared with its own distribution."
            )
        turned = mixture.in_eigenbasis()
        dim = turned.means.shape[1]
        count = min(max(int(_NOISE_MIXTURE / np.sqrt(dim)), _NOISE), _NOISE_MOST)
        noise = self._noise(Model(model.gaussian, turned), process, initialization, count, (dim,))
        if not isinstance(self.noise, int | np.integer | None):
            given = mixture.means.shape[1]
            if noise.shape[1:] != (given,):
                raise ValueError(
                    f"noise has shape {noise.shape}; for a mixture of {given} dimensions it must "
                    f"be (n, {given})."
                )
            if turned is not mixture:
                noise = matmul(noise, jnp.asarray(mixture.bases, noise.dtype))
        data = turned.sample(self.random_key(2), _MIXTURE_DRAWS) if stochastic else None
        fewer = _FINE_TUNE * _FINE_TUNE_DIMENSION // dim
        steps = 0 if stochastic else max(_FINE_TUNE_LEAST, min(_FINE_TUNE, fewer))
        denoiser = turned.denoiser(process)
        solver = self._solver(steps)
        return BoundSelection(denoiser, noise, data, self.criterion, solver, self.random_key(1))

    def _noise(
        self,
        model: Model,
        process: AbstractProcess,
        initialization: str,
        default: int,
        shape: tuple[int, ...] | None,
    ) -> Array:
        if self.noise is not None and not isinstance(self.noise, int | np.integer):
            return as_inexact(self.noise)
        count = default if self.noise is None else int(self.noise)
        key = self.random_key(0)
        return draw_start(model, process, initialization, 2 * count, key, shape, self.data)

    def _solver(self, default: int) -> Optax | None:
        if isinstance(self.fine_tune, Optax):
            return self.fine_tune
        steps = default if self.fine_tune is None else self.fine_tune
        return default_fine_tuning(steps) if steps else None


@dataclasses.dataclass(frozen=True)
class Selected:
    """The selected candidate, all candidates, their comparison on other noise, and the NFE spent.

    The NFE are those of the selection, its evidence and the fine-tuning (a gradient counts as
    four), not those of a trajectory record.
    """

    candidate: Candidate
    candidates: tuple[Candidate, ...]
    comparison: Comparison
    criterion: str
    nfe: int


@dataclasses.dataclass(frozen=True)
class BoundSelection:
    """A selection that is ready to run."""

    denoiser: AbstractDenoiser
    noise: Float[Array, "n *shape"]
    data: Numbers | None
    criterion: str
    solver: Optax | None
    key: Array

    def run(
        self,
        candidates: Sequence[Candidate],
        space: ScheduleSpace,
        sampler: AbstractSampler,
        progress: bool = True,
    ) -> Selected:
        """Select one of the candidates, fine-tuned if asked, and compare all on the other noise."""
        with Progress("comparing: reference solution", progress) as line:
            halves = np.array_split(np.arange(self.noise.shape[0]), 2)
            n = len(halves[0])
            trial = self._trial(self.noise[:n], candidates, sampler, 0, line)
            comparison = trial.compare(candidates)
            baselines = [c.label for c in candidates if c.is_baseline]
            label = comparison.best(baselines, self.criterion)
            nfe = comparison_nfe(sampler, _schedules(candidates), n)
            known = by_label(candidates)
            if self.solver is not None and space.num_steps > 1:
                tuned = fine_tune(
                    trial.reference,
                    sampler,
                    space,
                    known[label].schedule,
                    comparison.take(baselines),
                    self.criterion,
                    self.solver,
                    line.update,
                )
                extra = Candidate(FINE_TUNED, tuned.schedule, Origin.FINE_TUNED)
                candidates = [*candidates, extra]
                known = by_label(candidates)
                both = comparison.joined(trial.compare([extra]))
                label = both.best(baselines, self.criterion)
                nfe += tuned.nfe + n * sampler.nfe_per_step * space.num_steps
            # the evidence comes from noise that selected nothing
            fresh = self._trial(self.noise[n:], candidates, sampler, 1, line).compare(candidates)
            nfe += comparison_nfe(sampler, _schedules(candidates), len(halves[1]))
        evidence = dataclasses.replace(fresh, selected=label)
        return Selected(known[label], tuple(candidates), evidence, self.criterion, nfe)

    def _trial(
        self,
        noise: Array,
        candidates: Sequence[Candidate],
        sampler: AbstractSampler,
        number: int,
        line: Progress,
    ) -> "_Trial":
        schedules = _schedules(candidates)
        stochastic = self.data is not None
        span = check_schedules(self.denoiser.process, sampler, schedules, stochastic=stochastic)
        steps = reference_steps(max(s.num_steps for s in schedules.values()))
        line.update("comparing: reference solution")
        reference = solve_reference(self.denoiser, noise, steps, span, self.data)
        return _Trial(reference, sampler, jax.random.fold_in(self.key, number), line)


@dataclasses.dataclass(frozen=True)
class _Trial:
    """A reference solution on one half of the noise."""

    reference: Reference
    sampler: AbstractSampler
    key: Array
    line: Progress

    def compare(self, candidates: Sequence[Candidate]) -> Comparison:
        schedules = _schedules(candidates)
        return compare_to(self.reference, self.sampler, schedules, key=self.key, line=self.line)


def _schedules(candidates: Sequence[Candidate]) -> dict[str, Schedule]:
    return {candidate.label: candidate.schedule for candidate in candidates}


def _check_noise(noise: object) -> None:
    if isinstance(noise, int | np.integer):
        _checks.count("noise", noise, at_least=4)
        return
    checked = _checks.array("noise", noise)
    if checked.ndim < 2 or checked.shape[0] < 8:
        raise ValueError(
            f"noise has shape {checked.shape}; it must be an integer, or initial noise (n, ...) "
            "with n >= 8."
        )


def _check_data(data: Numbers | None, noise: Array) -> None:
    if data is None:
        return
    found = _checks.array("data", data)
    if found.shape[1:] != noise.shape[1:] or len(found) < 2:
        expected = ", ".join(map(str, noise.shape[1:]))
        raise ValueError(f"data has shape {found.shape}; it must be (n, {expected}) with n >= 2.")
