"""How a pipeline of diffusers calls its network, found by watching two steps of it.

Pipelines differ in what they tell the network, in how they encode prompts, and in how they combine
its outputs. All of them call the network and pass what they make of its outputs to
`scheduler.step`, so that both can be read off there:

    guided = sum_j w_j output_j,     sum_j w_j = +-1,     told = scale timestep + offset

with one output per condition j: the prompt, the negative prompt, nothing.
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ._conditioning import rows_of
from ._output import take_output
from ._torch import Tensor, import_torch

_TIME = "timestep"
_HINT = "pass it in a function of (x, timestep) that returns the prediction alone"

# of the call that is watched
_STEPS = 4

# of what rounding leaves in the outputs of networks in half precision, and in float32
_TOLERANCE = 0.02
_TOLERANCE_FLOAT32 = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Condition:
    """Hold one kind of call of a network: its arguments beside x and the timestep.

    **Arguments:**

    - `weight`: w_j above.
    - `arguments`: by name, tensors with one row per prompt.
    """

    weight: float
    arguments: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """Hold how a network is called.

    **Arguments:**

    - `network`: a function (x, timestep, **arguments).
    - `conditions`: of which the outputs are combined.
    - `count`: the number of prompts.
    - `shape`: of a row of x; None if it is not known.
    - `device`, `dtype`: of x.
    - `time_shape`: the shape of a row of the timestep.
    - `scale`, `offset`: told = scale timestep + offset.
    """

    network: Callable[..., Any]
    conditions: tuple[Condition, ...]
    count: int
    shape: tuple[int, ...] | None
    device: Any
    dtype: Any
    time_shape: tuple[int, ...] = ()
    scale: float = 1.0
    offset: float = 0.0

    def __call__(self, x: Tensor, timestep: Tensor, conditions: np.ndarray) -> Tensor:
        """The combined outputs for x (rows, ...), timestep (rows,) and numbers of prompts."""
        told = timestep
        if (self.scale, self.offset) != (1.0, 0.0):
            told = self.scale * timestep + self.offset
        told = told.reshape(-1, *(1 for _ in self.time_shape)).expand(-1, *self.time_shape)
        rows = conditions.tolist()
        total = None
        for condition in self.conditions:
            arguments = rows_of(condition.arguments, self.count, rows)
            value = self.network(x, told, **arguments)
            part = condition.weight * take_output(value, x.shape, "the network", _HINT)
            total = part if total is None else total + part
        return total


@dataclasses.dataclass(eq=False)
class _Step:
    """One call of `scheduler.step`, and the calls of the network before it."""

    output: Tensor
    timestep: float
    sample: Tensor
    calls: list[dict[str, Any]]
    values: list[Any]


class _Enough(Exception):
    """Two steps have been seen."""


def observe(pipe: Any, network: Any, call: Mapping[str, Any]) -> Call:
    """Find out how a pipeline calls its network when it is called with these arguments.

    **Raises:** ValueError for a pipeline that combines the outputs of its network in another way
    than the sum above, or tells it something else than the timestep.
    """
    first, second = _watch(pipe, network, call)
    x = next(iter(inspect.signature(network.forward).parameters))
    shape = tuple(first.sample.shape[1:])
    seen = tuple(first.calls[0][x].shape[1:])
    if seen != shape:
        raise ValueError(
            f"pipe: the network takes points of shape {seen}, where the scheduler steps in {shape}:"
            " what the pipeline adds to them is not supported."
        )
    count = _count_samples(first)
    arguments = _conditions(first, x, count)
    weights = _weights((first, second), x, count, pipe, call)
    scale, offset = _time_scale(first, second, pipe.scheduler)
    return Call(
        network=by_name(network),
        conditions=tuple(Condition(*both) for both in zip(weights, arguments, strict=True)),
        count=count,
        shape=shape,
        device=first.calls[0][x].device,
        dtype=first.calls[0][x].dtype,
        time_shape=np.shape(first.calls[0][_TIME])[1:],
        scale=scale,
        offset=offset,
    )


def by_name(network: Any) -> Callable[..., Any]:
    """A module as a function (x, timestep, **arguments), wherever its arguments stand."""
    parameters = list(inspect.signature(network.forward).parameters)
    if _TIME not in parameters:
        raise ValueError(
            f"{type(network).__name__} has no argument {_TIME!r} but {', '.join(parameters)}; "
            "pass a function (x, timestep, ...) and the scheduler."
        )
    x = parameters[0]
    return lambda value, timestep, **others: network(**{x: value, _TIME: timestep}, **others)


def _watch(pipe: Any, network: Any, call: Mapping[str, Any]) -> tuple[_Step, _Step]:
    """The first two steps of the pipeline."""
    steps: list[_Step] = []
    known = inspect.signature(pipe.__call__).parameters
    # random numbers other than the user's
    generator = import_torch("from_diffusers").Generator().manual_seed(0)
    defaults = {"num_inference_steps": _STEPS, "generator": generator}
    filled = {name: value for name, value in defaults.items() if name in known} | dict(call)
    asked = filled.get("num_inference_steps")
    if isinstance(asked, int) and 0 < asked < _STEPS:
        # what the network is told does not depend on it, and two steps are watched
        filled["num_inference_steps"] = _STEPS
    with _watched(pipe, network, steps), contextlib.suppress(_Enough):
        pipe(**filled)
    if len(steps) < 2 or not steps[0].calls:
        raise ValueError(
            f"pipe: {type(pipe).__name__} did not take two steps of its scheduler with "
            f"{type(network).__name__}, so that how it calls it is unknown; pass the network and "
            "the scheduler instead."
        )
    return steps[0], steps[1]


@contextlib.contextmanager
def _watched(pipe: Any, network: Any, steps: list[_Step]) -> Iterator[None]:
    """Append the steps of the pipeline to `steps`, until there are two."""
    calls: list[dict[str, Any]] = []
    values: list[Any] = []
    signature = inspect.signature(network.forward)
    own = pipe.scheduler.step
    step_signature = inspect.signature(own)

    def after(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> None:
        del module
        bound = signature.bind(*args, **kwargs)
        names = list(signature.parameters)
        calls.append(dict(zip(names, bound.args)) | bound.kwargs)
        values.append(value)

    @functools.wraps(own)
    def step(*args: Any, **kwargs: Any) -> Any:
        given = step_signature.bind(*args, **kwargs).arguments
        steps.append(
            _Step(
                given["model_output"].clone(),
                float(given["timestep"]),
                given["sample"].clone(),
                calls[:],
                values[:],
            )
        )
        calls.clear()
        values.clear()
        if len(steps) == 2:
            raise _Enough
        return own(*args, **kwargs)

    hook = network.register_forward_hook(after, with_kwargs=True)
    progress = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(**{**progress, "disable": True})
    pipe.scheduler.step = step
    try:
        yield
    finally:
        hook.remove()
        del pipe.scheduler.step
        pipe.set_progress_bar_config(**progress)
        pipe.maybe_free_model_hooks()


def _count_samples(step: _Step) -> int:
    """The number of samples; some pipelines step in two copies of them."""
    rows = step.sample.shape[0]
    half = rows // 2
    doubled = rows % 2 == 0 and bool((step.sample[:half] == step.sample[half:]).all())
    return half if doubled else rows


def _conditions(step: _Step, x: str, count: int) -> list[dict[str, Any]]:
    """The arguments of the network for all conditions."""
    arguments: list[dict[str, Any]] = []
    for call in step.calls:
        rows = call[x].shape[0]
        others = {name: item for name, item in call.items() if name not in (x, _TIME)}
        arguments += [rows_of(others, rows, part) for part in _parts(rows, count)]
    return arguments


def _parts(rows: int, count: int) -> list[range]:
    """The rows of each condition in a call of the network."""
    return [range(begin, begin + count) for begin in range(0, rows, count)]


def _outputs(step: _Step, x: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The outputs for all conditions, as columns, and what the pipeline makes of them."""
    columns = []
    for call, value in zip(step.calls, step.values, strict=True):
        output = _host(take_output(value, call[x].shape, "the network", _HINT))
        columns += [output[part].ravel() for part in _parts(len(output), count)]
    guided = take_output(step.output, step.sample.shape, "the pipeline", _HINT)
    return np.stack(columns, 1), _host(guided[:count]).ravel()


def _weights(
    steps: tuple[_Step, _Step], x: str, count: int, pipe: Any, call: Mapping[str, Any]
) -> list[float]:
    """w_j by least squares, rounded to what the pipeline was told where that is near."""
    both = [_outputs(step, x, count) for step in steps]
    columns, target = (np.concatenate(parts) for parts in zip(*both, strict=True))
    weights = np.linalg.lstsq(columns, target, rcond=1e-6)[0]
    told = [*call.values(), getattr(pipe, "guidance_scale", None)]
    scales = [float(v) for v in told if isinstance(v, int | float) and not isinstance(v, bool)]
    exact = np.array([0.0, 1.0, -1.0, *scales, *(1.0 - g for g in scales)])
    nearest = exact[np.argmin(np.abs(weights[:, None] - exact), 1)]
    half = steps[0].calls[0][x].element_size() < 4
    tolerance = _TOLERANCE if half else _TOLERANCE_FLOAT32
    near = np.abs(weights - nearest) <= tolerance * np.maximum(1.0, np.abs(nearest))
    weights = np.where(near, nearest, weights)
    left = np.linalg.norm(columns @ weights - target)
    is_sum = abs(abs(weights.sum()) - 1.0) <= tolerance
    if left > tolerance * np.linalg.norm(target) or not is_sum:
        raise ValueError(
            f"pipe: {type(pipe).__name__} does more to the outputs of its network than to add them "
            "up with weights (rescaled guidance?), so that it is no denoiser of one process; call "
            "from_diffusers with arguments that turn this off."
        )
    return weights.tolist()


def _time_scale(first: _Step, second: _Step, scheduler: Any) -> tuple[float, float]:
    """scale and offset of told = scale timestep + offset."""
    told = [float(np.ravel(_host(step.calls[0][_TIME]))[0]) for step in (first, second)]
    size = float(getattr(scheduler.config, "num_train_timesteps", 1000))
    for scale, offset in ((1.0, 0.0), (1.0 / size, 0.0), (-1.0 / size, 1.0), (-1.0, size)):
        expected = [scale * step.timestep + offset for step in (first, second)]
        if np.allclose(told, expected, rtol=_TOLERANCE / 2, atol=_TOLERANCE / 2 * abs(scale)):
            return scale, offset
    raise ValueError(
        f"pipe: the network is told {told[0]:g} and {told[1]:g} at the timesteps "
        f"{first.timestep:g} and {second.timestep:g}, which is no known function of them."
    )


def _host(value: Any) -> np.ndarray:
    """A tensor or number in NumPy."""
    return np.asarray(value.float().cpu() if hasattr(value, "cpu") else value, np.float64)
