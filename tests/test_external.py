"""Exports run by the packages that they are for, which `pip install ".[test,external]"` installs.

The exported text is executed as it stands, with a pipeline that is a stub around the real scheduler
and a network that is the exact denoiser of a Gaussian. Every step must then be the one that
`jk.sample` takes from the same noise. Without the packages these tests are skipped.
"""

import importlib
import importlib.util
import inspect
import math
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkernels as jk
from jaxkernels import Export, Schedule, export
from jaxkernels.exports import NO_TIMESTEPS, SCHEDULERS, UNSUPPORTED

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch: Any = pytest.importorskip("torch")
    diffusers: Any = pytest.importorskip("diffusers")

pytestmark = [pytest.mark.external, pytest.mark.filterwarnings("ignore")]

TABLE = jk.DiscreteVP.scaled_linear()
LOG_SIGMAS = np.asarray(TABLE.log_sigmas)
MEAN, VARIANCE = np.array([0.5, -1.0, 0.0, 2.0]), np.array([0.02, 0.3, 1.0, 4.0])
# what float32 leaves of a few steps
CLOSE: dict[str, Any] = {"rtol": 2e-4, "atol": 2e-4}

Denoiser = Callable[[Any, Any], Any]


def gaussian(x: Any, sigma: Any) -> Any:
    """E[X_0 | X_0 + sigma Z = x] of the Gaussian of the tests, for tensors."""
    mean, variance = torch.tensor(MEAN), torch.tensor(VARIANCE)
    return (mean + variance / (variance + sigma**2) * (x.double() - mean)).to(x.dtype)


def one(x: Any, sigma: Any) -> Any:
    """The denoiser of the distribution at 1.

    What is left of x - 1 after a step is noise, kept or fresh.
    """
    return torch.ones_like(x)


def ours(
    process: Any, sampler: Any, schedule: Schedule, noise: Any, point: bool = False
) -> np.ndarray:
    """The trajectory (K+1, batch, d) of `jk.sample` from this noise, for `gaussian` or `one`."""

    def denoiser(x: jax.Array, t: jax.Array) -> jax.Array:
        if point:
            return jnp.ones_like(x)
        a, s = process.signal(t), process.noise(t)
        return MEAN + a * VARIANCE / (a**2 * VARIANCE + s**2) * (x - a * MEAN)

    start = jnp.sqrt(process.prior_variance(schedule.times[0]))
    x = jnp.asarray(noise.double().numpy()) * start
    path = jk.sample(
        jk.Denoiser(denoiser, process, "x0"),
        sampler,
        schedule,
        x,
        key=jax.random.key(1),
        trajectory=True,
    )
    return np.asarray(path)


def in_data_units(path: np.ndarray, process: Any, schedule: Schedule) -> np.ndarray:
    return path / np.asarray(process.signal(schedule.times))[:, None, None]


class Pipeline:
    """What a pipeline of diffusers does with a scheduler, and a record of it."""

    def __init__(self, scheduler: Any, network: Callable[[Any, Any, Any], Any], noise: Any):
        self.scheduler, self._network, self._noise = scheduler, network, noise
        self.told: list[float] = []
        self.points: list[Any] = []

    def network(self, x: Any, t: Any) -> Any:
        self.told.append(float(t))
        return self._network(self.scheduler, x, t)

    def __call__(self, prompt: str = "", **numbers: Any) -> types.SimpleNamespace:
        module = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion"
        retrieve_timesteps = importlib.import_module(module).retrieve_timesteps
        timesteps, _ = retrieve_timesteps(self.scheduler, device="cpu", **numbers)
        x = self._noise * getattr(self.scheduler, "init_noise_sigma", 1.0)
        scale = getattr(self.scheduler, "scale_model_input", lambda x, t: x)
        for t in timesteps:
            self.points.append(x)
            x = self.scheduler.step(self.network(scale(x, t), t), t, x).prev_sample
        return types.SimpleNamespace(images=[x], frames=[x])


def level_at(t: Any, linear: bool = False) -> float:
    """The noise level that a network of the table takes timestep t for."""
    if linear:
        return float(np.interp(float(t), np.arange(1000), np.exp(LOG_SIGMAS)))
    return float(np.exp(np.interp(float(t), np.arange(1000), LOG_SIGMAS)))


def epsilon(denoise: Denoiser, linear: bool = False) -> Callable[[Any, Any, Any], Any]:
    """A network trained on the table: x of variance-preserving scale, timestep -> noise."""

    def network(scheduler: Any, x: Any, t: Any) -> Any:
        sigma = level_at(t, linear)
        x = x * math.hypot(1.0, sigma)
        return (x - denoise(x, sigma)) / sigma

    return network


def velocity(denoise: Denoiser) -> Callable[[Any, Any, Any], Any]:
    """A flow model: x = (1 - l) x0 + l eps at timestep 1000 l -> eps - x0."""

    def network(scheduler: Any, x: Any, t: Any) -> Any:
        level = float(t) / 1000.0
        if level == 1.0:
            return x - denoise(x, math.inf)
        return (
            (x - denoise(x / (1.0 - level), level / (1.0 - level))) / level
            if level
            else torch.zeros_like(x)
        )

    return network


def preconditioned(denoise: Denoiser) -> Callable[[Any, Any, Any], Any]:
    """A network in EDM's preconditioning with sigma_data = 0.5: (c_in x, log(sigma) / 4) -> F."""

    def network(scheduler: Any, x: Any, t: Any) -> Any:
        sigma, data = math.exp(4.0 * float(t)), 0.5
        total = math.hypot(sigma, data)
        x = x * total
        return (denoise(x, sigma) - data**2 / total**2 * x) / (sigma * data / total)

    return network


def execute(result: Export, **names: Any) -> dict[str, Any]:
    """Run the exported text."""
    names = {"prompt": "", "torch": torch, **names}
    exec(compile(result.text, f"{result.tool} export", "exec"), names)
    return names


def run(
    result: Export, scheduler: Any, network: Callable[[Any, Any, Any], Any], noise: Any
) -> tuple[Pipeline, Any]:
    """Run the exported text for diffusers: the pipeline afterwards, and the samples."""
    pipe = Pipeline(scheduler, network, noise)
    names = execute(result, pipe=pipe, network=pipe.network, noise=noise)
    return pipe, next(names[name] for name in ("image", "video", "latents") if name in names)


def noise(seed: int = 0, size: int = 32, dim: int = 4) -> Any:
    return torch.randn(size, dim, generator=torch.Generator().manual_seed(seed))


def stable_diffusion(name: str = "PNDMScheduler", **settings: Any) -> Any:
    """A scheduler as the model's configuration describes it, which the exported text replaces."""
    cls = getattr(diffusers, name)
    return cls(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **settings)


def ended(schedule: Schedule, end: str) -> Schedule:
    """The schedule that an export with this `end` stands for."""
    times, alpha = np.asarray(schedule.times), np.asarray(schedule.stochasticity)
    if end == "append":
        return Schedule(np.append(times, 0.0), np.append(alpha, 0.0))
    return Schedule(np.append(times[:-1], 0.0), alpha) if end == "replace" else schedule


@pytest.fixture(scope="module")
def k_sampling() -> Any:
    """`k_diffusion.sampling` without the package around it, which imports tools for training."""
    # another file may have put the package there, which has no spec
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None:
            pytest.skip("k-diffusion is not installed")
        package = types.ModuleType("k_diffusion")
        package.__path__ = list(spec.submodule_search_locations or [])
        sys.modules["k_diffusion"] = package
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("k_diffusion.sampling")


def run_k(
    result: Export, denoise: Denoiser, x: Any, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Any], Any]:
    """Run the exported text for k-diffusion from noise x.

    Returns the points where the model was evaluated, and the samples.
    """
    points: list[Any] = []

    def model(x: Any, sigma: Any) -> Any:
        assert sigma.shape == x.shape[:1]
        points.append((x, float(sigma[0])))
        return denoise(x, sigma[:, None])

    with monkeypatch.context() as patch:
        # the text draws the initial noise itself; a sampler that draws more names a dtype
        drawn = torch.randn
        patch.setattr(
            torch, "randn", lambda *shape, **named: drawn(*shape, **named) if named else x
        )
        start = execute(result, model=model, shape=tuple(x.shape))["x"]
    return points, start


INTEGER = Schedule(np.array([1000.0, 811.0, 640.0, 455.0, 300.0, 170.0, 81.0, 24.0, 1.0]))
FRACTIONAL = Schedule(np.array([1000.0, 811.3, 640.25, 455.6, 300.45, 170.7, 81.4, 24.2, 1.0]))
EDM_TIMES = np.array([80.0, 22.0, 7.0, 2.5, 1.0, 0.4, 0.1, 0.02])
FLOW_TIMES = np.array([1.0, 0.9, 0.75, 0.6, 0.4, 0.25, 0.1, 0.02])
ALPHA = np.array([0.3, 1.0, 0.0, 0.7, 1.6, 0.4, 0.2])
ENDS = ["replace", "append", "keep"]


def follows(points: Sequence[Any], path: np.ndarray, close: dict[str, Any] = CLOSE) -> None:
    """Every point of the tool is the one of `path`."""
    assert len(points) == len(path)
    for x, wanted in zip(points, path):
        np.testing.assert_allclose(x, wanted, **close)


class TestDeterministic:
    """Every step is that of `jk.sample`, from the same noise."""

    @pytest.mark.parametrize("end", ENDS)
    @pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
    def test_euler_is_ddim(self, end: str, spacing: str):
        result = export(FRACTIONAL, TABLE, "diffusers", sampler="ddim", end=end)
        scheduler = stable_diffusion(
            "EulerDiscreteScheduler", timestep_spacing=spacing, use_karras_sigmas=True
        )
        schedule, z = ended(FRACTIONAL, end), noise()
        pipe, last = run(result, scheduler, epsilon(gaussian), z)
        sigmas = np.asarray(schedule.sigmas(TABLE))
        np.testing.assert_allclose(pipe.scheduler.sigmas, sigmas, rtol=1e-5)
        np.testing.assert_allclose([level_at(t) for t in pipe.told], sigmas[:-1], rtol=1e-4)
        follows(
            [*pipe.points, last], in_data_units(ours(TABLE, "ddim", schedule, z), TABLE, schedule)
        )
        assert len(result.warnings) == (end != "keep")

    @pytest.mark.parametrize("steps", [8, 20])
    @pytest.mark.parametrize("end", ENDS)
    def test_dpm_multistep_is_dpmpp_2m(self, steps: int, end: str):
        """With fewer and more than the 15 steps at which it changes its last step by itself."""
        times = (
            np.asarray(INTEGER.times)
            if steps == 8
            else np.append(np.arange(1000.0, 50.0, -49.0), 1.0)
        )
        assert times.size == steps + 1
        result = export(Schedule(times), TABLE, "diffusers", sampler="dpmpp_2m", end=end)
        schedule, z = ended(Schedule(times), end), noise()
        pipe, last = run(result, stable_diffusion(), epsilon(gaussian), z)
        np.testing.assert_allclose(pipe.scheduler.sigmas, schedule.sigmas(TABLE), rtol=1e-4)
        np.testing.assert_allclose(pipe.told, np.asarray(schedule.times)[:-1] - 1.0)
        follows([*pipe.points, last], ours(TABLE, "dpmpp_2m", schedule, z))
        assert not any("rounding" in warning for warning in result.warnings)

    def test_dpm_multistep_rounds_and_a_warning_says_how_far(self):
        result = export(FRACTIONAL, TABLE, "diffusers", sampler="dpmpp_2m", end="replace")
        rounded = ended(Schedule(np.rint(np.asarray(FRACTIONAL.times))), "replace")
        z = noise()
        pipe, last = run(result, stable_diffusion(), epsilon(gaussian), z)
        follows([*pipe.points, last], ours(TABLE, "dpmpp_2m", rounded, z))
        moved = np.abs(
            np.log(
                np.asarray(pipe.scheduler.sigmas)[:-1] / np.asarray(FRACTIONAL.sigmas(TABLE))[:-1]
            )
        )
        assert any(f"at most {moved.max():.2g}" in warning for warning in result.warnings)

    @pytest.mark.parametrize("end", ["replace", "keep"])
    def test_dpm_multistep_of_third_order_is_dpmpp_3m(self, end: str):
        sampler = jk.DPMSolverPP3M(lower_order_final=end == "replace")
        result = export(INTEGER, TABLE, "diffusers", sampler=sampler, end=end)
        schedule, z = ended(INTEGER, end), noise()
        pipe, last = run(result, stable_diffusion(), epsilon(gaussian), z)
        follows([*pipe.points, last], ours(TABLE, sampler, schedule, z))

    def test_unipc_with_its_corrector_for_flow_models(self):
        given = Schedule(np.array([0.995, *FLOW_TIMES[1:]]))
        result = export(given, jk.FlowMatching(), "diffusers", sampler="unipc")
        schedule, z = ended(given, "replace"), noise()
        pipe, last = run(result, diffusers.FlowMatchEulerDiscreteScheduler(), velocity(gaussian), z)
        follows([*pipe.points, last], ours(jk.FlowMatching(), "unipc", schedule, z))

    @pytest.mark.parametrize("end", ["replace", "keep"])
    def test_dpm_multistep_of_first_order_is_ddim(self, end: str):
        """In the units of pipelines that scale neither noise nor input."""
        result = export(
            INTEGER, TABLE, "diffusers", scheduler="dpm_multistep", sampler="ddim", end=end
        )
        schedule, z = ended(INTEGER, end), noise()
        pipe, last = run(result, stable_diffusion(), epsilon(gaussian), z)
        np.testing.assert_allclose(pipe.scheduler.sigmas, schedule.sigmas(TABLE), rtol=1e-4)
        follows([*pipe.points, last], ours(TABLE, "ddim", schedule, z))
        assert len(result.warnings) == (end != "keep")

    def test_heun(self):
        """Fractional timesteps that it interpolates to the exact levels, each twice."""
        schedule = Schedule(np.array([14.0, 7.0, 3.0, 1.1, 0.5, 0.2, 0.0]))
        process = jk.EDM(sigma_max=14.0)
        result = export(schedule, process, "diffusers", scheduler="heun", sampler="heun")
        z = noise()
        pipe, last = run(
            result, stable_diffusion("EulerDiscreteScheduler"), epsilon(gaussian, linear=True), z
        )
        sigmas = np.asarray(schedule.times)
        np.testing.assert_allclose(
            pipe.scheduler.sigmas, [sigmas[0], *np.repeat(sigmas[1:-1], 2), 0.0], rtol=1e-5
        )
        told = [level_at(t, linear=True) for t in pipe.told]
        np.testing.assert_allclose(told, [sigmas[0], *np.repeat(sigmas[1:-1], 2)], rtol=1e-4)
        follows([*pipe.points[::2], last], ours(process, "heun", schedule, z))
        assert result.warnings == ()

    @pytest.mark.parametrize("shift", [1.0, 3.0])
    def test_flow_match_euler_is_ddim(self, shift: float):
        """Whatever the model's own shifting was."""
        settings: dict[str, Any] = {
            "shift": 5.0,
            "use_dynamic_shifting": True,
            "stochastic_sampling": True,
        }
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**settings, shift_terminal=0.1)
        result = export(
            Schedule(FLOW_TIMES), jk.FlowMatching(), "diffusers", sampler="ddim", shift=shift
        )
        schedule, z = ended(Schedule(FLOW_TIMES), "replace"), noise()
        pipe, last = run(result, scheduler, velocity(gaussian), z)
        np.testing.assert_allclose(pipe.scheduler.sigmas, schedule.times, rtol=1e-6)
        np.testing.assert_allclose(pipe.told, 1000.0 * np.asarray(schedule.times)[:-1], rtol=1e-6)
        follows([*pipe.points, last], ours(jk.FlowMatching(), "ddim", schedule, z))

    @pytest.mark.parametrize("end", ENDS)
    def test_ltx_euler_ancestral_without_noise_is_ddim(self, end: str):
        given = Schedule(FLOW_TIMES)
        result = export(
            given, jk.FlowMatching(), "diffusers", scheduler="ltx_euler_ancestral", end=end
        )
        schedule, z = ended(given, end), noise()
        pipe, last = run(
            result, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), velocity(gaussian), z
        )
        np.testing.assert_allclose(pipe.scheduler.sigmas, schedule.times, rtol=1e-6)
        path = ours(jk.FlowMatching(), "ddim", schedule, z)
        follows(
            [*pipe.points, last], np.concatenate([path, path[-1:]])
        )  # and one evaluation to no effect

    @pytest.mark.parametrize("top", [0.995, 1.0])
    def test_unipc_is_dpmpp_2m_for_flow_models(self, top: float):
        """Level 1 becomes 1 - 1e-6, where ours has no predecessor to extrapolate from."""
        given = Schedule(np.array([top, *FLOW_TIMES[1:]]))
        result = export(given, jk.FlowMatching(), "diffusers", sampler="dpmpp_2m")
        assert "UniPCMultistepScheduler" in result.text
        schedule, z = ended(given, "replace"), noise()
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        pipe, last = run(result, scheduler, velocity(gaussian), z)
        np.testing.assert_allclose(pipe.scheduler.sigmas, schedule.times, rtol=2e-6)
        np.testing.assert_allclose(pipe.told, 1000.0 * np.asarray(schedule.times)[:-1], rtol=2e-6)
        if top < 1.0:
            follows([*pipe.points, last], ours(jk.FlowMatching(), "dpmpp_2m", schedule, z))
        else:
            close: dict[str, Any] = {"rtol": 0.05, "atol": 0.05}
            follows([*pipe.points, last], ours(jk.FlowMatching(), "dpmpp_2m", schedule, z), close)

    def test_unipc_tells_the_exact_timesteps(self):
        """By itself it rounds them down, and takes 750.9 and 750.1 for one."""
        levels = np.array([0.9956, 0.7509, 0.7501, 0.1001, 0.0])
        result = export(Schedule(levels), jk.FlowMatching(), "diffusers", sampler="dpmpp_2m")
        z = noise()
        pipe, last = run(result, diffusers.FlowMatchEulerDiscreteScheduler(), velocity(gaussian), z)
        np.testing.assert_allclose(pipe.told, 1000.0 * levels[:-1], rtol=1e-6)
        follows([*pipe.points, last], ours(jk.FlowMatching(), "dpmpp_2m", Schedule(levels), z))
        assert result.warnings == ()

    @pytest.mark.parametrize(("sigma_max", "rho"), [(80.0, 7.0), (100.0, 5.0)])
    def test_edm_euler_is_ddim(self, sigma_max: float, rho: float):
        given = Schedule(EDM_TIMES)
        result = export(given, jk.EDM(), "diffusers", sampler="ddim", sigma_max=sigma_max, rho=rho)
        schedule = ended(given, "replace")
        start = math.hypot(sigma_max, 1.0) / 80.0
        z = noise()
        pipe, last = run(
            result,
            diffusers.EDMEulerScheduler(sigma_schedule="exponential"),
            preconditioned(gaussian),
            z,
        )
        np.testing.assert_allclose(pipe.scheduler.sigmas, schedule.times, rtol=1e-6)
        np.testing.assert_allclose(np.exp(4.0 * np.array(pipe.told)), EDM_TIMES[:-1], rtol=1e-5)
        follows([*pipe.points, last], ours(jk.EDM(), "ddim", schedule, start * z))
        # a pipeline scales the initial noise by the scheduler's own sigma_max
        assert any(
            "scales the initial noise by 100.005" in warning for warning in result.warnings
        ) == (sigma_max > 80)

    @pytest.mark.parametrize("end", ENDS)
    @pytest.mark.parametrize(
        ("process", "sampler"),
        [
            *((jk.EDM(), sampler) for sampler in ("ddim", "dpmpp_2m", "heun")),
            *((jk.EDM(), sampler) for sampler in ("dpmpp_3m", "lms", "dpmpp_2s", "dpm_2")),
            *(
                (process, sampler)
                for process in (jk.VP(), TABLE)
                for sampler in ("ddim", "dpmpp_2m")
            ),
        ],
    )
    def test_k_diffusion(
        self, process: Any, sampler: str, end: str, k_sampling: Any, monkeypatch: pytest.MonkeyPatch
    ):
        times = {jk.EDM: EDM_TIMES, jk.VP: FLOW_TIMES, jk.DiscreteVP: np.asarray(FRACTIONAL.times)}[
            type(process)
        ]
        result = export(Schedule(times), process, "k-diffusion", sampler=sampler, end=end)
        schedule, z = ended(Schedule(times), end), noise()
        asked, last = run_k(result, gaussian, z, monkeypatch)
        path = in_data_units(ours(process, sampler, schedule, z), process, schedule)
        if jk.samplers.as_sampler(sampler).nfe_per_step > 1:
            np.testing.assert_allclose(last, path[-1], **CLOSE)
            return
        sigmas = np.asarray(schedule.sigmas(process))
        np.testing.assert_allclose([sigma for _, sigma in asked], sigmas[:-1], rtol=1e-6)
        close: dict[str, Any] = {"rtol": 2e-4, "atol": 2e-6 * float(sigmas[0]) + 2e-4}
        follows([*(x for x, _ in asked), last], path, close)

    @pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
    def test_comfyui(self, sampler: str, k_sampling: Any):
        """Its node's reading of the string, and its samplers, which are those of k-diffusion."""
        result = export(FRACTIONAL, TABLE, "comfyui", sampler=sampler, end="append")
        sigmas = torch.tensor(
            [float(word) for word in re.findall(r"[-+]?(?:\d*\.*\d+)", result.text)]
        )
        schedule, z = ended(FRACTIONAL, "append"), noise()
        function = k_sampling.sample_euler if sampler == "ddim" else k_sampling.sample_dpmpp_2m
        # at the model's largest level the noise is scaled by sqrt(1 + sigma^2)
        assert math.isclose(float(sigmas[0]), float(np.exp(LOG_SIGMAS[-1])), rel_tol=1e-5)
        last = function(
            lambda x, s: gaussian(x, s[:, None]), z * math.hypot(1.0, float(sigmas[0])), sigmas
        )
        np.testing.assert_allclose(last, ours(TABLE, sampler, schedule, z)[-1], **CLOSE)

    def test_the_loop_of_edm(self, k_sampling: Any):
        """The text gives `t_steps`; the loop around it is k-diffusion's Heun.

        It is Algorithm 1 of Karras et al. (2022).
        """
        schedule, z = ended(Schedule(EDM_TIMES), "replace"), noise()
        names = execute(export(Schedule(EDM_TIMES), jk.EDM(), "edm", sampler="heun"), latents=z)
        steps = names["t_steps"]
        assert names["num_steps"] == len(steps) - 1
        assert names["S_churn"] == 0
        last = k_sampling.sample_heun(
            lambda x, s: gaussian(x, s[:, None]), z.double() * steps[0], steps
        )
        np.testing.assert_allclose(
            last, ours(jk.EDM(), "heun", schedule, z)[-1], rtol=1e-6, atol=1e-6
        )


def injected(path: Sequence[Any] | np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Part of the old noise that each step keeps, and standard deviation of the fresh noise.

    For the denoiser `one`, in units of the data:
    x' - 1 = (sigma'/sigma) kept (x - 1) + fresh z: the two coefficients of a regression.
    """
    kept, fresh = [], []
    for x, y, old, new in zip(path[:-1], path[1:], levels[:-1], levels[1:]):
        x, y = np.ravel(x) - 1.0, np.ravel(y) - 1.0
        slope = x @ y / (x @ x)
        added = y - slope * x
        assert abs(np.mean(added)) <= 6.0 * np.std(added) / math.sqrt(x.size) + 1e-3, (
            "the denoised point is kept"
        )
        kept.append(slope * old / new if new > 0 else 0.0)
        fresh.append(np.std(added))
    return np.array(kept), np.array(fresh)


class TestTablesOfDiffusers:
    """What `DiscreteVP` makes of a table is what diffusers makes of it."""

    @pytest.mark.parametrize("spacing", ["scaled_linear", "squaredcos_cap_v2"])
    def test_zero_terminal_snr(self, spacing: str):
        """Euler writes 2^-24 for the last entry."""
        scheduler = diffusers.EulerDiscreteScheduler(
            beta_schedule=spacing, rescale_betas_zero_snr=True
        )
        betas = scheduler.betas.double().numpy()
        assert betas[-1] == 1.0
        for table in (
            jk.DiscreteVP.from_betas(betas),
            jk.DiscreteVP(np.cumprod(1.0 - betas)),
        ):
            wanted = scheduler.alphas_cumprod.double().numpy()
            a = np.asarray(table.signal(np.arange(1.0, 1001.0)), np.float64)
            np.testing.assert_allclose(a**2, wanted, rtol=1e-3)

    def test_zero_terminal_snr_of_a_table_that_then_increases(self):
        """Rescaled linear betas fall below 2^-24 before their end, in diffusers as well."""
        scheduler = diffusers.EulerDiscreteScheduler(rescale_betas_zero_snr=True)
        assert scheduler.alphas_cumprod[-2] < scheduler.alphas_cumprod[-1]
        with pytest.raises(ValueError, match=r"stands for 2\^-24, but the entry before is 4"):
            jk.DiscreteVP.from_betas(scheduler.betas.double().numpy())

    def test_betas(self):
        scheduler = stable_diffusion()
        table = jk.DiscreteVP(scheduler.betas.double().numpy())
        np.testing.assert_allclose(table.log_sigmas, LOG_SIGMAS, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("end", ["replace", "keep"])
    def test_karras_with_more_steps_than_distinct_roundings(self, end: str):
        """60 steps: the samples stay those of the sampler at the timesteps that are written."""
        times = np.append(
            jk.schedules.karras(TABLE, 60, 0.0, last_sigma=float(np.exp(LOG_SIGMAS[0]))).times[:-2],
            1.0,
        )
        result = export(Schedule(times), TABLE, "diffusers", sampler="dpmpp_2m", end=end)
        written = np.array(result.values["timesteps"])
        last = [1.0] if end == "keep" else [0.0]
        moved, z = Schedule(np.append(written + 1.0, last)), noise()
        pipe, samples = run(result, stable_diffusion(), epsilon(gaussian), z)
        assert pipe.told == written.tolist()
        follows([samples], ours(TABLE, "dpmpp_2m", moved, z)[-1:])


class TestNoisedData:
    """The texts of a schedule that starts from noised data draw no pure noise."""

    PROCESS = jk.EDM(t_max=3.0)
    SCHEDULE = Schedule(np.array([3.0, 1.0, 0.2, 0.05]))
    DATA = 0.5 + noise(seed=1)

    @pytest.mark.usefixtures("k_sampling")
    @pytest.mark.parametrize("alpha", [0.0, 1.0])
    def test_k_diffusion(self, alpha: float, monkeypatch: pytest.MonkeyPatch):
        schedule = Schedule(self.SCHEDULE.times, np.array([alpha, 0.3 * alpha, 0.0]))
        result = export(schedule, self.PROCESS, "k-diffusion", sampler="ddim")
        points: list[Any] = []

        def model(x: Any, sigma: Any) -> Any:
            points.append(x)
            return 0.5 * x

        drawn = noise()
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randn_like", lambda x: drawn)
            execute(result, model=model, x0=self.DATA)
        torch.testing.assert_close(points[0], self.DATA + 3.0 * drawn)

    def test_a_written_out_loop_of_diffusers(self):
        process = jk.DiscreteVP.scaled_linear(t_max=700.0)
        schedule = Schedule(np.array([700.0, 300.0, 24.0, 1.0]), np.array([0.3, 1.0, 0.0]))
        result = export(schedule, process, "diffusers", sampler="ddim")
        first: list[Any] = []

        def network(x: Any, t: Any, condition: Any = None) -> Any:
            first.append(x)
            return 0.1 * x

        pipe = Pipeline(stable_diffusion(), network, noise())
        execute(result, pipe=pipe, network=network, noise=noise(), x0=self.DATA)
        sigma = float(process.sigma(700.0))
        start = (self.DATA + sigma * noise()) / math.hypot(1.0, sigma)
        torch.testing.assert_close(first[0], start, rtol=1e-4, atol=1e-5)


class TestStochastic:
    """The noise that each step keeps and adds, measured, against that of `jk.sample`."""

    SIZE = 200_000

    def check(self, process: Any, schedule: Schedule, path: Sequence[Any]) -> None:
        """`path` in units of the data."""
        z = noise(3, self.SIZE, 1)
        reference = in_data_units(ours(process, "ddim", schedule, z, point=True), process, schedule)
        levels = np.asarray(schedule.sigmas(process))
        (kept, fresh), (wanted, drawn) = injected(path, levels), injected(reference, levels)
        np.testing.assert_allclose(kept, wanted, atol=0.01)
        np.testing.assert_allclose(fresh / levels[:-1], drawn / levels[:-1], atol=0.004)
        exact = levels[1:] * np.sqrt(
            1.0 - (levels[1:] / levels[:-1]) ** (2.0 * np.asarray(schedule.stochasticity) ** 2)
        )
        np.testing.assert_allclose(fresh, exact, rtol=0.01, atol=1e-4 * levels[0])

    @pytest.mark.parametrize("end", ENDS)
    def test_euler(self, end: str):
        given = Schedule(np.asarray(FRACTIONAL.times), np.append(ALPHA, 0.8))
        result = export(given, TABLE, "diffusers", sampler="ddim", end=end)
        schedule, z = ended(given, end), noise(1, self.SIZE, 1)
        path = self.recorded(result, stable_diffusion(), epsilon(one), z, schedule, TABLE)
        self.check(TABLE, quiet_end(schedule), path)
        assert any("loop is written out" in remark for remark in result.remarks)

    def test_edm_euler(self):
        given = Schedule(EDM_TIMES, ALPHA)
        result = export(given, jk.EDM(), "diffusers", sampler="ddim")
        schedule, z = ended(given, "replace"), noise(1, self.SIZE, 1)
        path = self.recorded(
            result, diffusers.EDMEulerScheduler(), preconditioned(one), z, schedule, jk.EDM()
        )
        self.check(jk.EDM(), quiet_end(schedule), path)

    def recorded(
        self, result: Export, scheduler: Any, network: Any, z: Any, schedule: Schedule, process: Any
    ) -> list[Any]:
        """The points of the written loop in units of the data, from what its network was shown."""
        seen: list[Any] = []

        def watched(scheduler: Any, x: Any, t: Any) -> Any:
            seen.append(x)
            return network(scheduler, x, t)

        _, last = run(result, scheduler, watched, z)
        sigmas = np.asarray(schedule.sigmas(process))
        data = 0.5 if isinstance(process, jk.EDM) else 1.0
        return [*(x * math.hypot(data, s) for x, s in zip(seen, sigmas[:-1])), last]

    def test_full_renoising_stays_finite(self):
        """Where rounding would take the root of a negative number."""
        schedule = Schedule(np.asarray(FRACTIONAL.times), 50.0)
        for tool in ("diffusers", "k-diffusion"):
            result = export(schedule, TABLE, tool, sampler="ddim")
            assert max(result.values["eta"]) > 1.0
            if tool == "diffusers":
                _, last = run(result, stable_diffusion(), epsilon(gaussian), noise())
                assert bool(torch.isfinite(last).all())

    @pytest.mark.parametrize("end", ["replace", "keep"])
    def test_ltx_euler_ancestral(self, end: str):
        times = np.array([0.99, *FLOW_TIMES[1:]])
        given = Schedule(times, ALPHA)
        result = export(given, jk.FlowMatching(), "diffusers", sampler="ddim", end=end)
        assert "LTXEulerAncestralRFScheduler" in result.text
        schedule, z = ended(given, end), noise(1, self.SIZE, 1)
        seen: list[Any] = []

        def watched(scheduler: Any, x: Any, t: Any) -> Any:
            seen.append(x)
            return velocity(one)(scheduler, x, t)

        pipe, last = run(result, diffusers.FlowMatchEulerDiscreteScheduler(), watched, z)
        np.testing.assert_allclose(pipe.scheduler.sigmas, schedule.times, rtol=1e-6)
        path = in_data_units(np.stack([*seen, last]), jk.FlowMatching(), schedule)
        self.check(jk.FlowMatching(), quiet_end(schedule), list(path))

    def test_ltx_euler_ancestral_from_pure_noise(self):
        """A stochastic step from level 1, where nothing of the data is left, renoises fully."""
        given = Schedule(FLOW_TIMES, ALPHA)
        z = noise(1, self.SIZE, 1)
        result = export(given, jk.FlowMatching(), "diffusers", sampler="ddim")
        seen: list[Any] = []

        def watched(scheduler: Any, x: Any, t: Any) -> Any:
            seen.append(x)
            return velocity(one)(scheduler, x, t)

        run(result, diffusers.FlowMatchEulerDiscreteScheduler(), watched, z)
        mean, old = 1.0 - FLOW_TIMES[1], np.corrcoef(np.ravel(seen[0]), np.ravel(seen[1]))[0, 1]
        assert float(seen[1].mean()) == pytest.approx(mean, abs=0.01)
        assert float(seen[1].std()) == pytest.approx(FLOW_TIMES[1], rel=0.01)
        assert old == pytest.approx(0.0, abs=0.01)

    def test_ltx_with_one_eta_for_all_steps(self):
        levels, eta = np.array([0.9, 0.6, 0.3, 0.0]), 0.5
        down = levels[1:] * (1.0 - eta * (1.0 - levels[1:] / levels[:-1]))
        odds = levels / (1.0 - levels)
        kept = (down / (1.0 - down))[:-1] / odds[1:-1]
        alpha = np.sqrt(np.log(kept) / np.log(odds[1:-1] / odds[:-2]))
        result = export(Schedule(levels, np.append(alpha, 0.0)), jk.FlowMatching(), "diffusers")
        pipe, _ = run(
            result, diffusers.FlowMatchEulerDiscreteScheduler(), velocity(gaussian), noise()
        )
        assert pipe.scheduler.config.eta == pytest.approx(eta, rel=1e-5)
        assert "pipe(prompt" in result.text

    def test_ddpm_is_stochasticity_one(self):
        given = Schedule(np.asarray(INTEGER.times), 1.0)
        result = export(given, TABLE, "diffusers", scheduler="ddpm", sampler="ddim")
        schedule, z = ended(given, "replace"), noise(1, self.SIZE, 1)
        pipe, last = run(result, stable_diffusion(), epsilon(one), z)
        np.testing.assert_allclose(pipe.told, np.asarray(INTEGER.times)[:-1] - 1.0)
        path = in_data_units(np.stack([*pipe.points, last]), TABLE, schedule)
        self.check(TABLE, quiet_end(schedule), list(path))
        assert len(result.warnings) == 1, "only that the last level is replaced"

    @pytest.mark.parametrize("end", ENDS)
    @pytest.mark.parametrize("constant", [False, True])
    def test_k_diffusion(
        self, end: str, constant: bool, k_sampling: Any, monkeypatch: pytest.MonkeyPatch
    ):
        given = Schedule(EDM_TIMES, 1.0 if constant else ALPHA)
        result = export(given, jk.EDM(), "k-diffusion", sampler="ddim", end=end)
        assert ("for i in" in result.text) == (not constant)
        schedule, z = ended(given, end), noise(1, self.SIZE, 1)
        asked, last = run_k(result, one, z, monkeypatch)
        self.check(jk.EDM(), quiet_end(schedule), [*(x for x, _ in asked), last])

    @pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_3m"])
    def test_sde_of_k_diffusion(
        self, sampler: str, k_sampling: Any, monkeypatch: pytest.MonkeyPatch
    ):
        """Noise of the samplers' own SDE, at one eta for all steps."""
        given = Schedule(EDM_TIMES, 0.7)
        result = export(given, jk.EDM(), "k-diffusion", sampler=sampler)
        assert "_sde(model, x, sigmas, eta=0.49)" in result.text
        assert result.warnings == ()
        x, z = noise(size=16), torch.randn(7, 16, 4, generator=torch.Generator().manual_seed(3))
        count = iter(range(7))
        tree = lambda *_: lambda sigma, next_sigma: z[next(count)]  # noqa: E731
        monkeypatch.setattr(k_sampling, "BrownianTreeNoiseSampler", tree)
        asked, last = run_k(result, gaussian, x, monkeypatch)
        path = stepped(jk.samplers.as_sampler(sampler), jk.EDM(), given, 80.0 * x, z)
        follows([*(x for x, _ in asked), last], path, {"rtol": 1e-3, "atol": 1e-3})
        varying = export(Schedule(EDM_TIMES, ALPHA), jk.EDM(), "k-diffusion", sampler=sampler)
        assert any("one eta for all steps" in warning for warning in varying.warnings)

    def test_churn_of_edm(self, k_sampling: Any):
        """k-diffusion's Euler takes the same churn, up to its clip.

        The noise content is that of the schedule.
        """
        alpha = np.array([0.3, 0.5, 0.0, 0.4, 0.6, 0.3, 0.0])
        given = Schedule(EDM_TIMES, alpha)
        result = export(given, jk.EDM(), "edm", sampler="ddim")
        z = noise(1, self.SIZE, 1)
        names = execute(result, latents=z)
        gammas, steps = names["gammas"], names["t_steps"].float()
        assert max(gammas) < math.sqrt(2.0) - 1.0
        path = [z * steps[0]]
        for i, gamma in enumerate(gammas):
            path.append(
                k_sampling.sample_euler(
                    lambda x, s: one(x, s), path[-1], steps[i : i + 2], s_churn=gamma
                )
            )
        self.check(jk.EDM(), quiet_end(ended(given, "replace")), path)
        assert any("raised level" in warning for warning in result.warnings)


def quiet_end(schedule: Schedule) -> Schedule:
    """A step to level 0 leaves no noise, whatever its stochasticity."""
    alpha = np.array(schedule.stochasticity)
    alpha[-1] *= float(schedule.times[-1]) > 0
    return Schedule(np.asarray(schedule.times), alpha)


@pytest.fixture(scope="module")
def result() -> jk.OptimizedSchedule:
    return jk.optimize_schedule(
        jk.Gaussian(MEAN, VARIANCE), jk.EDM(sigma_max=14.0), "ddim", 6, t_min=0.05
    )


class TestResult:
    """From the optimiser into the tools by one call."""

    def test_diffusers(self, result: jk.OptimizedSchedule):
        z = noise()
        exported = export(
            result.schedule, result.process, "diffusers", sampler="ddim", scheduler="euler"
        )
        pipe, last = run(exported, stable_diffusion(), epsilon(gaussian), z)
        follows([*pipe.points, last], ours(result.process, "ddim", result.schedule, z))
        assert exported.warnings == ()

    def test_k_diffusion(
        self, result: jk.OptimizedSchedule, k_sampling: Any, monkeypatch: pytest.MonkeyPatch
    ):
        z = noise()
        exported = export(result.schedule, result.process, "k-diffusion", sampler="ddim")
        asked, last = run_k(exported, gaussian, z, monkeypatch)
        follows([*(x for x, _ in asked), last], ours(result.process, "ddim", result.schedule, z))


def stepped(
    sampler: jk.AbstractSampler, process: Any, schedule: Schedule, x: Any, z: Any
) -> np.ndarray:
    """x at every time, from the sampler's own step with the unit noise z[k] in step k."""

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        a, s = process.signal(t), process.noise(t)
        return MEAN + a * VARIANCE / (a**2 * VARIANCE + s**2) * (x - a * MEAN)

    predict = jk.Denoiser(denoise, process, "x0")

    @jax.jit
    def run(x: jax.Array, z: jax.Array) -> jax.Array:
        def advance(state: Any, inputs: Any) -> Any:
            step, z = inputs
            after = sampler.step(predict, lambda v: jnp.sqrt(v) * z, process, step, *state)
            return after, after[0]

        inputs = schedule.steps(sampler.history_steps), z
        return jax.lax.scan(advance, (x, sampler.init_history(x)), inputs)[1]

    x = jnp.asarray(x.double().numpy())
    return np.concatenate([x[None], run(x, jnp.asarray(z.double().numpy()))])


class TestSamplersOfKDiffusion:
    """Every step is that of the function, from the same noise, in float64."""

    @pytest.mark.parametrize("end", [0.0, 0.02])
    @pytest.mark.parametrize(
        ("function", "options", "sampler", "alpha"),
        [
            ("sample_euler", {}, "ddim", 0.0),
            ("sample_euler_ancestral", {"eta": 1.0}, "ddim", 1.0),
            ("sample_dpmpp_2m", {}, "dpmpp_2m", 0.0),
            ("sample_dpmpp_2m_sde", {"eta": 0.6}, "dpmpp_2m", 0.6**0.5),
            ("sample_dpmpp_3m_sde", {"eta": 0.0}, "dpmpp_3m", 0.0),
            ("sample_dpmpp_3m_sde", {"eta": 1.0}, "dpmpp_3m", 1.0),
            ("sample_dpmpp_2s_ancestral", {"eta": 0.0}, "dpmpp_2s", 0.0),
            ("sample_dpm_2", {}, "dpm_2", 0.0),
            *(("sample_lms", {"order": n}, jk.LMS(n), 0.0) for n in (1, 2, 3, 4)),
            ("sample_heun", {}, "edm_sampler", 0.0),
            ("sample_heun", {"s_churn": 1.4}, "edm_sampler", 0.0),
            (
                "sample_heun",
                {"s_churn": 1.4, "s_tmin": 0.2, "s_tmax": 5.0, "s_noise": 1.01},
                jk.EDMSampler(s_noise=1.01),
                0.0,
            ),
        ],
        ids=str,
    )
    def test_steps(
        self,
        function: str,
        options: dict[str, float],
        sampler: Any,
        alpha: float,
        end: float,
        k_sampling: Any,
        monkeypatch: pytest.MonkeyPatch,
    ):
        sigmas = np.array([14.0, 6.0, 3.3, 1.2, 0.7, 0.3, 0.1, end])
        process = jk.EDM(sigma_max=14.0)
        schedule = Schedule(sigmas, alpha * (sigmas[1:] > 0.0))
        if "s_churn" in options:
            if end == 0.0:
                pytest.skip("Algorithm 2 churns before the last step, which ours takes quietly")
            window = {"s_min": options.get("s_tmin", 0.0), "s_max": options.get("s_tmax", 80.0)}
            gamma = jk.samplers.edm_churn(sigmas, options["s_churn"], **window)
            schedule = Schedule(sigmas, jk.samplers.from_churn(process, sigmas, gamma))
        z = torch.randn(7, 16, 4, generator=torch.Generator().manual_seed(3)).double()
        x = 14.0 * noise(size=16).double()
        count = iter(range(7))
        monkeypatch.setattr(torch, "randn_like", lambda _: z[next(count)])
        given: dict[str, Any] = {**options, "disable": True}
        if "noise_sampler" in inspect.signature(getattr(k_sampling, function)).parameters:
            given["noise_sampler"] = lambda sigma, next_sigma: z[next(count)]
        points: list[Any] = []

        def watch(seen: dict[str, Any]) -> None:
            points.append(seen["x"])

        def model(x: Any, sigma: Any) -> Any:
            return gaussian(x, sigma[:, None])

        run = getattr(k_sampling, function)
        last = run(model, x, torch.tensor(sigmas), callback=watch, **given)
        ours = stepped(jk.samplers.as_sampler(sampler), process, schedule, x, z)
        close: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
        if "s_churn" in options:
            # it tells the churned x
            np.testing.assert_allclose(last, ours[-1], **close)
        else:
            follows([*points, last], ours, close)


class TestSchedulersOfDiffusers:
    """Every step is that of the scheduler at its own levels, which take no custom ones."""

    @pytest.mark.parametrize(
        ("name", "settings", "sampler"),
        [
            ("UniPCMultistepScheduler", {"solver_order": 2}, jk.UniPC(solver_order=2)),
            ("UniPCMultistepScheduler", {"solver_order": 3}, jk.UniPC(solver_order=3)),
            (
                "UniPCMultistepScheduler",
                {"solver_order": 3, "lower_order_final": False, "final_sigmas_type": "sigma_min"},
                jk.UniPC(solver_order=3, lower_order_final=False),
            ),
            ("DEISMultistepScheduler", {"solver_order": 2, "lower_order_final": False}, jk.DEIS(2)),
            ("DEISMultistepScheduler", {"solver_order": 3, "lower_order_final": False}, jk.DEIS(3)),
            ("DPMSolverMultistepScheduler", {"solver_order": 2}, jk.DPMSolverPP2M(True)),
            (
                "DPMSolverMultistepScheduler",
                {"solver_order": 3, "solver_type": "heun"},
                jk.DPMSolverPP3M(True),
            ),
        ],
        ids=str,
    )
    def test_steps(self, name: str, settings: dict[str, Any], sampler: jk.AbstractSampler):
        scheduler = stable_diffusion(name, prediction_type="sample", **settings)
        scheduler.set_timesteps(9)
        sigmas = scheduler.sigmas.double().numpy()
        process = jk.DiscreteVP.scaled_linear()
        last = 0.0 if sigmas[-1] == 0.0 else 1.0
        schedule = Schedule(np.append(scheduler.timesteps.double().numpy() + 1.0, last))
        x = noise(size=16).double()
        points = [x]
        for i, t in enumerate(scheduler.timesteps):
            a = 1.0 / math.hypot(1.0, sigmas[i])
            x0 = gaussian(points[-1] / a, sigmas[i])
            points.append(scheduler.step(x0, t, points[-1]).prev_sample)
        follows(points, stepped(sampler, process, schedule, x, torch.zeros(9, 1, 1)))

    @pytest.mark.parametrize("steps", [3, 9])
    def test_ipndm(self, steps: int):
        """Its own table of noise s and signal a, a^2 + s^2 = 1, and its mixture of x and output."""
        levels = np.linspace(0.98, 0.05, steps + 1)
        scheduler = diffusers.IPNDMScheduler(trained_betas=levels)
        scheduler.set_timesteps(steps)
        sigmas = levels / np.sqrt(1.0 - levels**2)
        process = jk.VP()
        schedule = Schedule.from_sigmas(process, sigmas)
        x = noise(size=16).double()
        points = [x]
        for i, t in enumerate(scheduler.timesteps):
            a = math.sqrt(1.0 - levels[i] ** 2)
            eps = (points[-1] - a * gaussian(points[-1] / a, sigmas[i])) / levels[i]
            output = (eps - levels[i] * points[-1]) / a
            points.append(scheduler.step(output, t, points[-1]).prev_sample)
        follows(points, stepped(jk.IPNDM(), process, schedule, x, torch.zeros(steps, 1, 1)))


class TestTable:
    """What is declared of the schedulers is true of the installed ones."""

    @staticmethod
    def schedulers() -> Iterator[tuple[str, set[str]]]:
        """Name and possible names of custom numbers, of every scheduler that can be imported."""
        for name in dir(diffusers):
            if name.endswith("Scheduler"):
                set_timesteps = getattr(getattr(diffusers, name), "set_timesteps", lambda: 0)
                parameters = inspect.signature(set_timesteps).parameters
                yield name.removesuffix("Scheduler"), {"timesteps", "sigmas"} & {*parameters}

    def test_every_scheduler_that_takes_custom_numbers_is_declared(self):
        if not diffusers.__version__.startswith("0.42."):
            pytest.skip("the table is of diffusers 0.42")
        supported = {record.name.removesuffix("Scheduler") for record in SCHEDULERS.values()}
        refused = {name for name, reason in UNSUPPORTED.items() if reason != NO_TIMESTEPS}
        missing = [
            name
            for name, takes in self.schedulers()
            if takes and not {name, name.removesuffix("Discrete")} & (supported | refused)
        ]
        assert not missing

    def test_those_that_take_none_take_none(self):
        refused = {name for name, reason in UNSUPPORTED.items() if reason == NO_TIMESTEPS}
        assert len(refused) > 20
        wrong = [name for name, takes in self.schedulers() if takes and name in refused]
        assert not wrong

    def test_every_supported_scheduler_takes_what_it_is_given(self):
        installed = dict(self.schedulers())
        for record in SCHEDULERS.values():
            assert record.keyword in installed[record.name.removesuffix("Scheduler")]

    def test_every_supported_scheduler_exists(self):
        schedule = Schedule(np.array([14.0, 5.0, 1.0, 0.1]))
        for name in SCHEDULERS:
            text = export(schedule, jk.EDM(), "diffusers", scheduler=name).text
            imported = re.search(r"from diffusers import (\w+)", text)
            assert imported is not None
            assert hasattr(diffusers, imported.group(1))
