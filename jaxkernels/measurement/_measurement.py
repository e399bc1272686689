"""What was measured, and what follows from it."""

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
from .._types import AnyArray, Numbers, constant
from ..distributions import Gaussian, pack_target, unpack_target
from ..prediction import Denoiser
from ..processes import AbstractProcess, check_times
from ..score_error import ScoreError, Tabulated
from ._figure import measurement_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_FORMAT = "jaxkernels.measurement"


_MOST_ROWS = 16


class Measurement(eqx.Module):
    """Statistics of a denoiser D(x, t) and of data x0, at n times and along the d modes of `target`.

    At every time x = a x0 + s eps. Made by `measure` from a network and data; `from_data` and `from_losses`
    know less. Arrays are in NumPy and float64; variances are in the data's units squared.

    `times` (n,) decreasing, `signal` a and `noise` s there; `law` of the data, or None; `statistics` by name: those of
    the properties below that were measured. A property raises ValueError if it was not.
    """

    times: Float[np.ndarray, " n"]
    signal: Float[np.ndarray, " n"]
    noise: Float[np.ndarray, " n"]
    law: Gaussian | None
    statistics: dict[str, np.ndarray]

    @classmethod
    def from_data(cls, process: AbstractProcess, data: Numbers, times: Numbers) -> "Measurement":
        """Without a network: mean, spectrum and kurtosis of the data (n, ...), and with them `gaussian_error`.

        Raises ValueError naming the argument, as `measure` does.
        """
        return cls(*levels(process, times), fit(checked_data(data)), {})

    @classmethod
    def from_losses(
        cls,
        process: AbstractProcess,
        times: Numbers,
        losses: Numbers,
        *,
        kind: str,
        averaged_over: int,
        target: Gaussian | None = None,
    ) -> "Measurement":
        """From a loss curve: the mean squared error of a network's prediction at each time.

        A network that returns c0 x0 + c1 eps (see `predictor`) and sees x has errors of x0 and eps with
        a dx0 + s deps = 0, so that its loss is a multiple of the denoising error:

            loss = ((a c1 - s c0) / s)^2 E|D - x0|^2,

        (a/s)^2 for "epsilon", (a/s^2)^2 for "score" (the loss of denoising score matching, E|score + eps/s|^2),
        1 for "x0", ((a^2 + s^2)/s)^2 for "v" and ((a s' - s a')/s)^2 for "flow".

        **Arguments:** `times` decreasing, > 0; `losses` (n,) of predictions of that `kind`, without any weight that
        depends on time. `averaged_over`: the number of dimensions that each loss is a mean over, 1 if it is a
        sum over dimensions. `target`: the law of the data, if it is known.

        **Raises:** ValueError naming the argument; also where a loss says nothing of the denoiser (a = 0).
        """
        grid, a, s = levels(process, times)
        values = _checks.array("losses", losses)
        if values.shape != grid.shape:
            raise ValueError(
                f"losses has shape {values.shape}; for {grid.size} times it must be {grid.shape}."
            )
        if np.any(values < 0):
            raise ValueError(f"losses must be >= 0; the smallest is {values.min():g}.")
        dimensions = _checks.count("averaged_over", averaged_over)
        if target is not None and not isinstance(target, Gaussian):
            raise ValueError(f"target must be a Gaussian; got {type(target).__name__}.")
        with jax.enable_x64(True):
            # the denoised point moves with the predicted value at the rate that one unit at x = 0 shows
            unit = Denoiser(lambda x, t: jnp.ones_like(x), to_float64(process), kind)
            rate = np.asarray(unit(jnp.zeros(grid.size), jnp.asarray(grid)).x0, np.float64)
        if not np.all(np.isfinite(rate)):
            t = grid[np.argmin(np.isfinite(rate))]
            raise ValueError(
                f"the signal is 0 at t = {t:g}: a loss of kind {kind!r} says nothing of the denoiser there."
            )
        return cls(grid, a, s, target, {"error": rate**2 * np.asarray(values) * dimensions})

    @property
    def target(self) -> Gaussian:
        """Mean, covariance spectrum, eigenvectors and kurtosis of the data."""
        if self.law is None:
            raise ValueError(
                "the law of the data is not known; pass target to from_losses, or measure with data."
            )
        return self.law

    @property
    def error(self) -> Float[np.ndarray, " n"]:
        """The denoising error E|D - x0|^2, summed over dimensions."""
        return self._measured("error")

    @property
    def error_noise(self) -> Float[np.ndarray, " n"]:
        """Standard error of `error` over samples."""
        return self._measured("error_noise")

    @property
    def mode_error(self) -> Float[np.ndarray, "n modes"]:
        """The denoising error along each mode."""
        return self._measured("mode_error")

    @property
    def gain(self) -> Float[np.ndarray, "n modes"]:
        """Slope of the best affine fit, mode by mode: D = mean + gain (x - a mean) + offset + residual.

        For an exact denoiser of any data it is a lambda / (a^2 lambda + s^2).
        """
        return self._measured("gain")

    @property
    def offset(self) -> Float[np.ndarray, "n modes"]:
        """Constant of the best affine fit (see `gain`); 0 for an exact denoiser."""
        return self._measured("offset")

    @property
    def residual(self) -> Float[np.ndarray, "n modes"]:
        """E(D - affine fit)^2 along each mode: what no affine function of that mode's own coordinate fits.

        It is 0 for Gaussian data and an exact denoiser, so it says how far the data are from the Gaussian model.
        """
        return self._measured("residual")

    @property
    def mode_residual_correlation(self) -> Float[np.ndarray, "modes n n"]:
        """E[R_t R_t'] along each mode, R = D - affine fit at two times of one forward trajectory.

        Of the denoised point, in the data's units squared; `residual` is its diagonal. What the affine fit leaves
        of the score is (a/s^2) R. Divided by the roots of its diagonal it is the coefficient of correlation, of
        denoised point and score alike.
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
    def violation_noise(self) -> Float[np.ndarray, "n n"]:
        """Standard error of `violation` over samples."""
        return self._measured("violation_noise")

    @property
    def lipschitz(self) -> Float[np.ndarray, "n points"]:
        """Spectral norm of dD/dx at single noisy samples, a lower bound that power iteration approaches."""
        return self._measured("lipschitz")

    @property
    def iterations(self) -> Int[np.ndarray, " n"]:
        """Power iterations that `lipschitz` took."""
        return self._measured("iterations")

    @property
    def sigma(self) -> Float[np.ndarray, " n"]:
        """Noise levels s/a in units of the data; infinite where a = 0."""
        with np.errstate(divide="ignore"):
            return self.noise / self.signal

    @property
    def gaussian_error(self) -> Float[np.ndarray, "n modes"]:
        """lambda s^2 / (a^2 lambda + s^2): the error of the best affine denoiser of these data.

        It is the least possible error if the data are Gaussian, and an upper bound of it, mode by mode, if not.
        """
        variance = np.asarray(self.target.eigenvalues, np.float64)
        a, s = self.signal[:, None], self.noise[:, None]
        # s > 0, as times are
        return variance * s**2 / (a**2 * variance + s**2)

    @property
    def increments(self) -> Float[np.ndarray, "n n"]:
        """E|D_t - D_t'|^2 along one forward trajectory."""
        own = np.diag(self.correlation)
        return own[:, None] + own - 2.0 * self.correlation

    @property
    def violation(self) -> Float[np.ndarray, "n n"]:
        """E|D_t - D_t'|^2 - (error(t) - error(t')), t > t': 0 for an exact denoiser, whatever the data.

        Noise is added by a Markov process, so D_t = E[x0 | x_t] = E[D_t' | x_t] for t' < t: with less and less
        noise the exact denoiser is a martingale, and the squares of its increments add up. For a network it is
        2 E<D_t' - x0, D_t' - D_t>; beyond a few `violation_noise` the network is not the exact denoiser at t'.
        """
        return np.asarray(violation(constant(self.correlation)))

    def score_error(self) -> ScoreError:
        """The affine part of the network's error as a known error of its score, for the analyses of this library.

        The score errs by a/s^2 times the denoiser, so Delta = -(a/s^2) (gain - a lambda / (a^2 lambda + s^2)) and
        delta = (a/s^2) offset + Delta a mean. `estimate_score_error` fits the same from independent noises, for
        ensembles, and with the noise of the fit.
        """
        a, s = self.signal[:, None], self.noise[:, None]
        slope = -a / s**2 * (self.gain - gaussian_gain(self.target, self.signal, self.noise))
        shift = a / s**2 * self.offset + slope * a * np.asarray(self.target.in_eigenbasis().mean)
        return ScoreError.deterministic(Tabulated(constant(self.times), slope[None], shift[None]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a versioned .npz file, whole or not at all. ValueError, naming the path, if it cannot be written."""
        law = {} if self.law is None else pack_target(self.law)
        levels = {"times": self.times, "signal": self.signal, "noise": self.noise}
        _files.write(
            path, _FORMAT, levels | law | {f"statistics_{k}": v for k, v in self.statistics.items()}
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Measurement":
        """Read a file written by `save`. Raises ValueError, naming the path and the fault."""
        content = _files.read(path, _FORMAT)
        statistics = {
            k.removeprefix("statistics_"): v
            for k, v in content.items()
            if k.startswith("statistics_")
        }
        times, signal, noise = (content[name] for name in ("times", "signal", "noise"))
        return cls(times, signal, noise, unpack_target(content), statistics)

    def figure(self) -> FigureSpec:
        """Describe the figure that `plot` draws, as plain data.

        Up to three panels over noise levels: the denoising error beside that of the best affine denoiser,
        the violation of the martingale identity, and the Lipschitz constants found; those that are known.

        **Returns:** panels with their marks, labels and numbers.
        """
        known = self.statistics
        shown = {name: known[name] for name in ("error", "lipschitz") if name in known}
        if "error_noise" in known:
            shown["standard_error"] = self.error_noise
        if "residual" in known:
            shown["residual"] = self.residual.sum(-1)
        if "correlation" in known:
            shown["violation"] = self.violation
            shown["violation_standard_error"] = self.violation_noise
            shown["increments"] = self.increments
        affine_error = None
        affine_lipschitz = None
        if self.law is not None:
            affine_error = self.gaussian_error @ np.asarray(self.law.weights, np.float64)
            slope = (self.signal / self.noise**2)[:, None] * self.gaussian_error
            affine_lipschitz = slope.max(-1)
        return measurement_figure(
            self.sigma, shown, affine_error=affine_error, affine_lipschitz=affine_lipschitz
        )

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Draw the denoising error, the martingale identity and the Lipschitz constants over noise levels.

        **Arguments:**

        - `path`: where to save the figure, ending in .png, .pdf or .svg; by default it is not saved.

        **Returns:** a matplotlib figure. `figure()` has what it shows as plain data.

        **Raises:** ValueError for another suffix or a file that cannot be written; ImportError without
        matplotlib.
        """
        return render(self.figure(), path)

    def _measured(self, name: str) -> np.ndarray:
        if name not in self.statistics:
            known = ", ".join(self.statistics) or "only statistics of the data"
            raise ValueError(
                f"{name} was not measured here (known: {known}); see jaxkernels.measure."
            )
        return self.statistics[name]

    def __repr__(self) -> str:
        known = self.statistics
        columns = {"t": self.times, "sigma": self.sigma}
        if "error" in known:
            columns["error"] = self.error
        if self.law is not None:
            columns["best affine"] = np.sum(self.gaussian_error * np.asarray(self.law.weights), -1)
        if "residual" in known:
            columns["nonlinear"] = self.residual.sum(-1)
        if "lipschitz" in known:
            columns["Lipschitz"] = np.median(self.lipschitz, -1)
            columns["largest"] = np.max(self.lipschitz, -1)
        n = len(self.times)
        shown = np.unique(np.linspace(0, n - 1, min(n, _MOST_ROWS)).round().astype(int))
        cells = [[number(float(values[i])) for values in columns.values()] for i in shown]
        return Table(list(columns), cells, notes=self._notes()).to_text()

    def _notes(self) -> list[str]:
        """What is known of the data as a whole, and the largest violation of the martingale identity."""
        notes = []
        if self.law is not None:
            kurtosis = (
                "unknown"
                if self.law.kurtosis is None
                else f"{float(self.law.kurtosis):.3g} (3 if Gaussian)"
            )
            variance = np.sum(np.asarray(self.law.eigenvalues) * np.asarray(self.law.weights))
            notes.append(
                f"total variance {number(variance)} in {self.law.dim:g} dimensions, "
                f"kurtosis {kurtosis}"
            )
        n = len(self.times)
        if "correlation" in self.statistics and n > 1:
            off = ~np.eye(n, dtype=bool)
            violation = np.abs(self.violation[off])
            share = (violation / np.maximum(self.increments[off], 1e-300)).max()
            errors = (violation / np.maximum(self.violation_noise[off], 1e-300)).max()
            notes.append(
                f"martingale identity: off by {share:.2g} of the increment, "
                f"{errors:.1f} standard errors, at most"
            )
        return notes


def violation(correlation: Float[AnyArray, "*b n n"]) -> Float[AnyArray, "*b n n"]:
    """2 E<D_t' - x0, D_t' - D_t> of every pair, t' the later one in the list, with less noise. Of either library."""
    n = np.arange(correlation.shape[-1])
    own = correlation[..., n, n]
    return 2.0 * (own[..., np.maximum.outer(n, n)] - correlation)


def gaussian_gain(
    target: Gaussian, signal: Float[np.ndarray, " n"], noise: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n modes"]:
    """a lambda / (a^2 lambda + s^2): the slope of the best affine denoiser."""
    variance, a, s = np.asarray(target.eigenvalues, np.float64), signal[:, None], noise[:, None]
    return a * variance / (a**2 * variance + s**2)


def levels(
    process: AbstractProcess, times: Numbers
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Checked times with signal and noise there, in float64."""
    grid = np.asarray(check_times(process, times))
    with jax.enable_x64(True):
        exact = to_float64(process)
        return (
            grid,
            np.asarray(exact.signal(jnp.asarray(grid))),
            np.asarray(exact.noise(jnp.asarray(grid))),
        )


def checked_data(data: Numbers) -> np.ndarray:
    """Samples in rows, as they are given: nothing is copied."""
    samples = np.asarray(data)
    if samples.ndim < 2 or samples.shape[0] < 2 or samples.size == 0:
        raise ValueError(
            f"data has shape {samples.shape}; it must be (n, ...) with at least 2 samples."
        )
    return samples


def rows(data: np.ndarray, start: int, stop: int) -> Float[np.ndarray, "n *sample"]:
    """A block of samples in float64. ValueError for a NaN or infinity in it."""
    stop = min(stop, data.shape[0])
    return np.asarray(_checks.array(f"data[{start}:{stop}]", data[start:stop]))


def fit(data: np.ndarray) -> Gaussian:
    """`Gaussian.fit` without shrinkage, block by block: no copy of the data is made."""
    n, size = data.shape[0], int(np.prod(data.shape[1:]))
    block = max(1, 2**21 // size)
    starts = range(0, n, block)
    mean = sum(rows(data, i, i + block).reshape(-1, size).sum(0) for i in starts) / n
    covariance, fourth = np.zeros((size, size)), np.zeros(size)
    for i in starts:
        x = rows(data, i, i + block).reshape(-1, size) - mean
        covariance += x.T @ x / n
        fourth += np.sum(x**4, 0) / n
    second = np.diag(covariance)
    if not np.any(second > 0):
        raise ValueError("data are all equal: they have no variance to fit.")
    varying = second > 0
    kurtosis = np.sum(fourth[varying] / second[varying]) / np.sum(second)
    law = Gaussian.from_covariance(mean, covariance)
    return eqx.tree_at(lambda g: g.kurtosis, law, constant(kurtosis), is_leaf=lambda x: x is None)
