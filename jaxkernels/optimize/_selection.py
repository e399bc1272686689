"""Selecting among candidate schedules by running them through a network."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._linalg import matmul
from .._nfe import cost_text
from .._numerics import as_inexact
from .._progress import Progress
from .._types import AnyArray, Numbers
from ..comparison import (
    BALANCED,
    STATISTICS,
    Comparison,
    Reference,
    check_data,
    check_schedules,
    compare_to,
    reference_nfe,
    reference_steps,
    solve_reference,
)
from ..prediction import AbstractDenoiser, check_denoiser
from ..processes import AbstractProcess
from ..samplers import AbstractSampler, sampling_nfe
from ..schedules import Schedule
from ..trajectories import AbstractRecord, TrajectoryRecord
from ._candidates import FINE_TUNED, Candidate, Origin, by_label
from ._fine_tune import default_fine_tuning, fine_tune, fine_tuning_nfe
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
# the same on a model of the network, which takes no NFE
_SIMULATED = 100
# numbers of what initial noise is for, and of its random keys
_SELECTION = 0
_EVIDENCE = 1


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
    - `record`: a `TrajectoryRecord` of the same network, whose optima become candidates; of a
      network that is the target, its end points give the covariance as well. By default
      trajectories of a mixture, or of a network that is the target, are recorded; False for none.
      A `DenoisedRecord`, which serves every sampler and K, corrects a model of the network: without
      a budget candidates are run on that model alone, and no evaluation of the network is spent;
      within a budget on the network as well, and by default one is made.
    - `fine_tune`: number of gradient steps on the criterion through the network, or an `Optax`
      solver. The result is one more candidate. Default: 40 through a mixture (fewer above 256
      dimensions), 0 through a network, which must be differentiable by JAX. Within a budget they
      are through a model of the network, take no NFE, and 40 is the default as well.
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
    record: AbstractRecord | bool | None = None
    fine_tune: int | Optax | None = None
    key: Array | None = None

    def __post_init__(self):
        if self.denoiser is not None:
            check_denoiser(self.denoiser)
        _checks.one_of("criterion", self.criterion, (BALANCED, *STATISTICS))
        none_asked = self.record is None or self.record is False
        if not (none_asked or isinstance(self.record, AbstractRecord)):
            raise ValueError(
                "record must be a TrajectoryRecord, of jk.record, a DenoisedRecord, of "
                "jk.record_denoised, or False for none; got "
                f"{'True' if self.record is True else type(self.record).__name__}."
            )
        if self.fine_tune is not None and not isinstance(self.fine_tune, Optax):
            _checks.count("fine_tune", self.fine_tune, at_least=0)
        if self.noise is not None:
            _check_noise(self.noise)
        if self.key is not None:
            _checks.random_key("key", self.key)

    @property
    def given_noise(self) -> Array | None:
        """The initial noise that was given; None if it is to be drawn."""
        if self.noise is None or isinstance(self.noise, int | np.integer):
            return None
        return as_inexact(_checks.without_torch(self.noise))

    @property
    def noise_rows(self) -> int | None:
        """Rows of initial noise, of the selection and its evidence; None if nothing is said."""
        if isinstance(self.noise, int | np.integer):
            return 2 * int(self.noise)
        return None if self.given_noise is None else len(self.given_noise)

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
        if shape is None and isinstance(self.record, TrajectoryRecord):
            shape = self.record.noise.shape[1:]
        noise = self._noise(model, process, initialization, _NOISE, shape)
        data = model.samples if self.data is None and stochastic else self.data
        if stochastic and data is None:
            raise ValueError(
                "data: a stochastic schedule on a network needs Selection(data=...), samples to "
                "whose distribution to compare, (n, ...)."
            )
        check_data(data, noise)
        options = (data, self.criterion, self._solver(0), self.random_key(1))
        return BoundSelection(network, *_halves(noise), *options)

    def bind_mixture(
        self, model: Model, process: AbstractProcess, initialization: str
    ) -> "BoundSelection | None":
        """Bind the criterion to the mixture that is known beside a network, which costs no NFE.

        **Arguments:**

        - `model`, `process`, `initialization`: as of `bind`.

        **Returns:** a selection among deterministic candidates; None without a mixture.
        """
        if model.mixture is None or (self.denoiser or model.denoiser) is None:
            return None
        own = Selection(criterion=self.criterion, key=self.key)
        return own._on_mixture(model, process, initialization, False)

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
        if self.given_noise is not None:
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
        options = (data, self.criterion, self._solver(steps), self.random_key(1))
        return BoundSelection(denoiser, *_halves(noise), *options)

    def _noise(
        self,
        model: Model,
        process: AbstractProcess,
        initialization: str,
        default: int,
        shape: tuple[int, ...] | None,
    ) -> Array:
        if self.given_noise is not None:
            return self.given_noise
        count = int(self.noise) if isinstance(self.noise, int | np.integer) else default
        key = self.random_key(0)
        return draw_start(model, process, initialization, 2 * count, key, shape, self.data)

    def _solver(self, default: int) -> Optax | None:
        if isinstance(self.fine_tune, Optax):
            return self.fine_tune
        steps = default if self.fine_tune is None else self.fine_tune
        return default_fine_tuning(steps) if steps else None

    def simulation_solver(self) -> Optax | None:
        """Return the solver of gradient steps on a model of the network.

        **Returns:** the solver; None for no steps.
        """
        return self._solver(_SIMULATED)


@dataclasses.dataclass(frozen=True)
class Selected:
    """The selected candidate, those in the evidence, their comparison on other noise, and the NFE.

    The NFE of the selection, the fine-tuning (a gradient counts as four) and the evidence, by these
    names. `predicted`: on a model of the network, on the trajectories that selected.
    """

    candidate: Candidate
    candidates: tuple[Candidate, ...]
    comparison: Comparison
    criterion: str
    nfe: dict[str, int]
    predicted: bool = False


@dataclasses.dataclass(frozen=True)
class BoundSelection:
    """A selection that is ready to run: `noise` selects, `fresh` gives the evidence."""

    denoiser: AbstractDenoiser
    noise: Float[Array, "n *shape"]
    fresh: Float[Array, "m *shape"]
    data: Numbers | None
    criterion: str
    solver: Optax | None
    key: Array

    def select(
        self,
        candidates: Sequence[Candidate],
        space: ScheduleSpace,
        sampler: AbstractSampler,
        progress: bool = True,
    ) -> Candidate:
        """One of the candidates, fine-tuned if asked, without evidence; of a mixture, no NFE."""
        with Progress("selecting on a mixture", progress) as line:
            found = self._select(candidates, space, sampler, line, None, None)
        return by_label(found[0])[found[1]]

    def run(
        self,
        candidates: Sequence[Candidate],
        space: ScheduleSpace,
        sampler: AbstractSampler,
        progress: bool = True,
        incumbent: str | None = None,
    ) -> Selected:
        """Select one of the candidates, fine-tuned if asked, and compare on the other noise.

        `incumbent`, the label of what data speak for, if they do: what seems better here must be so
        beyond its standard error.
        """
        nfe = self._planned_nfe(candidates, sampler, self._solver(space))
        text = f"comparing, NFE {sum(nfe.values()):,}: reference solution"
        with Progress(text, progress) as line:
            found = self._select(candidates, space, sampler, line, nfe, incumbent)
            candidates, label = found
            # the evidence comes from noise that selected nothing
            evidence = self._trial(_EVIDENCE, candidates, sampler, line, nfe).compare(candidates)
        evidence = dataclasses.replace(evidence, selected=label)
        spent = nfe | {"evidence": evidence.nfe}
        selected = by_label(candidates)[label]
        return Selected(selected, tuple(candidates), evidence, self.criterion, spent)

    def _solver(self, space: ScheduleSpace) -> Optax | None:
        return self.solver if space.num_steps > 1 else None

    def _select(
        self,
        candidates: Sequence[Candidate],
        space: ScheduleSpace,
        sampler: AbstractSampler,
        line: Progress,
        nfe: dict[str, int] | None,
        incumbent: str | None,
    ) -> tuple[list[Candidate], str]:
        """All candidates, a fine-tuned one among them, and the label of the best."""
        baselines = [c.label for c in candidates if c.is_baseline]
        trial = self._trial(_SELECTION, candidates, sampler, line, nfe)
        comparison = trial.compare(candidates)
        label = comparison.best(baselines, self.criterion, incumbent)
        solver = self._solver(space)
        if solver is None:
            return list(candidates), label
        tuned = fine_tune(
            trial.reference,
            sampler,
            space,
            by_label(candidates)[label].schedule,
            comparison.take(baselines),
            self.criterion,
            solver,
            line.update,
            free=nfe is None,
        )
        extra = Candidate(FINE_TUNED, tuned, Origin.FINE_TUNED)
        both = comparison.joined(trial.compare([extra]))
        incumbent = None if incumbent is None else label
        return [*candidates, extra], both.best(baselines, self.criterion, incumbent)

    def _planned_nfe(
        self, candidates: Sequence[Candidate], sampler: AbstractSampler, solver: Optax | None
    ) -> dict[str, int]:
        """NFE by stage."""
        schedule = candidates[0].schedule
        each = self.denoiser.nfe * sampling_nfe(self.denoiser.process, sampler, schedule)
        reference = self.denoiser.nfe * reference_nfe(reference_steps(schedule.num_steps))
        n = len(self.noise)
        tuning = 0 if solver is None else fine_tuning_nfe(n, each, solver.max_iterations) + n * each
        selection = n * (reference + len(candidates) * each)
        compared = len(candidates) + (solver is not None)
        evidence = len(self.fresh) * (reference + compared * each)
        return {"selection": selection, "fine-tuning": tuning, "evidence": evidence}

    def _trial(
        self,
        number: int,
        candidates: Sequence[Candidate],
        sampler: AbstractSampler,
        line: Progress,
        nfe: dict[str, int] | None,
    ) -> "_Trial":
        schedules = _schedules(candidates)
        stochastic = self.data is not None
        span = check_schedules(self.denoiser.process, sampler, schedules, stochastic=stochastic)
        steps = reference_steps(max(s.num_steps for s in schedules.values()))
        planned = None if nfe is None else sum(nfe.values())
        line.update(f"comparing, {cost_text(planned)}: reference solution")
        noise = (self.noise, self.fresh)[number]
        # rows keep their conditions
        denoiser = self.denoiser.take(slice(number * len(self.noise), None))
        reference = solve_reference(denoiser, noise, steps, span, self.data)
        key = jax.random.fold_in(self.key, number)
        return _Trial(reference, sampler, key, line, planned)


@dataclasses.dataclass(frozen=True)
class _Trial:
    """A reference solution from noise that selects, or gives the evidence."""

    reference: Reference
    sampler: AbstractSampler
    key: Array
    line: Progress
    planned: int | None

    def compare(self, candidates: Sequence[Candidate]) -> Comparison:
        schedules = _schedules(candidates)
        options = {"key": self.key, "line": self.line, "planned": self.planned}
        return compare_to(self.reference, self.sampler, schedules, **options)


def _halves(noise: Array) -> tuple[Array, Array]:
    """The noise that selects and, at most as much, that of the evidence."""
    n = (len(noise) + 1) // 2
    rows = np.asarray(noise)
    return jax.device_put(rows[:n]), jax.device_put(rows[n:])


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
