"""Measured score errors of one network or of an ensemble.

Two kinds of randomness are kept apart. *Genuine*: networks of an ensemble (seeds, checkpoints,
folds) differ. *Estimation*: a fit from finitely many draws varies, because of the nonlinear part of
network and data. Every network is fitted in several repetitions, with fresh draws in each and the
same draws for all networks, and products are formed only between different repetitions, whose
errors are independent: their average is unbiased for the genuine second moments. A single network
has no genuine randomness; its error is a fixed function and its "covariance" the outer product of
that function with itself. (Refitting one network on fresh draws, as is sometimes proposed, measures
the variance of the fit: for a network with an exactly affine error it gives 0.)
"""

import equinox as eqx
import numpy as np
from jaxtyping import Float

from .. import _checks
from .._types import AnyArray
from ..errors import ErrorKernel, check_kernel
from ..score_error import AffineError, ScoreError, Tabulated
from ._covariance import cross_product_sum, cross_validated_size, impose_structure, product_sum
from ._excess import PredictedExcess, predict_excess

STRUCTURES = ("dense", "banded", "low_rank")


class ScoreErrorEstimate(eqx.Module):
    """Affine fits e_t(x) = -slope x + shift of the score errors of M networks in R repetitions.

    Made by `estimate_score_error`; along the modes of the target.

    **Arguments:**

    - `times`: (n,) decreasing.
    - `slope`: (M, R, n, modes), or (M, R, n, modes, modes) for matrices: Delta, in units of a
      precision.
    - `shift`: (M, R, n, modes) delta, in units of a score.
    - `residual`: (n, modes) mean square of what the affine function leaves of the network minus the
      Gaussian score, in units of a score squared; for matrices on held-out draws.
    - `mixing`: (n, modes) the part of `residual` that is linear in x all the same, without bias and
      hence of any sign: for slopes per mode what mixes modes. None if not measured.

    **Example:**

    ```python
    >>> zero = np.zeros((5, 2, 3, 4))
    >>> jk.ScoreErrorEstimate(np.array([1.0, 0.5, 0.1]), zero, zero, zero[0, 0])
    ScoreErrorEstimate(5 networks, 2 repetitions, 3 times, 4 modes)
    ```
    """

    times: Float[AnyArray, " n"]
    slope: Float[AnyArray, "networks repetitions n modes ..."]
    shift: Float[AnyArray, "networks repetitions n modes"]
    residual: Float[AnyArray, "n modes"]
    mixing: Float[AnyArray, "n modes"] | None = None

    @property
    def dense(self) -> bool:
        """Whether slopes are matrices."""
        return self.slope.ndim > self.shift.ndim

    @property
    def num_networks(self) -> int:
        """M, the number of networks."""
        return self.shift.shape[0]

    @property
    def num_repetitions(self) -> int:
        """R, the number of repetitions per network."""
        return self.shift.shape[1]

    @property
    def mean(self) -> AffineError:
        """The mean over networks and repetitions, fields (n, modes[, modes])."""
        return AffineError(np.asarray(self.slope).mean((0, 1)), np.asarray(self.shift).mean((0, 1)))

    def estimation_covariance(self) -> Float[np.ndarray, "n 2 n 2 modes"]:
        """Return the covariance of one repetition's fit around its network's own error.

        **Returns:** (n, 2, n, 2, modes), indexed as `second_moment`.

        **Example:**

        ```python
        >>> zero = np.zeros((5, 2, 3, 4))
        >>> estimate = jk.ScoreErrorEstimate(np.array([1.0, 0.5, 0.1]), zero, zero, zero[0, 0])
        >>> estimate.estimation_covariance().shape
        (3, 2, 3, 2, 4)
        ```
        """
        theta = self._stacked()
        centred = theta - theta.mean(1, keepdims=True)
        scale = self.num_networks * (self.num_repetitions - 1)
        return product_sum(centred, centred) / scale

    def second_moment(self) -> Float[np.ndarray, "n 2 n 2 modes"]:
        """Return E theta theta^T over networks, not centred, without bias from estimation.

        Unbiased, hence not always positive semidefinite; `score_error` makes it so.

        **Returns:** (n, 2, n, 2, modes); entry [a, p, b, q, i] is the product of parameter p
        (0 = Delta_ii, 1 = delta_i) of mode i at time a with q at time b.

        **Example:**

        ```python
        >>> zero = np.zeros((5, 2, 3, 4))
        >>> estimate = jk.ScoreErrorEstimate(np.array([1.0, 0.5, 0.1]), zero, zero, zero[0, 0])
        >>> estimate.second_moment().shape
        (3, 2, 3, 2, 4)
        ```
        """
        return cross_product_sum(self._stacked()) / self.num_networks

    def covariance(self) -> Float[np.ndarray, "n 2 n 2 modes"]:
        """Return the covariance between networks, without bias from estimation.

        **Returns:** (n, 2, n, 2, modes), indexed as `second_moment`.

        **Raises:** ValueError for a single network.

        **Example:**

        ```python
        >>> zero = np.zeros((5, 2, 3, 4))
        >>> estimate = jk.ScoreErrorEstimate(np.array([1.0, 0.5, 0.1]), zero, zero, zero[0, 0])
        >>> estimate.covariance().shape
        (3, 2, 3, 2, 4)
        ```
        """
        self._need_ensemble("covariance")
        theta = self._stacked()
        return cross_product_sum(theta - theta.mean(0)) / (self.num_networks - 1)

    def score_error(self, structure: str = "dense", size: int | None = None) -> ScoreError:
        """Make a model of the measured error: its mean, and the covariance between networks.

        For a single network the error is known and not random: its mean. Negative eigenvalues of
        the covariance are set to 0. With matrix slopes the covariance is that of the networks'
        mean fits, the variance of which it includes. For one correlation in time of all parameters
        fit `jk.score_error.fit_separable` to `covariance()`.

        **Arguments:**

        - `structure`: "dense", the covariance as it is; "banded", 0 between times more than `size`
          apart in the list of times; "low_rank", its `size` largest directions per mode. Only
          "dense" for matrix slopes.
        - `size`: bandwidth or rank; default: selected by cross-validation, see `select_size`.

        **Returns:** a `ScoreError`.

        **Raises:** ValueError for an unknown structure, or too few networks or repetitions for it.

        **Example:**

        ```python
        >>> zero = np.zeros((5, 2, 3, 4))
        >>> estimate = jk.ScoreErrorEstimate(np.array([1.0, 0.5, 0.1]), zero, zero, zero[0, 0])
        >>> model = estimate.score_error("banded", size=1)
        ```
        """
        structure = _checks.one_of("structure", structure, STRUCTURES)
        if self.num_networks == 1:
            slope = np.asarray(self.mean.slope)[None]
            shift = np.asarray(self.mean.shift)[None]
            return ScoreError.deterministic(Tabulated(self.times, slope, shift))
        if self.dense:
            if structure != "dense":
                raise ValueError(f"structure={structure!r} is for slopes per mode; use 'dense'.")
            slope = np.asarray(self.slope).mean(1)
            return ScoreError.from_samples(self.times, slope, np.asarray(self.shift).mean(1))
        covariance = self.covariance()
        if structure != "dense":
            size = self.select_size(structure) if size is None else _checks.count("size", size)
            covariance = impose_structure(covariance, structure, size)
        return ScoreError.from_covariance(self.times, covariance, self.mean, project=True)

    def select_size(self, structure: str) -> int:
        """Select a bandwidth or rank by cross-validation.

        The criterion is the squared distance, entry by entry, of the structured covariance of one
        part of the data from the unstructured covariance of the rest. The parts are networks, or
        repetitions if there are fewer than 4 networks.

        **Arguments:**

        - `structure`: "banded" or "low_rank".

        **Returns:** the size with the least criterion.

        **Raises:** ValueError for another structure, or with fewer than 4 networks and repetitions.

        **Example:**

        ```python
        >>> zero = np.zeros((5, 2, 3, 4))
        >>> estimate = jk.ScoreErrorEstimate(np.array([1.0, 0.5, 0.1]), zero, zero, zero[0, 0])
        >>> bandwidth = estimate.select_size("banded")
        ```
        """
        structure = _checks.one_of("structure", structure, STRUCTURES[1:])
        self._need_ensemble(f"a {structure} covariance")
        axis = 0 if self.num_networks >= 4 else 1
        if self.shift.shape[axis] < 4:
            raise ValueError(
                f"selecting the size of a {structure} covariance holds out networks or repetitions "
                f"and needs 4 of either; there are {self.num_networks} and {self.num_repetitions}. "
                "Pass size=..., or measure more."
            )
        n = len(self.times)
        sizes = range(1, 2 * n + 1) if structure == "low_rank" else range(n)
        return cross_validated_size(self._stacked(), axis, structure, sizes)

    def predict(self, kernel: ErrorKernel, *, level: float = 0.95) -> PredictedExcess:
        """Predict the expected excess error of these networks on a schedule.

            mean over networks m of F(theta_m) - F(about) - 1/2 tr(Hess F(theta_m) Cov_m)

        F is exact for a given error theta, of any size; theta_m is the mean of a network's
        repetitions, and Cov_m the covariance of that mean, which alone is treated to second order.

        The interval is for the mean over all networks like these. A few rare networks may make up
        most of it, and most ensembles have none of them; hence it assumes that errors are Gaussian
        over networks, with any mean and covariance (as `score_error` does), and takes the critical
        values of Student's ratio from networks drawn with those of this ensemble (a parametric
        bootstrap; 2048 exact errors), widened by the scatter of the fits. It is as wide as
        Student's interval for small errors, and several times that where rare networks dominate,
        then nearly all above the value. It covers less often than `level` where errors have heavier
        tails than Gaussian ones, or for fewer than ten networks with errors as large as that. For
        fewer than 4 networks it covers the error of these networks: a t interval of jackknife
        values over repetitions.

        **Arguments:**

        - `kernel`: of the schedule, `error_kernel(...)`, with matrix slopes if the estimate has
          them; the excess is over the error where it expands.
        - `level`: the confidence level, in (0, 1).

        **Returns:** a `PredictedExcess`, in the kernel's units. A warning says where its remainder
        is not small.

        **Raises:** ValueError for slopes of another form than the kernel's, or with fewer than 4
        networks and 3 repetitions.

        **Example:**

        ```python
        >>> setting = (jk.Gaussian(0.0, [1.0]), jk.VP(), "ddim", jk.Schedule([1.0, 0.1]))
        >>> zero = jk.ScoreErrorEstimate(np.ones(1), *np.zeros((2, 5, 2, 1, 1)), np.zeros((1, 1)))
        >>> zero.predict(jk.error_kernel(*setting)).value
        0.0
        ```
        """
        level = float(_checks.scalar("level", level, above=0.0, below=1.0))
        kernel = check_kernel(kernel)
        if kernel.dense and not self.dense:
            raise ValueError("kernel has matrix slopes; the estimate is per mode.")
        if self.dense and not kernel.dense:
            raise ValueError("the estimate has matrix slopes; make the kernel with dense=True.")
        shape = (self.num_networks, self.num_repetitions)
        slope = np.asarray(self.slope).reshape(-1, *self.slope.shape[2:])
        shift = np.asarray(self.shift).reshape(-1, *self.shift.shape[2:])
        return predict_excess(kernel, Tabulated(self.times, slope, shift), shape, level)

    def _stacked(self) -> Float[np.ndarray, "networks repetitions n 2 modes"]:
        """Slope and shift as one array of parameters."""
        if self.dense:
            raise ValueError("the covariance is per mode; this estimate has matrix slopes.")
        return np.stack([np.asarray(self.slope), np.asarray(self.shift)], 3)

    def _need_ensemble(self, what: str) -> None:
        """An error for a single network."""
        if self.num_networks == 1:
            raise ValueError(
                f"{what} needs several networks; a single one has a known error: use `mean`."
            )

    def __repr__(self) -> str:
        return (
            f"ScoreErrorEstimate({self.num_networks} networks, {self.num_repetitions} repetitions, "
            f"{len(self.times)} times, {self.shift.shape[-1]} modes)"
        )
