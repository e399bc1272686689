"""What was measured of a denoiser, and what follows from it."""

import os
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from .. import _checks, _files
from .._plot import FigureSpec, render
from .._precision import to_float64
from .._tables import Table, number
from .._types import Numbers, constant
from ..distributions import Gaussian, pack_target, unpack_target
from ..prediction import Denoiser
from ..processes import AbstractProcess
from ..score_error import ScoreError, Tabulated
from ._figure import measurement_figure
from ._levels import Levels, gaussian_gain, noise_levels
from ._samples import check_samples, check_target, fit_gaussian
from ._statistics import martingale_violation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_FORMAT = "jaxkernels.measurement"
_MAX_ROWS = 16


class Measurement(eqx.Module):
    """Statistics of a denoiser D(x, t) and of data x0, at n times and per mode of the data.

    At every time x = a x0 + s eps. Made by `measure` from a denoiser and samples; `from_samples`
    and `from_losses` know less. Arrays are in NumPy and float64; errors are in the data's units
    squared, summed over dimensions.

    **Arguments:**

    - `times`: (n,) decreasing, > 0.
    - `signal`: (n,) a at these times.
    - `noise`: (n,) s at these times.
    - `distribution`: the Gaussian of the data, or None if it is not known.
    - `statistics`: those of the properties below that were measured, by name. A property that was
      not raises ValueError.

    **Example:**

    ```python
    >>> samples = np.random.default_rng(0).standard_normal((64, 2))
    >>> jk.Measurement.from_samples(jk.VP(), samples, [0.5, 0.1]).gaussian_error.shape
    (2, 2)
    ```
    """

    times: Float[np.ndarray, " n"]
    signal: Float[np.ndarray, " n"]
    noise: Float[np.ndarray, " n"]
    distribution: Gaussian | None
    statistics: dict[str, np.ndarray]

    @classmethod
    def from_samples(
        cls, process: AbstractProcess, samples: Numbers, times: Numbers
    ) -> "Measurement":
        """Measure samples without a network: mean, spectrum, kurtosis and `gaussian_error`.

        **Arguments:**

        - `process`: the forward process.
        - `samples`: (n, ...), n >= 2.
        - `times`: (m,) decreasing, > 0.

        **Returns:** a `Measurement` without statistics of a denoiser.

        **Raises:** ValueError naming the argument, as `measure` does.

        **Example:**

        ```python
        >>> samples = np.random.default_rng(0).standard_normal((64, 2))
        >>> jk.Measurement.from_samples(jk.VP(), samples, [0.5, 0.1]).target.dim
        2.0
        ```
        """
        levels = noise_levels(process, times)
        return cls(*levels, fit_gaussian(check_samples(samples)), {})

    @classmethod
    def from_losses(
        cls,
        process: AbstractProcess,
        times: Numbers,
        losses: Numbers,
        *,
        prediction_type: str,
        averaged_over: int,
        target: Gaussian | None = None,
    ) -> "Measurement":
        """Convert a loss curve, the mean squared error of a network's prediction at each time.

        A network that returns c0 x0 + c1 eps and sees x has errors of x0 and eps with
        a dx0 + s deps = 0, so that its loss is a multiple of the denoising error:

            loss = ((a c1 - s c0) / s)^2 E|D - x0|^2

        The factor is (a/s)^2 for "epsilon", (a/s^2)^2 for "score" (the loss of denoising score
        matching, E|score + eps/s|^2), 1 for "x0", ((a^2 + s^2)/s)^2 for "v" and
        ((a s' - s a')/s)^2 for "flow".

        **Arguments:**

        - `process`: the forward process of training.
        - `times`: (n,) decreasing, > 0.
        - `losses`: (n,) >= 0, without any weight that depends on time.
        - `prediction_type`: what the network predicts, see `Denoiser`.
        - `averaged_over`: dimensions that each loss is a mean over; 1 if it is a sum over them.
        - `target`: the Gaussian of the data, if it is known.

        **Returns:** a `Measurement` with `error`.

        **Raises:** ValueError naming the argument; also where a loss does not determine the
        denoising error (a = 0).

        **Example:**

        ```python
        >>> options = {"prediction_type": "x0", "averaged_over": 1}
        >>> jk.Measurement.from_losses(jk.VP(), [0.5, 0.1], [0.3, 0.1], **options).error.shape
        (2,)
        ```
        """
        levels = noise_levels(process, times)
        values = _check_losses(losses, levels.times.size)
        count = _checks.count("averaged_over", averaged_over)
        check_target(target)
        rate = _denoising_rate(process, levels.times, prediction_type)
        return cls(*levels, target, {"error": rate**2 * values * count})

    @property
    def target(self) -> Gaussian:
        """Mean, covariance spectrum, eigenvectors and kurtosis of the data."""
        if self.distribution is None:
            raise ValueError(
                "the distribution of the data is not known; pass target to from_losses, or measure "
                "with samples."
            )
        return self.distribution

    @property
    def error(self) -> Float[np.ndarray, " n"]:
        """The denoising error E|D - x0|^2, summed over dimensions."""
        return self._measured("error")

    @property
    def standard_error(self) -> Float[np.ndarray, " n"]:
        """The standard error of `error` over samples."""
        return self._measured("standard_error")

    @property
    def mode_error(self) -> Float[np.ndarray, "n modes"]:
        """The denoising error per mode."""
        return self._measured("mode_error")

    @property
    def gain(self) -> Float[np.ndarray, "n modes"]:
        """The slope of the best affine fit D = mean + gain (x - a mean) + offset + R, per mode.

        For an exact denoiser of any data it is a lambda / (a^2 lambda + s^2).
        """
        return self._measured("gain")

    @property
    def offset(self) -> Float[np.ndarray, "n modes"]:
        """The constant of the best affine fit (see `gain`); 0 for an exact denoiser."""
        return self._measured("offset")

    @property
    def residual(self) -> Float[np.ndarray, "n modes"]:
        """E R^2 per mode: what no affine function of that mode's own coordinate fits.

        It is 0 for Gaussian data and an exact denoiser, so it says how far the data are from the
        Gaussian model.
        """
        return self._measured("residual")

    @property
    def mode_residual_correlation(self) -> Float[np.ndarray, "modes n n"]:
        """E[R_t R_t'] per mode, at two times of one forward trajectory, not normalised.

        Of the denoised point, in the data's units squared; `residual` is its diagonal. What the
        affine fit leaves of the score is (a/s^2) R. Divided by the roots of its diagonal it is the
        correlation coefficient, of denoised point and score alike.
        """
        return self._measured("mode_residual_correlation")

    @property
    def residual_correlation(self) -> Float[np.ndarray, "n n"]:
        """E<R_t, R_t'>, the sum of `mode_residual_correlation` over modes."""
        return self.mode_residual_correlation.sum(0)

    @property
    def correlation(self) -> Float[np.ndarray, "n n"]:
        """E<D_t - x0, D_t' - x0> at two times of one forward trajectory."""
        return self._measured("correlation")

    @property
    def martingale_standard_error(self) -> Float[np.ndarray, "n n"]:
        """The standard error of `martingale_violation` over samples."""
        return self._measured("martingale_standard_error")

    @property
    def lipschitz(self) -> Float[np.ndarray, "n points"]:
        """The spectral norm of dD/dx at single noised samples, approached from below."""
        return self._measured("lipschitz")

    @property
    def iterations(self) -> Int[np.ndarray, " n"]:
        """The number of power iterations behind `lipschitz`."""
        return self._measured("iterations")

    @property
    def nfe(self) -> int:
        """NFE of the measurement, see `measure`."""
        return int(self._measured("nfe"))

    @property
    def sigma(self) -> Float[np.ndarray, " n"]:
        """Noise levels s/a in units of the data; infinite where a = 0."""
        return self._levels().sigma

    @property
    def gaussian_error(self) -> Float[np.ndarray, "n modes"]:
        """lambda s^2 / (a^2 lambda + s^2): the error of the best affine denoiser of these data.

        It is the least possible error if the data are Gaussian, and an upper bound of it per mode
        if not.
        """
        eigenvalues = np.asarray(self.target.eigenvalues, np.float64)
        signal = self.signal[:, None]
        noise = self.noise[:, None]
        # s > 0, as times are
        return eigenvalues * noise**2 / (signal**2 * eigenvalues + noise**2)

    @property
    def increments(self) -> Float[np.ndarray, "n n"]:
        """E|D_t - D_t'|^2 along one forward trajectory."""
        own = np.diag(self.correlation)
        return own[:, None] + own - 2.0 * self.correlation

    @property
    def martingale_violation(self) -> Float[np.ndarray, "n n"]:
        """E|D_t - D_t'|^2 - (error(t) - error(t')), t > t': 0 for an exact denoiser of any data.

        The forward process is Markov, so D_t = E[x0 | x_t] = E[D_t' | x_t] for t' < t: as noise
        decreases the exact denoiser is a martingale, and the squares of its increments add up. For
        a network the difference is 2 E<D_t' - x0, D_t' - D_t>; beyond a few
        `martingale_standard_error` the network is not the exact denoiser at t'.
        """
        return np.asarray(martingale_violation(constant(self.correlation)))

    def score_error(self) -> ScoreError:
        """Return the affine part of the denoiser's error as a known error of its score.

        The score errs by a/s^2 times the denoiser, so that

            Delta = -(a/s^2) (gain - a lambda / (a^2 lambda + s^2)),
            delta = (a/s^2) offset + Delta a mean.

        `estimate_score_error` fits the same from independent noise, for ensembles, and with the
        standard errors of the fit.

        **Returns:** a deterministic `ScoreError`, interpolated between the measured times.

        **Raises:** ValueError if gain, offset or the data's distribution is not known.

        **Example:**

        ```python
        >>> exact = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
        >>> samples = np.random.default_rng(0).standard_normal((64, 2))
        >>> jk.measure(exact, samples, [0.5], key=jax.random.key(0)).score_error().shapes is None
        True
        ```
        """
        factor = (self.signal / self.noise**2)[:, None]
        slope = -factor * (self.gain - gaussian_gain(self.target, self._levels()))
        mean = self.signal[:, None] * np.asarray(self.target.in_eigenbasis().mean)
        shift = factor * self.offset + slope * mean
        return ScoreError.deterministic(Tabulated(constant(self.times), slope[None], shift[None]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a versioned .npz file, whole or not at all.

        **Arguments:**

        - `path`: the file to write.

        **Raises:** ValueError naming the path if it cannot be written, or for a compressed target.

        **Example:**

        ```python
        >>> found = jk.Measurement.from_samples(jk.VP(), np.eye(2), [0.5])
        >>> found.save("measurement.npz")
        ```
        """
        target = {} if self.distribution is None else pack_target(self.distribution)
        statistics = {f"statistics_{name}": value for name, value in self.statistics.items()}
        _files.write(path, _FORMAT, self._levels()._asdict() | target | statistics)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Measurement":
        """Read a file written by `save`.

        **Arguments:**

        - `path`: the file to read.

        **Returns:** the `Measurement` that was saved.

        **Raises:** ValueError naming the path and the fault.

        **Example:**

        ```python
        >>> jk.Measurement.from_samples(jk.VP(), np.eye(2), [0.5]).save("measurement.npz")
        >>> jk.Measurement.load("measurement.npz").times.shape
        (1,)
        ```
        """
        content = _files.read(path, _FORMAT)
        levels = Levels(*(content[name] for name in Levels._fields))
        statistics = {
            name.removeprefix("statistics_"): value
            for name, value in content.items()
            if name.startswith("statistics_")
        }
        return cls(*levels, unpack_target(content), statistics)

    def figure(self) -> FigureSpec:
        """Describe the figure that `plot` draws, as plain data.

        Up to three panels over noise levels: the denoising error beside that of the best affine
        denoiser, the violation of the martingale identity, and the Lipschitz constants found; those
        that are known.

        **Returns:** panels with their marks, labels and numbers.
        """
        known = self.statistics
        names = ("error", "standard_error", "lipschitz")
        shown = {name: known[name] for name in names if name in known}
        if "residual" in known:
            shown["residual"] = self.residual.sum(-1)
        if "correlation" in known:
            shown["violation"] = self.martingale_violation
            shown["violation_standard_error"] = self.martingale_standard_error
            shown["increments"] = self.increments
        affine_error = None
        affine_lipschitz = None
        if self.distribution is not None:
            affine_error = self.gaussian_error @ np.asarray(self.distribution.weights, np.float64)
            slope = (self.signal / self.noise**2)[:, None] * self.gaussian_error
            affine_lipschitz = slope.max(-1)
        return measurement_figure(
            self.sigma, shown, affine_error=affine_error, affine_lipschitz=affine_lipschitz
        )

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Draw denoising error, martingale identity and Lipschitz constants over noise levels.

        **Arguments:**

        - `path`: where to save the figure, ending in .png, .pdf or .svg; by default
          it is not saved.

        **Returns:** a matplotlib figure. `figure()` has what it shows as plain data.

        **Raises:** ValueError for another suffix or a file that cannot be written; ImportError
        without matplotlib.

        **Example:**

        ```python
        >>> len(jk.Measurement.from_samples(jk.VP(), np.eye(2), [0.5]).plot().axes)
        1
        ```
        """
        return render(self.figure(), path)

    def _levels(self) -> Levels:
        """Times, signal and noise."""
        return Levels(self.times, self.signal, self.noise)

    def _measured(self, name: str) -> np.ndarray:
        """A statistic by name."""
        if name not in self.statistics:
            known = ", ".join(self.statistics) or "only statistics of the data"
            raise ValueError(
                f"{name} was not measured here (known: {known}); see jaxkernels.measure."
            )
        return self.statistics[name]

    def __repr__(self) -> str:
        columns = self._columns()
        n = self.times.size
        shown = np.unique(np.linspace(0, n - 1, min(n, _MAX_ROWS)).round().astype(int))
        rows = [[number(float(values[i])) for values in columns.values()] for i in shown]
        notes = [*self._data_line(), *self._martingale_line()]
        return Table(list(columns), rows, notes=notes).to_text()

    def _columns(self) -> dict[str, np.ndarray]:
        """The columns of the shown table, one value per time."""
        columns = {"t": self.times, "sigma": self.sigma}
        if "error" in self.statistics:
            columns["error"] = self.error
        if self.distribution is not None:
            weights = np.asarray(self.distribution.weights)
            columns["best affine"] = np.sum(self.gaussian_error * weights, -1)
        if "residual" in self.statistics:
            columns["nonlinear"] = self.residual.sum(-1)
        if "lipschitz" in self.statistics:
            columns["Lipschitz"] = np.median(self.lipschitz, -1)
            columns["largest"] = np.max(self.lipschitz, -1)
        return columns

    def _data_line(self) -> list[str]:
        """A line about the data, if they are known."""
        data = self.distribution
        if data is None:
            return []
        kurtosis = "unknown"
        if data.kurtosis is not None:
            kurtosis = f"{float(data.kurtosis):.3g} (3 if Gaussian)"
        variance = np.sum(np.asarray(data.eigenvalues) * np.asarray(data.weights))
        return [f"total variance {variance:.4g} in {data.dim:g} dimensions, kurtosis {kurtosis}"]

    def _martingale_line(self) -> list[str]:
        """A line about the martingale identity, if it was measured between two times."""
        if "correlation" not in self.statistics or self.times.size < 2:
            return []
        pairs = ~np.eye(self.times.size, dtype=bool)
        violation = np.abs(self.martingale_violation[pairs])
        share = (violation / np.maximum(self.increments[pairs], 1e-300)).max()
        standard_error = np.maximum(self.martingale_standard_error[pairs], 1e-300)
        return [
            f"martingale identity: off by at most {share:.2g} of the increment and "
            f"{(violation / standard_error).max():.1f} standard errors"
        ]


def _check_losses(losses: Numbers, num_times: int) -> np.ndarray:
    """Losses as an array of one number >= 0 per time."""
    values = np.asarray(_checks.array("losses", losses))
    if values.shape != (num_times,):
        raise ValueError(
            f"losses has shape {values.shape}; for {num_times} times it must be ({num_times},)."
        )
    if np.any(values < 0):
        raise ValueError(f"losses must be >= 0; the smallest is {values.min():g}.")
    return values


def _denoising_rate(
    process: AbstractProcess, times: np.ndarray, prediction_type: str
) -> Float[np.ndarray, " n"]:
    """The derivative of the denoised point in the predicted value; an error if it is infinite."""
    with jax.enable_x64(True):
        # the denoised point is affine in the predicted value: at x = 0 one unit shows the rate
        unit = Denoiser(lambda x, t: jnp.ones_like(x), to_float64(process), prediction_type)
        at_zero = jax.vmap(lambda t: unit(jnp.zeros(()), t).x0)
        rate = np.asarray(at_zero(jnp.asarray(times)), np.float64)
    if not np.all(np.isfinite(rate)):
        t = times[np.argmin(np.isfinite(rate))]
        raise ValueError(
            f"the signal is 0 at t = {t:g}: the loss of a network with "
            f"prediction_type={prediction_type!r} does not determine the denoising error there."
        )
    return rate
