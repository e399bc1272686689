"""What was published as bounds on the effect of score errors, for comparison. No bounds.

Each function gives the square root of a published upper bound on W2^2. None of them is one: sums of
squares of single errors leave out that errors of different times add up, and factors with a
Lipschitz constant added to the score's slope are too small where steps overshoot. Use
`jk.bounds.lipschitz_accumulation` and `jk.bounds.accumulation_operators` for numbers that hold.

Source: "The Accumulation of Score Estimation Error in Diffusion Models" (manuscript); the numbers
of its theorems and equations are those of the functions here.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ... import _checks
from ..._numerics import largest, safe_sqrt, smaller
from ..._precision import in_float64
from ..._types import AnyArray, Numbers
from ...distributions import Gaussian, GaussianMixture
from ...processes import AbstractProcess
from ...samplers import AbstractSampler
from ...schedules import Schedule
from .._bound import ErrorSize, per_evaluation
from .._lipschitz import Steps, checked_steps
from .._separation import component_precisions, separation


@in_float64
def theorem_3_1(
    target: Gaussian,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    *,
    rms: ErrorSize,
    lipschitz: ErrorSize,
) -> Float[Array, ""]:
    """Compute equations (10) and, without stochasticity, (21). Not a bound.

        ( sum_i |beta_i prod_{j>i} (alpha_j + beta_j (H_j + L_j))|^2 rms_i^2 )^(1/2),
        H_j = -Sigma_j^-1

    **Arguments:**

    - `target`: a Gaussian.
    - `process`, `sampler`, `schedule`: as for `jk.bounds.lipschitz_accumulation`.
    - `rms`, `lipschitz`: sizes and Lipschitz constants of the errors, numbers, (steps,) or
      functions of time, >= 0.

    **Returns:** the number, in the units of the data.

    **Raises:** ValueError as `jk.bounds.lipschitz_accumulation`.

    **Example:**

    ```python
    >>> run = (jk.Gaussian(0.0, [2.0]), jk.VP(), "ddim", jk.Schedule([1.0, 0.3, 0.01]))
    >>> number = jk.bounds.as_published.theorem_3_1(*run, rms=0.1, lipschitz=0.1)
    ```
    """
    steps = checked_steps(process, sampler, schedule)
    model = target.in_eigenbasis()
    hessians = -1.0 / model.marginal_variance(process, steps.times)
    hessians = jnp.where(jnp.asarray(model.weights) > 0, hessians, hessians[:, :1])
    return _sum_of_squares(steps, jax.vmap(jnp.diag)(hessians), rms, lipschitz)


@in_float64
def equation_11(
    variance: Numbers,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    *,
    rms: ErrorSize,
    lipschitz: ErrorSize,
) -> Float[Array, ""]:
    """Compute equation (11), theorem 3.1 for small steps and one variance. Not a bound.

        ( sum_i beta_i^2 exp(2 sum_{j>i} h_j phi_j) rms_i^2 )^(1/2),
        phi = -f + (1 + alpha^2)/2 g^2 (L - 1 / Sigma)

    **Arguments:**

    - `variance`: > 0, of every mode of the data.
    - `process`, `sampler`, `schedule`, `rms`, `lipschitz`: as for `theorem_3_1`.

    **Returns:** the number, in the units of the data.

    **Raises:** ValueError as `theorem_3_1`, and for a variance out of range.

    **Example:**

    ```python
    >>> run = (2.0, jk.VP(), "ddim", jk.Schedule([1.0, 0.3, 0.01]))
    >>> number = jk.bounds.as_published.equation_11(*run, rms=0.1, lipschitz=0.1)
    ```
    """
    variance = _checks.parameter("variance", variance, above=0.0)
    steps = checked_steps(process, sampler, schedule)
    t = steps.times
    rate = 0.5 * (1.0 + schedule.stochasticity_squared) * process.diffusion_squared(t)
    slope = -1.0 / (process.signal(t) ** 2 * variance + process.noise(t) ** 2)
    phi = rate * (slope + per_evaluation("lipschitz", lipschitz, t)) - process.drift(t)
    grown = -jnp.diff(schedule.times) * phi
    later = jnp.sum(grown) - jnp.cumsum(grown)
    sizes = steps.injection * jnp.exp(later) * per_evaluation("rms", rms, t)
    return safe_sqrt(jnp.sum(sizes**2))


@in_float64
def theorem_3_2(
    mixture: GaussianMixture,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    *,
    rms: ErrorSize,
    lipschitz: ErrorSize,
    components: Numbers | None = None,
) -> Float[Array, ""]:
    """Compute the main term of equation (17), with the surrogates of (16). Not a bound.

    The curvature of the mixture is replaced by its average -sum_m pi_m Sigma_m^-1 or by that of the
    dominant component, whichever gives the smaller number. For different covariances the dominant
    component depends on the point, and the number is random.

    **Arguments:**

    - `mixture`: the data distribution.
    - `process`, `sampler`, `schedule`, `rms`, `lipschitz`: as for `theorem_3_1`.
    - `components`: (steps,) indices of the dominant component along a run
      (`jk.bounds.dominant_component`). Default: the average alone.

    **Returns:** the number, in the units of the data.

    **Raises:** ValueError as `theorem_3_1`, and for indices out of range.

    **Example:**

    ```python
    >>> mixture = jk.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0])
    >>> run = (mixture, jk.VP(), "ddim", jk.Schedule([1.0, 0.3, 0.01]))
    >>> number = jk.bounds.as_published.theorem_3_2(*run, rms=0.1, lipschitz=0.1)
    ```
    """
    steps = checked_steps(process, sampler, schedule)
    precisions = component_precisions(mixture, process, steps.times)
    average = -jnp.einsum("m,nmdf->ndf", jnp.asarray(mixture.weights), precisions)
    value = _sum_of_squares(steps, average, rms, lipschitz)
    if components is None:
        return value
    index = _component_indices(components, schedule.num_steps, len(np.asarray(mixture.weights)))
    dominant = -precisions[np.arange(len(index)), index]
    return smaller(value, _sum_of_squares(steps, dominant, rms, lipschitz))


@in_float64
def theorem_3_2_remainder(
    mixture: GaussianMixture,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    *,
    rms: ErrorSize,
) -> Float[Array, ""]:
    """Compute the remainder of equation (17) without its constant C. Not a bound.

        (d + 2) max_i rms_i sum_i beta_i sum_{j>i} beta_j Lambda_j

    with Lambda the largest 1 / variance. C hides products of up to K factors of steps, and the
    remainder, linear in rms, stands in a bound on W2^2: it cannot be added to the main term.

    **Arguments:**

    - `mixture`: the data distribution.
    - `process`, `sampler`, `schedule`, `rms`: as for `theorem_3_1`.

    **Returns:** the number, in the units of the data.

    **Raises:** ValueError as `theorem_3_1`.

    **Example:**

    ```python
    >>> mixture = jk.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0])
    >>> run = (mixture, jk.VP(), "ddim", jk.Schedule([1.0, 0.3, 0.01]))
    >>> number = jk.bounds.as_published.theorem_3_2_remainder(*run, rms=0.1)
    ```
    """
    steps = checked_steps(process, sampler, schedule)
    return jnp.sum(_remainder_per_step(mixture, steps, rms))


@in_float64
def theorem_3_3_remainder(
    mixture: GaussianMixture,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    *,
    rms: ErrorSize,
    margins: Numbers,
    small: float = 0.5,
    large: float = 3.0,
) -> Float[Array, ""]:
    """Compute equation (18), all constants that it hides set to 1. Not a bound.

    A step adds delta where the components overlap, e^-kappa where they are far apart, and else what
    it adds to `theorem_3_2_remainder`. The first two have no step size, so the sum grows with the
    number of steps.

    **Arguments:**

    - `mixture`: the data distribution.
    - `process`, `sampler`, `schedule`, `rms`: as for `theorem_3_1`.
    - `margins`: kappa >= 0, (steps,), the smallest along the runs at every evaluation
      (`jk.bounds.logit_margin`).
    - `small`: components overlap where their `separation` is at most this.
    - `large`: they are far apart where kappa is at least this.

    **Returns:** the number; its summands have different units.

    **Raises:** ValueError as `theorem_3_1`.

    **Example:**

    ```python
    >>> mixture = jk.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0])
    >>> run = (mixture, jk.VP(), "ddim", jk.Schedule([1.0, 0.3, 0.01]))
    >>> number = jk.bounds.as_published.theorem_3_3_remainder(*run, rms=0.1, margins=[0.0, 5.0])
    ```
    """
    steps = checked_steps(process, sampler, schedule)
    kappa = per_evaluation("margins", margins, steps.times)
    apart = separation(mixture, process, steps.times)
    between = _remainder_per_step(mixture, steps, rms)
    far = jnp.where(kappa >= large, jnp.exp(-kappa), between)
    return jnp.sum(jnp.where(apart.small(small), apart.largest, far))


@in_float64
def theorem_3_4(
    dim: int,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    *,
    rms: ErrorSize,
    lipschitz: ErrorSize,
) -> Float[Array, ""]:
    """Compute equation (19), for any data. Not a bound.

        as theorem_3_1 with H_j = d / s^2

    which is meant to bound the mean size of the curvature, whereas the product needs that along the
    run; d is below that mean in one dimension.

    **Arguments:**

    - `dim`: d >= 1.
    - `process`, `sampler`, `schedule`, `rms`, `lipschitz`: as for `theorem_3_1`.

    **Returns:** the number, in the units of the data; infinite if a later step than the first meets
    the noise level 0.

    **Raises:** ValueError as `theorem_3_1`, and for `dim` out of range.

    **Example:**

    ```python
    >>> run = (2, jk.VP(), "ddim", jk.Schedule([1.0, 0.3, 0.01]))
    >>> number = jk.bounds.as_published.theorem_3_4(*run, rms=0.1, lipschitz=0.1)
    ```
    """
    size = _checks.count("dim", dim)
    steps = checked_steps(process, sampler, schedule)
    return _sum_of_squares(steps, _over_variance(steps, size), rms, lipschitz)


@in_float64
def corollary_b_1(
    dim: int,
    process: AbstractProcess,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    *,
    rms: ErrorSize,
    lipschitz: ErrorSize,
    smoothness: Numbers,
    until: Numbers,
) -> Float[Array, ""]:
    """Compute theorem 3.4 with the curvature of corollary B.1 at small times. Not a bound.

        H_j = (L + 1) / a(until)^2   for t <= until,   else d / s^2

    The corollary only says that there is such a time. `jk.bounds.CurvatureClass(-L, L)` has the
    interval for every time.

    **Arguments:**

    - `dim`: d >= 1.
    - `process`, `sampler`, `schedule`, `rms`, `lipschitz`: as for `theorem_3_1`.
    - `smoothness`: L >= 0, a bound of |Hess log p_0|, in 1 / variance.
    - `until`: t_0 >= 0.

    **Returns:** the number, in the units of the data.

    **Raises:** ValueError as `theorem_3_4`, and for constants out of range.

    **Example:**

    ```python
    >>> run = (2, jk.VP(), "ddim", jk.Schedule([1.0, 0.3, 0.01]))
    >>> sizes = {"rms": 0.1, "lipschitz": 0.1}
    >>> number = jk.bounds.as_published.corollary_b_1(*run, **sizes, smoothness=1.0, until=0.4)
    ```
    """
    size = _checks.count("dim", dim)
    smoothness = _checks.parameter("smoothness", smoothness, at_least=0.0)
    until = _checks.parameter("until", until, at_least=0.0)
    steps = checked_steps(process, sampler, schedule)
    near = (smoothness + 1.0) / process.signal(until) ** 2
    hessians = jnp.where((steps.times <= until)[:, None, None], near, _over_variance(steps, size))
    return _sum_of_squares(steps, hessians, rms, lipschitz)


def _over_variance(steps: Steps, dim: int) -> Float[Array, "steps 1 1"]:
    """d / s^2 at every evaluation."""
    s2 = steps.process.noise(steps.times) ** 2
    return jnp.where(s2 > 0, dim / jnp.where(s2 > 0, s2, 1.0), jnp.inf)[:, None, None]


def _component_indices(components: Numbers, steps: int, count: int) -> np.ndarray:
    """Indices of components, checked."""
    index = np.asarray(components)
    if index.shape != (steps,) or not np.all((index >= 0) & (index < count)):
        raise ValueError(
            f"components must be {steps} indices of {count} components; got {index.tolist()}."
        )
    return index.astype(int)


def _remainder_per_step(
    mixture: GaussianMixture, steps: Steps, rms: ErrorSize
) -> Float[Array, " steps"]:
    """beta_i sum_{j>i} beta_j (d + 2) Lambda_j times the largest rms."""
    dim = np.shape(mixture.means)[1]
    precision = separation(mixture, steps.process, steps.times).precision
    weighted = steps.injection * (dim + 2) * precision
    later = jnp.sum(weighted) - jnp.cumsum(weighted)
    return steps.injection * later * largest(per_evaluation("rms", rms, steps.times))


def _sum_of_squares(
    steps: Steps, hessians: Float[Array, "steps d d"], rms: ErrorSize, lipschitz: ErrorSize
) -> Float[Array, ""]:
    """(sum_i |G_i|^2 rms_i^2)^(1/2) with the matrices G_i of equation (9)."""
    norms = _operator_norms(steps, hessians, per_evaluation("lipschitz", lipschitz, steps.times))
    return safe_sqrt(jnp.sum((norms * per_evaluation("rms", rms, steps.times)) ** 2))


@jax.jit
def _operator_norms(
    steps: Steps, hessians: Float[Array, "steps d d"], constants: Float[AnyArray, " steps"]
) -> Float[Array, " steps"]:
    """|beta_i prod_{j>i} (alpha_j I + beta_j (H_j + L_j I))|, the product's last step leftmost."""
    identity = jnp.eye(hessians.shape[-1], dtype=hessians.dtype)
    grown = steps.injection * constants + steps.keep
    factors = grown[:, None, None] * identity + steps.injection[:, None, None] * hessians

    def take(product: Array, factor: Array) -> tuple[Array, Array]:
        return product @ factor, product

    _, products = jax.lax.scan(take, identity, factors, reverse=True)
    # one number has no singular values if it is infinite
    scalars = products.shape[-1] == 1
    sizes = products[:, 0, 0] if scalars else jnp.linalg.svd(products, compute_uv=False)[..., 0]
    return jnp.abs(steps.injection * sizes)
