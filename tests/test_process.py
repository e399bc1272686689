"""Forward processes against closed forms, automatic differentiation and moment equations."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import ArrayLike
from scipy.integrate import quad, solve_ivp

import jaxkernels as jk
from jaxkernels.processes import PROCESSES, same_process
from jaxkernels.processes._ve import AbstractVarianceExploding

Curve = Callable[[Any], np.ndarray]


class Case(NamedTuple):
    """A process, its signal and noise in NumPy, a as a function of sigma^2, and times inside."""

    process: jk.AbstractProcess
    signal: Curve
    noise: Curve
    signal_at: Curve
    times: np.ndarray


def _preserving(signal: Curve) -> tuple[Curve, Curve, Curve]:
    return signal, lambda t: np.sqrt(1.0 - signal(t) ** 2), lambda v: (1.0 + v) ** -0.5


def _exploding(noise: Curve) -> tuple[Curve, Curve, Curve]:
    return lambda t: np.ones_like(t), noise, lambda v: np.ones_like(v)


# a short table whose log sigma is not linear, so that the cells differ
TABLE = np.array([0.99, 0.9, 0.7, 0.4, 0.1, 0.02])
SIGMAS = np.sqrt(1.0 / TABLE - 1.0)


def _table_signal(t: np.ndarray) -> np.ndarray:
    """Between entries sigma is the neighbours' geometric interpolation; below the first, a line."""
    t = np.asarray(t, float)
    n = np.clip(np.floor(t).astype(int), 1, TABLE.size - 1)
    sigma = SIGMAS[n - 1] * (SIGMAS[n] / SIGMAS[n - 1]) ** (t - n)
    sigma = np.where(t < 1.0, t * SIGMAS[0], sigma)
    return 1.0 / np.sqrt(1.0 + sigma**2)


def _cosine_signal(t: np.ndarray, offset: float = 0.008) -> np.ndarray:
    def angle(t: np.ndarray | float) -> np.ndarray:
        return 0.5 * np.pi * (np.asarray(t) + offset) / (1.0 + offset)

    return np.cos(angle(t)) / np.cos(angle(0.0))


def _inside(t_max: float) -> np.ndarray:
    return t_max * np.array([0.003, 0.017, 0.11, 0.29, 0.5, 0.73, 0.91, 0.99])


CASES = {
    "vp": Case(
        jk.VP(), *_preserving(lambda t: np.exp(-0.05 * t - 19.9 * t**2 / 4.0)), _inside(1.0)
    ),
    "vp_constant_rate": Case(jk.VP(2.0, 2.0), *_preserving(lambda t: np.exp(-t)), _inside(1.0)),
    "ou": Case(jk.OU(rate=1.3, t_max=6.0), *_preserving(lambda t: np.exp(-0.65 * t)), _inside(6.0)),
    "ve": Case(jk.VE(rate=3.0, t_max=40.0), *_exploding(lambda t: np.sqrt(3.0 * t)), _inside(40.0)),
    "edm": Case(jk.EDM(30.0), *_exploding(lambda t: t), _inside(30.0)),
    "cosine_vp": Case(jk.CosineVP(), *_preserving(_cosine_signal), _inside(1.0)),
    "power_vp": Case(jk.PowerVP(), *_preserving(lambda t: 1.0 - t), _inside(1.0)),
    "quadratic_vp": Case(jk.PowerVP(2), *_preserving(lambda t: 1.0 - t**2), _inside(1.0)),
    "flow_matching": Case(
        jk.FlowMatching(),
        lambda t: 1.0 - t,
        lambda t: t,
        lambda v: 1.0 / (1.0 + np.sqrt(v)),
        _inside(1.0),
    ),
    "discrete_vp": Case(
        jk.DiscreteVP(TABLE),
        *_preserving(_table_signal),
        np.array([0.02, 0.4, 0.9, 1.3, 2.5, 3.1, 4.7, 5.9]),
    ),
}
EVERY = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def test_every_registered_process_has_a_case() -> None:
    assert {type(c.process) for c in CASES.values()} == set(PROCESSES.values())


@EVERY
def test_signal_noise_and_levels(case: Case) -> None:
    t, p = case.times, case.process
    a, s = case.signal(t), case.noise(t)
    np.testing.assert_allclose(p.signal(t), a, rtol=1e-13)
    # sqrt(1 - a^2), the oracle of half of them, is itself good to 1e-10 at the smallest times only
    np.testing.assert_allclose(p.noise(t), s, rtol=2e-10)
    np.testing.assert_allclose(p.sigma(t), s / a, rtol=2e-10)
    np.testing.assert_allclose(p.log_snr(t), np.log(a**2 / s**2), rtol=2e-10, atol=4e-10)


@EVERY
def test_coefficients_are_derivatives(case: Case) -> None:
    """f = (log a)' and g^2 = (s^2)' - 2 f s^2, by automatic differentiation of a and s."""
    t, p = jnp.asarray(case.times), case.process
    rate = jax.vmap(jax.grad(lambda t: jnp.log(p.signal(t))))(t)
    growth = jax.vmap(jax.grad(lambda t: p.noise(t) ** 2))(t)
    np.testing.assert_allclose(p.drift(t), rate, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(
        p.diffusion_squared(t), growth - 2.0 * rate * p.noise(t) ** 2, rtol=1e-10
    )
    np.testing.assert_allclose(p.signal_rate(t), rate * p.signal(t), rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(p.noise_rate(t), growth / (2.0 * p.noise(t)), rtol=1e-11)


@EVERY
def test_moment_equations(case: Case) -> None:
    """m' = f m and v' = 2 f v + g^2, integrated numerically, give a and s^2."""
    start, end = case.times[1], case.times[-2]
    if isinstance(case.process, jk.DiscreteVP):  # smooth only between the entries of its table
        start, end = 4.05, 4.95

    def rhs(t: float, y: np.ndarray) -> list[float]:
        f, g2 = float(case.process.drift(t)), float(case.process.diffusion_squared(t))
        return [f * y[0], 2.0 * f * y[1] + g2]

    first = [case.signal(start), case.noise(start) ** 2]
    last = solve_ivp(rhs, (start, end), first, rtol=1e-8, atol=1e-11).y[:, -1]
    np.testing.assert_allclose(last, [case.signal(end), case.noise(end) ** 2], rtol=1e-6)


@EVERY
def test_inverses(case: Case) -> None:
    t, p = case.times, case.process
    a, s = case.signal(t), case.noise(t)
    np.testing.assert_allclose(p.time_at_sigma(s / a), t, rtol=1e-9)
    np.testing.assert_allclose(p.time_at_log_snr(np.log(a**2 / s**2)), t, rtol=1e-9)


@EVERY
def test_integrated_signal(case: Case) -> None:
    """int_0^{sigma^2} a dv by adaptive quadrature, a as a function of v = sigma^2 written here."""
    for t in case.times:
        top = float((case.noise(t) / case.signal(t)) ** 2)
        # v = y^2 removes the square root at 0; the breakpoints help with the long tail
        knots = np.sqrt(top) * np.array([0.0, 0.01, 0.1, 1.0])
        pieces = [
            quad(lambda y: 2.0 * y * case.signal_at(y * y), *ends, epsabs=0.0, epsrel=1e-12)[0]
            for ends in itertools.pairwise(knots)
        ]
        np.testing.assert_allclose(case.process.integrated_signal(t), sum(pieces), rtol=1e-8)


@EVERY
def test_prior_variance(case: Case) -> None:
    """Sampling starts from N(0, I), or from the noise alone where the signal does not fade."""
    exploding = isinstance(case.process, jk.VE | jk.EDM)
    expected = case.noise(case.times) ** 2 if exploding else np.ones_like(case.times)
    np.testing.assert_allclose(case.process.prior_variance(case.times), expected, rtol=1e-13)


@EVERY
def test_exact_at_the_data_end(case: Case) -> None:
    p = case.process
    assert float(p.signal(0.0)) == 1.0
    assert float(p.noise(0.0)) == 0.0
    assert float(p.sigma(0.0)) == 0.0
    assert float(p.log_snr(0.0)) == np.inf
    assert float(p.time_at_sigma(0.0)) == 0.0
    assert float(p.time_at_log_snr(np.inf)) == 0.0
    assert float(p.integrated_signal(0.0)) == 0.0


@pytest.mark.parametrize(
    "process",
    [
        jk.CosineVP(),
        jk.CosineVP(offset=0.0),
        jk.FlowMatching(),
        jk.PowerVP(),
        jk.PowerVP(2),
    ],
)
def test_exact_at_the_noise_end(process: jk.AbstractProcess) -> None:
    """No signal at all at t = 1, and still finite rates of change."""
    assert float(process.t_max) == 1.0
    assert float(process.signal(1.0)) == 0.0
    assert float(process.noise(1.0)) == pytest.approx(1.0, abs=1e-15)
    assert float(process.sigma(1.0)) == np.inf
    assert float(process.log_snr(1.0)) == -np.inf
    assert float(process.time_at_sigma(np.inf)) == pytest.approx(1.0, abs=1e-15)
    assert np.isfinite(float(process.signal_rate(1.0)))
    assert np.isfinite(float(process.noise_rate(1.0)))
    assert np.isfinite(float(jax.grad(lambda t: process.signal(t) + process.noise(t))(1.0)))


@EVERY
def test_monotone_signal_to_noise(case: Case) -> None:
    assert np.all(np.diff(case.process.log_snr(case.times)) < 0)


@EVERY
@pytest.mark.parametrize("name", ["signal", "noise", "sigma", "integrated_signal", "noise_rate"])
def test_no_nan_derivative_at_the_data_end(case: Case, name: str) -> None:
    value, slope = jax.value_and_grad(getattr(case.process, name))(0.0)
    assert np.isfinite(float(value))
    assert np.isfinite(float(slope))


@EVERY
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)])
def test_shapes_are_kept(case: Case, shape: tuple[int, ...]) -> None:
    for method in (
        "signal",
        "noise",
        "sigma",
        "log_snr",
        "drift",
        "diffusion_squared",
        "integrated_signal",
        "prior_variance",
        "signal_rate",
        "noise_rate",
        "time_at_sigma",
        "time_at_log_snr",
    ):
        result = jax.eval_shape(getattr(case.process, method), jax.ShapeDtypeStruct(shape, float))
        assert result.shape == shape, method


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=name) for name, c in CASES.items()],
)
@pytest.mark.usefixtures("float32")
def test_float32_stays_float32_and_close(case: Case) -> None:
    t = jnp.asarray(case.times)
    assert t.dtype == jnp.float32
    t64 = np.asarray(t, np.float64)  # the rounded times are what the functions see
    for method, exact, tolerance in (
        ("signal", case.signal(t64), 1e-5),
        ("noise", case.noise(t64), 1e-5),
        ("sigma", case.noise(t64) / case.signal(t64), 1e-5),
    ):
        value = getattr(case.process, method)(t)
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, exact, rtol=tolerance)
    level = jnp.asarray(case.noise(t64) / case.signal(t64), jnp.float32)
    np.testing.assert_allclose(case.process.time_at_sigma(level), t64, rtol=1e-4)


@EVERY
def test_integers_are_times(case: Case) -> None:
    t = 1 if float(case.process.t_max) > 1 else 0
    assert float(case.process.signal(t)) == pytest.approx(
        float(case.signal(np.asarray(float(t)))), rel=1e-13
    )


def test_conventions_of_the_sources() -> None:
    """The equations of common conventions.

    dX = -X dt + sqrt 2 dW: a = e^-t. dX = -X/2 dt + dW: a = e^(-t/2). dX = sqrt 2 dW: s^2 = 2t.
    """
    t = np.array([0.1, 0.7, 2.0])
    np.testing.assert_allclose(jk.OU(rate=2.0).signal(t), np.exp(-t), rtol=1e-14)
    np.testing.assert_allclose(jk.OU(rate=2.0).drift(t), -np.ones(3), rtol=1e-14)
    np.testing.assert_allclose(jk.OU(rate=2.0).diffusion_squared(t), 2.0 * np.ones(3), rtol=1e-14)
    np.testing.assert_allclose(jk.OU(rate=1.0).signal(t), np.exp(-t / 2.0), rtol=1e-14)
    np.testing.assert_allclose(jk.OU().diffusion_squared(t), np.ones(3), rtol=1e-14)
    np.testing.assert_allclose(jk.VE(rate=2.0).noise(t) ** 2, 2.0 * t, rtol=1e-14)
    np.testing.assert_allclose(jk.EDM().noise(t), t, rtol=0)
    np.testing.assert_allclose(
        jk.VP().diffusion_squared(np.array([0.0, 1.0])), [0.1, 20.0], rtol=1e-14
    )
    # VP with a constant rate is an Ornstein-Uhlenbeck process
    np.testing.assert_allclose(jk.VP(1.0, 1.0).signal(t), jk.OU(rate=1.0).signal(t), rtol=1e-14)


def test_discrete_vp_reproduces_its_table() -> None:
    process, n = jk.DiscreteVP(TABLE), np.arange(1, TABLE.size + 1)
    assert float(process.t_max) == TABLE.size
    np.testing.assert_allclose(process.signal(n) ** 2, TABLE, rtol=1e-13)
    np.testing.assert_allclose(process.time_at_sigma(SIGMAS), n, rtol=1e-12)
    # in the middle of entries the level is the geometric mean, below the first entry
    # a straight line
    np.testing.assert_allclose(
        process.sigma(n[:-1] + 0.5), np.sqrt(SIGMAS[:-1] * SIGMAS[1:]), rtol=1e-13
    )
    np.testing.assert_allclose(
        process.sigma(np.array([0.25, 0.75])), [0.25 * SIGMAS[0], 0.75 * SIGMAS[0]], rtol=1e-13
    )


def test_scaled_linear_table() -> None:
    """Stable Diffusion's table, built as its own code does: its levels are 0.0292 to 14.6146."""
    betas = np.array(
        [(0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / 999) ** 2 for i in range(1000)]
    )
    table = np.exp(np.cumsum(np.log1p(-betas)))
    process, n = jk.DiscreteVP.scaled_linear(), np.arange(1, 1001)
    np.testing.assert_allclose(process.signal(n) ** 2, table, rtol=1e-11)
    assert float(process.sigma(1000.0)) == pytest.approx(14.6146, abs=5e-5)
    assert float(process.sigma(1.0)) == pytest.approx(0.0292, abs=5e-5)


def test_cosine_offset() -> None:
    t = np.linspace(0.0, 0.98, 9)
    np.testing.assert_allclose(
        jk.CosineVP(offset=0.05).signal(t), _cosine_signal(t, 0.05), rtol=1e-12
    )


def test_variance_preserving_keeps_digits_near_the_data() -> None:
    """1 - e^-B for B = 1e-14 without cancellation."""
    t = 1e-14
    assert float(jk.OU(rate=1.0).noise(t)) == pytest.approx(1e-7, rel=1e-12, abs=0.0)
    assert float(jk.OU(rate=1.0).integrated_signal(t)) == pytest.approx(1e-14, rel=1e-12, abs=0.0)


def test_derivatives_in_parameters() -> None:
    """d a / d beta_max = -t^2/4 a for VP; d s^2 / d rate = t for VE."""
    t = 0.6
    slope = jax.grad(lambda b: jk.VP(0.1, b).signal(t))(20.0)
    expected = -(t**2) / 4.0 * np.exp(-0.05 * t - 19.9 * t**2 / 4.0)
    assert float(slope) == pytest.approx(expected, rel=1e-12)
    assert float(jax.grad(lambda r: jk.VE(r).noise(t) ** 2)(2.0)) == pytest.approx(t, rel=1e-12)
    assert float(jax.grad(lambda r: jk.OU(r).drift(t))(1.0)) == pytest.approx(-0.5, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jk.VP(beta_min=0.0), r"beta_min = 0 must be > 0"),
        (lambda: jk.VP(beta_min=-1.0), r"beta_min = -1 must be > 0"),
        (lambda: jk.VP(beta_min=3.0, beta_max=2.0), r"beta_max = 2 must be >= 3"),
        (lambda: jk.VP(beta_max=np.nan), r"beta_max = nan"),
        (lambda: jk.VP(beta_max=np.ones(2)), r"beta_max must be a single number; got shape \(2,\)"),
        (lambda: jk.VP(beta_max=np.array("fast")), r"beta_max must be an array of real numbers"),
        (lambda: jk.OU(rate=-2.0), r"rate = -2 must be > 0"),
        (lambda: jk.OU(t_max=0.0), r"t_max = 0 must be > 0"),
        (lambda: jk.OU(t_max=np.inf), r"t_max = inf: every number must be finite"),
        (lambda: jk.VE(rate=0.0), r"rate = 0 must be > 0"),
        (lambda: jk.VE(t_max=-1.0), r"t_max = -1 must be > 0"),
        (lambda: jk.EDM(sigma_max=0.0), r"sigma_max = 0 must be > 0"),
        (lambda: jk.EDM(sigma_max=1j), r"sigma_max must be an array of real numbers; got complex"),
        (lambda: jk.CosineVP(offset=-0.1), r"offset = -0.1 must be >= 0"),
        (lambda: jk.CosineVP(t_max=1.5), r"t_max = 1.5 must be > 0 and <= 1"),
        (lambda: jk.PowerVP(3), r"power = 3 must be 1 or 2"),
        (
            lambda: jk.DiscreteVP(np.array([1e-4, 0.01, 0.5, 1.0])),
            r"found 0\.0001 \.\. 1\. Betas go to DiscreteVP\.from_betas; a table in reverse",
        ),
        (
            lambda: jk.DiscreteVP.from_betas(np.linspace(0.999, 0.005, 1000)),
            r"betas fall from 0\.999 to 0\.005: these are alphas_cumprod",
        ),
        (lambda: jk.DiscreteVP.scaled_linear(beta_end=2.0), r"beta_end = 2 must be > 0 and < 1"),
        (lambda: jk.DiscreteVP.scaled_linear(-1.0), r"beta_start = -1 must be > 0 and < 1"),
        (
            lambda: jk.DiscreteVP.scaled_linear(num_train_timesteps=1),
            r"num_train_timesteps = 1 must be at least 2",
        ),
        # of sizes that no data survive, or that float32 has not
        (lambda: jk.VP(beta_max=99999999), r"beta_max = 1e\+08 must be >= 0\.1 and <= 10000"),
        (lambda: jk.VP(1e9, 2e9), r"beta_min = 1e\+09 must be > 0 and <= 10000"),
        (lambda: jk.OU(rate=1e9), r"rate = 1e\+09 must be > 0 and <= 10000"),
        (lambda: jk.OU(t_max=1e300), r"t_max = 1e\+300 must be > 0 and <= 1e\+09"),
        (lambda: jk.VE(rate=1e300), r"rate = 1e\+300 must be > 0 and <= 1e\+09"),
        (lambda: jk.VE(t_max=1e300), r"t_max = 1e\+300 must be > 0 and <= 1e\+09"),
        (lambda: jk.EDM(sigma_max=1e40), r"sigma_max = 1e\+40 must be > 0 and <= 1e\+09"),
        (lambda: jk.CosineVP(offset=1e30), r"offset = 1e\+30 must be >= 0 and <= 1e\+09"),
        (
            lambda: jk.DiscreteVP(np.array([0.5])),
            r"alphas_cumprod must be a list of at least 2 .* shape \(1,\)",
        ),
        (lambda: jk.DiscreteVP(np.array([[0.5, 0.4]])), r"alphas_cumprod .* shape \(1, 2\)"),
        (
            lambda: jk.DiscreteVP(np.array([0.5, 0.0, 0.0])),
            r"alphas_cumprod must lie strictly .* 5\.96046e-08|.* 0 \.\. 0\.5",
        ),
        (
            lambda: jk.DiscreteVP(np.array([1.0, 1.0, 0.5])),
            r"alphas_cumprod must lie strictly .* 0\.5 \.\. 1",
        ),
        (
            lambda: jk.DiscreteVP(np.array([0.1, 0.5, 0.9])),
            r"must decrease; entries 0 and 1 are 0\.1, 0\.5\. Betas go to DiscreteVP\.from_betas",
        ),
        # one step's numbers, which decrease as well, and betas in reverse order
        (
            lambda: jk.DiscreteVP(1.0 - np.linspace(1e-4, 0.02, 1000)),
            r"alphas_cumprod end with 0\.98, .* give their product, np\.cumprod\(alphas\)",
        ),
        (
            lambda: jk.DiscreteVP(np.linspace(0.02, 1e-4, 1000)),
            r"alphas_cumprod begin with 0\.02, .* betas in reverse order, reverse them",
        ),
        # 1 - a^2 = 0.00085 is 0.00098 there
        (
            lambda: jk.DiscreteVP(np.array([0.99915, 0.5, 0.1], np.float16)),
            r"alphas_cumprod has dtype float16, .* in float32, or the betas",
        ),
        (
            lambda: jk.DiscreteVP(jnp.array([0.9, 0.5, 0.1], jnp.bfloat16)),
            r"alphas_cumprod has dtype bfloat16, .* in float32, or the betas",
        ),
        (lambda: jk.DiscreteVP([[0.9, 0.5], [0.1]]), r"alphas_cumprod must be .* inhomogeneous"),
        (
            lambda: jk.DiscreteVP.from_betas([0.1, 1.0, 0.2]),
            r"betas must lie strictly between 0 and 1, the last one may be 1; found 0\.1 \.\. 1",
        ),
        (
            lambda: jk.DiscreteVP(np.array([0.9, 0.5, 0.6])),
            r"alphas_cumprod must decrease; entries 1 and 2 are 0\.5, 0\.6",
        ),
        (lambda: jk.DiscreteVP(np.array([0.9, np.nan])), r"alphas_cumprod\[1\] = nan"),
    ],
)
def test_bad_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


class TestTables:
    """What stands for the entries of a table."""

    BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2

    def test_a_first_entry_1_is_the_data(self) -> None:
        table = np.cumprod(1.0 - self.BETAS)
        process = jk.DiscreteVP(np.append(1.0, table))
        np.testing.assert_array_equal(process.log_sigmas, jk.DiscreteVP(table).log_sigmas)
        assert float(process.sigma(0.0)) == 0.0

    def test_a_last_entry_0_is_that_of_diffusers(self) -> None:
        """sigma^2 = 1 / 2^-24 - 1."""
        process = jk.DiscreteVP([0.9, 0.5, 0.0])
        assert float(process.sigma(3.0)) == pytest.approx(np.sqrt(2.0**24 - 1.0), rel=1e-6)
        assert float(process.sigma(2.0)) == pytest.approx(1.0, rel=1e-6)

    def test_betas_are_recognised(self) -> None:
        named = jk.DiscreteVP.from_betas(self.BETAS)
        for process in (named, jk.DiscreteVP(self.BETAS)):
            np.testing.assert_array_equal(
                process.log_sigmas, jk.DiscreteVP.scaled_linear().log_sigmas
            )
        constant = jk.DiscreteVP(np.full(3, 0.1))
        np.testing.assert_allclose(constant.signal(np.arange(1.0, 4.0)) ** 2, [0.9, 0.81, 0.729])

    def test_betas_of_zero_terminal_snr(self) -> None:
        process = jk.DiscreteVP.from_betas([0.1, 0.5, 1.0])
        np.testing.assert_allclose(
            process.signal(np.arange(1.0, 4.0)) ** 2, [0.9, 0.45, 2.0**-24], rtol=1e-5
        )

    def test_through_a_configuration(self) -> None:
        process = jk.processes.from_config(
            {"type": "discrete_vp", "alphas_cumprod": [1.0, 0.9, 0.5, 0.0]}
        )
        again = jk.processes.from_config(jk.processes.to_config(process))
        times = np.arange(1.0, 4.0)
        np.testing.assert_array_equal(again.sigma(times), process.sigma(times))
        np.testing.assert_allclose(process.signal(times[:2]) ** 2, [0.9, 0.5], rtol=1e-6)


WHOLE = {
    "vp": (jk.VP(), 1.0, lambda t: jk.VP(t_max=t)),
    "ou": (jk.OU(2.0, t_max=5.0), 5.0, None),
    "ve": (jk.VE(t_max=9.0), 9.0, None),
    "edm": (jk.EDM(14.0), 14.0, lambda t: jk.EDM(14.0, t_max=t)),
    "cosine_vp": (jk.CosineVP(), 1.0, lambda t: jk.CosineVP(t_max=t)),
    "power_vp": (jk.PowerVP(2), 1.0, lambda t: jk.PowerVP(2, t_max=t)),
    "flow_matching": (jk.FlowMatching(), 1.0, lambda t: jk.FlowMatching(t_max=t)),
    "discrete_vp": (jk.DiscreteVP(TABLE), 6.0, lambda t: jk.DiscreteVP(TABLE, t_max=t)),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_a_sub_range_is_the_same_process_that_starts_from_noised_data(name: str) -> None:
    """Sampling starts from pure noise at the end of the whole range only."""
    whole, end, constructed = WHOLE[name]
    assert (float(whole.t_max), whole.full_t_max) == (end, None)
    assert whole.initialization == "standard_normal"
    half = whole.sub_range(0.7 * end)
    assert (float(half.t_max), float(half.full_t_max)) == (0.7 * end, end)
    assert half.initialization == "marginal"
    times = np.linspace(0.1, 0.7, 5) * end
    np.testing.assert_array_equal(half.sigma(times), whole.sigma(times))
    for same in (whole.sub_range(end), half.sub_range(end)):
        assert repr(same) == repr(whole)
        assert same.full_t_max is None
    if constructed is not None:
        assert repr(constructed(0.7 * end)) == repr(half)
        assert repr(constructed(end)) == repr(whole)
    with pytest.raises(ValueError, match=rf"t_max = {2 * end:g} must be > \d and <= {end:g}"):
        half.sub_range(2 * end)


def test_a_sub_range_of_a_table_holds_an_entry() -> None:
    """Below the first entry no network was trained."""
    with pytest.raises(ValueError, match=r"t_max = 1 must be > 1 and <= 6"):
        jk.DiscreteVP(TABLE, t_max=1.0)
    trained = {name: process.trained_t_min for name, (process, _, _) in WHOLE.items()}
    assert trained == {name: float(name == "discrete_vp") for name in WHOLE}


def test_repr_shows_the_parameters() -> None:
    assert repr(jk.VP(t_max=0.5)) == "VP(beta_min=0.1, beta_max=20, t_max=0.5, full_t_max=1)"
    assert repr(jk.VP()) == "VP(beta_min=0.1, beta_max=20, t_max=1)"
    assert repr(jk.EDM(14.0)).startswith("EDM(")
    assert "[1000]" in repr(jk.DiscreteVP.scaled_linear())
    traced = []
    jax.jit(lambda process: traced.append(repr(process)) or process.t_max)(jk.VP())
    assert "beta_min=f64[]" in traced[0]


def test_default_last_times() -> None:
    """A noise level far below what can be seen in data of a variance of about 1."""
    expected = {
        "vp": (jk.VP(), 1e-3),
        "ou": (jk.OU(), 1e-3),
        "ve": (jk.VE(), 2e-6),
        "edm": (jk.EDM(), 2e-3),
        "cosine_vp": (jk.CosineVP(), 1e-3),
        "power_vp": (jk.PowerVP(2), 1e-3),
        "flow_matching": (jk.FlowMatching(), 1e-3),
        "discrete_vp": (jk.DiscreteVP.scaled_linear(), 1.0),
    }
    assert set(expected) == set(PROCESSES)
    for process, t_min in expected.values():
        assert isinstance(process.default_t_min, float)
        assert process.default_t_min == pytest.approx(t_min, rel=1e-12)
        assert process.sigma(process.default_t_min) < 0.04
    # sigma^2 = rate t
    assert jk.VE(rate=8.0).default_t_min == pytest.approx(0.5e-6)


def test_default_last_time_of_a_user_defined_process(float32: None) -> None:
    """Where sigma is 0.002, also in single precision."""

    class Quadratic(AbstractVarianceExploding):
        t_max: jax.Array

        def noise(self, t: ArrayLike) -> jax.Array:
            return jnp.asarray(t) ** 2

        def time_at_sigma(self, sigma: ArrayLike) -> jax.Array:
            return jnp.sqrt(jnp.asarray(sigma))

        def diffusion_squared(self, t: ArrayLike) -> jax.Array:
            return 4.0 * jnp.asarray(t) ** 3

    assert Quadratic(jnp.asarray(1.0)).default_t_min == pytest.approx(0.002**0.5, rel=1e-12)


def test_processes_are_the_same_by_every_number():
    """A repr does not show the entries of a table."""
    table = np.linspace(0.999, 0.01, 50)
    other = table.copy()
    other[20] *= 1.01
    assert repr(jk.DiscreteVP(table)) == repr(jk.DiscreteVP(other))
    assert same_process(jk.DiscreteVP(table), jk.DiscreteVP(table))
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), jk.DiscreteVP(table))
    assert same_process(jk.DiscreteVP(table), rounded)
    assert not same_process(jk.DiscreteVP(table), jk.DiscreteVP(other))
    assert not same_process(jk.DiscreteVP(table), jk.DiscreteVP(table[:-1]))
    assert not same_process(jk.VP(), jk.VP(t_max=0.7))
    assert not same_process(jk.VP(), jk.OU())


def test_another_table_is_refused():
    processes = [jk.DiscreteVP(np.linspace(0.999, last, 50)) for last in (0.01, 0.02)]
    target = jk.Gaussian(0.0, [1.0])
    parts = [target.denoiser(process) for process in processes]
    with pytest.raises(ValueError, match=r"components\[1\] is of DiscreteVP"):
        jk.routing.Experts(parts, lambda x, t: jnp.zeros((len(x), 2)))
    known = jk.bounds.assumptions(target, processes[0])
    with pytest.raises(ValueError, match="is not that of the assumptions"):
        jk.bounds.certified_bound(known, processes[1], "ddim", jk.Schedule([10.0, 2.0, 0.0]))


def test_integrated_signal_of_flow_matching_at_the_noise_end() -> None:
    # int_0^inf dv / (1 + sqrt v) diverges; close to it the terms do not cancel in float32
    assert float(jk.FlowMatching().integrated_signal(1.0)) == np.inf
    t = np.float32(1.0 - 2.0**-20)
    exact = 2.0 * (float(t) / (1.0 - float(t)) + np.log1p(-float(t)))
    np.testing.assert_allclose(jk.FlowMatching().integrated_signal(t), exact, rtol=1e-6)
