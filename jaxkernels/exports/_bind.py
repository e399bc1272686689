"""Schedules on the pipelines of diffusers that are at hand."""

from typing import Any

from ..processes import AbstractProcess
from ..schedules import Schedule
from ._dispatch import export
from ._export import Export


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
      "diffusers".

    **Returns:** the `Export` whose `binding` was run; its warnings say where the scheduler departs
    from the schedule.

    **Raises:** ValueError as in `export`, for an object without a scheduler, and for a schedule
    whose stochasticity no scheduler of diffusers can take.

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
    result = export(
        schedule, process, "diffusers", sampler=sampler, scheduler=scheduler, end=end, **options
    )
    if not result.binding:
        raise ValueError(
            "the stochasticity varies from step to step, which no scheduler of diffusers takes; "
            "run the loop that jk.export writes."
        )
    # the text is the library's own, with numbers in it
    exec(result.binding, {"pipe": pipe})
    return result
