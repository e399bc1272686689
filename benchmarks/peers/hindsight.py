"""How far any search could get: gradient steps on the noise that the table itself is made of.

No search: it needs the answer. From the best schedule that is known for a setting, the selection
criterion (a smooth maximum of the ratios of all three statistics to the best baseline's) is
minimised through the network, on the very noise from which all schedules are compared.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import jaxkernels as jk
from jaxkernels._precision import fresh
from jaxkernels._progress import Progress
from jaxkernels._types import constant
from jaxkernels.comparison import BALANCED, compare_to, solve_reference
from jaxkernels.optimize._fine_tune import default_fine_tuning, fine_tune, fine_tuning_nfe
from jaxkernels.optimize._space import ScheduleSpace

from .found import Found

STEPS = 48
REFERENCE_STEPS = 200


def search(
    denoiser: jk.AbstractDenoiser,
    sampler: str,
    num_steps: int,
    schedules: Mapping[str, jk.Schedule],
    noise: Array,
) -> Found:
    """What gradient steps from the best of `schedules`, the baselines among them, lead to."""
    method = jk.samplers.as_sampler(sampler)
    times = np.asarray(next(iter(schedules.values())).times, np.float64)
    # one half gives gradients, the other decides: here they are the same
    twice = jnp.concatenate([noise, noise])
    reference = solve_reference(denoiser, twice, REFERENCE_STEPS, (times[0], times[-1]))
    with Progress("in hindsight", False) as line:
        compared = compare_to(reference, method, schedules, key=None, line=line, planned=0)
    start = schedules[compared.best(list(jk.schedules.BASELINES), BALANCED)]
    floor = compared.take(list(jk.schedules.BASELINES))
    process = fresh(denoiser.process)
    space = ScheduleSpace(
        coordinate=jk.schedules.TimeCoordinate(
            process, constant(times[0]), constant(0.0), constant(np.inf)
        ),
        num_steps=num_steps,
        stochasticity_squared=constant(np.zeros(num_steps)),
        t_min=constant(times[-1]),
        end_range=constant(np.zeros(2)),
        least_share=constant(0.0),
    )
    solver = default_fine_tuning(STEPS)
    run = (reference, method, space, start, floor, BALANCED, solver)
    nfe = fine_tuning_nfe(len(twice), num_steps, STEPS)
    return Found(fine_tune(*run), nfe)
