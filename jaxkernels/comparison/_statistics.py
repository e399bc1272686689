"""Statistics of the errors of samples, in NumPy or, with derivatives, in jax.numpy.

Four are used, as no single one is the truth: few bad samples decide the root mean square, typical
samples decide the median and the geometric mean, and sliced W2 forgives errors that leave the
distribution of the samples as it is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Array, Float, Int

from ..metrics import projected_w2_squared

# stands for 0 where a logarithm or a ratio is taken
TINY = 1e-300

_RESAMPLES = 200
_A = TypeVar("_A", np.ndarray, Array)


def rms(xp: Any, errors: Float[_A, "*schedules samples"]) -> Float[_A, "*schedules"]:
    """Root mean square over samples."""
    return xp.sqrt(xp.mean(errors**2, -1))


def median(xp: Any, errors: Float[_A, "*schedules samples"]) -> Float[_A, "*schedules"]:
    """Median over samples."""
    return xp.median(errors, -1)


def geometric_mean(xp: Any, errors: Float[_A, "*schedules samples"]) -> Float[_A, "*schedules"]:
    """exp(mean log error) over samples; an error of 0 counts as the smallest normal number."""
    tiny = xp.finfo(errors.dtype).tiny
    return xp.exp(xp.mean(xp.log(xp.where(errors < tiny, tiny, errors)), -1))


def sliced_w2(
    xp: Any,
    projections: Float[_A, "*schedules samples directions"],
    quantiles: Float[_A, "samples directions"],
) -> Float[_A, "*schedules"]:
    """Root of the mean over directions of W2^2 to the distribution with these quantiles."""
    return xp.sqrt(projected_w2_squared(xp, projections, quantiles))


_OF_ERRORS: dict[str, Callable[[Any, Any], Any]] = {
    "rms": rms,
    "median": median,
    "geometric_mean": geometric_mean,
}
STATISTICS = (*_OF_ERRORS, "sliced_w2")


def statistic(
    xp: Any,
    name: str,
    errors: Float[_A, "*schedules samples"],
    projections: Float[_A, "*schedules samples directions"],
    quantiles: Float[_A, "samples directions"] | None,
) -> Float[_A, "*schedules"]:
    """Evaluate one of the `STATISTICS`.

    **Arguments:**

    - `xp`: numpy, or jax.numpy for derivatives.
    - `name`: one of `STATISTICS`.
    - `errors`: distance of every sample to its reference, for all but "sliced_w2".
    - `projections`: components of the samples along unit directions, for "sliced_w2".
    - `quantiles`: of the distribution to compare with along these directions, as many as samples,
      in ascending order, for "sliced_w2"; None otherwise.

    **Returns:** one value per schedule, in the units of `errors` or `projections`.
    """
    if name == "sliced_w2":
        assert quantiles is not None
        return sliced_w2(xp, projections, quantiles)
    return _OF_ERRORS[name](xp, errors)


def resampled_statistic(
    name: str,
    errors: Float[np.ndarray, "schedules samples"],
    projections: Float[np.ndarray, "schedules samples directions"],
    reference: Float[np.ndarray, "samples directions"],
    quantiles: Float[np.ndarray, "samples directions"] | None,
) -> Float[np.ndarray, "resamples schedules"]:
    """Evaluate one of the `STATISTICS` on resamples with replacement, always the same ones.

    **Arguments:**

    - `name`, `errors`, `projections`: as of `statistic`.
    - `reference`: components of the reference's samples, which are resampled with the others.
    - `quantiles`: of data to measure "sliced_w2" to instead, or None.

    **Returns:** a row per resample, in the units of `errors` or `projections`.
    """
    rows = _bootstrap_rows(errors.shape[1])
    if name != "sliced_w2":
        return np.stack([_OF_ERRORS[name](np, errors[:, row]) for row in rows])
    counts = [np.bincount(row, minlength=len(row)) for row in rows]
    samples = _Columns.of(projections)
    if quantiles is None:
        target = _Columns.of(reference)
        pairs = ((samples.resampled(count), target.resampled(count)) for count in counts)
    else:
        pairs = ((samples.resampled(count), quantiles.T) for count in counts)
    return np.stack([np.sqrt(np.mean((a - b) ** 2, (-2, -1))) for a, b in pairs])


class _Columns(NamedTuple):
    """Columns in ascending order, and the rows that their entries come from.

    A resample of the rows is in order too once every entry is repeated as often as its row was
    drawn: nothing is sorted again.
    """

    values: Float[np.ndarray, "*batch directions samples"]
    rows: Int[np.ndarray, "*batch directions samples"]

    @classmethod
    def of(cls, columns: Float[np.ndarray, "*batch samples directions"]) -> "_Columns":
        columns = np.swapaxes(columns, -1, -2)
        rows = np.argsort(columns, -1)
        return cls(np.take_along_axis(columns, rows, -1), rows)

    def resampled(
        self, counts: Int[np.ndarray, " samples"]
    ) -> Float[np.ndarray, "*batch directions samples"]:
        """The columns with every row as often as it counts, in ascending order."""
        repeated = np.repeat(self.values.ravel(), counts[self.rows].ravel())
        return repeated.reshape(self.values.shape)


def _bootstrap_rows(count: int) -> Int[np.ndarray, "resamples count"]:
    """Indices of resamples of `count` samples with replacement, always the same ones."""
    return np.random.default_rng(0).integers(count, size=(_RESAMPLES, count))
