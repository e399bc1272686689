"""Samplers of the reverse process, each written once."""

from ._base import AbstractSampler as AbstractSampler, Interval as Interval, Noise as Noise
from ._ddim import (
    DDIM as DDIM,
    from_churn as from_churn,
    from_eta as from_eta,
    to_churn as to_churn,
    to_eta as to_eta,
)
from ._multistep import DPMSolverPP2M as DPMSolverPP2M
from ._reverse import (
    EulerMaruyama as EulerMaruyama,
    ExponentialIntegrator as ExponentialIntegrator,
)
from ._runge_kutta import RK4 as RK4, Heun as Heun

SAMPLERS: dict[str, type[AbstractSampler]] = {
    "ddim": DDIM,
    "dpmpp_2m": DPMSolverPP2M,
    "heun": Heun,
    "rk4": RK4,
    "euler_maruyama": EulerMaruyama,
    "exponential_integrator": ExponentialIntegrator,
}


def sampler_name(sampler: AbstractSampler) -> str:
    """The name in `SAMPLERS`, or the class of one of the user's own."""
    names = {cls: name for name, cls in SAMPLERS.items()}
    return names.get(type(sampler), type(sampler).__name__)
