"""Denoisers of k-diffusion and EDM: functions of x and sigma."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array

from .. import _checks
from .._precision import to_dtype
from ..processes import EDM, AbstractProcess, DiscreteVP, check_process
from ._conditioning import count_rows, rows_of
from ._denoiser import Denoiser
from ._output import take_output
from ._torch import Tensor, TorchNetwork, check_network, import_torch, placement

_HINT = "wrap it in a function that returns the denoised x alone"


def from_k_diffusion(
    model: Callable[..., object],
    process: AbstractProcess | None = None,
    *,
    batch: int = 16,
    **extra_args: Any,
) -> Denoiser:
    """Make a denoiser of a PyTorch `model(x, sigma)` of k-diffusion, or of EDM's `net(x, sigma)`.

    Both are told x = x0 + sigma eps and sigma (batch,), and return the denoised x. The model runs
    on the device and in the precision of its parameters; sigma has float32.

    **Arguments:**

    - `model`: a `torch.nn.Module` in evaluation mode, or any function of tensors.
    - `process`: the process of the schedules; x is scaled from its units to the model's. Default:
      `DiscreteVP` for a model with a table `sigmas`, as k-diffusion wraps Stable Diffusion, else
      `EDM(model.sigma_max)`, of 80 if that is missing or infinite.
    - `batch`: rows of x in a call at most, halved if a GPU's memory does not suffice.
    - `extra_args`: further arguments of the model, such as `class_labels`. Rows of tensors are
      conditions, which are dealt to the rows of x in turn.

    **Returns:** a `Denoiser`.

    **Raises:** ImportError without PyTorch; ValueError for what is no network, a model in training
    mode, and when called, for an output of another form.

    **Example:**

    ```python
    >>> denoiser = jk.from_k_diffusion(lambda x, sigma: 0 * x)  # doctest: +SKIP
    >>> denoiser.process  # doctest: +SKIP
    EDM(t_max=80)
    ```

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
    (2022), https://arxiv.org/abs/2206.00364, https://github.com/crowsonkb/k-diffusion.
    """
    torch = import_torch("from_k_diffusion")
    device, dtype = placement(torch, check_network("model", model))
    _checks.count("batch", batch)
    process = _process(model) if process is None else check_process(process)
    count = count_rows(extra_args, "extra_args")

    def network(x: Tensor, sigma: Tensor, conditions: np.ndarray) -> Tensor:
        value = model(x, sigma, **rows_of(extra_args, count, conditions.tolist()))
        return take_output(value, x.shape, "model", _HINT)

    function = TorchNetwork(torch, network, device, dtype, batch).as_function()

    def denoised(x: Array, t: Array, conditions: Array) -> Array:
        forward = to_dtype(process, t.dtype)
        return function(x.astype(t.dtype) / forward.signal(t), forward.sigma(t), conditions)

    return Denoiser(denoised, process, "x0", conditions=np.arange(count))


def _process(model: Any) -> AbstractProcess:
    """The process of a model's noise levels."""
    if hasattr(model, "sigmas"):
        sigmas = np.asarray(model.sigmas.detach().cpu().numpy(), np.float64)
        return DiscreteVP(1.0 / (1.0 + sigmas**2))
    largest = float(getattr(model, "sigma_max", np.inf))
    return EDM(largest) if np.isfinite(largest) else EDM()
