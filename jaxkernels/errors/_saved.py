"""The objective of a schedule in its file: what is needed to evaluate it again."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import numpy as np

from .. import _checks
from .._objective import AbstractBoundObjective
from .._types import constant
from ..distributions import Gaussian
from ..metrics import METRICS
from ..processes import AbstractProcess
from ..recurrence import NAMED_INITIALIZATIONS
from ..samplers import AbstractSampler
from ._objective import BoundLocalError

_NUMBERS = ("mean", "eigenvalues", "weights")


def local_error_config(bound: AbstractBoundObjective) -> dict[str, Any] | None:
    """Describe a bound `LocalError` in JSON values.

    **Arguments:**

    - `bound`: an objective on a compressed spectrum.

    **Returns:** its metric, initialization and spectrum; None for another objective, one with a
    score error or with a user-defined metric.
    """
    if not isinstance(bound, BoundLocalError) or bound.score_error is not None:
        return None
    names = [name for name, metric in METRICS.items() if metric is bound.metric]
    if not names:
        return None
    numbers = {name: np.asarray(getattr(bound.target, name), np.float64) for name in _NUMBERS}
    return {
        "metric": names[0],
        "initialization": bound.initialization,
        **{name: values.tolist() for name, values in numbers.items()},
    }


def local_error_from_config(
    config: Any, process: AbstractProcess, sampler: AbstractSampler
) -> BoundLocalError:
    """Rebuild a bound `LocalError`; inverse of `local_error_config`.

    **Arguments:**

    - `config`: what that returned, maybe read from a file.
    - `process`, `sampler`: that the schedule is for.

    **Returns:** the objective, in float64 if that is enabled.

    **Raises:** ValueError for anything else.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"local_error must be an object; got {_checks.shown(config)}.")
    missing = [key for key in ("metric", "initialization", *_NUMBERS) if key not in config]
    if missing:
        raise ValueError(f"local_error has no {missing[0]!r}.")
    metric = _checks.lookup("local_error: metric", config["metric"], METRICS)
    start = _checks.one_of(
        "local_error: initialization", config["initialization"], NAMED_INITIALIZATIONS
    )
    arrays = [
        np.asarray(_checks.array(f"local_error: {name}", config[name]), np.float64)
        for name in _NUMBERS
    ]
    mean, eigenvalues, weights = arrays
    if not mean.ndim == 1 or not mean.shape == eigenvalues.shape == weights.shape:
        raise ValueError("local_error: mean, eigenvalues and weights must be lists of one length.")
    plain = Gaussian(mean, eigenvalues)
    # weights of quadrature nodes may be negative, which is checked where a user gives them
    target = eqx.tree_at(lambda g: g.weights, plain, constant(weights))
    return BoundLocalError(target, process, sampler, metric, start)
