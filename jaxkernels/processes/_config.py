"""Forward processes as JSON values and back."""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._field_names import known_name
from .._precision import is_traced
from ._base import AbstractProcess
from ._flow import FlowMatching
from ._ve import EDM, VE
from ._vp import OU, VP, CosineVP, DiscreteVP, PowerVP

PROCESSES: dict[str, type[AbstractProcess]] = {
    "vp": VP,
    "ou": OU,
    "ve": VE,
    "edm": EDM,
    "cosine_vp": CosineVP,
    "power_vp": PowerVP,
    "flow_matching": FlowMatching,
    "discrete_vp": DiscreteVP,
}
# the argument t_max of the others is a sub-range
_FREE_END = ("ou", "ve")


def parameters(name: str) -> tuple[str, ...]:
    """Return the names of a process's constructor arguments.

    **Arguments:**

    - `name`: the process's name in `PROCESSES`.

    **Returns:** the names, in the constructor's order.

    **Raises:** ValueError for an unknown name.
    """
    cls = PROCESSES[check_process_name(name)]
    return tuple(inspect.signature(cls).parameters)


def check_process_name(name: str) -> str:
    """Look up the name of a process, which may be one of another tool.

    **Arguments:**

    - `name`: a name in `PROCESSES`, or a synonym, in any spelling.

    **Returns:** the name in `PROCESSES`.

    **Raises:** ValueError for an unknown name, with the right one if it is known elsewhere.

    **Example:**

    ```python
    >>> jk.processes.check_process_name("rectified flow")
    'flow_matching'
    ```
    """
    return known_name("process", "process", name, PROCESSES)


def to_config(process: AbstractProcess) -> dict[str, object]:
    """Describe a process by JSON values.

    `from_config` gives back the same numbers to the last bit, also through JSON text.

    **Arguments:**

    - `process`: a built-in process.

    **Returns:** {"type": its name in `PROCESSES`, argument: value, ...}, of the whole process, and
    "sub_range": `t_max`, if it is restricted to one.

    **Raises:** ValueError for a process that is not built in, or whose parameters are traced.
    """
    name = next((name for name, cls in PROCESSES.items() if cls is type(process)), None)
    if name is None:
        raise ValueError(
            f"process {type(process).__name__} is not built in, so it has no configuration; "
            f"built in are {', '.join(PROCESSES)}."
        )
    if is_traced(process):
        raise ValueError(f"process {name!r} is traced; call to_config outside jit, grad and vmap.")
    keys = [key for key in parameters(name) if key != "t_max" or name in _FREE_END]
    config = {"type": name, **{key: _value(process, key) for key in keys}}
    if process.full_t_max is not None:
        config["sub_range"] = float(process.t_max)
    return config


def describe_process(process: AbstractProcess) -> dict[str, object]:
    """Describe a process for a file, which can only name one that is user-defined.

    **Arguments:**

    - `process`: any process.

    **Returns:** `to_config` of a built-in process, {"user_defined": the class's name} of another.

    **Example:**

    ```python
    >>> jk.processes.describe_process(jk.VE())["type"]
    've'
    ```
    """
    cls = type(process)
    return to_config(process) if cls in PROCESSES.values() else {"user_defined": cls.__name__}


def from_config(config: Mapping[str, Any]) -> AbstractProcess:
    """Make the process of a configuration.

    **Arguments:**

    - `config`: "type", constructor arguments and "sub_range", as made by `to_config`; arguments
      left out take their defaults.

    **Returns:** the process.

    **Raises:** ValueError naming the entry that is missing, unknown or out of range, or for a
    user-defined process, which is only named.
    """
    if isinstance(config, Mapping) and "user_defined" in config:
        raise ValueError(
            f"the process {config['user_defined']} is user-defined: it is not in the file, and is "
            "passed again from Python, as `process`."
        )
    if not isinstance(config, Mapping) or "type" not in config:
        raise ValueError(f"process must be a configuration with a 'type'; got {config!r}.")
    name = check_process_name(str(config["type"]))
    arguments = {key: value for key, value in config.items() if key not in ("type", "sub_range")}
    known = parameters(name)
    for key in arguments:
        if key not in known:
            raise ValueError(
                f"process {name!r} has no parameter {key!r}; it takes {', '.join(known) or 'none'}."
            )
    if name == "discrete_vp" and "alphas_cumprod" not in arguments:
        raise ValueError("process 'discrete_vp' needs the parameter 'alphas_cumprod'.")
    process = PROCESSES[name](**arguments)
    return process.sub_range(config["sub_range"]) if "sub_range" in config else process


def _value(process: AbstractProcess, key: str) -> object:
    """One constructor argument as a JSON value."""
    if key in ("t_max", "sigma_max"):  # EDM's time is its noise level
        return float(process.t_max if process.full_t_max is None else process.full_t_max)
    if isinstance(process, DiscreteVP):
        return process.name if key == "name" else _alphas_cumprod(process).tolist()
    if isinstance(process, PowerVP):
        return process.power
    return float(getattr(process, key))


def _alphas_cumprod(process: DiscreteVP) -> np.ndarray:
    """The table whose constructor gives exactly the log sigmas of `process`.

    1 / (1 + sigma^2) recovers an entry up to rounding; among its neighbours one gives the same bits
    back.
    """
    log_sigmas = np.asarray(process.log_sigmas)
    near = 1.0 / (1.0 + np.exp(2.0 * log_sigmas.astype(np.float64)))
    candidates = near + np.spacing(near) * np.array([0, 1, -1, 2, -2, 3, -3, 4, -4])[:, None]
    candidates = np.clip(candidates, np.finfo(float).tiny, 1.0 - np.finfo(float).epsneg)
    again = 0.5 * (np.log1p(-candidates) - np.log(candidates))
    distance = np.abs(again.astype(log_sigmas.dtype) - log_sigmas)
    return np.take_along_axis(candidates, np.argmin(distance, axis=0)[None], axis=0)[0]
