"""How far score errors can move the samples: bounds on W2 between a run with score errors and the run without.

Both runs start from the same law and share their noise, which couples them. For a Gaussian target a sampler is
affine in x and in the scores that it is given, so the coupled samples differ at the end by

    D = sum_i G_i e_i,        G_i = d x_end / d e_i,        W2 <= (E |D|^2)^(1/2),                           (1)

e_i the error that evaluation i meets in the run with errors. With one evaluation per step G_i = beta_i prod_{j>i} A_j,
where A_j is the factor of step j on x and beta_j its factor on the score. How the e_i are correlated in time decides
how the sum grows: `AccumulationOperators` has the bounds for known correlations, `LipschitzAccumulation` for
errors that depend on x and are known along the run without errors only.

Errors may be random. Where all samples share them, as with one trained network, the bounds hold for
(E W2^2)^(1/2), the mean being over the errors; where every sample has its own, for the law of all samples. The
distance to the data follows by the triangle inequality: add `evaluate_schedule(...).w2`.

Source: "The Accumulation of Score Estimation Error in Diffusion Models", Theorem 3.1. Its sum of squares drops the
products of errors at different times and bounds W2 only if they vanish; the bounds here state what they need.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from .. import _checks
from .._numerics import safe_sqrt
from .._precision import in_float64, is_traced
from .._types import AnyArray, Numbers
from ..distributions import Gaussian
from ..errors import ErrorKernel, error_kernel
from ..processes import AbstractProcess
from ..recurrence import mode_maps, propagate_modes
from ..samplers import AbstractSampler
from ..schedules import Schedule
from ..score_error import AbstractCorrelation, AffineError, GivenCorrelation


class AccumulationBound(eqx.Module):
    """A bound on W2 between the samples with and without score errors.

    `value` in the units of the data; `assumption` says when it holds. `certified` means that it then is a theorem;
    without it the number is there for comparison, and the assumption says what is wrong with it.
    """

    value: Float[Array, ""]
    assumption: str = eqx.field(static=True)
    certified: bool = eqx.field(static=True)


class AccumulationOperators(eqx.Module):
    """G_i of (1) along every mode, and the bounds for errors whose correlation in time is known.

    The methods take `rms`: (E |e_i|^2)^(1/2) of the whole error vector at every evaluation, (evaluations,) or a number
    for all, in the units of a score, 1 / data. For errors that depend on x it is meant along the run with errors.
    A ValueError says if a shape is wrong or an entry negative.

    Evaluations are in the order of the run, from noise to data, and the samplers of this library evaluate at the
    start of a step. The source prints the same product with scores of the step's end; with steps counted from the
    data, as in kernels, S_a = eta_a prod_{n<a} A_n is G_{K-1-a}.
    """

    signed: Float[Array, "evaluations modes"]
    """G_i, in units of variance. Steps that overshoot make it negative."""
    norms: Float[Array, " evaluations"]
    """Its operator norm: the largest |G_i| among the modes of positive weight."""
    times: Float[Array, " evaluations"]
    process: AbstractProcess

    @in_float64
    def coherent(self, rms: Numbers) -> AccumulationBound:
        """W2 <= sum_i ||G_i|| rms_i, whatever the errors are; attained by errors that add up in one mode."""
        return _coherent(self._sizes(rms))

    @in_float64
    def orthogonal(self, rms: Numbers) -> AccumulationBound:
        """W2^2 <= sum_i ||G_i||^2 rms_i^2, for errors with E e_i^T G_i G_j e_j = 0 for i != j.

        Errors that do not depend on x, are independent in time and have mean 0 are such. A constant error is
        not: it can exceed this number by a factor of the order of sqrt(K).
        """
        value = safe_sqrt(jnp.sum(self._sizes(rms) ** 2))
        return AccumulationBound(value, "errors of different evaluations are uncorrelated", True)

    @in_float64
    def correlated(
        self, rms: Numbers, correlation: AbstractCorrelation | Numbers
    ) -> AccumulationBound:
        """W2^2 <= sum_ij |rho_ij| ||G_i|| ||G_j|| rms_i rms_j, between the two bounds above.

        `correlation`: a model of `score_error`, or a matrix (evaluations, evaluations). In every mode m it must be at
        least the correlation of the errors, |E e_im e_jm| <= |rho_ij| (E e_im^2 E e_jm^2)^(1/2), means included.
        A negative correlation counts by its size, because the G_i can have either sign.
        """
        if not isinstance(correlation, AbstractCorrelation):
            correlation = GivenCorrelation(correlation)
        sizes = self._sizes(rms)
        rho = jnp.abs(correlation.matrix(self.process, jnp.asarray(self.times)))
        value = safe_sqrt(sizes @ rho @ sizes)
        return AccumulationBound(
            value, "in every mode errors are correlated in time by at most |correlation|", True
        )

    def _sizes(self, rms: Numbers) -> Float[Array, " evaluations"]:
        return self.norms * _per_evaluation("rms", rms, self.norms.shape[0])


class LipschitzAccumulation(eqx.Module):
    """Bounds for errors that depend on x with Lipschitz constants L_j, for samplers with one evaluation per step.

        |D_{j+1}| <= M_j |D_j| + beta_j |e_j(y_j)|,     M_j = max over modes |A_j| + beta_j L_j

    with y_j the run without errors, along which `rms` is meant: rms_j = (E |e_j(y_j)|^2)^(1/2), (steps,) or a
    number, in 1 / data. If it is known under the exact law p_t instead, L_j W2(law of y_j, p_t) has to be added.

    The same numbers hold for data that are not Gaussian: if m I <= -Hess log p_0 <= L I with m > 0, take the target
    `Gaussian(0.0, [1 / m, 1 / L])`, whose score has the two extreme slopes at every time (`hessian_interval`).
    """

    growth: Float[Array, " steps"]
    """M_j, at least the factor by which step j can move two samples apart."""
    injection: Float[Array, " steps"]
    """|beta_j|, the step's factor on the score, in units of variance."""
    printed_norms: Float[Array, " steps"]
    """||G_i(H)|| as printed, with factors |A_j + beta_j L_j|: smaller than the truth where A_j < 0."""

    @property
    def gains(self) -> Float[Array, " steps"]:
        """g_i = beta_i prod_{j>i} M_j, in units of variance."""
        return self.injection * _product_of_later(self.growth)

    @in_float64
    def coherent(self, rms: Numbers) -> AccumulationBound:
        """W2 <= sum_i g_i rms_i, whatever the dependence of the errors."""
        return _coherent(self.gains * self._sizes("rms", rms))

    @in_float64
    def mixed(self, rms: Numbers, fresh_rms: Numbers) -> AccumulationBound:
        """W2 <= D_K, D_{j+1}^2 = (M_j D_j + beta_j rms_j)^2 + (beta_j fresh_rms_j)^2, D_0 = 0.

        For errors e_j + z_j: e_j as above, and z_j of mean 0 whatever came before, with (E |z_j|^2)^(1/2) at
        most `fresh_rms` along the run with errors; z_j need not be Lipschitz. With rms = 0 it is
        W2^2 <= sum_i g_i^2 fresh_rms_i^2.
        """
        sizes = self._sizes("rms", rms), self._sizes("fresh_rms", fresh_rms)
        value = _recursion(jnp.asarray(self.growth), jnp.asarray(self.injection), *sizes)
        return AccumulationBound(
            value, "what is not Lipschitz has mean 0 given everything before its evaluation", True
        )

    @in_float64
    def printed(self, rms: Numbers) -> AccumulationBound:
        """(sum_i ||G_i(H)||^2 rms_i^2)^(1/2), the source's (10): for comparison only, W2 can be larger.

        In the source `rms` is meant under the exact laws p_t. Errors of one sign exceed it without limit as K grows.
        """
        value = safe_sqrt(jnp.sum((self.printed_norms * self._sizes("rms", rms)) ** 2))
        reason = "no bound: it neglects the correlation of errors in time, and factors A_j < 0 with L_j > 0"
        return AccumulationBound(value, reason, False)

    def _sizes(self, argument: str, value: Numbers) -> Float[Array, " steps"]:
        return _per_evaluation(argument, value, self.growth.shape[0])


@in_float64
def accumulation_operators(
    target: Gaussian, process: AbstractProcess, sampler: AbstractSampler | str, schedule: Schedule
) -> AccumulationOperators:
    """G_i = d x_end / d e_i of every evaluation and mode, for any sampler: one reverse pass through its recurrence.

    **Raises:** ValueError as `error_kernel` does, and for a compressed target.
    """
    kernel = _linear_response(target, process, sampler, schedule)
    signed = _responses(kernel)
    return AccumulationOperators(
        signed, _largest(kernel.target, signed), kernel.times, kernel.process
    )


@in_float64
def lipschitz_accumulation(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    *,
    lipschitz: Numbers,
) -> LipschitzAccumulation:
    """The growth factors of a run whose score errors are Lipschitz in x, |e_j(x) - e_j(y)| <= L_j |x - y|.

    `lipschitz`: L_j >= 0, (steps,) or a number for all, in 1 / variance.

    **Raises:** ValueError as `accumulation_operators`, and for samplers with memory or several evaluations per step.
    """
    kernel = _linear_response(target, process, sampler, schedule)
    sampler = kernel.sampler
    if sampler.nfe_per_step != 1 or jax.tree.leaves(sampler.init_history(jnp.zeros(1))):
        what = (
            "carries memory"
            if sampler.nfe_per_step == 1
            else f"makes {sampler.nfe_per_step} evaluations per step"
        )
        raise ValueError(
            f"sampler {type(sampler).__name__} {what}; bounds for Lipschitz errors need one evaluation per step and "
            "no memory. For errors that do not depend on x use accumulation_operators."
        )
    factor, by_slope, by_shift = _step_responses(kernel)
    constants = _per_evaluation("lipschitz", lipschitz, kernel.schedule.num_steps)
    growth = _largest(kernel.target, factor) + _largest(kernel.target, by_slope) * constants
    printed = by_shift * _product_of_later(factor + by_slope * constants[:, None])
    return LipschitzAccumulation(
        growth, _largest(kernel.target, by_shift), _largest(kernel.target, printed)
    )


@in_float64
def hessian_interval(
    process: AbstractProcess, t: Real[ArrayLike, "*s"], *, convexity: Numbers, smoothness: Numbers
) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """Bounds on the eigenvalues of Hess log p_t, everywhere, from bounds m I <= -Hess log p_0 <= L I on the data's:

        -1 / (a^2 / L + s^2)  <=  Hess log p_t  <=  -1 / (a^2 / m + s^2),

    in 1 / variance. The upper one is infinite (says nothing) where m < 0 and s^2 >= a^2 / |m|. Exact for normal laws.

    It is s^2 Hess log p_t = (a/s)^2 Cov(X_0 | x) - I with the Cramér-Rao and the Brascamp-Lieb bound on the
    covariance; p_0 needs a twice differentiable positive density.

    **Arguments:** `convexity` m, of either sign, at most `smoothness` L > 0. **Raises:** ValueError otherwise.
    """
    smoothness = _checks.parameter("smoothness", smoothness, above=0.0)
    most = np.inf if is_traced(smoothness) else float(smoothness)
    convexity = _checks.parameter("convexity", convexity, at_most=most)
    a2, s2 = process.signal(t) ** 2, process.noise(t) ** 2
    known = a2 + convexity * s2 > 0
    upper = -convexity / jnp.where(known, a2 + convexity * s2, 1.0)
    return -smoothness / (a2 + smoothness * s2), jnp.where(known, upper, jnp.inf)


def _linear_response(
    target: Gaussian, process: AbstractProcess, sampler: AbstractSampler | str, schedule: Schedule
) -> ErrorKernel:
    """The checked setting, around no error."""
    kernel = error_kernel(target, process, sampler, schedule)
    if kernel.target.compression is not None:
        raise ValueError(
            "target is compressed: its nodes need not have the largest factor; pass the full spectrum."
        )
    return kernel


def _per_evaluation(argument: str, value: Numbers, count: int) -> Array:
    if not is_traced(value):
        value = _checks.array(argument, value)
        if value.shape not in ((), (count,)):
            raise ValueError(
                f"{argument} has shape {value.shape}; it must be a number or have shape ({count},)."
            )
        if np.any(value < 0):
            raise ValueError(f"{argument} must be >= 0; its smallest entry is {value.min():g}.")
    return jnp.broadcast_to(jnp.asarray(value), (count,))


def _coherent(contributions: Array) -> AccumulationBound:
    return AccumulationBound(
        jnp.sum(contributions), "none on the dependence of errors: they may all add up", True
    )


def _largest(target: Gaussian, along_modes: Float[Array, "n modes"]) -> Float[Array, " n"]:
    sizes = jnp.where(jnp.asarray(target.weights) > 0, jnp.abs(along_modes), 0.0)
    # picked by index: the derivative of a maximum looks for it again, and compiled code may round it differently
    return jnp.take_along_axis(sizes, jnp.argmax(sizes, axis=-1, keepdims=True), axis=-1)[:, 0]


def _product_of_later(factors: Float[AnyArray, "n *modes"]) -> Float[Array, "n *modes"]:
    """prod_{j>i} factor_j, without dividing: a factor may be 0."""
    factors = jnp.asarray(factors)
    shifted = jnp.concatenate([factors[1:], jnp.ones_like(factors[:1])])
    return jnp.cumprod(shifted[::-1], axis=0)[::-1]


@jax.jit
def _recursion(growth: Array, injection: Array, known: Array, fresh: Array) -> Float[Array, ""]:
    def step(distance: Array, here: tuple[Array, Array, Array, Array]) -> tuple[Array, None]:
        growth, injection, known, fresh = here
        return safe_sqrt(
            (growth * distance + injection * known) ** 2 + (injection * fresh) ** 2
        ), None

    return jax.lax.scan(step, jnp.zeros((), growth.dtype), (growth, injection, known, fresh))[0]


@jax.jit
def _responses(kernel: ErrorKernel) -> Float[Array, "evaluations modes"]:
    def end(shift: Array) -> Array:
        error = AffineError(kernel.about.slope, shift)
        maps = mode_maps(kernel.target, kernel.process, kernel.sampler, kernel.schedule, error)
        start = jnp.zeros_like(shift[0])
        # modes do not interact, so the derivative of their sum has that of each
        return jnp.sum(propagate_modes(maps, kernel.sampler, start, start)[0][-1])

    return jax.grad(end)(jnp.asarray(kernel.about.shift))


@jax.jit
def _step_responses(kernel: ErrorKernel) -> tuple[Array, Array, Array]:
    """A_j, the derivative of -A_j in the error's slope and that of the step in the error's shift: (steps, modes) each.

    The last two are both beta_j if the step evaluates at x itself.
    """

    def maps(error: AffineError) -> tuple[Array, Array]:
        out = mode_maps(kernel.target, kernel.process, kernel.sampler, kernel.schedule, error)
        return out.factor[0, 0], out.shift[0]

    (factor, _), pull = jax.vjp(maps, jax.tree.map(jnp.asarray, kernel.about))
    one, zero = jnp.ones_like(factor), jnp.zeros_like(factor)
    return factor, -pull((one, zero))[0].slope, pull((zero, one))[0].shift
