"""A random score error: shapes, each with its own random amplitude that varies in time."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._types import Numbers, constant
from ..distributions import Gaussian
from ..processes import AbstractProcess
from ._affine import AffineError
from ._correlation import AbstractCorrelation, FullyCorrelated
from ._profile import AbstractProfile, Constant, Relative, Scaled, Tabulated, Uniform
from ._roots import check_blocks, covariance_roots, roots_of, split_draws, split_parameters

Amplitude = Numbers | Callable[[Array], Array]


class ScoreError(eqx.Module):
    """The affine error e_t(x) = -Delta_t x + delta_t of a learned score, a random function of time.

        (Delta_t, delta_t) = mean(t) + sum_j x_j(t) shape_j(t)

    with independent normal processes x_j of unit variance and correlation E x_j(s) x_j(t) =
    rho(s, t). At the evaluations of a schedule its covariance is sum_j,l w_jl w_jl^T with the
    directions w_jl = shape_j(t_a) L_al, rho = L L^T, so the number of directions says what a
    computation with it costs: one per shape if the error is fully correlated, else one per shape
    and time.

    Expected errors to second order depend on each mode's own covariance only; how modes are
    correlated with each other matters for dense slopes. Make one by `diagonal`, `relative`,
    `dense`, `random_features`, `separable`, `from_covariance`, `from_block_covariance`,
    `from_samples` or `deterministic`, or from profiles.

    **Arguments:**

    - `shapes`: a profile of the random part, or None.
    - `correlation`: between times, of every x_j.
    - `mean`: a profile of the known part with one shape, or None for 0.
    - `other`: an independent error that is added, or None. `a + b` makes it.

    **Raises:** ValueError for something else than a correlation.

    **Example:**

    ```python
    >>> error = jk.ScoreError.relative(0.02, jk.OrnsteinUhlenbeck(2.0))
    ```

    Source: the correlated-time expansion of score errors, where Delta and delta are the affine part
    of the error at each time, with a joint covariance over all times.
    """

    shapes: AbstractProfile | None
    correlation: AbstractCorrelation
    mean: AbstractProfile | None = None
    other: "ScoreError | None" = None

    def __check_init__(self):
        if not isinstance(self.correlation, AbstractCorrelation):
            raise ValueError(
                f"correlation must be one such as jk.AR1(0.5); got {self.correlation!r}."
            )

    def __add__(self, other: "ScoreError") -> "ScoreError":
        """Add an independent error: means and covariances add up."""
        if not isinstance(other, ScoreError):
            return NotImplemented
        rest = other if self.other is None else self.other + other
        return ScoreError(self.shapes, self.correlation, self.mean, rest)

    @classmethod
    def diagonal(
        cls,
        slope: Numbers = 0.0,
        shift: Numbers = 0.0,
        correlation: AbstractCorrelation | None = None,
        *,
        cross: Numbers = 0.0,
        amplitude: Amplitude = 1.0,
    ) -> "ScoreError":
        """Make an error with independent modes from standard deviations of Delta_ii and delta_i.

        **Arguments:**

        - `slope`: standard deviation of Delta_ii, a number for all modes or (modes,), >= 0.
        - `shift`: standard deviation of delta_i, a number for all modes or (modes,), >= 0.
        - `correlation`: between times; default `FullyCorrelated()`.
        - `cross`: the correlation of Delta_ii with delta_i, in [-1, 1].
        - `amplitude`: a factor on both, a number or a function of time.

        **Returns:** a `ScoreError`.

        **Raises:** ValueError naming the argument.

        **Example:**

        ```python
        >>> error = jk.ScoreError.diagonal(0.02, [0.03, 0.01], jk.AR1(0.8), cross=0.4)
        ```
        """
        slope = _check_deviations("slope", slope)
        shift = _check_deviations("shift", shift)
        cross = float(_checks.scalar("cross", cross, at_least=-1.0, at_most=1.0))
        shape = np.broadcast_shapes(slope.shape, shift.shape)
        slope = np.broadcast_to(slope, shape)
        shift = np.broadcast_to(shift, shape)
        # one shape for what the two share, one for the rest of the shift
        pairs = [(slope, cross * shift), (0.0 * slope, np.sqrt(1.0 - cross**2) * shift)]
        kept = [pair for pair in pairs if np.any(pair[0] != 0) or np.any(pair[1] != 0)] or pairs[:1]
        slopes = constant(np.stack([pair[0] for pair in kept]))
        shifts = constant(np.stack([pair[1] for pair in kept]))
        profile = Uniform(slopes, shifts) if shape == () else Constant(slopes, shifts)
        return cls(Scaled(profile, amplitude), correlation or FullyCorrelated())

    @classmethod
    def relative(
        cls, amplitude: Amplitude, correlation: AbstractCorrelation | None = None
    ) -> "ScoreError":
        """Make the error c(t) times the exact score, c normal.

        **Arguments:**

        - `amplitude`: the standard deviation of c, a number or a function of time.
        - `correlation`: between times; default `FullyCorrelated()`.

        **Returns:** a `ScoreError`, defined for every spectrum.

        **Example:**

        ```python
        >>> error = jk.ScoreError.relative(0.02, jk.OrnsteinUhlenbeck(2.0))
        ```
        """
        return cls(Scaled(Relative(), amplitude), correlation or FullyCorrelated())

    @classmethod
    def deterministic(cls, profile: AbstractProfile, amplitude: Amplitude = 1.0) -> "ScoreError":
        """Make a known error, which is not random.

        **Arguments:**

        - `profile`: a profile with one shape, such as `Relative()`.
        - `amplitude`: a factor, a number or a function of time.

        **Returns:** a `ScoreError` without a random part.

        **Example:**

        ```python
        >>> from jaxkernels.score_error import Relative
        >>> error = jk.ScoreError.deterministic(Relative(), 0.05)
        ```
        """
        return cls(None, FullyCorrelated(), Scaled(profile, amplitude))

    @classmethod
    def dense(
        cls,
        slope: Numbers,
        shift: Numbers,
        correlation: AbstractCorrelation | None = None,
        *,
        amplitude: Amplitude = 1.0,
    ) -> "ScoreError":
        """Make an error that mixes modes, from shapes with matrices.

        **Arguments:**

        - `slope`: (shapes, d, d), along the target's modes.
        - `shift`: (shapes, d).
        - `correlation`: between times; default `FullyCorrelated()`.
        - `amplitude`: a factor on all shapes, a number or a function of time.

        **Returns:** a `ScoreError`.

        **Raises:** ValueError for other shapes.

        **Example:**

        ```python
        >>> error = jk.ScoreError.dense(0.01 * np.ones((1, 2, 2)), np.zeros((1, 2)))
        ```
        """
        slope = _checks.array("slope", slope)
        shift = _checks.array("shift", shift)
        if slope.ndim != 3 or slope.shape != (*shift.shape, shift.shape[-1]):
            raise ValueError(
                f"slope has shape {slope.shape} and shift {shift.shape}; they must be "
                "(shapes, d, d) and (shapes, d)."
            )
        profile = Scaled(Constant(constant(slope), constant(shift)), amplitude)
        return cls(profile, correlation or FullyCorrelated())

    @classmethod
    def random_features(
        cls,
        features: Numbers,
        slope: float,
        shift: float,
        correlation: AbstractCorrelation | None = None,
        *,
        amplitude: Amplitude = 1.0,
    ) -> "ScoreError":
        """Make an error of random weights on fixed features, with m^2 + m shapes.

            Delta = slope U^T A U,    delta = shift U^T b

        with independent unit normal entries in A (m, m) and b (m,).

        **Arguments:**

        - `features`: U (m, d) along the modes, what a network sees of x.
        - `slope`: the scale of Delta.
        - `shift`: the scale of delta.
        - `correlation`: between times; default `FullyCorrelated()`.
        - `amplitude`: a factor on all shapes, a number or a function of time.

        **Returns:** a `ScoreError`.

        **Raises:** ValueError for features of another shape.

        **Example:**

        ```python
        >>> error = jk.ScoreError.random_features(np.eye(2), 0.05, 0.05)
        ```
        """
        u = _checks.array("features", features)
        if u.ndim != 2:
            raise ValueError(f"features has shape {u.shape}; it must be (m, d).")
        m, d = u.shape
        slopes = slope * np.einsum("pi,qj->pqij", u, u).reshape(m * m, d, d)
        return cls.dense(
            np.concatenate([slopes, np.zeros((m, d, d))]),
            np.concatenate([np.zeros((m * m, d)), shift * u]),
            correlation,
            amplitude=amplitude,
        )

    @classmethod
    def from_covariance(
        cls,
        times: Numbers,
        covariance: Numbers,
        mean: AffineError | None = None,
        *,
        project: bool = False,
    ) -> "ScoreError":
        """Make an error from the joint covariance of (Delta, delta) at n times, per mode.

        Between the times the directions are interpolated, so that it stays a covariance.

        **Arguments:**

        - `times`: (n,) strictly decreasing.
        - `covariance`: (n, 2, n, 2, modes); entry [a, p, b, q, i] is the covariance of parameter p
          of mode i at time a with q at time b, parameters 0 = Delta_ii, 1 = delta_i.
        - `mean`: an `AffineError` with fields (n, modes), or None for 0.
        - `project`: replace negative eigenvalues by 0.

        **Returns:** a `ScoreError`.

        **Raises:** ValueError for a wrong shape, or if a mode's matrix is not positive
        semidefinite, naming the mode and its most negative eigenvalue (unless `project`).

        **Example:**

        ```python
        >>> covariance = np.eye(4).reshape(2, 2, 2, 2, 1)
        >>> error = jk.ScoreError.from_covariance([0.5, 0.1], covariance)
        ```
        """
        times = _checks.array("times", times)
        shapes = covariance_roots(times.size, _checks.array("covariance", covariance), project)
        known = None if mean is None else Tabulated(times, mean.slope[None], mean.shift[None])
        return cls(Tabulated(times, shapes[:, :, 0], shapes[:, :, 1]), FullyCorrelated(), known)

    @classmethod
    def from_block_covariance(
        cls,
        times: Numbers,
        covariance: Numbers,
        num_modes: int,
        mean: AffineError | None = None,
        *,
        project: bool = False,
    ) -> "ScoreError":
        """Make an error from the joint covariance of all its parameters at n times.

        Unlike that of `from_covariance` it couples modes: slopes and shifts of different modes, and
        the entries of matrices. At every time the P parameters are (slopes, shifts): P = 2 d for
        slopes per mode, P = d^2 + d for matrices, row by row. Between the times the directions are
        interpolated.

        **Arguments:**

        - `times`: (n,) strictly decreasing.
        - `covariance`: (n, P, n, P); entry [a, p, b, q] is the covariance of parameter p at time a
          with q at time b.
        - `num_modes`: d, the target's number of modes.
        - `mean`: an `AffineError` with fields (n, modes[, modes]), or None for 0.
        - `project`: replace negative eigenvalues by 0.

        **Returns:** a `ScoreError` with up to n P directions.

        **Raises:** ValueError for a wrong shape, or a covariance that is not symmetric and, without
        `project`, positive semidefinite.

        **Example:**

        ```python
        >>> error = jk.ScoreError.from_block_covariance([0.5], np.eye(6)[None, :, None], 2)
        >>> error.has_matrix_slopes
        True
        ```
        """
        times = _checks.array("times", times)
        blocks = check_blocks(times.size, _checks.array("covariance", covariance), num_modes)
        size = times.size * blocks.shape[1]
        roots = roots_of(blocks.reshape(size, size), project)
        parameters = roots.reshape(-1, *blocks.shape[:2])
        known = None if mean is None else Tabulated(times, mean.slope[None], mean.shift[None])
        shapes = Tabulated(times, *split_parameters(parameters, num_modes))
        return cls(shapes, FullyCorrelated(), known)

    @classmethod
    def separable(
        cls,
        covariance: Numbers,
        num_modes: int,
        correlation: AbstractCorrelation | None = None,
        *,
        amplitude: Amplitude = 1.0,
    ) -> "ScoreError":
        """Make an error whose covariance is one matrix times one correlation in time.

            cov(theta_s, theta_t) = amplitude(s) amplitude(t) rho(s, t) M,    theta = (Delta, delta)

        A Kronecker product over times and parameters: it costs one direction per direction of M
        and of rho. `score_error.fit_separable` fits one.

        **Arguments:**

        - `covariance`: M (P, P), of the parameters (slopes, shifts) as in `from_block_covariance`.
        - `num_modes`: d, the target's number of modes.
        - `correlation`: rho; default `FullyCorrelated()`.
        - `amplitude`: a factor, a number or a function of time.

        **Returns:** a `ScoreError`.

        **Raises:** ValueError for a wrong shape or a matrix that is not a covariance.

        **Example:**

        ```python
        >>> error = jk.ScoreError.separable(1e-4 * np.eye(4), 2, jk.OrnsteinUhlenbeck(2.0))
        ```

        Source: "Correlated-time kernel expansions of the score error" (manuscript), section 7.
        """
        matrix = _checks.array("covariance", covariance)
        if matrix.ndim != 2:
            raise ValueError(f"covariance has shape {matrix.shape}; it must be a square matrix.")
        check_blocks(1, matrix[None, :, None], num_modes)
        roots = roots_of(matrix, project=False)
        profile = Constant(*(constant(a) for a in split_parameters(roots, num_modes)))
        return cls(Scaled(profile, amplitude), correlation or FullyCorrelated())

    @classmethod
    def from_samples(
        cls,
        times: Numbers,
        slope: Numbers,
        shift: Numbers,
        *,
        rank: int | None = None,
        centred: bool = True,
    ) -> "ScoreError":
        """Make an error from R draws at n times, such as R networks or checkpoints.

        Mean and sample covariance (divisor R - 1) become mean and directions.

        **Arguments:**

        - `times`: (n,) strictly decreasing.
        - `slope`: (R, n, modes) or (R, n, modes, modes).
        - `shift`: (R, n, modes).
        - `rank`: keep this number of largest directions, over all times and modes together;
          default: all.
        - `centred`: if False, use the second moment about 0 (divisor R), the mean being part of it.

        **Returns:** a `ScoreError`.

        **Raises:** ValueError for too few draws, or a rank that they do not span.

        **Example:**

        ```python
        >>> draws = np.random.default_rng(0).standard_normal((2, 5, 3, 4))  # slope, shift
        >>> error = jk.ScoreError.from_samples([1.0, 0.5, 0.1], *draws, rank=2)
        ```
        """
        slope = _checks.array("slope", slope)
        shift = _checks.array("shift", shift)
        draws = shift.shape[0] if shift.ndim else 0
        if draws < 1 + centred or slope.ndim == 0 or slope.shape[0] != draws:
            raise ValueError(
                f"slope and shift hold {slope.shape[:1]} and {shift.shape[:1]} draws; both need "
                f"the same number, at least {1 + centred}."
            )
        size = draws - centred if rank is None else _checks.count("rank", rank)
        if size > draws - centred:
            raise ValueError(
                f"rank = {rank} needs more than {draws} draws: they span {draws - centred} "
                "directions."
            )
        mean, directions = split_draws(slope, shift, size, centred)
        known = Tabulated(times, *mean) if centred else None
        return cls(Tabulated(times, *directions), FullyCorrelated(), known)

    @property
    def any_spectrum(self) -> bool:
        """Whether it is defined for every eigenvalue, not for the modes of one target only."""
        own = all(profile is None or profile.any_spectrum for profile in (self.shapes, self.mean))
        return own and (self.other is None or self.other.any_spectrum)

    @property
    def has_matrix_slopes(self) -> bool:
        """Whether it mixes modes, by matrices for slopes."""
        own = any(profile is not None and profile.dense for profile in (self.shapes, self.mean))
        return own or (self.other is not None and self.other.has_matrix_slopes)

    def mean_at(
        self, target: Gaussian, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> AffineError | None:
        """Return the mean error at each evaluation.

        **Arguments:**

        - `target`: the target along whose modes the error is given.
        - `process`: the process of the evaluations.
        - `times`: (evaluations,) their times, not increasing.

        **Returns:** an `AffineError` with fields (evaluations, modes[, modes]); None if it is 0.

        **Example:**

        ```python
        >>> jk.ScoreError.relative(0.1).mean_at(jk.Gaussian(0.0, [1.0]), jk.VP(), jnp.ones(1))
        ```
        """
        own = None
        if self.mean is not None:
            own = jax.tree.map(lambda a: jnp.sum(a, 0), self.mean(target, process, times))
        if self.other is None:
            return own
        return _combine(jnp.add, own, self.other.mean_at(target, process, times))

    def directions(
        self, target: Gaussian, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> AffineError | None:
        """Return the directions w with covariance sum w w^T.

        **Arguments:**

        - `target`: the target along whose modes the error is given.
        - `process`: the process of the evaluations.
        - `times`: (evaluations,) their times, not increasing.

        **Returns:** an `AffineError` with fields (directions, evaluations, modes[, modes]); None
        for a known error.

        **Example:**

        ```python
        >>> error = jk.ScoreError.relative(0.1, jk.Independent())
        >>> error.directions(jk.Gaussian(0.0, [1.0]), jk.VP(), jnp.array([1.0, 0.5])).shift.shape
        (2, 2, 1)
        ```
        """
        own = None
        if self.shapes is not None:
            factor = self.correlation.factor(process, times)
            own = _correlate(self.shapes(target, process, times), factor)
        if self.other is None:
            return own
        return _combine(_concatenate, own, self.other.directions(target, process, times))

    def sample(
        self,
        key: Array,
        target: Gaussian,
        process: AbstractProcess,
        times: Float[Array, " evaluations"],
        num: int,
    ) -> AffineError:
        """Draw independent errors at all evaluations of a run.

        **Arguments:**

        - `key`: a random key.
        - `target`: the target along whose modes the error is given.
        - `process`: the process of the evaluations.
        - `times`: (evaluations,) their times, not increasing.
        - `num`: the number of draws.

        **Returns:** an `AffineError` with fields (num, evaluations, modes[, modes]).

        **Raises:** ValueError for an error with neither a mean nor shapes.

        **Example:**

        ```python
        >>> setting = (jk.Gaussian(0.0, [1.0]), jk.VP(), jnp.array([1.0, 0.5]))
        >>> jk.ScoreError.relative(0.1).sample(jax.random.key(0), *setting, 8).shift.shape
        (8, 2, 1)
        ```
        """
        mean = self.mean_at(target, process, times)
        directions = self.directions(target, process, times)
        if directions is None:
            if mean is None:
                raise ValueError("this score error has neither a mean nor shapes.")
            return jax.tree.map(lambda m: jnp.broadcast_to(m, (num, *m.shape)), mean)
        latent = jax.random.normal(key, (num, directions.shift.shape[0]), times.dtype)
        drawn = jax.tree.map(lambda a: jnp.tensordot(latent, a, 1), directions)
        return drawn if mean is None else jax.tree.map(jnp.add, drawn, mean)


def _correlate(error: AffineError, factor: Float[Array, "evaluations factors"]) -> AffineError:
    """Directions of shapes whose amplitudes have the correlation factor factor^T."""

    def one(a: Array) -> Array:
        weights = factor.T.reshape(1, factor.shape[1], -1, *[1] * (a.ndim - 2))
        return (a[:, None] * weights).reshape(-1, *a.shape[1:])

    return jax.tree.map(one, error)


def _concatenate(a: Array, b: Array) -> Array:
    """The directions of both."""
    return jnp.concatenate([a, b])


def _combine(
    by: Callable[[Array, Array], Array], a: AffineError | None, b: AffineError | None
) -> AffineError | None:
    """Two errors combined field by field, in matrices if either has them; None is no error."""
    if a is None or b is None:
        return b if a is None else a
    if a.dense or b.dense:
        return jax.tree.map(by, a.as_dense(), b.as_dense())
    return jax.tree.map(by, a, b)


def _check_deviations(name: str, value: Numbers) -> np.ndarray:
    """Standard deviations >= 0, a number or one per mode."""
    deviations = np.asarray(_checks.array(name, value))
    if deviations.ndim > 1 or np.any(deviations < 0):
        raise ValueError(
            f"{name} must be standard deviations >= 0, a number or (modes,); got {deviations}."
        )
    return deviations
