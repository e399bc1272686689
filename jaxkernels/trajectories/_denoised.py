"""Denoised points of a network along its trajectories, and along coarse runs beside them.

They need no sensitivities and no small errors: a model of the data that they correct, see
`_corrected.py`, leads a sample to another cluster where a step of the network does.
"""

from collections.abc import Sequence
from typing import ClassVar, cast

import equinox as eqx
import jax
import numpy as np
from jaxtyping import ArrayLike, Float

from .. import _checks
from .._nfe import EVALUATION
from .._progress import Progress
from .._types import AnyArray, constant
from ..distributions import GaussianMixture
from ..prediction import AbstractDenoiser, check_denoiser, in_working_precision
from ..processes import AbstractProcess
from ..samplers import check_noise
from ..schedules import Schedule, TimeCoordinate
from ._corrected import COARSE_RUNS, CorrectedDenoiser, coarse_nodes, corrected_denoiser
from ._fit import RecordedPoints, fit_mixture
from ._forward import SOLVER, follow_forward
from ._record import AbstractRecord, check_span
from ._recording import check_finite, place_nodes, row_batches, rows_run


class DenoisedRecord(AbstractRecord):
    """Denoised points of a network along its trajectories.

    Made by `record_denoised`.

    **Arguments:**

    - `time_coordinate`: in which the nodes are evenly spaced, from t_max to `t_min`.
    - `t_min`: last time of the trajectories.
    - `last_node`: time of the last node, above t_min if sigma(t_min) = 0.
    - `noise`: (trajectories, ...), where they start.
    - `points`: (nodes, trajectories, d), where the network was evaluated.
    - `denoised`: (nodes, trajectories, d), its denoised points there.
    - `coarse_points`, `coarse_denoised`: (coarse, trajectories, runs, d), the same of the coarse
      runs, at some of the nodes.
    - `ends`: (trajectories, d), where they end.
    - `nfe`: that the record cost, rows that fill up its last batch included.

    **Example:**

    ```python
    >>> exact = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
    >>> jk.record_denoised(exact, np.eye(2), t_min=1e-3, nodes=16)
    DenoisedRecord(2 trajectories, 16 nodes)
    ```
    """

    file_format: ClassVar[str] = "jaxkernels.denoised_record"
    own_arrays: ClassVar[tuple[str, ...]] = (
        "points",
        "denoised",
        "coarse_points",
        "coarse_denoised",
    )

    time_coordinate: TimeCoordinate
    t_min: AnyArray
    last_node: AnyArray
    noise: Float[AnyArray, "trajectories *shape"]
    points: Float[AnyArray, "nodes trajectories d"]
    denoised: Float[AnyArray, "nodes trajectories d"]
    coarse_points: Float[AnyArray, "coarse trajectories runs d"]
    coarse_denoised: Float[AnyArray, "coarse trajectories runs d"]
    ends: Float[AnyArray, "trajectories d"]
    nfe: int = eqx.field(static=True)

    @property
    def num_nodes(self) -> int:
        """Number of nodes N in time."""
        return self.denoised.shape[0]

    def denoiser(self, model: AbstractDenoiser) -> "CorrectedDenoiser":
        """Correct the denoiser of a model by what the network returned along all runs.

            D_n(x, t) = D(x, t) + r_n(t) + sum_r  c_r(x) s_nr(t) / |d_nr|
            (U^T U + rho) c = U^T (x - x_n),      the columns of U are d_nr / |d_nr|,  rho = 0.003

            r_n = D_net(x_n, t) - D(x_n, t),       s_nr = D_net(y_nr, t) - D(y_nr, t) - r_n
            D = (1 - w) D_model + w D_Gaussian,    d_nr = y_nr - x_n

        agrees with the network on the trajectory x_n and, up to rho, on the coarse runs y_nr, at
        their nodes, with a cubic spline in log sigma between those of x_n and r_n, linearly between
        those of the others. The share w(t) in [0, 1] of the Gaussian of the end points makes the
        s_nr smallest.

        **Arguments:**

        - `model`: of vectors (n, d), such as `mixture.denoiser(process)`.

        **Returns:** a `CorrectedDenoiser` of as many rows as there are trajectories.

        **Raises:** ValueError for a model that is no denoiser.

        **Example:**

        ```python
        >>> exact = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
        >>> found = jk.record_denoised(exact, np.eye(2), t_min=1e-3, nodes=16)
        >>> found.denoiser(jk.Gaussian(0.0, [1.0, 1.0]).denoiser(jk.VP()))(jnp.eye(2), 0.5).x0.shape
        (2, 2)
        ```
        """
        check_denoiser(model)
        runs = ((self.points, self.denoised), (self.coarse_points, self.coarse_denoised))
        return corrected_denoiser(
            model, self.time_coordinate, self.node_times, *runs, np.asarray(self.ends)
        )

    def fit_mixture(self, known: GaussianMixture | None = None) -> GaussianMixture:
        """Fit a mixture whose denoiser is that of the network along its trajectories.

        Its weights, means and variances along given axes take gradient steps (Adam, minibatches) on
        the mean over the nodes t_j of

            sum_i  c_i / (c_i + sigma_j^2)  var_n (D_net(x_n(t_j), t_j) - D(x_n(t_j), t_j))_i

        with the variance c_i of the recorded end points along axis i. The factor is the square of
        that by which a normal distribution of this variance lets a shift at level sigma_j reach the
        end. What does not depend on the trajectory n is left out: `denoiser` corrects it exactly.
        One trajectory in four is held out, and what has the lowest loss on these is returned:
        gradient steps from a mixture of the other end points or from the known one, whichever
        begins lower there, or where they began, if no step helps. Fewer than eight trajectories
        move nothing.

        **Arguments:**

        - `known`: a mixture of vectors (d) that may be near, such as one of the data.

        **Returns:** a `GaussianMixture` of vectors (d).

        **Raises:** ValueError if `known` is no mixture of as many dimensions; ImportError without
        scikit-learn, which is in the extra `cli`.

        **Example:**

        ```python
        >>> noise = np.random.default_rng(0).normal(size=(16, 2))
        >>> exact = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
        >>> jk.record_denoised(exact, noise, t_min=1e-3, nodes=16).fit_mixture().means.shape
        (1, 2)
        ```
        """
        dim = self.ends.shape[1]
        if known is not None and (
            not isinstance(known, GaussianMixture) or known.means.shape[1] != dim
        ):
            raise ValueError(f"known must be a GaussianMixture of {dim} dimensions; got {known}.")
        arrays = (self.node_times, *map(np.asarray, (self.points, self.denoised, self.ends)))
        return fit_mixture(RecordedPoints(self.process, *arrays), known)

    def sizes(self) -> dict[str, int]:
        return {"nodes": self.num_nodes, "dimensions": self.ends.shape[1]}

    def joined_arrays(self, records: Sequence["DenoisedRecord"]) -> dict[str, np.ndarray]:
        return {
            name: np.concatenate([np.asarray(getattr(r, name)) for r in records], axis=1)
            for name in self.own_arrays
        }

    def __repr__(self) -> str:
        return f"DenoisedRecord({self.num_trajectories} trajectories, {self.num_nodes} nodes)"


def record_denoised(
    denoiser: AbstractDenoiser,
    noise: Float[AnyArray, "trajectories *shape"],
    *,
    t_min: ArrayLike | None = None,
    nodes: int = 32,
    batch: int = 64,
    progress: bool = True,
) -> DenoisedRecord:
    """Record the denoised points of a network along trajectories, by forward passes alone.

    A step of `UniPC` of order 3 leads from one node to the next, with one evaluation, which is that
    of the node. Coarse runs by DPM-Solver++(2M) and DDIM, on ten of the nodes, go off the
    trajectory as samplers do.

    **Arguments:**

    - `denoiser`: the network; it need not be differentiable.
    - `noise`: initial noise (trajectories >= 2, ...), as for `sample`.
    - `t_min`: last time of the trajectories, as for `record`.
    - `nodes`: points in time, >= 8, evenly spaced in log sigma: at least twice as many as steps of
      the schedules that are to be judged.
    - `batch`: trajectories at a time, at most. Batches have the same size; the last is filled up by
      repeating rows.
    - `progress`: show a status line on a terminal.

    NFE per trajectory: `nodes`, and those of both coarse runs, ten each, or `nodes` if these are
    fewer.

    **Returns:** a `DenoisedRecord`.

    **Raises:** ValueError naming the argument, or if a trajectory becomes non-finite.

    **Example:**

    ```python
    >>> denoiser = jk.Gaussian([0.0, 1.0], [1.0, 0.1]).denoiser(jk.VP())
    >>> jk.record_denoised(denoiser, np.eye(2), t_min=1e-3, nodes=16)
    DenoisedRecord(2 trajectories, 16 nodes)
    ```
    """
    coordinate, times, end_time = place_nodes(denoiser, t_min, nodes)
    denoiser, x = in_working_precision(denoiser, check_noise(noise, at_least=2))
    batch = _checks.count("batch", batch)
    coarse = Schedule(constant(times[coarse_nodes(len(times))]))
    runs = [(SOLVER, Schedule(constant(times))), *((solver, coarse) for solver in COARSE_RUNS)]
    count = x.shape[0]
    nfe = denoiser.nfe * denoised_nfe(rows_run(count, batch), len(times))
    rows_of_noise = np.asarray(x)
    parts = []
    with Progress(f"recording, NFE {nfe:,}: compiling", progress) as line:
        for rows, used in row_batches(count, batch):
            starts = jax.device_put(rows_of_noise[rows])
            last = int(rows[0]) + used - 1
            arrays = []
            for solver, schedule in runs:
                found = follow_forward(solver, denoiser.take(rows), schedule, starts)
                arrays += [np.asarray(array)[:, :used] for array in found]
            check_finite(f"trajectories {rows[0]} to {last}", *arrays)
            parts.append(arrays)
            line.update(f"recording, NFE {nfe:,}: trajectory {last + 1} of {count}")
    recorded = [np.concatenate(arrays, 1) for arrays in zip(*parts, strict=True)]
    points, denoised, *beside = recorded
    return DenoisedRecord(
        time_coordinate=coordinate,
        t_min=constant(end_time),
        last_node=constant(times[-1]),
        noise=cast(AnyArray, rows_of_noise),
        points=constant(points),
        denoised=constant(denoised),
        coarse_points=constant(np.stack(beside[::2], 2)),
        coarse_denoised=constant(np.stack(beside[1::2], 2)),
        ends=constant((denoised if times[-1] > end_time else points)[-1].astype(np.float64)),
        nfe=nfe,
    )


def check_denoised_record(
    record: object, process: AbstractProcess, t_min: object = None
) -> DenoisedRecord:
    """Check that a record of denoised points is of a process.

    **Arguments:**

    - `record`: a `DenoisedRecord`.
    - `process`: that the schedules are for.
    - `t_min`: last time of the schedules; None if it is not known yet.

    **Returns:** the record.

    **Raises:** ValueError for no record, or one of another process or t_min.
    """
    if not isinstance(record, DenoisedRecord):
        raise ValueError(
            f"record must be a DenoisedRecord, of jk.record_denoised; got {type(record).__name__}."
        )
    check_span(record.process, float(np.asarray(record.t_min)), process, t_min)
    return record


def denoised_nfe(trajectories: int, nodes: int) -> int:
    """Count the NFE of `record_denoised`: one for every node of each run of every trajectory."""
    return trajectories * (nodes + len(COARSE_RUNS) * len(coarse_nodes(nodes))) * EVALUATION
