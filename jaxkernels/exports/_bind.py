"""Schedules on the pipelines of diffusers that are at hand."""

from typing import Any

import numpy as np

from ..prediction import process_of_scheduler
from ..processes import EDM, AbstractProcess, DiscreteVP, FlowMatching
from ..samplers import DDIM, as_sampler, check_schedule, sampler_name
from ..schedules import Schedule
from ._diffusers import DIFFUSERS
from ._dispatch import export
from ._export import Export

# the scheduler of networks in EDM's preconditioning
_OF_EDM = "edm_euler"


def bind(
    pipe: Any,
    schedule: Schedule,
    process: AbstractProcess,
    *,
    sampler: object = None,
    scheduler: str | None = None,
    end: str | None = None,
    **options: object,
) -> Export:
    """Give a pipeline of diffusers a scheduler that runs this schedule.

    `pipe.scheduler` is replaced by one made from its configuration that keeps to the schedule
    whatever the pipeline asks for, so that it serves pipelines without an argument for it as well.
    Call the pipeline with num_inference_steps = K afterwards; any other number is an error. The
    schedule is not saved with the pipeline.

    **Arguments:**

    - `pipe`: the pipeline, or any object whose attribute `scheduler` is a scheduler of diffusers.
    - `schedule`, `process`, `sampler`, `scheduler`, `end`, `options`: as in `export` to
      "diffusers", with the `table` and the kind of the pipeline's own scheduler by default: levels
      of an `EDM` schedule are those of Stable Diffusion's table, which its network is told.

    **Returns:** the `Export` whose `binding` was run; its warnings say where the scheduler departs
    from the schedule.

    **Raises:** ValueError as in `export`, for an object without a scheduler or with one of another
    kind than `from_diffusers` takes, for a schedule whose stochasticity no scheduler of diffusers
    can take, for one of a flow on the pipeline of another network or the reverse, and for a
    scheduler of EDM on one of a table or the reverse.

    **Example:**

    ```python
    >>> pipe = diffusers.DDPMPipeline.from_pretrained("google/ddpm-cat-256")  # doctest: +SKIP
    >>> jk.exports.bind(pipe, schedule, process, scheduler="dpm_multistep")  # doctest: +SKIP
    >>> image = pipe(num_inference_steps=schedule.num_steps).images[0]  # doctest: +SKIP
    ```

    Source: https://huggingface.co/docs/diffusers/api/schedulers/overview.
    """
    if not hasattr(getattr(pipe, "scheduler", None), "config"):
        raise ValueError(
            f"pipe must have a scheduler of diffusers as its attribute scheduler; got "
            f"{type(pipe).__name__}."
        )
    given = as_sampler(DDIM() if sampler is None else sampler)
    check_schedule(process, given, schedule)
    name = None if sampler is None else sampler_name(given)
    run = (schedule, process, "diffusers")
    selected, options = _of_pipe(pipe.scheduler, schedule, process, name, scheduler, options)
    result = export(*run, sampler=sampler, scheduler=selected, end=end, **options)
    if not result.binding:
        raise ValueError(
            "the stochasticity varies from step to step, which no scheduler of diffusers takes; "
            "run the loop that jk.export writes."
        )
    # the text is the library's own, with numbers in it
    exec(result.binding, {"pipe": pipe})
    return result


def _of_pipe(
    own: Any,
    schedule: Schedule,
    process: AbstractProcess,
    sampler: str | None,
    scheduler: str | None,
    options: dict[str, object],
) -> tuple[str | None, dict[str, object]]:
    """The scheduler for the pipeline's network, and the options with the table of its timesteps.

    ValueError unless they are of one kind.
    """
    try:
        trained, _ = process_of_scheduler(own)
    except ValueError as error:
        raise ValueError(
            f"no scheduler can take the place of {type(own).__name__}, by which the pipeline tells "
            f"its network the levels: {error}"
        ) from None
    if isinstance(trained, FlowMatching) != isinstance(process, FlowMatching):
        raise ValueError(
            f"the schedule is for {type(process).__name__}, but the pipeline's scheduler, "
            f"{type(own).__name__}, is of {type(trained).__name__}: optimise for the process of "
            "jk.from_diffusers(pipe)."
        )
    selected = DIFFUSERS.select(schedule, trained, sampler, scheduler)
    if isinstance(trained, EDM) != (selected == _OF_EDM):
        fitting = DIFFUSERS.select(schedule, trained, sampler, None)
        raise ValueError(
            f"scheduler = {selected!r} tells its network other levels than that of the pipeline, "
            f"whose scheduler is {type(own).__name__}, was trained with; use {fitting!r}."
        )
    takes_table = "table" in DIFFUSERS.schedulers[selected].levels.options
    if isinstance(trained, DiscreteVP) and takes_table and not _same_table(trained, process):
        options = {"table": trained, **options}
    return selected, options


def _same_table(trained: DiscreteVP, process: AbstractProcess) -> bool:
    """Whether a process is of a pipeline's table, which is kept in float32 there."""
    if not isinstance(process, DiscreteVP):
        return False
    one = np.asarray(trained.log_sigmas)
    other = np.asarray(process.log_sigmas)
    return one.shape == other.shape and np.allclose(one, other, rtol=0.0, atol=1e-3)
