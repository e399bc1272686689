"""A network of PyTorch is the same network of JAX, in values and first derivatives."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jaxtyping import Array

import jaxkernels as jk

PROCESS = jk.VP()
TIMES = np.array([1.0, 0.7, 0.45, 0.2, 0.06])
ROTATION = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0]
DATA = np.random.default_rng(0).standard_normal((40, 3)) * np.sqrt([2.0, 0.5, 0.1]) @ ROTATION + [
    1.0,
    -0.5,
    0.0,
]


def _torch_pair() -> tuple[Callable[[Array, Array], Array], Callable[[Array, Array], Array]]:
    """The same nonlinear network in PyTorch and in JAX."""
    torch = pytest.importorskip("torch")
    weight = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.from_numpy(weight))

        def forward(self, x: Any, t: Any) -> Any:
            assert t.shape == x.shape[:1]
            return torch.tanh(x @ self.weight) * t[:, None]

    return jk.from_torch(Net().eval()), lambda x, t: jnp.tanh(x @ jnp.asarray(weight, x.dtype)) * t


# PyTorch's own warnings are not of this library
@pytest.mark.filterwarnings("ignore")
def test_torch_network_is_the_jax_network() -> None:
    ours, theirs = _torch_pair()
    x = jnp.asarray(DATA[:4])
    t = jnp.asarray(0.3)
    dx = jnp.asarray(DATA[4:8])
    close: Callable[[Any, Any], None] = eqx.Partial(
        jax.tree.map, eqx.Partial(np.testing.assert_allclose, atol=2e-6)
    )
    close(jax.jit(ours)(x, t), theirs(x, t))
    assert ours(x, t).dtype == x.dtype
    close(jax.jvp(ours, (x, t), (dx, t)), jax.jvp(theirs, (x, t), (dx, t)))
    close(
        *(
            jax.jit(jax.grad(lambda x, t, f=f: jnp.sum(f(x, t) ** 2), (0, 1)))(x, t)
            for f in (ours, theirs)
        )
    )
    close(*(jax.vmap(jax.vjp(f, x, t)[1])(jnp.stack([x, dx])) for f in (ours, theirs)))
    close(*(jax.vmap(f, (0, None))(jnp.stack([x, dx]), t) for f in (ours, theirs)))
    with pytest.raises(NotImplementedError, match="second derivatives"):
        jax.hessian(lambda x: jnp.sum(ours(x, t)))(x)
    schedule = jk.schedules.uniform(PROCESS, 3, t_min=0.01)
    close(
        *(
            jk.sample(jk.Denoiser(f, PROCESS, "score"), "ddim", schedule, x, key=jax.random.key(0))
            for f in (ours, theirs)
        )
    )
    one, two = (
        jk.measure(
            jk.Denoiser(f, PROCESS, "x0"),
            DATA,
            TIMES,
            key=jax.random.key(0),
            lipschitz_points=2,
            progress=False,
        )
        for f in (ours, theirs)
    )
    np.testing.assert_allclose(one.error, two.error, rtol=1e-5)
    np.testing.assert_allclose(one.lipschitz, two.lipschitz, rtol=1e-3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["rem", "tweedie", "tweedie2", "second_order1"])
def test_samplers_of_the_reverse_sde_run_a_torch_network(name: str) -> None:
    """With a time for every sample, and products with the Jacobian by `torch.func`."""
    start = jnp.asarray(DATA[:3])
    schedule = jk.Schedule([0.8, 0.4, 0.1], 1.0)
    ends = [
        jk.sample(
            jk.Denoiser(network, PROCESS, "epsilon"), name, schedule, start, key=jax.random.key(0)
        )
        for network in _torch_pair()
    ]
    np.testing.assert_allclose(*ends, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_torch_networks_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    # the types are wrong on purpose
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    three: Any = 3
    path: Any = "unet.pt"
    with pytest.raises(ValueError, match="training mode"):
        jk.from_torch(torch.nn.Linear(3, 3))
    with pytest.raises(ValueError, match="module must be a network, not the class Linear: make"):
        jk.from_torch(torch.nn.Linear)
    with pytest.raises(ValueError, match=r"module must be a network, .* got 3"):
        jk.from_torch(three)
    with pytest.raises(ValueError, match=r"model must be a network, .* got 'unet\.pt'"):
        jk.from_k_diffusion(path)
    with pytest.raises(ValueError, match="batch = 0 must be at least 1"):
        jk.from_k_diffusion(lambda x, sigma: x, batch=0)
    with pytest.raises(ValueError, match="the network returned a ndarray of NumPy"):
        jk.from_torch(lambda x, t: x.numpy())(jnp.zeros((4, 3)), jnp.asarray(0.1))
    with pytest.raises(ValueError, match=r"shape \(4, 2\) for x of shape \(4, 3\)"):
        jk.from_torch(lambda x, t: x[:, :2])(
            jnp.zeros((4, 3)), jnp.asarray(0.1)
        ).block_until_ready()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["bfloat16", "float16", "float64"])
def test_a_torch_module_computes_in_its_own_precision(name: str) -> None:
    """Values and derivatives come back in that of x; times are never rounded with the points."""
    torch = pytest.importorskip("torch")
    dtype = getattr(torch, name)
    told: list[Any] = []

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 3, dtype=dtype)
            torch.nn.init.eye_(self.layer.weight)
            torch.nn.init.zeros_(self.layer.bias)

        def forward(self, x: Any, t: Any) -> Any:
            told.append(t)
            return {"sample": self.layer(x) * t[:, None].to(x.dtype)}

    network = jk.from_torch(Net().eval())
    x = jnp.asarray(DATA[:4], jnp.float32)
    for t in (jnp.asarray(998.7, jnp.float32), jnp.asarray(999), jnp.arange(4)):
        value, moved = jax.jvp(lambda x, t=t: network(x, t), (x,), (x,))
        scale = jnp.broadcast_to(jnp.asarray(t, jnp.float32), (4,))[:, None]
        for found in (value, moved, jax.grad(lambda x, t=t: network(x, t).sum())(x)):
            assert found.dtype == jnp.float32
        np.testing.assert_allclose(value, scale * x, rtol=0.02)
        np.testing.assert_allclose(moved, scale * x, rtol=0.02)
        assert told[-1].dtype == (
            torch.int64 if t.dtype == jnp.int64 else torch.promote_types(dtype, torch.float32)
        )
        np.testing.assert_array_equal(told[-1].numpy(), np.broadcast_to(np.asarray(t), (4,)))
    samples = jk.sample(
        jk.Denoiser(network, jk.FlowMatching(), "epsilon"),
        "ddim",
        jk.Schedule([0.9, 0.5]),
        x.astype(jnp.bfloat16),
    )
    assert samples.dtype == jnp.bfloat16


@pytest.mark.filterwarnings("ignore")
def test_outputs_of_torch_networks() -> None:
    torch = pytest.importorskip("torch")
    x = jnp.asarray(np.arange(2.0 * 3 * 4).reshape(2, 3, 4), jnp.float32)
    outputs: dict[str, tuple[Callable[[Any], Any], str | int | None]] = {
        "tuple": (lambda x: (2 * x,), None),
        "index": (lambda x: (x, 2 * x), 1),
        "name": (lambda x: {"prediction": 2 * x, "sample": x}, "prediction"),
        "learned variance": (lambda x: torch.cat([2 * x, x], 1), None),
    }
    for fn, output in outputs.values():
        network = jk.from_torch(lambda x, t, fn=fn: fn(x), output=output)
        np.testing.assert_array_equal(network(x, jnp.float32(0.1)), 2 * x)
    for value, message in (
        ((1, 2), r"a tuple with 0: int, 1: int, for x of shape \(2, 3, 4\); name it"),
        ({"a": torch.ones(2)}, r"a dict with 'a': torch.float32 of shape \(2,\)"),
        (torch.ones(2, 3, 4, dtype=torch.int64), r"shape \(2, 3, 4\) .* in torch.int64"),
    ):
        network = jk.from_torch(lambda x, t, value=value: value)
        with pytest.raises(ValueError, match=message):
            jax.jit(network)(x, jnp.float32(0.1))
    with pytest.raises(ValueError, match="which has no array 'noise'"):
        jk.from_torch(lambda x, t: {"sample": x}, output="noise")(x, jnp.float32(0.1))


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch"):
        jk.from_torch(lambda x, t: x)


def test_a_module_is_no_function_of_jax():
    torch = pytest.importorskip("torch")
    with pytest.raises(
        ValueError, match=r"fn = Linear is a module of PyTorch: wrap it by jk.from_"
    ):
        jk.Denoiser(torch.nn.Linear(2, 2), PROCESS, "epsilon")


def test_tensors_as_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, which NumPy has not, or with a gradient."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    values = np.array([[1.0, 2.0], [0.5, -1.0], [-2.0, 0.25]])
    half = torch.tensor(values, dtype=torch.bfloat16, requires_grad=True)
    for fit in (jk.Gaussian.fit, jk.GaussianMixture.fit):
        for found, expected in zip(jax.tree.leaves(fit(half)), jax.tree.leaves(fit(values))):
            np.testing.assert_allclose(found, expected, rtol=1e-6)
    target = jk.Gaussian.fit(values)
    run = (target.denoiser(jk.VP()), "ddim", jk.schedules.karras(jk.VP(), 3, 1e-3))
    expected = jk.sample(*run, jnp.asarray(values, jnp.float32))
    np.testing.assert_allclose(jk.sample(*run, half), expected, rtol=1e-5, atol=1e-6)
    named = {"karras": run[2]}
    theirs = jk.compare_schedules(run[0], "ddim", named, half, progress=False)
    ours = jk.compare_schedules(run[0], "ddim", named, jnp.asarray(values), progress=False)
    np.testing.assert_allclose(theirs.errors, ours.errors, rtol=1e-3)
    rows = torch.cat([half] * 3)
    assert jk.Selection(noise=rows).noise_rows == 9
    sparse = torch.tensor(values).to_sparse()
    np.testing.assert_array_equal(jk.Gaussian.fit(sparse).mean, target.mean)
    table = torch.tensor([0.75, 0.5, 0.25], requires_grad=True)
    np.testing.assert_allclose(jk.DiscreteVP(table).sigma(np.array([2.0, 3.0])), [1.0, 3.0**0.5])
