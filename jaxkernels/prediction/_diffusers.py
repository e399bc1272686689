"""Networks of diffusers as denoisers, with the process that they were trained for."""

import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .. import _checks
from ..processes import EDM, AbstractProcess, DiscreteVP, FlowMatching
from ._conditioning import count_rows
from ._denoiser import Denoiser
from ._pipeline import Call, Condition, by_name, observe
from ._torch import TorchNetwork, check_network, import_torch, placement

# in the names of schedulers
_DISTILLED = ("LCM", "TCD")

_PREDICTION_TYPES = {
    "epsilon": "epsilon",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}


def from_diffusers(
    source: Any, scheduler: Any = None, *, batch: int = 16, **arguments: Any
) -> Denoiser:
    """Make a denoiser of a pipeline of diffusers, or of a network and its scheduler.

    The pipeline is called once and watched for two steps: its prompts are encoded there, and what
    it tells the network and makes of its outputs (classifier-free guidance) is what the denoiser
    does. PyTorch runs on the pipeline's device in its precision; levels have float32.

    **Arguments:**

    - `source`: a pipeline with a `transformer` or `unet`; or such a network itself, or a function
      of tensors (x, timestep, ...).
    - `scheduler`: beside a network, the scheduler of its configuration: the betas, or that it is a
      flow or of EDM, and the prediction type are taken from it. None for a pipeline.
    - `batch`: rows of x in a call at most, halved if a GPU's memory does not suffice.
    - `arguments`: those of the pipeline's call, such as `prompt`, `guidance_scale`, `height` or
      `class_labels`; beside a network, its own, such as `encoder_hidden_states`. Several prompts,
      or rows of tensors, are conditions, which are dealt to the rows of x in turn.

    **Returns:** a `Denoiser` in the units of the network's latents. `denoiser.process` is
    `DiscreteVP`, `FlowMatching` or `EDM`, and `denoiser.fn.shape` the shape of a row of x.
    Pipelines end with a step to level 0, so that `denoiser.default_t_min` is 0. With guidance
    each evaluation takes as many NFE as the pipeline calls the network.

    **Raises:** ImportError without PyTorch; ValueError for a pipeline that does something else than
    to add up the outputs of one network, or a scheduler of another kind, saying what was found.

    **Example:**

    ```python
    >>> denoiser = jk.from_diffusers(pipe, prompt="a cat", guidance_scale=5.0)  # doctest: +SKIP
    >>> noise = jax.random.normal(key, (64, *denoiser.fn.shape))  # doctest: +SKIP
    ```

    Source: https://huggingface.co/docs/diffusers.
    """
    torch = import_torch("from_diffusers")
    _checks.count("batch", batch)
    if scheduler is None:
        call = _call_of_pipeline(torch, source, arguments)
        scheduler = source.scheduler
        process, prediction_type = process_of_scheduler(scheduler)
    else:
        process, prediction_type = process_of_scheduler(scheduler)
        call = _call_of_network(torch, source, arguments)
    function = TorchNetwork(torch, call, call.device, call.dtype, batch).as_function()
    network = DiffusersNetwork(function, process, scheduler.config, call.shape)
    conditions = np.arange(call.count)
    evaluations = len(call.conditions)
    return Denoiser(
        network, process, prediction_type, conditions=conditions, evaluations=evaluations
    )


class DiffusersNetwork:
    """A network of diffusers as a function of JAX arrays, made by `from_diffusers`.

    **Arguments:**

    - `function`: (x, timestep, conditions) -> what the pipeline makes of the network's outputs.
    - `process`: of the times t.
    - `config`: of the scheduler.
    - `shape`: of a row of x; None if it is not known.
    """

    t_min = 0.0
    """Where pipelines end, whatever the level before their last step."""

    def __init__(
        self,
        function: Callable[[Array, Array, Array], Array],
        process: AbstractProcess,
        config: Any,
        shape: tuple[int, ...] | None,
    ):
        self.shape = shape
        self._function = function
        self._process = process
        self._config = config

    def __call__(self, x: Array, t: Array, conditions: Array) -> Array:
        if isinstance(self._process, EDM):
            return self._preconditioned(x.astype(t.dtype), t, conditions)
        if isinstance(self._process, FlowMatching):
            return self._velocity(x, t, conditions)
        return self._function(x, t - 1.0, conditions)

    def _velocity(self, x: Array, t: Array, conditions: Array) -> Array:
        """dx/dt of a flow. Some networks count time from noise to data, as Mochi's does."""
        size = self._config.num_train_timesteps
        if getattr(self._config, "invert_sigmas", False):
            return -self._function(x, size * (1.0 - t), conditions)
        return self._function(x, size * t, conditions)

    def _preconditioned(self, x: Array, sigma: Array, conditions: Array) -> Array:
        """The denoised x of a network in EDM's preconditioning, as its schedulers compute it."""
        data = float(self._config.sigma_data)
        total = jnp.sqrt(sigma**2 + data**2)
        value = self._function(x / total, jnp.log(sigma) / 4.0, conditions)
        sign = -1.0 if self._config.prediction_type == "v_prediction" else 1.0
        return (data / total) ** 2 * x + sign * sigma * data / total * value


def process_of_scheduler(scheduler: Any) -> tuple[AbstractProcess, str]:
    """The process and the prediction type of a scheduler of diffusers."""
    config = getattr(scheduler, "config", None)
    name = type(scheduler).__name__
    if isinstance(scheduler, type):
        raise ValueError(f"scheduler must be a scheduler, not the class {scheduler.__name__}.")
    if config is None or not hasattr(scheduler, "set_timesteps"):
        raise ValueError(f"scheduler must be one of diffusers; got {name}.")
    if any(kind in name for kind in _DISTILLED):
        raise ValueError(
            f"scheduler: {name} is for networks distilled to jump to the data, whose solution with "
            "many steps is no reference; take the network that it was distilled from."
        )
    predicted = getattr(config, "prediction_type", "epsilon")
    flows = name.startswith("FlowMatch") or "RF" in name or predicted == "flow_prediction"
    if flows or getattr(config, "use_flow_sigmas", False):
        return FlowMatching(), "flow"
    if name.startswith("EDM"):
        return EDM(float(config.sigma_max)), "x0"
    if getattr(config, "timestep_type", "discrete") != "discrete" or not hasattr(
        scheduler, "alphas_cumprod"
    ):
        raise ValueError(
            f"scheduler: {name} has no table alphas_cumprod of discrete timesteps and is neither "
            "of a flow nor of EDM; make a Denoiser of the network by jk.from_torch."
        )
    table = np.array(scheduler.alphas_cumprod.cpu().numpy(), np.float64)
    known = _checks.lookup("prediction_type", predicted, _PREDICTION_TYPES)
    return DiscreteVP(table), known


def _call_of_pipeline(torch: Any, pipe: Any, arguments: dict[str, Any]) -> Call:
    """How a pipeline calls its network."""
    if isinstance(pipe, type):
        raise ValueError(
            f"source must be a pipeline, not the class {pipe.__name__}: make one, as by "
            "from_pretrained."
        )
    components = getattr(pipe, "components", {})
    modules = {name: part for name, part in components.items() if part is not None}
    network = modules.get("transformer") or modules.get("unet")
    if network is None or "scheduler" not in modules:
        raise ValueError(
            "from_diffusers needs a pipeline with a scheduler and a transformer or unet, or a "
            f"network and its scheduler; got {type(pipe).__name__} with "
            f"{', '.join(modules) or 'no components'}."
        )
    # pipelines take others without a word, but for deprecated callbacks
    own = {name: v for name, v in arguments.items() if not name.startswith("callback")}
    _check_arguments(type(pipe).__name__, pipe.__call__, own, strict=True)
    others = [name for name in ("transformer_2", "unet_2") if modules.get(name) is not None]
    if others:
        raise ValueError(
            f"pipe has two networks, the other one is {others[0]}; pass each with the scheduler."
        )
    placement(torch, network)
    return observe(pipe, network, arguments)


def _call_of_network(torch: Any, network: Any, arguments: dict[str, Any]) -> Call:
    """How a network is called alone."""
    device, dtype = placement(torch, check_network("source", network))
    function = by_name(network) if isinstance(network, torch.nn.Module) else network
    _check_arguments(type(network).__name__, getattr(network, "forward", network), arguments)
    count = count_rows(arguments, "arguments")
    conditions = (Condition(1.0, arguments),)
    return Call(function, conditions, count, _shape(network), device, dtype)


def _check_arguments(
    name: str, fn: Callable[..., Any], arguments: dict[str, Any], strict: bool = False
) -> None:
    """ValueError for an argument that a function does not name.

    One that takes any is trusted to use them, unless `strict`.
    """
    parameters = inspect.signature(fn).parameters
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = {key: p for key, p in parameters.items() if p.kind not in variable}
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if takes_any and not strict:
        return
    for argument in arguments:
        _checks.lookup(f"argument of {name}: name", argument, named)


def _shape(network: Any) -> tuple[int, ...] | None:
    """Channels and size of an image in a network's configuration."""
    config = getattr(network, "config", {})
    channels = config.get("in_channels")
    size = config.get("sample_size")
    if channels is None or size is None:
        return None
    return (channels, *((size, size) if isinstance(size, int) else size))
