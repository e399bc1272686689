"""What changing a network does to its samples, by the step in which it acts.

Between two denoisers D and D' lies the family D_eps = D + eps (D' - D), whose samples x(eps) start
from the same initial noise. Their derivative at eps = 0 is a sum over the steps,

    x'(0) = sum_k c_k,    c_k = Phi_{K <- k+1} d step_k / d eps,                                (1)

the difference of the networks at the points that D reaches, propagated along the trajectory by the
derivative Phi of the later steps, multistep history included. To first order the mean square change
is the sum of a matrix over pairs of steps,

    E |x(1) - x(0)|^2 = sum_{a, b} Q_ab + ...,    Q_ab = E <c_a, c_b>.                          (2)

Q is the error kernel of a nonlinear network along its own trajectories, contracted with what the
difference is at two times: diagonal if the differences of two steps have nothing in common. What is
left out is

    x(1) - x(0) - x'(0) = int_0^1 x'(eps) - x'(0) d eps,                                        (3)

the second order x''/2 where that integrand is linear. Near the border between two ends of
trajectories it is not: x' may rise to a peak in between and be the same again at D', so that
neither x''(0) nor x'(1) shows anything. It is therefore read at eps = 1/2 and 1 (`_remainders`).

Source: the linearisation of correlated-time kernels of score errors along trajectories.
"""

import os
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from .. import _checks
from .._nfe import EVALUATION, JACOBIAN_VECTOR_PRODUCT
from .._numerics import larger, safe_divide
from .._plot import FigureSpec, render
from .._precision import to_dtype
from .._tables import describe, number
from ..prediction import (
    AbstractDenoiser,
    Prediction,
    check_denoiser,
    in_working_precision,
)
from ..processes import same_process
from ..samplers import (
    AbstractSampler,
    check_batch_sampler,
    check_noise,
    check_schedule,
    drawing_key,
    sampling_nfe,
    split_key,
    take_step,
)
from ..schedules import Schedule, Step
from ._figure import sample_change_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SampleChange(eqx.Module):
    """How samples change from one network to another, from the same initial noise.

    **Arguments:**

    - `before`: (n, ...) samples of the first network, in units of the data.
    - `after`: (n, ...) samples of the second one.
    - `contributions`: (K, n, ...), what each step contributes to the change, to first order.
    - `remainders`: (n,) for every sample, the size of what the first order leaves out, estimated
      without the change itself.
    - `nfe`: NFE of both networks, of all samples together.

    **Example:**

    ```python
    >>> change = jk.SampleChange(*jnp.ones((2, 4, 3)), jnp.zeros((8, 4, 3)), jnp.zeros(4), 0)
    >>> change.kernel.shape
    (8, 8)
    ```
    """

    before: Float[Array, "n *shape"]
    after: Float[Array, "n *shape"]
    contributions: Float[Array, "steps n *shape"]
    remainders: Float[Array, " n"]
    nfe: int = eqx.field(static=True)

    @property
    def measured(self) -> Float[Array, "n *shape"]:
        """The change itself."""
        return self.after - self.before

    @property
    def first_order(self) -> Float[Array, "n *shape"]:
        """The sum of all contributions."""
        return jnp.sum(self.contributions, 0)

    @property
    def kernel(self) -> Float[Array, "steps steps"]:
        """The mean of <c_a, c_b> over the samples; its sum is the mean square of first order."""
        steps, n = self.contributions.shape[:2]
        rows = self.contributions.reshape(steps, -1)
        return jnp.einsum("ai,bi->ab", rows, rows) / n

    @property
    def error(self) -> Float[Array, ""]:
        """The rms distance of the first order to the change, relative to it; 0 without a change."""
        return safe_divide(_rms(self.measured - self.first_order), _rms(self.measured))

    @property
    def remainder(self) -> Float[Array, ""]:
        """The rms remainder relative to the rms first order: what to expect of `error`."""
        return safe_divide(_rms(self.remainders), _rms(self.first_order))

    def holds(self, within: float = 0.1) -> Bool[Array, " n"]:
        """Return for which samples the first order is the change, up to a relative error.

            remainder <= within (|first order| - remainder)

        as the change is at least |first order| - remainder. The change itself is not used. The
        remainder is an estimate, not a bound: what happens on a short way between the networks D,
        (D + D') / 2 and D' alone may escape it.

        **Arguments:**

        - `within`: the error relative to the change, > 0.

        **Returns:** (n,), True where the expansion says that it holds.

        **Raises:** ValueError for another `within`.

        **Example:**

        ```python
        >>> change = jk.SampleChange(*jnp.ones((2, 4, 3)), jnp.ones((8, 4, 3)), jnp.ones(4), 0)
        >>> bool(change.holds(0.1).all())
        True
        ```
        """
        within = float(_checks.scalar("within", within, above=0.0))
        return (1.0 + within) * self.remainders <= within * _norms(self.first_order)

    def figure(self) -> FigureSpec:
        """Describe the figure of `plot`.

        **Returns:** the figure as plain data.
        """
        return sample_change_figure(
            np.asarray(self.kernel, np.float64),
            np.asarray(_norms(self.measured), np.float64),
            np.asarray(_norms(self.first_order), np.float64),
        )

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Draw what each step contributes, and predicted beside measured changes.

        **Arguments:**

        - `path`: where to save the figure, ending in .png, .pdf or .svg; by default
          it is not saved.

        **Returns:** a matplotlib figure. `figure()` has what it shows as plain data.

        **Raises:** ValueError for another suffix or a file that cannot be written; ImportError
        without matplotlib.

        **Example:**

        ```python
        >>> change = jk.SampleChange(*jnp.ones((2, 4, 3)), jnp.ones((8, 4, 3)), jnp.ones(4), 0)
        >>> len(change.plot().axes)
        2
        ```
        """
        return render(self.figure(), path)

    def __str__(self) -> str:
        entries = [
            ("measured", f"{number(float(_rms(self.measured)))} rms"),
            ("first order", f"{number(float(_rms(self.first_order)))} rms"),
            ("its error", f"{float(self.error):.1%} of the change"),
            ("remainder", f"{float(self.remainder):.1%} expected"),
            ("NFE", f"{self.nfe:,}"),
        ]
        n = self.before.shape[0]
        return describe(f"change of {n} samples over {len(self.contributions)} steps", entries)


def predict_sample_change(
    denoiser: AbstractDenoiser,
    changed: AbstractDenoiser,
    sampler: AbstractSampler | str,
    schedule: Schedule,
    noise: Float[Array, "n *shape"],
    *,
    key: PRNGKeyArray | Array | None = None,
) -> SampleChange:
    """Predict how samples change from one network to another, by step, and measure it.

        x'(0) = sum_k c_k,     E |x(1) - x(0)|^2 = sum_{a, b} E <c_a, c_b> + ...

    with the samples x(eps) of D + eps (D' - D). Two checkpoints, a network and its quantised or
    distilled copy, or one with and without guidance: which steps turn their difference into a
    difference of samples? The networks must have derivatives in forward mode, as those of JAX and
    PyTorch do. Per sample and evaluation of the sampler the NFE are K + 9: K + 5 for the samples
    and the derivatives at both networks, 4 for those of the network between them, which make the
    remainder see what the two ends do not.

    **Arguments:**

    - `denoiser`: the first network D.
    - `changed`: the second one D', of the same process.
    - `sampler`: a sampler or its name, with the same times for all samples.
    - `schedule`: of K steps.
    - `noise`: initial noise (n, ...).
    - `key`: a random key, required if the schedule is stochastic. Both networks have its draws.

    **Returns:** a `SampleChange`.

    **Raises:** ValueError naming the argument; for two processes; for a randomised sampler or one
    that forms a Jacobian.

    **Example:**

    ```python
    >>> networks = [jk.Gaussian([m], [0.1]).denoiser(jk.VP()) for m in (1.0, 1.1)]
    >>> setting = ("ddim", jk.schedules.log_snr(jk.VP(), 8, 1e-3), jnp.ones((4, 1)))
    >>> bool(jk.predict_sample_change(*networks, *setting).error < 1e-3)
    True
    ```

    Source: the linearisation of correlated-time kernels of score errors along trajectories.
    """
    process = check_denoiser(denoiser).process
    if not same_process(process, check_denoiser(changed).process):
        raise ValueError(f"changed is of {changed.process}; denoiser of {process}.")
    sampler = check_batch_sampler(sampler)
    schedule = check_schedule(process, sampler, schedule)
    noise = check_noise(noise)
    key = drawing_key(sampler, schedule, key)
    steps = schedule.num_steps
    setting = (sampler, schedule, key, noise)
    before, contributions = _derivatives(denoiser, changed, *setting, jnp.eye(steps), 0.0)
    every = jnp.ones((1, steps))
    between, middle = _derivatives(denoiser, changed, *setting, every, 0.5)
    after, backwards = _derivatives(changed, denoiser, *setting, every, 0.0)
    rates = jnp.stack([jnp.sum(contributions, 0), middle[0], -backwards[0]])
    remainders = _remainders(rates, between - before)
    # both networks in three runs; tangents through that of the run, in the middle through both
    values = 3 * EVALUATION * (denoiser.nfe + changed.nfe)
    tangents = JACOBIAN_VECTOR_PRODUCT * ((steps + 1) * denoiser.nfe + 2 * changed.nfe)
    nfe = noise.shape[0] * (values + tangents) * sampling_nfe(process, sampler, schedule)
    return SampleChange(before, after, contributions, remainders, nfe)


@eqx.filter_jit
def _derivatives(
    denoiser: AbstractDenoiser,
    other: AbstractDenoiser,
    sampler: AbstractSampler,
    schedule: Schedule,
    key: Array | None,
    x: Float[Array, "n *shape"],
    tangents: Float[Array, "tangents steps"],
    share: float,
) -> tuple[Float[Array, "n *shape"], Float[Array, "tangents n *shape"]]:
    """Samples with a share of `other`, and their derivatives in each step's share of it."""
    denoiser, x = in_working_precision(denoiser, x)
    denoiser = denoiser.astype(x.dtype)
    other = other.astype(x.dtype)
    schedule = to_dtype(schedule, x.dtype)
    keys = split_key(key, schedule.num_steps)
    steps = schedule.steps(sampler.history_steps)

    def run(shares: Float[Array, " steps"]) -> Array:
        def step(state: tuple[Array, PyTree], inputs: tuple[Step, Array | None, Array]):
            step, key, moved = inputs

            def predict(x: Array, t: Array) -> Prediction:
                return _moved(denoiser(x, t), other(x, t), moved, share > 0.0)

            return take_step(sampler, predict, denoiser.process, step, key, *state), None

        return jax.lax.scan(step, (x, sampler.init_history(x)), (steps, keys, shares))[0][0]

    def derivative(tangent: Float[Array, " steps"]) -> tuple[Array, Array]:
        return jax.jvp(run, (jnp.full_like(tangent, share),), (tangent,))

    return jax.vmap(derivative, out_axes=(None, 0))(tangents.astype(x.dtype))


def _moved(
    prediction: Prediction, other: Prediction, share: Float[Array, ""], between: bool
) -> Prediction:
    """A prediction moved to another one by a share, which is 0 but for its tangent or `between`."""

    def move(a: Array, b: Array) -> Array:
        # the difference has a derivative in x too, which a share of 0 multiplies
        change = b - a if between else jax.lax.stop_gradient(b - a)
        return a + share * change

    score = None
    if prediction.score is not None and other.score is not None:
        score = move(prediction.score, other.score)
    return Prediction(move(prediction.x0, other.x0), move(prediction.eps, other.eps), score)


def _remainders(
    rates: Float[Array, "3 n *shape"], half: Float[Array, "n *shape"]
) -> Float[Array, " n"]:
    """The size of (3), of x' at 0, 1/2 and 1 and of x(1/2) - x(0): the larger of two readings.

    Simpson's rule for the integral of |x' - x'(0)|; and what half the change leaves out, with the
    trapezoidal rule for the other half. Both are |x''| / 2 where x' is linear.
    """
    middle = _norms(rates[1] - rates[0])
    end = _norms(rates[2] - rates[0])
    simpson = (4.0 * middle + end) / 6.0
    by_half = _norms(half - 0.5 * rates[0]) + 0.25 * (middle + end)
    return larger(simpson, by_half)


def _norms(changes: Float[Array, "n *shape"]) -> Float[Array, " n"]:
    """The size of every sample's change."""
    return jnp.linalg.norm(changes.reshape(changes.shape[0], -1), axis=1)


def _rms(changes: Float[Array, "n *shape"]) -> Float[Array, ""]:
    """The root of the mean square of every sample's change."""
    return jnp.sqrt(jnp.sum(changes**2) / changes.shape[0])
