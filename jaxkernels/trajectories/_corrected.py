"""A model of the data, corrected to be a network along recorded runs.

From the same initial noise three runs of the network are known: a trajectory x_n(t), and the points
y_nr(t) of two coarse runs r beside it, with the denoised points at all of them. A model of the
data, such as a mixture, has another denoiser D. With the residual and the secants

    r_n(t) = D_net(x_n, t) - D(x_n, t)
    s_nr(t) = D_net(y_nr, t) - D(y_nr, t) - r_n(t)

and the deviations d_nr = y_nr - x_n, of directions u_nr = d_nr / |d_nr|, the denoiser

    D_n(x, t) = D(x, t) + r_n(t) + sum_r  c_r(x) s_nr(t) / |d_nr|
    (U^T U + rho) c = U^T (x - x_n),      U = (u_n1, u_n2)

agrees with the network on the trajectory, and up to rho on the coarse runs. Across, it has the
model's derivatives: of all changes that do this, the secants' is the least (Broyden, "A Class of
Methods for Solving Nonlinear Simultaneous Equations", 1965). Samplers err mostly along these
directions, those in which trajectories bend, so that coarse runs tell what the network does with
the errors of all schedules. They are of DPM-Solver++(2M) and of DDIM, which err differently; where
they err along one line, rho makes their slopes average.

Trained networks are smoother than the distributions of their data. So the model is D = (1 - w)
D_model + w D_Gaussian, with the Gaussian of the end points, whose derivatives do not depend on x,
and the w(t) in [0, 1] for which the secants are smallest.
"""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int

from .._compile import quick_filter_jit
from .._numerics import clipped, larger, safe_divide, safe_sqrt
from .._precision import to_dtype, working_dtype
from .._types import AnyArray, Rows, constant
from ..distributions import Gaussian
from ..prediction import AbstractDenoiser, Prediction
from ..processes import AbstractProcess
from ..samplers import DDIM, DPMSolverPP2M
from ..schedules import Schedule, TimeCoordinate
from ._forward import SOLVER, follow_forward
from ._record import node_times
from ._spline import BLOCK, spline_fit, spline_weights

# nodes of a coarse run, and the runs
_COARSE = 10
COARSE_RUNS = (DPMSolverPP2M(), DDIM())
# of the directions' products, which are 1 at most
_RHO = 0.003


def coarse_nodes(nodes: int) -> Int[np.ndarray, " coarse"]:
    """Which of the nodes of a record are those of its coarse runs."""
    return np.round(np.linspace(0, nodes - 1, min(_COARSE, nodes))).astype(int)


class CorrectedDenoiser(AbstractDenoiser):
    """The denoiser of a model with recorded corrections, one for each row.

    Made by `DenoisedRecord.denoiser`.

    **Arguments:**

    - `process`: the forward process.
    - `model`: the denoiser of the model, of vectors (n, d).
    - `gaussian`: that of the recorded end points' Gaussian.
    - `time_coordinate`, `last_node`: of the record. Below the last node corrections are as there.
    - `shares`: (coarse,) the share w of the Gaussian at the nodes of the coarse runs.
    - `residuals`: (splines, n, d), spline coefficients of the residual r of every row.
    - `path`: (splines, n, d), those of its trajectory.
    - `deviations`: (coarse, n, runs, d), of the coarse runs from the trajectory.
    - `secants`: (coarse, n, runs, d).

    **Example:**

    ```python
    >>> exact = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
    >>> found = jk.record_denoised(exact, np.eye(2), t_min=1e-3, nodes=16).denoiser(exact)
    >>> found.take(slice(1)).residuals.shape
    (18, 1, 2)
    ```
    """

    process: AbstractProcess
    model: AbstractDenoiser
    gaussian: AbstractDenoiser
    time_coordinate: TimeCoordinate
    last_node: AnyArray
    shares: Float[AnyArray, " coarse"]
    residuals: Float[AnyArray, "splines n d"]
    path: Float[AnyArray, "splines n d"]
    deviations: Float[AnyArray, "coarse n runs d"]
    secants: Float[AnyArray, "coarse n runs d"]

    def __call__(self, x: Float[Array, "n *shape"], t: Float[ArrayLike, ""]) -> Prediction:
        rows = x.reshape(len(x), -1)
        place = self._place(t)
        share = self._between(self.shares, place).astype(rows.dtype)
        model = self.model(rows, t)
        gaussian = self.gaussian(rows, t)
        correction = self._smooth(self.residuals, place) + self._secant(rows, place)
        # a step to sigma = 0 may call it there, and leaves eps out
        ratio = safe_divide(self.process.signal(t), self.process.noise(t))
        x0 = (1.0 - share) * model.x0 + share * gaussian.x0 + correction
        eps = (1.0 - share) * model.eps + share * gaussian.eps - ratio * correction
        return Prediction(x0.reshape(x.shape), eps.reshape(x.shape))

    def take(self, rows: Rows) -> "CorrectedDenoiser":
        """Take some of the rows.

        **Arguments:**

        - `rows`: a slice or indices.

        **Returns:** the denoiser of these rows.
        """
        rows = rows if isinstance(rows, slice | Array) else np.asarray(rows)
        by_row = ("residuals", "path", "deviations", "secants")
        taken = {name: getattr(self, name)[:, rows] for name in by_row}
        return dataclasses.replace(self, **taken)

    def exchanged(
        self, noise: Float[Array, "m *shape"], rows: Rows, t_min: float
    ) -> tuple["CorrectedDenoiser", Float[np.ndarray, "m d"]]:
        """Start elsewhere with the corrections of other rows.

        What a model gets wrong is then a draw that does not depend on where a trajectory starts.
        The secants are along the trajectory that it takes from there.

        **Arguments:**

        - `noise`: (m, ...), where the trajectories start.
        - `rows`: (m,) indices of the rows whose corrections they have.
        - `t_min`: where they end.

        **Returns:** their denoiser, and (m, d) where they end.

        **Example:**

        ```python
        >>> exact = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
        >>> found = jk.record_denoised(exact, np.eye(2), t_min=1e-3, nodes=16).denoiser(exact)
        >>> other, ends = found.exchanged(jnp.eye(2), np.array([1, 0]), 1e-3)
        ```
        """
        taken = self.take(rows)
        times = node_times(self.time_coordinate, self._nodes, float(np.asarray(self.last_node)))
        plain = dataclasses.replace(taken, secants=0.0 * taken.secants)
        found = follow_forward(SOLVER, plain, Schedule(constant(times)), noise)
        points, denoised = (np.asarray(array, np.float64) for array in found)
        path = np.tensordot(spline_fit(self._nodes), points, 1).astype(self.path.dtype)
        ends = (denoised if times[-1] > t_min else points)[-1]
        return dataclasses.replace(taken, path=constant(path)), np.array(ends)

    def astype(self, dtype: DTypeLike) -> "CorrectedDenoiser":
        dtype = working_dtype(dtype)
        models = [self.model.astype(dtype), self.gaussian.astype(dtype)]
        return eqx.tree_at(lambda d: [d.model, d.gaussian], to_dtype(self, dtype), models)

    @property
    def _nodes(self) -> int:
        return self.residuals.shape[0] - 2

    def _place(self, t: ArrayLike) -> Float[Array, ""]:
        """Where a time lies among the nodes, in [0, nodes - 1]."""
        coordinate = self.time_coordinate
        top = coordinate.coordinate(coordinate.start)
        bottom = coordinate.coordinate(self.last_node)
        t = larger(jnp.asarray(t), self.last_node)
        return (top - coordinate.coordinate(t)) / (top - bottom) * (self._nodes - 1)

    def _smooth(
        self, splines: Float[AnyArray, "splines n d"], place: Float[Array, ""]
    ) -> Float[Array, "n d"]:
        """A spline at a place among the nodes."""
        first, weights = spline_weights(place, self._nodes)
        size = (BLOCK, *splines.shape[1:])
        block = jax.lax.dynamic_slice(jnp.asarray(splines), (first, 0, 0), size)
        return jnp.tensordot(weights.astype(block.dtype), block, 1)

    def _between(
        self,
        values: Float[AnyArray, "coarse *s"],
        place: Float[Array, ""],
        of: Callable[[Array], Array] = lambda value: value,
    ) -> Array:
        """Linear interpolation of a function of values between the nodes of the coarse runs."""
        values = jnp.asarray(values)
        nodes = jnp.asarray(coarse_nodes(self._nodes), place.dtype)
        below = jnp.searchsorted(nodes, jax.lax.stop_gradient(place), side="right") - 1
        first = clipped(below, 0, len(nodes) - 2)
        part = (place - nodes[first]) / (nodes[first + 1] - nodes[first])
        part = part.astype(values.dtype)
        return (1.0 - part) * of(values[first]) + part * of(values[first + 1])

    def _secant(self, rows: Float[Array, "n d"], place: Float[Array, ""]) -> Float[Array, "n d"]:
        """The change along the deviations of the coarse runs.

        |d|^2 is interpolated itself: an interpolated deviation may vanish between two nodes. The
        diagonal of U^T U is 1 there, too.
        """

        def squared(deviations: Array) -> Array:
            return jnp.sum(deviations**2, -1, keepdims=True)

        lengths = safe_sqrt(self._between(self.deviations, place, squared))
        directions = safe_divide(self._between(self.deviations, place), lengths)
        slopes = safe_divide(self._between(self.secants, place), lengths)
        off = rows - self._smooth(self.path, place)
        along = jnp.einsum("nd,nrd->nr", off, directions)
        product = jnp.einsum("nd,nd->n", directions[:, 0], directions[:, 1])
        # the inverse of a matrix of two rows
        own = (1.0 + _RHO) * along - product[:, None] * along[:, ::-1]
        weights = own / ((1.0 + _RHO) ** 2 - product**2)[:, None]
        return jnp.einsum("nr,nrd->nd", weights, slopes)


def corrected_denoiser(
    model: AbstractDenoiser,
    coordinate: TimeCoordinate,
    times: Float[np.ndarray, " nodes"],
    along: tuple[AnyArray, AnyArray],
    beside: tuple[AnyArray, AnyArray],
    ends: Float[np.ndarray, "n d"],
) -> CorrectedDenoiser:
    """Correct a model by the runs of a network.

    **Arguments:** `model`, its denoiser; `coordinate`, in which the nodes are evenly spaced;
    `times` of the nodes; `along`, points (nodes, n, d) of the trajectories and the network's
    denoised points there; `beside`, those of the coarse runs, (coarse, n, runs, d); `ends` of the
    trajectories.

    **Returns:** the denoiser.
    """
    nodes = len(times)
    coarse = coarse_nodes(nodes)
    gaussian = Gaussian.fit(np.asarray(ends, np.float64)).denoiser(coordinate.process)
    points, denoised = along
    every = np.asarray(points, np.float64), np.asarray(denoised, np.float64)
    x, known = (array[coarse][:, :, None] for array in every)
    deviations = np.asarray(beside[0], np.float64) - x
    change = np.asarray(beside[1], np.float64) - known
    on_nodes = [_denoised_points(one, times, points) for one in (model, gaussian)]
    changes = [
        _beside(one, times[coarse], beside[0]) - found[coarse][:, :, None]
        for one, found in zip((model, gaussian), on_nodes, strict=True)
    ]
    shares = _shares(change, changes, deviations)
    mixed = shares[:, None, None, None]
    secants = change - (1.0 - mixed) * changes[0] - mixed * changes[1]
    at_nodes = np.interp(np.arange(nodes), coarse, shares)[:, None, None]
    residuals = every[1] - (1.0 - at_nodes) * on_nodes[0] - at_nodes * on_nodes[1]
    # all runs start at the same point
    deviations[0] = deviations[1]
    secants[0] = secants[1]
    fit = spline_fit(nodes)
    arrays = (
        shares,
        np.tensordot(fit, residuals, 1),
        np.tensordot(fit, every[0], 1),
        deviations,
        secants,
    )
    dtype = np.asarray(denoised).dtype
    kept = [constant(array.astype(dtype)) for array in arrays]
    return CorrectedDenoiser(
        coordinate.process, model, gaussian, coordinate, constant(times[-1]), *kept
    )


def _shares(
    change: Float[np.ndarray, "coarse n runs d"],
    changes: list[Float[np.ndarray, "coarse n runs d"]],
    deviations: Float[np.ndarray, "coarse n runs d"],
) -> Float[np.ndarray, " coarse"]:
    """The Gaussian's share, in [0, 1], for which the secants are smallest.

        sum_nr  |s_nr|^2 / |d_nr|^2

    gives every trajectory the same weight, however far its coarse runs go off.
    """
    missing = change - changes[0]
    gained = changes[1] - changes[0]
    squared = np.sum(deviations**2, -1, keepdims=True)
    weights = np.divide(1.0, squared, out=np.zeros_like(squared), where=squared > 0)
    above = np.sum(weights * missing * gained, (1, 2, 3))
    below = np.sum(weights * gained**2, (1, 2, 3))
    shares = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    shares[0] = shares[1]
    return np.clip(shares, 0.0, 1.0)


def _denoised_points(
    model: AbstractDenoiser, times: Float[np.ndarray, " nodes"], points: AnyArray
) -> Float[np.ndarray, "nodes n d"]:
    """A model's denoised points at all nodes."""
    return np.asarray(_evaluate(model, constant(times), points), np.float64)


def _beside(
    model: AbstractDenoiser,
    times: Float[np.ndarray, " coarse"],
    points: Float[AnyArray, "coarse n runs d"],
) -> Float[np.ndarray, "coarse n runs d"]:
    """The same on all coarse runs."""
    runs = np.moveaxis(np.asarray(points), 2, 0)
    return np.stack([_denoised_points(model, times, constant(run)) for run in runs], 2)


@quick_filter_jit
def _evaluate(
    model: AbstractDenoiser,
    times: Float[Array, " nodes"],
    points: Float[Array, "nodes n d"],
) -> Float[Array, "nodes n d"]:
    points = jnp.asarray(points)
    model = model.astype(points.dtype)
    times = jnp.asarray(times, points.dtype)
    return jax.lax.map(lambda node: model(node[0], node[1]).x0, (points, times))
