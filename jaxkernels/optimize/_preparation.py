"""What is known or recorded before schedules are optimised: a model, a record, a selection."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Array

from .. import _checks
from .._progress import Progress
from ..distributions import ExactDenoiser, Gaussian
from ..prediction import AbstractDenoiser
from ..schedules import BASELINES
from ..trajectories import (
    AbstractRecord,
    DenoisedRecord,
    TrajectoryRecord,
    record,
    record_denoised,
)
from ._budget import MOST_ROUNDS, Costs, RecordPlan, make_plan
from ._model import (
    Model,
    as_model,
    draw_noised,
    draw_start,
    fit_mixture,
    model_of_network,
)
from ._problem import Starts
from ._request import Request
from ._selection import BoundSelection, Selection
from ._within import RecordedSelection, SimulatedSelection, bind_simulated, bind_within

# of a mixture, whose evaluations are cheap; of a network that is the target itself
_MIXTURE_TRAJECTORIES = 256
_MIXTURE_NODES = 48
_NETWORK_TRAJECTORIES = 128
_NETWORK_NODES = 40
# samples of a network that is the target, from which its covariance is taken
_NETWORK_NOISE = 256

# a selection that is ready to run
Bound: TypeAlias = BoundSelection | SimulatedSelection | RecordedSelection
Prepared: TypeAlias = tuple[Model, Selection | None, Bound | None, dict[str, int]]


def prepare(target: Any, request: Request, starts: Starts, progress: bool) -> Prepared:
    """Find or record what an optimisation and its selection need.

    **Arguments:**

    - `target`: as given, a network on the range of the request's process.
    - `request`: its other arguments.
    - `starts`: of the optimisation; a budget runs those given beside the baselines.
    - `progress`: whether to show a status line.

    **Returns:** the model of the target, the selection with its record, that ready to run, and the
    NFE that were spent by stage. Without a selection the second and third are None.

    **Raises:** ValueError naming what does not fit together, before anything is recorded.
    """
    if request.budget is not None:
        within = _prepare_within(target, request, starts, progress)
        return *within, {"record": within[-1].plan.nfe["record"]}
    if request.denoised_record is not None:
        return *_prepare_simulated(target, request, progress), {}
    model, selection = _resolve(target, request, progress)
    run = (request.process, request.sampler, request.num_steps)
    request.objective.check_target(model.gaussian, *run)
    if selection is None:
        return model, None, None, {}
    bound = selection.bind(model, request.process, request.initialization, request.stochastic)
    complete = _with_record(selection, model, request, progress)
    nfe = {"samples": model.nfe, "record": 0}
    if isinstance(complete.record, TrajectoryRecord) and complete is not selection:
        nfe["record"] = complete.record.nfe
    return model, complete, bound, nfe


def _resolve(target: object, request: Request, progress: bool) -> tuple[Model, Selection | None]:
    """The model of the target, and the selection, if there is to be one."""
    selection = request.selection
    if isinstance(target, Model):
        return target, selection
    if isinstance(target, Gaussian):
        return Model(target), selection
    selection = selection or Selection()
    if isinstance(target, AbstractDenoiser) and not isinstance(target, ExactDenoiser):
        return _resolve_network(target, request, selection, progress), selection
    recorded = isinstance(selection.record, TrajectoryRecord) and selection.denoiser is not None
    with Progress("fitting a mixture to the samples", progress):
        return as_model(target, recorded), selection


def _resolve_network(
    target: AbstractDenoiser, request: Request, selection: Selection, progress: bool
) -> Model:
    """A network as the target: the Gaussian is that of its own samples, or of the data."""
    model = _model_of_data(target, selection)
    if model is None:
        noise = _network_noise(request, selection, _noise_count(selection))
        model = model_of_network(target, noise, request.t_min[0], progress)
    return model


def _with_record(selection: Selection, model: Model, request: Request, progress: bool) -> Selection:
    """The selection with trajectories of a mixture, or of a network that is the target."""
    if selection.record is not None or not request.recordable:
        return selection
    denoiser = model.denoiser
    shape = None
    if denoiser is None and model.mixture is not None:
        turned = model.mixture.in_eigenbasis()
        model = Model(model.gaussian, turned)
        shape = turned.means.shape[1:]
        denoiser = turned.denoiser(request.process)
    if denoiser is None:
        return selection
    if isinstance(denoiser, ExactDenoiser):
        key = selection.random_key(3)
        start = (model, request.process, request.initialization)
        noise = draw_start(*start, _MIXTURE_TRAJECTORIES, key, shape)
        nodes = _MIXTURE_NODES
    else:
        count = _noise_count(selection)
        noise = _network_noise(request, selection, count)[:_NETWORK_TRAJECTORIES]
        nodes = _NETWORK_NODES
    batch = max(1, noise.shape[0] // 4)
    t_min = request.t_min[0]
    made = record(denoiser, noise, t_min=t_min, nodes=nodes, batch=batch, progress=progress)
    return dataclasses.replace(selection, record=made)


def _prepare_within(
    target: Any, request: Request, starts: Starts, progress: bool
) -> tuple[Model, Selection, RecordedSelection]:
    """The same within a budget, with recorded trajectories that select as well."""
    selection = request.selection or Selection()
    assert request.budget is not None
    network, model = known_before(target, selection)
    made = request.denoised_record
    costs = costs_within(request, network, model, starts)
    given = None if made is None else made.num_trajectories
    plan = make_plan(request.budget, costs, selection.noise_rows, given)
    noise = noise_within(model, request, selection, plan.trajectories + plan.evidence)
    if made is None:
        made = record_planned(network, noise, plan, request, progress)
    model = model_with_record(model, network, made, request, progress)
    fresh = noise[plan.trajectories :]
    return model, selection, bind_within(selection, network, made, model, fresh, plan)


def _prepare_simulated(
    target: Any, request: Request, progress: bool
) -> tuple[Model, Selection, SimulatedSelection]:
    """The same on a model of the network that a given record corrects, without a budget."""
    selection = request.selection
    made = request.denoised_record
    assert selection is not None
    assert made is not None
    network, model = known_before(target, selection)
    model = model_with_record(model, network, made, request, progress)
    bound = bind_simulated(selection, network, made, model, request.checked)
    return model, selection, bound


def known_before(target: Any, selection: Selection) -> tuple[AbstractDenoiser, Model | None]:
    """Separate a network from what is known of its data before it is run.

    **Arguments:**

    - `target`: a network, or what is known of its data.
    - `selection`: with the network otherwise.

    **Returns:** the network, and a model of the data if there is one.
    """
    if isinstance(target, Model):
        network = target.denoiser if selection.denoiser is None else selection.denoiser
        assert network is not None
        return network, target
    network = target if selection.denoiser is None else selection.denoiser
    return network, _model_of_data(target, selection)


def costs_within(
    request: Request, network: AbstractDenoiser, model: Model | None, starts: Starts = None
) -> Costs:
    """What the stages of a selection within a budget cost."""
    tuned = request.num_steps > 1 and (request.selection or Selection()).simulation_solver()
    return Costs(
        per_sample=request.sampler.nfe_per_step * request.num_steps,
        baselines=len(BASELINES) + (len(starts) if isinstance(starts, Mapping) else 0),
        candidates=1 + (model is not None and model.knows_data and model.mixture is not None),
        rounds=MOST_ROUNDS if tuned else 0,
        per_call=network.nfe,
    )


def record_planned(
    network: AbstractDenoiser, noise: Array, plan: RecordPlan, request: Request, progress: bool
) -> DenoisedRecord:
    """Record what a plan pays for, from the first rows of initial noise."""
    run = {"t_min": request.t_min[0], "nodes": plan.nodes, "batch": plan.batch}
    return record_denoised(network, noise[: plan.trajectories], progress=progress, **run)


def model_with_record(
    model: Model | None,
    network: AbstractDenoiser,
    made: DenoisedRecord,
    request: Request,
    progress: bool,
) -> Model:
    """Say what is known: of the data, if nothing else the recorded ends, and of the network."""
    if model is None:
        ends = np.asarray(made.ends)
        model = Model(Gaussian.fit(ends), fit_mixture(ends), denoiser=network)
    if model.fitted is None:
        with Progress("fitting a mixture to recorded denoised points", progress):
            known = model.mixture if model.knows_data else None
            model = model._replace(fitted=made.fit_mixture(known))
    run = (request.process, request.sampler, request.num_steps)
    request.objective.check_target(model.gaussian, *run)
    return model


def _model_of_data(target: Any, selection: Selection) -> Model | None:
    """What is known without running a network: of data, of a record, or of no network as target."""
    if not isinstance(target, AbstractDenoiser):
        return as_model(target, True)
    if selection.denoiser is not None:
        raise ValueError(
            "selection.denoiser: the target is a network already; leave it out, or pass the "
            "network there and a distribution or samples as target."
        )
    if selection.data is not None:
        data = _checks.array("data", selection.data)
        return Model(Gaussian.fit(data), fit_mixture(data), data, target)
    if isinstance(selection.record, AbstractRecord):
        ends = np.asarray(selection.record.ends)
        return Model(Gaussian.fit(ends), fit_mixture(ends), denoiser=target)
    return None


def noise_within(model: Model | None, request: Request, selection: Selection, count: int) -> Array:
    """Draw or take rows of initial noise for a record, and then others for its evidence."""
    if selection.given_noise is not None:
        return selection.given_noise[:count]
    if model is None or model.denoiser is not None:
        return _network_noise(request, selection, count)
    shape = None if model.samples is None else model.samples.shape[1:]
    start = (model, request.process, request.initialization, count)
    return draw_start(*start, selection.random_key(0), shape, selection.data)


def _network_noise(request: Request, selection: Selection, count: int) -> Array:
    """Initial noise of a network that is the target, other than the noise that selects."""
    given = selection.given_noise
    if request.initialization == "marginal":
        return _noised_data(request, selection, count)
    if given is None:
        known = selection.data
        if known is None and isinstance(selection.record, AbstractRecord):
            known = selection.record.noise
        if known is None:
            raise ValueError(
                "selection: the input shape of a network that is the target is unknown; pass "
                "Selection(noise=...), initial noise (n, ...), or Selection(data=...), samples."
            )
        shape = np.shape(known)[1:]
        dtype = None
    else:
        shape = given.shape[1:]
        dtype = given.dtype
    scale = np.sqrt(np.asarray(request.process.prior_variance(np.asarray(request.process.t_max))))
    noise = float(scale) * jax.random.normal(selection.random_key(3), (count, *shape))
    # a network may take one precision only
    return noise if dtype is None else noise.astype(dtype)


def _noised_data(request: Request, selection: Selection, count: int) -> Array:
    """Noised data that a network starts from: drawn, or those of the given that select."""
    given = selection.given_noise
    if selection.data is not None:
        samples = _checks.array("data", selection.data)
        key = selection.random_key(3)
        return draw_noised(samples, request.process, count, key, samples.shape[1:])
    if given is None:
        raise ValueError(
            "selection: sampling starts from noised data at t_max = "
            f"{float(request.process.t_max):g}; pass Selection(data=...), samples, or "
            "Selection(noise=...), noised data (n, ...)."
        )
    return given[: (len(given) + 1) // 2]


def _noise_count(selection: Selection) -> int:
    """How many samples of initial noise are asked for, by a number or by giving them."""
    if isinstance(selection.noise, int | np.integer):
        return int(selection.noise)
    return _NETWORK_NOISE if selection.given_noise is None else len(selection.given_noise)
