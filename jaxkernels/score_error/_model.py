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

# eigenvalues below this fraction of the largest are rounding, not directions
_RANK_TOLERANCE = 1e-12


class ScoreError(eqx.Module):
    """The affine error e_t(x) = -Delta_t x + delta_t of a learned score, as a random function of time:

        (Delta_t, delta_t) = mean(t) + sum_j x_j(t) shape_j(t)

    with independent normal processes x_j of unit variance and correlation E x_j(s) x_j(t) = rho(s, t). At
    the evaluations of a schedule its covariance is sum_j,l w_jl w_jl^T with the directions w_jl =
    shape_j(t_a) L_al, rho = L L^T, so a number of directions says what a computation with it costs: one
    per shape if the error is shared by all times, else one per shape and time.

    Expected errors to second order depend on each mode's own covariance only; how modes are correlated with
    each other matters for dense slopes. Make one with `diagonal`, `relative`, `dense`, `random_features`,
    `from_covariance`, `from_samples` or `deterministic`, or from profiles.

    Source: the correlated-time expansion of score errors, where Delta and delta are the affine part of the
    error at each time, with a joint covariance over all times.
    """

    shapes: AbstractProfile | None
    correlation: AbstractCorrelation
    mean: AbstractProfile | None = None

    @classmethod
    def diagonal(
        cls,
        slope: Numbers = 0.0,
        shift: Numbers = 0.0,
        correlation: AbstractCorrelation | None = None,
        *,
        cross: Numbers = 0.0,
        amplitude: Numbers | Callable[[Array], Array] = 1.0,
    ) -> "ScoreError":
        """Standard deviations of Delta_ii and delta_i: numbers for all modes, or (modes,).

        `correlation` between times (default `FullyCorrelated`), `cross` the correlation of Delta_ii with delta_i,
        `amplitude` a factor or a function of time on both.
        """
        slope, shift = (_checks.array(n, v) for n, v in (("slope", slope), ("shift", shift)))
        for name, value in (("slope", slope), ("shift", shift)):
            if value.ndim > 1 or np.any(value < 0):
                raise ValueError(
                    f"{name} must be standard deviations >= 0, a number or (modes,); got {value}."
                )
        cross = float(_checks.scalar("cross", cross, at_least=-1.0, at_most=1.0))
        shape = np.broadcast_shapes(slope.shape, shift.shape)
        slope, shift = np.broadcast_to(slope, shape), np.broadcast_to(shift, shape)
        # one shape for what the two share, one for the rest of the shift
        slopes, shifts = [slope, 0.0 * slope], [cross * shift, np.sqrt(1.0 - cross**2) * shift]
        kept = [i for i in range(2) if np.any(slopes[i] != 0) or np.any(shifts[i] != 0)] or [0]
        fields = (constant(np.stack([v[i] for i in kept])) for v in (slopes, shifts))
        profile = Uniform(*fields) if shape == () else Constant(*fields)
        return cls(Scaled(profile, amplitude), correlation or FullyCorrelated())

    @classmethod
    def relative(
        cls,
        amplitude: Numbers | Callable[[Array], Array],
        correlation: AbstractCorrelation | None = None,
    ) -> "ScoreError":
        """e = c(t) times the exact score, c normal with standard deviation `amplitude` (number or function of t)."""
        return cls(Scaled(Relative(), amplitude), correlation or FullyCorrelated())

    @classmethod
    def deterministic(
        cls, profile: AbstractProfile, amplitude: Numbers | Callable[[Array], Array] = 1.0
    ) -> "ScoreError":
        """A known error: a profile with one shape, such as `Relative()`, times a number or function of time."""
        return cls(None, FullyCorrelated(), Scaled(profile, amplitude))

    @classmethod
    def dense(
        cls,
        slope: Numbers,
        shift: Numbers,
        correlation: AbstractCorrelation | None = None,
        *,
        amplitude: Numbers | Callable[[Array], Array] = 1.0,
    ) -> "ScoreError":
        """Shapes with matrices: `slope` (shapes, d, d), `shift` (shapes, d), along the target's modes."""
        slope, shift = _checks.array("slope", slope), _checks.array("shift", shift)
        if slope.ndim != 3 or slope.shape != (*shift.shape, shift.shape[-1]):
            raise ValueError(
                f"slope has shape {slope.shape} and shift {shift.shape}; they must be (shapes, d, d) and (shapes, d)."
            )
        return cls(
            Scaled(Constant(constant(slope), constant(shift)), amplitude),
            correlation or FullyCorrelated(),
        )

    @classmethod
    def random_features(
        cls,
        features: Numbers,
        slope: float,
        shift: float,
        correlation: AbstractCorrelation | None = None,
        *,
        amplitude: Numbers | Callable[[Array], Array] = 1.0,
    ) -> "ScoreError":
        """Delta = slope U^T A U, delta = shift U^T b with independent unit normal entries in A (m, m) and b (m,).

        `features` U (m, d) along the modes: what a network sees of x. It has m^2 + m shapes.
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
        """From the joint covariance of (Delta, delta) at n decreasing times, mode by mode.

        `covariance` (n, 2, n, 2, modes): entry [a, p, b, q, i] is the covariance of parameter p of mode i at
        time a with q at b, parameters 0 = Delta_ii, 1 = delta_i. Between the times the directions are
        interpolated, so it stays a covariance. `mean` with fields (n, modes).

        **Raises:** ValueError if a mode's matrix is not positive semidefinite, naming the mode and its
        most negative eigenvalue; `project=True` replaces negative eigenvalues by 0 instead.
        """
        times, c = _checks.array("times", times), _checks.array("covariance", covariance)
        n = times.size
        if c.ndim != 5 or c.shape[:4] != (n, 2, n, 2):
            raise ValueError(
                f"covariance has shape {c.shape}; for {n} times it must be ({n}, 2, {n}, 2, modes)."
            )
        matrices = np.moveaxis(np.reshape(c, (2 * n, 2 * n, -1)), -1, 0)
        asymmetry = np.abs(matrices - np.swapaxes(matrices, 1, 2)).max()
        if asymmetry > 1e-8 * np.abs(matrices).max():
            raise ValueError(
                f"covariance is not symmetric: its halves differ by up to {asymmetry:.3g}."
            )
        values, vectors = np.linalg.eigh(matrices)
        i = int(np.argmin(values[:, 0]))
        if values[i, 0] < -1e-8 * max(values[i, -1], 0.0) - 1e-300 and not project:
            raise ValueError(
                f"covariance of mode {i} has the negative eigenvalue {values[i, 0]:.3g} (its largest is "
                f"{values[i, -1]:.3g}): it is not positive semidefinite. Pass project=True to set it to 0."
            )
        roots = vectors * np.sqrt(np.maximum(values, 0.0))[:, None]
        roots = roots[:, :, values.max(0) >= _RANK_TOLERANCE * values.max()]  # what any mode uses
        shapes = np.moveaxis(roots, 0, -1).swapaxes(0, 1)
        shapes = shapes.reshape(shapes.shape[0], n, 2, -1)
        known = None if mean is None else Tabulated(times, mean.slope[None], mean.shift[None])
        return cls(Tabulated(times, shapes[:, :, 0], shapes[:, :, 1]), FullyCorrelated(), known)

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
        """From R draws of an error at n decreasing times, such as R networks or checkpoints.

        `slope` (R, n, modes) or (R, n, modes, modes), `shift` (R, n, modes). Mean and sample covariance
        (divisor R - 1) become mean and directions; `rank` keeps the largest directions only (over all
        times and modes together). With `centred=False` the second moment about 0 is used instead
        (divisor R), the mean being part of it.
        """
        slope, shift = _checks.array("slope", slope), _checks.array("shift", shift)
        draws = shift.shape[0] if shift.ndim else 0
        if draws < 1 + centred or slope.ndim == 0 or slope.shape[0] != draws:
            raise ValueError(
                f"slope and shift hold {slope.shape[:1]} and {shift.shape[:1]} draws; both need the same number, "
                f"at least {1 + centred}."
            )
        flat = np.concatenate([slope.reshape(draws, -1), shift.reshape(draws, -1)], 1)
        mean = flat.mean(0) if centred else np.zeros(flat.shape[1])
        rows = (flat - mean) / np.sqrt(draws - centred)
        most = draws - centred if rank is None else _checks.count("rank", rank)
        if most > draws - centred:
            raise ValueError(
                f"rank = {rank} needs more than {draws} draws: they span {draws - centred} directions."
            )
        _, singular, right = np.linalg.svd(rows, full_matrices=False)
        kept = singular[:most, None] * right[:most]

        def split(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            cut = slope[0].size
            return rows[:, :cut].reshape(-1, *slope.shape[1:]), rows[:, cut:].reshape(
                -1, *shift.shape[1:]
            )

        known = Tabulated(times, *split(mean[None])) if centred else None
        return cls(Tabulated(times, *split(kept)), FullyCorrelated(), known)

    @property
    def any_spectrum(self) -> bool:
        """Whether it is defined for every eigenvalue, not for the modes of one target only."""
        return all(profile is None or profile.any_spectrum for profile in (self.shapes, self.mean))

    def mean_at(
        self, target: Gaussian, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> AffineError | None:
        """The mean error at each evaluation, fields (evaluations, modes[, modes]); None if it is 0."""
        if self.mean is None:
            return None
        error = self.mean(target, process, times)
        return jax.tree.map(lambda a: jnp.sum(a, 0), error)

    def directions(
        self, target: Gaussian, process: AbstractProcess, times: Float[Array, " evaluations"]
    ) -> AffineError | None:
        """Directions w with covariance sum w w^T, fields (directions, evaluations, modes[, modes])."""
        if self.shapes is None:
            return None
        factor = self.correlation.factor(process, times)
        error = self.shapes(target, process, times)

        def spread(a: Array) -> Array:
            weights = factor.T.reshape(1, factor.shape[1], -1, *[1] * (a.ndim - 2))
            return (a[:, None] * weights).reshape(-1, *a.shape[1:])

        return jax.tree.map(spread, error)

    def sample(
        self,
        key: Array,
        target: Gaussian,
        process: AbstractProcess,
        times: Float[Array, " evaluations"],
        num: int,
    ) -> AffineError:
        """`num` independent error trajectories, fields (num, evaluations, modes[, modes])."""
        mean, directions = (
            self.mean_at(target, process, times),
            self.directions(target, process, times),
        )
        if directions is None:
            if mean is None:
                raise ValueError("this score error has neither a mean nor shapes.")
            return jax.tree.map(lambda m: jnp.broadcast_to(m, (num, *m.shape)), mean)
        latent = jax.random.normal(key, (num, directions.shift.shape[0]), times.dtype)
        drawn = jax.tree.map(lambda a: jnp.tensordot(latent, a, 1), directions)
        return drawn if mean is None else jax.tree.map(jnp.add, drawn, mean)
