"""Denoisers from pipelines of diffusers, built with small random weights, and from k-diffusion.

The pipeline itself is the reference: with a scheduler that takes the steps of DDIM, every point of
its loop is that of `jk.sample`. Without the packages these tests are skipped.
"""

import dataclasses
import functools
import types
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkernels as jk
from jaxkernels.prediction import DiffusersNetwork, process_of_scheduler

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch: Any = pytest.importorskip("torch")
    diffusers: Any = pytest.importorskip("diffusers")
    tiny: Any = pytest.importorskip("test_exports_pipelines")

from test_external import k_sampling as k_sampling

pytestmark = [
    pytest.mark.external,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("float32"),
]

CLOSE: dict[str, Any] = {"rtol": 1e-3, "atol": 2e-4}


class Tokenizer(tiny.Tokenizer):
    """Prompts differ by their letters."""

    def __call__(self, prompt: Any, padding: Any = None, max_length: int = 8, **_: Any) -> Any:
        prompts = [prompt] if isinstance(prompt, str) else prompt
        rows = [[ord(c) % 15 + 1 for c in p[:max_length].ljust(max_length)] for p in prompts]
        ids = torch.tensor(rows)
        return types.SimpleNamespace(input_ids=ids, attention_mask=torch.ones_like(ids))


def ready(pipe: Any, dtype: Any = None) -> Any:
    """The pipeline with prompts that differ and a scheduler that takes DDIM's steps."""
    for name in ("tokenizer", "tokenizer_2"):
        if getattr(pipe, name, None) is not None:
            setattr(pipe, name, Tokenizer())
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval().to(dtype)
    if not isinstance(process_of_scheduler(pipe.scheduler)[0], jk.FlowMatching):
        pipe.scheduler = diffusers.DDIMScheduler(**tiny.BETAS, clip_sample=False)
    else:
        pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def followed(pipe: Any, **call: Any) -> tuple[np.ndarray, np.ndarray]:
    """The timesteps (K,) and points (K+1, batch, ...) of a call of the pipeline."""
    told: list[float] = []
    points: list[Any] = []
    own = pipe.scheduler.step

    @functools.wraps(own)
    def step(output: Any, timestep: Any, sample: Any, *args: Any, **named: Any) -> Any:
        told.append(float(timestep))
        points.append(sample)
        result = own(output, timestep, sample, *args, **named)
        end[:] = [result[0]]
        return result

    end: list[Any] = []
    pipe.scheduler.step = step
    pipe(**call)
    del pipe.scheduler.step
    return np.array(told), np.stack([p.float().numpy() for p in [*points, *end]])


SMALL = {"height": 16, "width": 16}
PROMPT: dict[str, Any] = {"prompt": "a cat", "negative_prompt": "blue"}
VIDEO = {"height": 32, "width": 32, "num_frames": 9}
PIPELINES: list[Any] = [
    pytest.param(
        tiny.stable_diffusion,
        {**SMALL, "prompt": ["a cat", "two dogs"], "guidance_scale": 5.0},
        id="sd-two-prompts",
    ),
    pytest.param(tiny.stable_diffusion, {**SMALL, **PROMPT, "guidance_scale": 1.0}, id="sd"),
    pytest.param(tiny.stable_diffusion_xl, {**SMALL, **PROMPT, "guidance_scale": 6.0}, id="sdxl"),
    pytest.param(tiny.stable_diffusion_3, {**SMALL, **PROMPT, "guidance_scale": 4.0}, id="sd3"),
    pytest.param(tiny.flux, {**SMALL, "prompt": "a cat"}, id="flux"),
    pytest.param(tiny.flux, {**SMALL, **PROMPT, "true_cfg_scale": 2.5}, id="flux-two-calls"),
    pytest.param(lambda: tiny.unconditional("DDIMPipeline"), {}, id="ddim"),
    pytest.param(tiny.dit, {"class_labels": [3, 700], "guidance_scale": 4.0}, id="dit"),
    pytest.param(tiny.ltx, {**VIDEO, **PROMPT, "guidance_scale": 3.0}, id="ltx"),
    pytest.param(
        tiny.wan, {**SMALL, **PROMPT, "num_frames": 5, "guidance_scale": 3.0}, id="wan-two-calls"
    ),
]


@pytest.mark.parametrize(("make", "call"), PIPELINES)
def test_the_denoiser_is_what_the_pipeline_runs(make: Callable[[], Any], call: Any) -> None:
    torch.manual_seed(0)
    pipe = ready(make())
    denoiser = jk.from_diffusers(pipe, **call)
    told, points = followed(pipe, num_inference_steps=4, **call)
    assert isinstance(denoiser.fn, DiffusersNetwork)
    assert denoiser.fn.shape == points.shape[2:]
    is_flow = isinstance(denoiser.process, jk.FlowMatching)
    schedule = jk.Schedule(np.append(told / 1000.0 if is_flow else told + 1.0, 0.0))
    start = jnp.asarray(points[0], jnp.float32)
    path = jk.sample(denoiser, "ddim", schedule, start, trajectory=True)
    np.testing.assert_allclose(path, points, **CLOSE)


def test_prompts_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = ready(tiny.stable_diffusion())
    calls: list[Any] = []
    encode = pipe.encode_prompt
    monkeypatch.setattr(
        pipe, "encode_prompt", lambda *a, **k: (calls.append(a), encode(*a, **k))[1]
    )
    denoiser = jk.from_diffusers(pipe, prompt="a cat", guidance_scale=5.0, batch=2, **SMALL)
    for rows in (1, 5):
        assert denoiser(jnp.ones((rows, 4, 8, 8)), jnp.float32(500.0)).x0.shape[0] == rows
    assert len(calls) == 1


def test_trajectories_of_a_pipeline_are_recorded() -> None:
    """Sensitivities are those of finite differences: what `record` needs of a network."""
    torch.manual_seed(0)
    pipe = ready(tiny.stable_diffusion())
    denoiser = jk.from_diffusers(pipe, prompt="a cat", guidance_scale=5.0, **SMALL)
    x = jax.random.normal(jax.random.key(0), (2, 4, 8, 8), jnp.float32)
    t = jnp.float32(300.0)

    def total(x: jax.Array) -> jax.Array:
        return jnp.sum(denoiser(x, t).x0 ** 2)

    along = jnp.sum(jax.grad(total)(x) * x)
    both = (total(1.01 * x) - total(0.99 * x)) / 0.02
    np.testing.assert_allclose(along, both, rtol=2e-2)
    np.testing.assert_allclose(jax.jvp(total, (x,), (x,))[1], along, rtol=1e-4)
    record = jk.record(denoiser, x, t_min=1.0, nodes=8, directions=1, progress=False)
    assert np.all(np.isfinite(record.products))


@pytest.mark.parametrize("name", ["bfloat16", "float64"])
def test_a_pipeline_keeps_its_precision(name: str) -> None:
    """The network is given points in it, and times in float32 or better."""
    dtype = getattr(torch, name)
    torch.manual_seed(0)
    pipe = ready(tiny.stable_diffusion())
    call = {"prompt": "a cat", "guidance_scale": 5.0, **SMALL}
    x = jax.random.normal(jax.random.key(0), (2, 4, 8, 8), jnp.float32)
    wanted = jk.from_diffusers(pipe, **call)(x, jnp.float32(998.7)).eps
    ready(pipe, dtype)
    denoiser = jk.from_diffusers(pipe, **call)
    seen: list[Any] = []
    pipe.unet.register_forward_pre_hook(
        lambda module, given, named: seen.append(named), with_kwargs=True
    )
    eps = denoiser(x, jnp.float32(998.7)).eps
    np.testing.assert_allclose(eps, wanted, atol=0.15 if name == "bfloat16" else 1e-4)
    assert {named["sample"].dtype for named in seen} == {dtype}
    # after the calls that check what the network returns
    assert all(float(named["timestep"][0]) == np.float32(998.7) - 1 for named in seen[-2:])


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])
def test_a_network_and_its_scheduler(prediction_type: str, variance: str) -> None:
    """Every prediction type; networks that learn the variance return twice the channels."""
    torch.manual_seed(0)
    channels = 6 if variance == "learned_range" else 3
    unet = tiny.unconditional("DDIMPipeline").unet
    unet = diffusers.UNet2DModel.from_config(unet.config, out_channels=channels).eval()
    scheduler = diffusers.DDIMScheduler(
        **tiny.BETAS, prediction_type=prediction_type, clip_sample=False
    )
    denoiser = jk.from_diffusers(unet, scheduler)
    assert isinstance(denoiser.fn, DiffusersNetwork)
    assert denoiser.fn.shape == (3, 8, 8)
    np.testing.assert_allclose(
        denoiser.process.sigma(jnp.arange(1.0, 1001.0)),
        jk.DiscreteVP.scaled_linear().sigma(jnp.arange(1.0, 1001.0)),
        rtol=1e-4,
    )
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    t = 600
    with torch.no_grad():
        value = unet(x, t).sample[:, :3]
        scheduler.set_timesteps(5)
        wanted = scheduler.step(value, t, x).pred_original_sample
    x0 = denoiser(jnp.asarray(x.numpy()), jnp.float32(t + 1)).x0
    np.testing.assert_allclose(x0, wanted, **CLOSE)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_networks_in_edm_preconditioning(prediction_type: str) -> None:
    torch.manual_seed(0)
    unet = tiny.unconditional("DDIMPipeline").unet.eval()
    scheduler = diffusers.EDMEulerScheduler(prediction_type=prediction_type, sigma_max=20.0)
    denoiser = jk.from_diffusers(unet, scheduler)
    assert float(denoiser.process.t_max) == 20.0
    scheduler.set_timesteps(5)
    x = scheduler.init_noise_sigma * torch.randn(2, 3, 8, 8)
    points = [x]
    for t in scheduler.timesteps:
        with torch.no_grad():
            value = unet(scheduler.scale_model_input(x, t), t).sample
        x = scheduler.step(value, t, x).prev_sample
        points.append(x)
    schedule = jk.Schedule(scheduler.sigmas.double().numpy())
    start = jnp.asarray(points[0].numpy())
    path = jk.sample(denoiser, "ddim", schedule, start, trajectory=True)
    np.testing.assert_allclose(path, torch.stack(points), rtol=1e-3, atol=1e-3)


def test_a_flow_that_counts_time_from_noise() -> None:
    """Mochi's network is told 0 at the noise, and points from there to the data."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, invert_sigmas=True)

    def network(x: Any, timestep: Any) -> Any:
        return torch.cos(x) + timestep.reshape(-1, 1) / 1000.0

    scheduler.set_timesteps(4)
    x = start = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    denoiser = jk.from_diffusers(network, scheduler)
    schedule = jk.Schedule(1.0 - scheduler.sigmas.double().numpy())
    found = jk.sample(denoiser, "ddim", schedule, jnp.asarray(start.numpy()))
    np.testing.assert_allclose(found, x, rtol=1e-5, atol=1e-5)


SET: list[Any] = [
    pytest.param(tiny.stable_diffusion, "ddim", {**SMALL, **PROMPT}, {}, id="sd"),
    pytest.param(tiny.flux, "dpmpp_2m", {**SMALL, "prompt": "a cat"}, {}, id="flux"),
    pytest.param(
        lambda: tiny.unconditional("DDPMPipeline"),
        "ddim",
        {},
        {"scheduler": "dpm_multistep"},
        id="ddpm",
    ),
]


@pytest.mark.parametrize(("make", "sampler", "call", "options"), SET)
def test_an_optimised_schedule_is_set_on_its_pipeline(
    make: Callable[[], Any], sampler: str, call: Any, options: Any
) -> None:
    """The next call evaluates the network at its times, and at no others."""
    pipe = ready(make())
    process = process_of_scheduler(pipe.scheduler)[0]
    target = jk.Gaussian(np.zeros(3), [1.0, 0.1, 0.01])
    result = jk.optimize_schedule(target, process, sampler, 4, progress=False)
    export = result.to_diffusers(pipe, **options)
    expected = ("replaced by 0", "rounding to distinct integer timesteps")
    assert not [w for w in export.warnings if not any(part in w for part in expected)]
    told: list[float] = []

    def note(module: Any, given: Any, named: Any) -> None:
        time = named["timestep"] if "timestep" in named else given[1]
        told.append(float(torch.as_tensor(time).flatten()[0]))

    network = pipe.components.get("unet") or pipe.transformer
    network.register_forward_pre_hook(note, with_kwargs=True)
    pipe(num_inference_steps=4, **call)
    times = np.asarray(result.schedule.times)[:-1]
    if "timesteps" in export.values:
        times = np.rint(times)
    wanted = times if isinstance(process, jk.FlowMatching) else times - 1.0
    np.testing.assert_allclose(told, wanted, rtol=1e-4, atol=0.01 * wanted.max() / 1000)


def test_integer_timesteps_with_the_smallest_objective() -> None:
    """A table of 20 entries, which has one timestep nearest to two times."""
    pipe = tiny.unconditional("DDIMPipeline")
    betas = np.linspace(0.01, 0.5, 20)
    pipe.scheduler = diffusers.DDIMScheduler(20, trained_betas=betas, clip_sample=False)
    process = process_of_scheduler(pipe.scheduler)[0]
    target = jk.Gaussian(np.zeros(3), [1.0, 0.1, 0.01])
    times = [20.0, 16.0, 13.4, 13.2, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0, 0.0]
    found = jk.optimize_schedule(target, process, "ddim", 10, t_min=0.0, progress=False)
    result = dataclasses.replace(found, schedule=jk.Schedule(times))
    assert np.any(np.diff(np.rint(result.schedule.times)) == 0)
    export = result.to_diffusers(pipe, scheduler="dpm_multistep")
    nearest = jk.export(
        result.schedule, process, "diffusers", sampler="ddim", scheduler="dpm_multistep"
    )

    def value(export: jk.exports.Export) -> float:
        schedule = jk.Schedule(np.append(np.array(export.values["timesteps"]) + 1.0, 0.0))
        return float(result.reduced_objective(schedule))

    assert value(export) < value(nearest)
    told: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda module, given: told.append(int(given[1])))
    pipe(num_inference_steps=10, output_type="np")
    np.testing.assert_array_equal(told, export.values["timesteps"])


@pytest.mark.parametrize("scheduler", ["euler", "dpm_multistep", "EulerDiscreteScheduler"])
def test_levels_are_found_in_the_table_of_the_pipeline(scheduler: str) -> None:
    """Of a schedule for continuous time, and one for another table."""
    for process in (jk.VP(), jk.DiscreteVP.scaled_linear()):
        pipe = tiny.unconditional("DDIMPipeline")
        pipe.scheduler = diffusers.DDPMScheduler(clip_sample=False)
        table = process_of_scheduler(pipe.scheduler)[0]
        schedule = jk.Schedule.from_sigmas(process, [14.0, 3.0, 0.7, 0.05])
        jk.exports.bind(pipe, schedule, process, sampler="ddim", scheduler=scheduler)
        pipe.scheduler.set_timesteps(3)
        told = np.asarray(pipe.scheduler.timesteps, np.float64)
        np.testing.assert_allclose(table.sigma(told + 1.0), [14.0, 3.0, 0.7], rtol=0.02)


def test_a_table_without_signal_at_its_end_is_that_of_diffusers() -> None:
    scheduler = diffusers.DDIMScheduler(**tiny.BETAS, rescale_betas_zero_snr=True)
    process, _ = process_of_scheduler(scheduler)
    euler = diffusers.EulerDiscreteScheduler(**tiny.BETAS, rescale_betas_zero_snr=True)
    np.testing.assert_allclose(process.sigma(1000.0), float(euler.sigmas[0]), rtol=1e-3)


def test_batches_that_fit() -> None:
    """Halved until they do; rows of what the network is told beside x are taken in turn."""
    sizes: list[int] = []

    def model(x: Any, sigma: Any, shift: Any) -> Any:
        sizes.append(len(x))
        if len(x) > 2:
            raise torch.cuda.OutOfMemoryError("too large")
        return x / (1 + sigma[:, None] ** 2) + shift

    denoiser = jk.from_k_diffusion(model, batch=4, shift=torch.arange(3.0)[:, None])
    x = jnp.arange(14.0, dtype=jnp.float32).reshape(7, 2)
    x0 = denoiser(x, jnp.float32(2.0)).x0
    np.testing.assert_allclose(x0, x / 5 + (jnp.arange(7.0) % 3)[:, None], rtol=1e-6)
    assert sizes[-4:] == [2, 2, 2, 1]


def test_models_of_k_diffusion(k_sampling: Any) -> None:
    """The wrapper of Stable Diffusion, and its own Euler steps."""
    external = pytest.importorskip("k_diffusion.external")
    torch.manual_seed(0)
    unet = tiny.unconditional("DDIMPipeline").unet
    table = diffusers.DDIMScheduler(**tiny.BETAS).alphas_cumprod

    class Wrapped(external.DiscreteEpsDDPMDenoiser):
        def get_eps(self, x: Any, t: Any) -> Any:
            return self.inner_model(x, t).sample

    model = Wrapped(unet, table, quantize=False).eval()
    sigmas = model.get_sigmas(5)
    x = sigmas[0] * torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        wanted = k_sampling.sample_euler(model, x, sigmas, disable=True)
    denoiser = jk.from_k_diffusion(model)
    assert isinstance(denoiser.process, jk.DiscreteVP)
    schedule = jk.Schedule.from_sigmas(denoiser.process, sigmas.double().numpy())
    start = jnp.asarray(x.numpy()) * denoiser.process.signal(schedule.times[0]).astype(jnp.float32)
    np.testing.assert_allclose(jk.sample(denoiser, "ddim", schedule, start), wanted, **CLOSE)


def test_networks_of_edm() -> None:
    """net(x, sigma, class_labels) with noise levels up to infinity; Heun's steps as EDM's."""

    class Net(torch.nn.Module):
        sigma_min, sigma_max = 0.0, float("inf")

        def forward(self, x: Any, sigma: Any, class_labels: Any = None) -> Any:
            sigma = sigma.to(torch.float32).reshape(-1, 1, 1, 1)
            return x / (1 + sigma**2) + class_labels.reshape(-1, 1, 1, 1) * torch.ones_like(x)

    net = Net().eval()
    denoiser = jk.from_k_diffusion(net, class_labels=torch.tensor([1.0, 3.0]))
    assert float(denoiser.process.t_max) == 80.0
    levels = [80.0, 10.0, 1.0, 0.1, 0.0]
    x = start = 80.0 * torch.randn(2, 3, 4, 4)
    labels = torch.tensor([1.0, 3.0])
    for sigma, after in zip(levels, levels[1:]):
        slope = (x - net(x, torch.tensor(sigma), labels)) / sigma
        euler = x + (after - sigma) * slope
        if after:
            slope = (slope + (euler - net(euler, torch.tensor(after), labels)) / after) / 2
        x = x + (after - sigma) * slope
    found = jk.sample(denoiser, "heun", jk.Schedule(levels), jnp.asarray(start.numpy()))
    np.testing.assert_allclose(found, x, **CLOSE)


def _unet() -> Any:
    return tiny.unconditional("DDIMPipeline").unet.eval()


def _rescaled(scale: float, share: float) -> Any:
    call = {"prompt": "a cat", "guidance_scale": scale, "guidance_rescale": share, **SMALL}
    return jk.from_diffusers(ready(tiny.stable_diffusion()), **call)


REFUSED: list[Any] = [
    *(
        pytest.param(
            lambda call=call: _rescaled(*call), "does more to the outputs of its network", id=name
        )
        for name, call in (("rescaled", (5.0, 0.7)), ("rescaled-little", (30.0, 0.02)))
    ),
    pytest.param(lambda: jk.from_diffusers(3), "got int with no components", id="no-pipeline"),
    pytest.param(
        lambda: jk.from_diffusers(diffusers.DDPMPipeline),
        "not the class DDPMPipeline",
        id="class",
    ),
    pytest.param(
        lambda: jk.from_diffusers(lambda x, t: x, diffusers.DDIMScheduler),
        "not the class DDIMScheduler",
        id="class-of-scheduler",
    ),
    pytest.param(
        lambda: jk.from_diffusers(diffusers.DDIMScheduler(), _unet()),
        "scheduler must be one of diffusers; got UNet2DModel",
        id="swapped",
    ),
    pytest.param(
        lambda: jk.from_diffusers(tiny.unconditional("DDIMPipeline"), batch=0),
        "batch = 0 must be at least 1",
        id="batch",
    ),
    pytest.param(
        lambda: jk.from_diffusers(tiny.unconditional("DDIMPipeline"), batchsize=2),
        "argument of DDIMPipeline: name='batchsize' is not known. Did you mean 'batch_size'",
        id="misspelt",
    ),
    pytest.param(
        lambda: jk.from_diffusers(ready(tiny.stable_diffusion()), prompt="", guidence_scale=7.0),
        "name='guidence_scale' is not known. Did you mean 'guidance_scale'",
        id="misspelt-where-any-is-taken",
    ),
    pytest.param(
        lambda: jk.from_diffusers(_unet(), diffusers.DDIMScheduler(), class_label=3),
        "name='class_label' is not known. Did you mean 'class_labels'",
        id="misspelt-network",
    ),
    *(
        pytest.param(
            lambda shape=shape: jk.from_diffusers(_unet(), diffusers.DDIMScheduler())(
                jnp.ones(shape), jnp.float32(5.0)
            ),
            f"cannot be called with x of shape {shape}".replace("(", r"\(").replace(")", r"\)"),
            id=f"shape-{len(shape)}-{shape[1]}",
        )
        for shape in ((2, 192), (2, 1, 8, 8), (3, 8, 8))
    ),
    pytest.param(
        lambda: jk.exports.bind(
            tiny.unconditional("DDIMPipeline"),
            jk.schedules.uniform(jk.FlowMatching(), 4, 0.0),
            jk.FlowMatching(),
        ),
        "the schedule is for FlowMatching, but the pipeline's scheduler, DDIMScheduler, is of "
        "DiscreteVP",
        id="flow-on-table",
    ),
    pytest.param(
        lambda: jk.from_diffusers(torch.nn.Linear(2, 2).eval(), diffusers.DDIMScheduler()),
        "Linear has no argument 'timestep' but input",
        id="no-timestep",
    ),
    pytest.param(
        lambda: jk.from_diffusers(lambda x, t: x, 3),
        "scheduler must be one of diffusers",
        id="none",
    ),
    pytest.param(
        lambda: jk.from_diffusers(lambda x, t: x, diffusers.CosineDPMSolverMultistepScheduler()),
        "CosineDPMSolverMultistepScheduler has no table",
        id="other-scheduler",
    ),
    *(
        pytest.param(
            lambda scheduler=scheduler: jk.from_diffusers(_unet(), scheduler()),
            f"{scheduler.__name__} is for networks distilled to jump to the data",
            id=scheduler.__name__,
        )
        for scheduler in (diffusers.LCMScheduler, diffusers.TCDScheduler)
    ),
    pytest.param(
        lambda: jk.from_diffusers(torch.nn.Linear(2, 2), diffusers.DDIMScheduler()),
        "training mode",
        id="training",
    ),
    pytest.param(
        lambda: jk.from_k_diffusion(lambda x, s: x, a=torch.ones(2), b=torch.ones(3)),
        "equally many rows; got {'a': 2, 'b': 3}",
        id="rows",
    ),
    pytest.param(
        lambda: jk.from_k_diffusion(lambda x, s: s)(jnp.ones((2, 3)), jnp.float32(1.0)),
        r"model returned shape \(2,\) for x of shape \(2, 3\)",
        id="output",
    ),
]


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_the_number_of_steps_of_the_pipeline_does_not_matter(steps: int) -> None:
    """It is a part of the call that people have, also of models that are run in one step."""
    pipe = tiny.stable_diffusion()
    denoiser = jk.from_diffusers(ready(pipe), **PROMPT, **SMALL)
    pipe.scheduler = tiny.table_scheduler()
    again = jk.from_diffusers(pipe, **PROMPT, **SMALL, num_inference_steps=steps)
    x = jax.random.normal(jax.random.key(0), (2, 4, 8, 8))
    np.testing.assert_allclose(denoiser(x, 500.0).eps, again(x, 500.0).eps, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
