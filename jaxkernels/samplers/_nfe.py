"""The number of network evaluations of a run."""

import numpy as np

from .._nfe import EVALUATION
from ..processes import AbstractProcess
from ..schedules import Schedule
from ._base import AbstractSampler


def sampling_nfe(process: AbstractProcess, sampler: AbstractSampler, schedule: Schedule) -> int:
    """Count the NFE of one sample.

    `nfe_per_step` for every step, and one for a step whose other evaluations are left out, as in
    the last one of most samplers if that ends at sigma = 0. `evaluation_times` puts these at the
    first one.

    **Arguments:**

    - `process`: the forward process.
    - `sampler`: runs the schedule.
    - `schedule`: of K steps.

    **Returns:** the NFE.

    **Example:**

    ```python
    >>> to_zero = jk.schedules.karras(jk.EDM(), 3, 0.0)
    >>> jk.samplers.sampling_nfe(jk.EDM(), jk.Heun(), to_zero)
    5
    ```
    """
    # these leave nothing out, and differentiate at one time or evaluate at a random one
    if sampler.nfe_per_step == 1 or sampler.reverse_sde_only:
        return EVALUATION * sampler.nfe_per_step * schedule.num_steps
    times = sampler.evaluation_times(process, schedule.steps(sampler.history_steps))
    at = np.stack([np.asarray(t) for t in times])
    alone = np.all(at == at[0], 0)
    return EVALUATION * int(np.sum(np.where(alone, 1, sampler.nfe_per_step)))
