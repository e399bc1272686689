"""The custom node for ComfyUI, loaded against a stub of the interface that it documents.

`comfy.samplers` has SCHEDULER_HANDLERS, which maps a name to a SchedulerHandler(handler, use_ms),
and SCHEDULER_NAMES, the list that its menus show; handler(model_sampling, steps) gives steps + 1
levels. A node is a class in NODE_CLASS_MAPPINGS with INPUT_TYPES, RETURN_TYPES, FUNCTION, CATEGORY.
"""

import importlib.util
import logging
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

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
