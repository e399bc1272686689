"""A network of PyTorch is the same network of JAX, in values and first derivatives."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
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

    return jk.from_torch(Net().eval()), lambda x, t: jnp.tanh(x @ jnp.asarray(weight)) * t


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
def test_torch_networks_that_are_refused() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="training mode"):
        jk.from_torch(torch.nn.Linear(3, 3))
    with pytest.raises(Exception, match=r"shape \(4, 2\) for x of shape \(4, 3\)"):
        jk.from_torch(lambda x, t: x[:, :2])(
            jnp.zeros((4, 3)), jnp.asarray(0.1)
        ).block_until_ready()


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch"):
        jk.from_torch(lambda x, t: x)
