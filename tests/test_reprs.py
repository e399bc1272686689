"""What objects show of themselves, and what status lines say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkernels as jk
from jaxkernels._nfe import cost_text
from jaxkernels._progress import Progress
from jaxkernels.comparison import compare_to, solve_reference

PROCESS = jk.VP()
TARGET = jk.Gaussian([0.0, 1.0], [1.0, 0.1])


def network(x: jax.Array, t: jax.Array) -> jax.Array:
    return -x


def _record() -> jk.TrajectoryRecord:
    denoiser = TARGET.denoiser(PROCESS)
    return jk.record(denoiser, jnp.eye(2), t_min=1e-3, nodes=16, progress=False)


SHOWN = {
    "Schedule([1, 0.5, 0.1], stochasticity=0)": lambda: jk.Schedule([1.0, 0.5, 0.1]),
    "Schedule([1, 0.5, 0.1], stochasticity=[0, 2])": lambda: jk.Schedule([1, 0.5, 0.1], [0, 2]),
    "Schedule([1, 0.9, 0.8, 0.7, ..., 0], stochasticity=1)": lambda: jk.Schedule(
        np.linspace(1.0, 0.0, 11), 1.0
    ),
    "Gaussian(mean=[0, 1], eigenvalues=[1, 0.1])": lambda: TARGET,
    "Gaussian(mean=[0], eigenvalues=[1], weights=[9])": lambda: jk.Gaussian.isotropic(9),
    "Gaussian(mean=[0, 1], eigenvalues=[1, 0.1]).denoiser(EDM(t_max=80))": (
        lambda: TARGET.denoiser(jk.EDM())
    ),
    "GaussianMixture(2 components, 1 dimension)": lambda: jk.GaussianMixture(
        [0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1]
    ),
    "Denoiser(network, VP(beta_min=0.1, beta_max=20, t_max=1), 'epsilon')": lambda: jk.Denoiser(
        network, PROCESS, "epsilon"
    ),
    "Denoiser(network, VP(beta_min=0.1, beta_max=20, t_max=1), 'x0', 1 condition)": (
        lambda: jk.Denoiser(network, PROCESS, "x0", conditions=jnp.ones(1))
    ),
    "RecordedError(TrajectoryRecord(2 trajectories, 16 nodes, 2 directions), power=2)": (
        lambda: jk.RecordedError(_record())
    ),
}


@pytest.mark.parametrize("expected", SHOWN)
def test_objects_show_their_numbers_in_a_line(expected: str) -> None:
    assert repr(SHOWN[expected]()) == expected


def test_abstract_and_mapped_values_are_shown_too() -> None:
    """A message may show what is traced, or a tree of other leaves."""
    objects = (jk.Schedule([1.0, 0.5]), TARGET, jk.GaussianMixture([1.0], [[0.0]], [1.0]))
    for shown in objects:
        assert repr(jax.eval_shape(lambda tree: tree, shown))
        assert repr(jax.tree.map(lambda _: None, shown))
        seen = []
        jax.jit(lambda tree, seen=seen: seen.append(repr(tree)))(shown)
        assert seen[0].startswith(type(shown).__name__)


class _Line(Progress):
    """A status line that keeps what it was told."""

    def __init__(self) -> None:
        super().__init__("", False)
        self.told: list[str] = []

    def update(self, text: str) -> None:
        self.told.append(text)


def test_a_model_is_said_to_take_no_nfe() -> None:
    assert cost_text(1234) == "NFE 1,234"
    line = _Line()
    reference = solve_reference(TARGET.denoiser(PROCESS), jnp.eye(2), 20, (1.0, 1e-3))
    schedules = {"mine": jk.Schedule([1.0, 1e-3])}
    compare_to(reference, jk.DDIM(), schedules, key=None, line=line, planned=None)
    assert line.told == ["comparing, on a model, no NFE: DDIM, 1 step, mine"]
