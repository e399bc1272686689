"""What is known of the data: the Gaussian that is solved for, and what else the target says."""

import importlib.util
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._progress import Progress
from .._types import AnyArray, Numbers
from ..distributions import AbstractDistribution, ExactDenoiser, Gaussian, GaussianMixture
from ..prediction import AbstractDenoiser
from ..processes import AbstractProcess
from ..samplers import sample
from ..schedules import log_snr

# of a network that is the target itself: steps of the samples that stand for its data
SAMPLE_STEPS = 16
# to which a mixture is fitted: for at least two components
LEAST_FOR_MIXTURE = 80


class Model(NamedTuple):
    """A target, resolved.

    `gaussian` has the mean and covariance of the data; `mixture` is run where there is no network,
    and before there is one; `samples` are the data, if given; `denoiser` is the network, if that is
    the target; `nfe`, what its samples took; `fitted`, a mixture whose denoiser is the network's
    along recorded trajectories.
    """

    gaussian: Gaussian
    mixture: GaussianMixture | None = None
    samples: AnyArray | None = None
    denoiser: AbstractDenoiser | None = None
    nfe: int = 0
    fitted: GaussianMixture | None = None

    @property
    def knows_data(self) -> bool:
        """Whether there are data, or their distribution, and not a network's samples alone."""
        return self.samples is not None or self.denoiser is None


def as_model(target: object, has_network: bool) -> Model:
    """Resolve a distribution or samples, to which a mixture is fitted.

    With a network and its record the mixture is one source of candidates of several, which can be
    done without.
    """
    if isinstance(target, ExactDenoiser):
        if isinstance(target.distribution, Gaussian):
            return Model(target.distribution, denoiser=target)
        target = target.distribution
    if isinstance(target, Gaussian):
        return Model(target)
    if isinstance(target, GaussianMixture):
        return Model(target.gaussian(), target)
    samples = _check_samples(target)
    if has_network:
        return Model(Gaussian.fit(samples), fit_mixture(samples), samples)
    mixture = GaussianMixture.fit(samples)
    return Model(mixture.gaussian(), mixture, samples)


def fit_mixture(samples: Numbers) -> GaussianMixture | None:
    """A mixture, if it can be fitted and says more than the covariance of the samples does."""
    enough = len(_checks.on_host("samples", samples)) >= LEAST_FOR_MIXTURE
    if not enough or importlib.util.find_spec("sklearn") is None:
        return None
    return GaussianMixture.fit(samples)


def model_of_network(
    denoiser: AbstractDenoiser, noise: Array, t_min: float, progress: bool
) -> Model:
    """The Gaussian of a network's own samples from `noise`, and a mixture fitted to them."""
    samples = sample_network(denoiser, noise, t_min, progress)
    nfe = _samples_nfe(denoiser, noise)
    return Model(Gaussian.fit(samples), fit_mixture(samples), denoiser=denoiser, nfe=nfe)


def sample_network(
    denoiser: AbstractDenoiser, noise: Array, t_min: float, progress: bool
) -> Float[np.ndarray, "n d"]:
    """Samples of a network that a model can be fitted to, by `SAMPLE_STEPS` evaluations each."""
    schedule = log_snr(denoiser.process, SAMPLE_STEPS, t_min)
    nfe = _samples_nfe(denoiser, noise)
    with Progress(f"sampling for a model of the data, NFE {nfe:,}", progress):
        samples = np.asarray(sample(denoiser, "dpmpp_2m", schedule, noise), np.float64)
    return samples.reshape(len(samples), -1)


def _samples_nfe(denoiser: AbstractDenoiser, noise: Array) -> int:
    """NFE of `sample_network`."""
    return denoiser.nfe * len(noise) * SAMPLE_STEPS


def draw_noise(
    gaussian: Gaussian,
    process: AbstractProcess,
    count: int,
    key: Array,
    shape: tuple[int, ...] | None,
) -> Array:
    """Initial noise of `count` samples, in `shape` or as vectors along the target's coordinates."""
    if shape is None:
        if gaussian.basis is None and np.any(np.asarray(gaussian.weights) != 1):
            raise ValueError(
                "target's modes have weights, so the network's input shape is unknown: pass "
                "Selection(noise=...) as an array."
            )
        shape = gaussian.mean.shape
    scale = np.sqrt(np.asarray(process.prior_variance(np.asarray(process.t_max))))
    return float(scale) * jax.random.normal(key, (count, *shape))


def draw_start(
    model: Model,
    process: AbstractProcess,
    initialization: str,
    count: int,
    key: Array,
    shape: tuple[int, ...] | None,
    data: Numbers | None = None,
) -> Array:
    """x of `count` samples where sampling starts: initial noise, or noised data."""
    if initialization != "marginal":
        return draw_noise(model.gaussian, process, count, key, shape)
    known = (data, model.samples, model.mixture, model.gaussian)
    source = next(part for part in known if part is not None)
    return draw_noised(source, process, count, key, shape)


def draw_noised(
    source: Numbers | AbstractDistribution,
    process: AbstractProcess,
    count: int,
    key: Array,
    shape: tuple[int, ...] | None,
) -> Array:
    """Rows of samples, or draws of a distribution, noised to the process's largest time."""
    data_key, noise_key = jax.random.split(key)
    x0 = _draw_data(source, count, data_key)
    x0 = x0 if shape is None else x0.reshape(count, *shape)
    t = jnp.asarray(process.t_max, x0.dtype)
    noise = jax.random.normal(noise_key, x0.shape, x0.dtype)
    return process.signal(t) * x0 + process.noise(t) * noise


def _draw_data(source: Numbers | AbstractDistribution, count: int, key: Array) -> Array:
    """Rows of samples, or draws of a distribution."""
    if isinstance(source, AbstractDistribution):
        return source.sample(key, count)
    samples = np.asarray(source)
    few = len(samples) < count
    rows = np.asarray(jax.random.choice(key, len(samples), (count,), replace=few))
    return jnp.asarray(samples[rows], float)


def check_target(target: object) -> None:
    """A quick look before anything slow is done."""
    if not isinstance(target, AbstractDistribution | AbstractDenoiser):
        _check_samples(target)


def _check_samples(target: object) -> AnyArray:
    try:
        if _checks.on_host("target", target).dtype.kind not in "iufc":
            raise ValueError(f"got {type(target).__name__}.")
        samples = _checks.array("target", target)
        if samples.ndim < 2:
            raise ValueError(f"its shape is {samples.shape}.")
    except ValueError as error:
        raise ValueError(
            "target must be samples (n, ...), a Gaussian, a GaussianMixture or a Denoiser, such as "
            f"jk.from_diffusers(pipe): {error}"
        ) from None
    return samples
