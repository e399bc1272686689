"""The custom node for ComfyUI, loaded against a stub of the interface that it documents.

`comfy.samplers` has SCHEDULER_HANDLERS, which maps a name to a SchedulerHandler(handler, use_ms),
and SCHEDULER_NAMES, the list that its menus show; handler(model_sampling, steps) gives steps + 1
levels. A node is a class in NODE_CLASS_MAPPINGS with INPUT_TYPES, RETURN_TYPES, FUNCTION, CATEGORY.
"""

import importlib.util
import logging
import re
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

import jaxkernels as jk

torch: Any = pytest.importorskip("torch")

TABLE = jk.DiscreteVP.scaled_linear()
TIMES = np.array([1000.0, 700.0, 300.0, 50.0, 1.0])


class SchedulerHandler(NamedTuple):
    handler: Any
    use_ms: bool = True


@pytest.fixture
def samplers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`comfy.samplers` with one scheduler, and its KSampler's use of steps and denoise."""
    module: Any = types.ModuleType("comfy.samplers")
    module.SchedulerHandler = SchedulerHandler
    module.SCHEDULER_HANDLERS = {"simple": SchedulerHandler(lambda ms, steps: None)}
    module.SCHEDULER_NAMES = ["simple"]
    package: Any = types.ModuleType("comfy")
    package.samplers = module
    monkeypatch.setitem(sys.modules, "comfy", package)
    monkeypatch.setitem(sys.modules, "comfy.samplers", module)
    return module


def load(path: Path, result: jk.Export) -> Any:
    """The exported file as ComfyUI imports it."""
    path.write_text(result.text)
    spec = importlib.util.spec_from_file_location(str(path), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model(sigma_max: float = 14.6146) -> Any:
    return types.SimpleNamespace(sigma_max=torch.tensor(sigma_max), sigma_min=torch.tensor(0.029))


def ksampler(samplers: Any, name: str, steps: int, denoise: float = 1.0) -> np.ndarray:
    """The levels of a KSampler: int(steps / denoise) are asked for, the last ones are run."""
    handler = samplers.SCHEDULER_HANDLERS[name]
    assert handler.use_ms
    return handler.handler(model(), int(steps / denoise))[-(steps + 1) :].numpy()


def test_it_adds_a_named_scheduler(samplers: Any, tmp_path: Path):
    result = jk.export(jk.Schedule(TIMES), TABLE, "comfyui-node", sampler="dpmpp_2m")
    for _ in range(2):  # ComfyUI may load it again
        load(tmp_path / "portraits_4.py", result)
    assert samplers.SCHEDULER_NAMES == ["simple", "portraits_4"]
    levels = ksampler(samplers, "portraits_4", 4)
    assert levels.dtype == np.float32
    np.testing.assert_allclose(levels, jk.Schedule(TIMES).sigmas(TABLE), rtol=1e-6)
    assert (
        result.values["sigmas"] == jk.export(jk.Schedule(TIMES), TABLE, "comfyui").values["sigmas"]
    )
    assert any("the sampler is 'dpmpp_2m'" in remark for remark in result.remarks)


@pytest.mark.parametrize("last", [1.0, 0.0])
def test_other_numbers_of_steps_are_interpolated(
    samplers: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, last: float
):
    """In log sigma; the ends stay, a level 0 included, and a warning is logged."""
    times = np.append(TIMES[:-1], last)
    load(tmp_path / "mine.py", jk.export(jk.Schedule(times), TABLE, "comfyui-node"))
    sigmas = np.asarray(jk.Schedule(times).sigmas(TABLE))
    above = sigmas[sigmas > 0]
    with caplog.at_level(logging.WARNING):
        double = ksampler(samplers, "mine", 2 * above.size - 2 + (last == 0.0))
    assert "mine has 4 steps" in caplog.text
    np.testing.assert_allclose(double[: 2 * above.size - 1 : 2], above, rtol=1e-5)
    between = np.sqrt(above[1:] * above[:-1])
    np.testing.assert_allclose(double[1 : 2 * above.size - 2 : 2], between, rtol=1e-5)
    assert (double[-1] == 0.0) == (last == 0.0)
    one = ksampler(samplers, "mine", 1)
    np.testing.assert_allclose(one, [sigmas[0], sigmas[-1]], rtol=1e-5)
    half = ksampler(samplers, "mine", 4, denoise=0.5)
    assert half.size == 5
    assert half[0] < sigmas[1]


def test_a_model_of_smaller_noise_is_refused(samplers: Any, tmp_path: Path):
    """A flow model's largest level is 1."""
    load(tmp_path / "mine.py", jk.export(jk.Schedule(TIMES), TABLE, "comfyui-node"))
    with pytest.raises(ValueError, match="mine was made for a model with a larger sigma_max"):
        samplers.SCHEDULER_HANDLERS["mine"].handler(model(1.0), 4)


def test_it_adds_a_node(samplers: Any, tmp_path: Path):
    levels = np.array([1.0, 0.75, 0.25, 0.02])
    result = jk.export(jk.Schedule(levels), jk.FlowMatching(), "comfyui-node")
    module = load(tmp_path / "flow.py", result)
    node = module.NODE_CLASS_MAPPINGS["flow"]
    assert module.NODE_DISPLAY_NAME_MAPPINGS == {"flow": "flow"}
    kind, settings = node.INPUT_TYPES()["required"]["denoise"]
    assert (kind, settings["default"], node.RETURN_TYPES) == ("FLOAT", 1.0, ("SIGMAS",))
    run = getattr(node(), node.FUNCTION)
    for denoise, kept in ((1.0, 4), (0.7, 3), (0.3, 2), (0.0, 0)):
        (sigmas,) = run(denoise=denoise)
        np.testing.assert_allclose(sigmas.numpy(), levels[4 - kept :], rtol=1e-6)


def test_the_noise_of_ancestral_steps_is_a_remark():
    result = jk.export(jk.Schedule(TIMES, 1.0), TABLE, "comfyui-node")
    assert any("SamplerEulerAncestral, with eta 1.0" in remark for remark in result.remarks)
    varied = jk.Schedule(TIMES, np.array([0.1, 0.9, 0.3, 0.0]))
    result = jk.export(varied, TABLE, "comfyui-node")
    assert any("stochasticity cannot be exported" in warning for warning in result.warnings)


class SamplerCustom:
    """ComfyUI's node of that name with the sampler euler, as its documentation describes it.

    `model_sampling` scales noise and data at the first level, and back at the last: for models in
    sigma x = data + sigma noise (sqrt(1 + sigma^2) noise at the model's largest level), for flow
    models x = (1 - level) data + level noise.
    """

    def __init__(self, denoise: Any, sigma_max: float, flow: bool):
        self.denoise, self.sigma_max, self.flow = denoise, sigma_max, flow
        self.seen: list[tuple[float, np.ndarray]] = []

    def start(self, level: float, noise: np.ndarray, latents: np.ndarray) -> np.ndarray:
        if self.flow:
            return level * noise + (1.0 - level) * latents
        at_top = level > self.sigma_max or np.isclose(level, self.sigma_max, rtol=1e-5, atol=0)
        return noise * (np.sqrt(1.0 + level**2) if at_top else level) + latents

    def __call__(
        self, sigmas: Any, latents: np.ndarray, noise: np.ndarray, add_noise: bool = True
    ) -> np.ndarray:
        levels = np.asarray(sigmas, float)
        x = self.start(levels[0], noise if add_noise else 0.0 * noise, latents)
        for level, after in zip(levels[:-1], levels[1:], strict=True):
            self.seen.append((level, x))
            d = (x - self.denoise(x, level)) / level
            x = x + d * (after - level)
        return x / (1.0 - levels[-1]) if self.flow else x


def manual_sigmas(text: str) -> list[float]:
    """What the node ManualSigmas reads."""
    return [float(number) for number in re.findall(r"[-+]?(?:\d*\.*\d+)", text)]


SUB_RANGES = {
    "image-to-image": (jk.DiscreteVP.scaled_linear(t_max=700.0), [700.0, 300.0, 50.0, 0.0]),
    "inpainting": (jk.EDM(t_max=3.0), [3.0, 1.0, 0.2, 0.0]),
    "second expert": (jk.FlowMatching(t_max=0.875), [0.875, 0.5, 0.2, 0.0]),
}


MEAN, VARIANCES = np.array([0.3, -0.2]), np.array([1.0, 0.1])


def network(flow: bool) -> Any:
    """E[x0 | x] of Gaussian data, x = x0 + level z or (1 - level) x0 + level z."""

    def denoise(x: np.ndarray, level: float) -> np.ndarray:
        signal = 1.0 - level if flow else 1.0
        gain = signal * VARIANCES / (signal**2 * VARIANCES + level**2)
        return MEAN + gain * (x - signal * MEAN)

    return denoise


@pytest.mark.parametrize("name", SUB_RANGES)
@pytest.mark.parametrize("tool", ["comfyui", "comfyui-node"])
def test_a_sub_range_starts_from_the_data_that_are_connected(
    name: str, tool: str, samplers: Any, tmp_path: Path
):
    """As the remarks say; against `jk.sample` from a x0 + s z of the same data and noise."""
    process, times = SUB_RANGES[name]
    flow = name == "second expert"
    schedule = jk.Schedule(times)
    result = jk.export(schedule, process, tool, sampler="ddim")
    if tool == "comfyui":
        sigmas: Any = manual_sigmas(result.text)
    else:
        module = load(tmp_path / "mine.py", result)
        (sigmas,) = module.NODE_CLASS_MAPPINGS["mine"]().get_sigmas(1.0)
        np.testing.assert_allclose(ksampler(samplers, "mine", len(times) - 1), sigmas)
        assert f"# It starts from noised data at level {float(sigmas[0]):.6g}" in result.text
    x0, z = np.random.default_rng(0).standard_normal((2, 5, 2))
    node = SamplerCustom(network(flow), 1.0 if flow else 14.6146, flow)
    found = node(sigmas, latents=x0, noise=z)
    a, s = (float(f(times[0])) for f in (process.signal, process.noise))
    first = a * x0 + s * z
    np.testing.assert_allclose(node.seen[0][1], first if flow else first / a, rtol=1e-5, atol=1e-6)
    exact = jk.Gaussian(MEAN, VARIANCES).denoiser(process)
    expected = jk.sample(exact, "ddim", schedule, jnp.asarray(first))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    (connected,) = (remark for remark in result.remarks if "to latent_image" in remark)
    assert f"level {float(sigmas[0]):.6g}" in connected


def test_the_second_expert_goes_on_where_the_first_stopped():
    """The first one's latents, without noise: the same as all levels at once."""
    process, times = SUB_RANGES["second expert"]
    result = jk.export(jk.Schedule(times), process, "comfyui", sampler="ddim")
    (remark,) = (text for text in result.remarks if "second of two experts" in text)
    assert "stop at 0.875, and turn add_noise off" in remark
    z = np.random.default_rng(1).standard_normal((5, 2))
    node = SamplerCustom(network(True), 1.0, True)
    high = [1.0, 0.95, 0.875]
    low = manual_sigmas(result.text)
    whole = node([*high, *low[1:]], np.zeros_like(z), z)
    first = node(high, np.zeros_like(z), z)
    np.testing.assert_allclose(node(low, first, z, add_noise=False), whole, rtol=1e-12)


def test_a_whole_range_says_nothing_of_data():
    for tool in ("comfyui", "comfyui-node"):
        result = jk.export(jk.Schedule(TIMES), TABLE, tool, sampler="ddim")
        assert not any("latent_image" in text for text in (*result.remarks, result.text))
