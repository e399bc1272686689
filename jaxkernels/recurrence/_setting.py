"""Checks of what every analysis is given: a target, a process, a sampler and a schedule that fit each other."""

from ..distributions import Gaussian, GaussianMixture
from ..processes import AbstractProcess, check_process
from ..samplers import AbstractSampler, as_sampler

NAMED_INITIALIZATIONS = ("standard_normal", "marginal")


def check_setting(
    target: object, process: object, sampler: AbstractSampler | str
) -> tuple[Gaussian, AbstractProcess, AbstractSampler]:
    """The three ingredients of every analysis, with a sampler's name resolved."""
    if isinstance(target, GaussianMixture):
        raise ValueError(
            "target is a GaussianMixture, whose samples have no closed-form law; pass target.gaussian() "
            "for the Gaussian of the same mean and covariance."
        )
    if not isinstance(target, Gaussian):
        raise ValueError(f"target must be a Gaussian; got {type(target).__name__}.")
    return target, check_process(process), as_sampler(sampler)
