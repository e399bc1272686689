"""LD3: gradients through the unrolled sampler, with a trust region on the initial noise.

The distance of the student's samples to the teacher's is minimised in the logits of the increments
of lambda = log(a/s). The student may start within a ball around the teacher's initial noise, and
its noise takes gradient steps as well. The schedule with the least distance on other noise, which
does the same, is kept.

Source: Tong et al., "Learning to Discretize Denoising Diffusion ODEs" (2024), Algorithm 1,
https://arxiv.org/abs/2405.15506, with the settings of its code for CIFAR-10: 50 + 50 samples,
batches of 2, seven rounds, RMSprop of rate 0.005 and momentum 0.9, clipped gradients. The distance
is Euclidean, as there is no perceptual one for these data; the ball has the same radius relative to
the noise; the network is evaluated at the schedule's own times.

Within a budget there are as many samples as leave it all rounds, and training ends when it is
spent; the teacher, which could serve several searches, is not counted.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

import jaxkernels as jk

from .found import Found, end_sigmas, from_sigmas

SAMPLES = 50
BATCH = 2
ROUNDS = 7
PATIENCE = 5
RATE = 0.005
LEAST_RATE = 5e-5
DECAY = 0.8
# of the noise's norm: 1 in the 3072 dimensions of CIFAR-10
RADIUS = 1.0 / np.sqrt(3072.0)
TEACHER_STEPS = 40
# within a budget, of training and of validation, at least
FEW_SAMPLES = 8


def search(
    denoiser: jk.AbstractDenoiser,
    sampler: str,
    num_steps: int,
    noise: Array,
    t_min: float,
    budget: int | None = None,
) -> Found:
    """The schedule of the round and step with the least distance on the validation noise."""
    most = None if budget is None else budget // num_steps
    samples = SAMPLES if most is None else samples_within(most)
    x = jnp.asarray(noise[: 2 * samples])
    schedule = jk.schedules.log_snr(denoiser.process, TEACHER_STEPS, t_min)
    targets = jk.sample(denoiser, "rk4", schedule, x)
    levels = -np.log(end_sigmas(denoiser.process, t_min))
    student = Student(denoiser, sampler, jnp.asarray(levels, x.dtype), jnp.asarray(t_min, x.dtype))
    z, runs = train(student, x, targets, num_steps, most)
    # a gradient: a forward pass and a backward pass of twice its cost
    nfe = num_steps * runs
    nfe += len(x) * 4 * TEACHER_STEPS if budget is None else 0
    sigmas = np.exp(-np.asarray(student.levels(z), np.float64))
    return Found(from_sigmas(denoiser.process, sigmas, t_min), nfe)


def samples_within(runs: int) -> int:
    """Samples of training with which all rounds take at most as many runs of the sampler."""
    for samples in range(SAMPLES, FEW_SAMPLES, -BATCH):
        steps = samples // BATCH
        if ROUNDS * (steps * (4 * BATCH + samples) + 5 * samples) <= runs:
            return samples
    return FEW_SAMPLES


class Student(eqx.Module):
    """A sampler whose schedule is a function of logits."""

    denoiser: jk.AbstractDenoiser
    sampler: str = eqx.field(static=True)
    ends: Float[Array, " 2"]
    t_min: Float[Array, ""]

    def levels(self, z: Float[Array, " steps"]) -> Float[Array, " points"]:
        """lambda at all points."""
        share = jnp.concatenate([jnp.zeros(1, z.dtype), jnp.cumsum(jax.nn.softmax(z))])
        return self.ends[0] + (self.ends[1] - self.ends[0]) * share

    def distances(
        self, z: Float[Array, " steps"], x: Float[Array, "n d"], targets: Float[Array, "n d"]
    ) -> Float[Array, " n"]:
        """Distance of every sample to the teacher's."""
        process = self.denoiser.process
        inner = process.time_at_sigma(jnp.exp(-self.levels(z)[1:-1]))
        first = jnp.asarray(process.t_max, x.dtype)[None]
        times = jnp.concatenate([first, inner.astype(x.dtype), self.t_min[None]])
        ends = jk.sample(self.denoiser, self.sampler, jk.Schedule(times), x)
        return jnp.sqrt(jnp.sum((ends - targets) ** 2, 1) + 1e-12)


@eqx.filter_jit
def gradients(
    student: Student, z: Array, x: Array, targets: Array
) -> tuple[Array, tuple[Array, Array]]:
    """Distances, and the gradients of their mean in the logits and in the initial noise."""

    def loss(z: Array, x: Array) -> tuple[Array, Array]:
        found = student.distances(z, x, targets)
        return jnp.mean(found), found

    derivatives, found = jax.grad(loss, (0, 1), has_aux=True)(z, x)
    return found, derivatives


@eqx.filter_jit
def evaluate(student: Student, z: Array, x: Array, targets: Array) -> Array:
    """Distances."""
    return student.distances(z, x, targets)


def train(
    student: Student, x: Array, targets: Array, num_steps: int, most: int | None = None
) -> tuple[Array, int]:
    """The best logits, and the number of runs of the sampler, a gradient counted as three.

    No step is taken that would lead to more than `most` runs.
    """
    half = len(x) // 2
    each = 4 * BATCH + half
    most = np.iinfo(np.int64).max if most is None else most
    origin = np.asarray(x)
    moved = origin.copy()
    z = best = jnp.zeros(num_steps, x.dtype)
    rate = RATE
    shift = float(np.linalg.norm(origin, axis=1).mean()) * RADIUS
    # the rate, which decays, multiplies what momentum has summed, as in PyTorch
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.scale_by_rms(decay=0.99), optax.trace(decay=0.9)
    )
    state = optimizer.init(z)
    least = np.inf
    worse = 0
    runs = 0
    for _ in range(ROUNDS):
        z = best
        for begin in range(0, half, BATCH):
            if runs + each > most:
                return best, runs
            rows = slice(begin, begin + BATCH)
            gradient = _move_noise(student, z, moved, origin, targets, rows, shift)
            runs += 4 * len(range(*rows.indices(half)))
            direction, state = optimizer.update(gradient, state)
            z = jnp.asarray(z - rate * jnp.asarray(direction))
            value = float(jnp.mean(evaluate(student, z, jnp.asarray(moved[half:]), targets[half:])))
            runs += half
            worse = 0 if value < least else worse + 1
            if value < least:
                least = value
                best = z
            if worse >= PATIENCE:
                worse = 0
                z = best
                rate = max(DECAY * rate, LEAST_RATE)
        if runs + 5 * half > most:
            return best, runs
        for begin in range(half, len(moved), BATCH):
            rows = slice(begin, begin + BATCH)
            _move_noise(student, z, moved, origin, targets, rows, shift)
            runs += 4 * len(moved[rows])
        least = float(jnp.mean(evaluate(student, best, jnp.asarray(moved[half:]), targets[half:])))
        runs += half
    return best, runs


def _move_noise(
    student: Student,
    z: Array,
    moved: np.ndarray,
    origin: np.ndarray,
    targets: Array,
    rows: slice,
    radius: float,
) -> Array:
    """Move rows of the noise down the gradient, within the ball, where that helps.

    Returns the gradient in the logits.
    """
    before, (in_logits, in_noise) = gradients(student, z, jnp.asarray(moved[rows]), targets[rows])
    step = np.asarray(in_noise)
    length = np.linalg.norm(step, axis=1, keepdims=True)
    proposed = moved[rows] - 0.5 * radius * step / np.maximum(length, 1e-12)
    away = proposed - origin[rows]
    distance = np.linalg.norm(away, axis=1, keepdims=True)
    proposed = origin[rows] + away * np.minimum(1.0, radius / np.maximum(distance, 1e-12))
    after = evaluate(student, z, jnp.asarray(proposed), targets[rows])
    better = np.asarray(after < before)[:, None]
    moved[rows] = np.where(better, proposed, moved[rows])
    return in_logits
