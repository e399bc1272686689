"""Losses of routers: their values, and that the right weights and rates make them stationary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkernels as jk
from jaxkernels import routing

PROCESS = jk.FlowMatching()
T = 0.4
A, S = 1 - T, T
RNG = np.random.default_rng(0)
CLUSTERS = [RNG.normal(size=(n, 2)) + i for i, n in enumerate((3, 5, 2))]
POINTS = np.concatenate(CLUSTERS)
LABELS = np.repeat(np.arange(3), [3, 5, 2])
EXACT = routing.Experts.of_clusters(CLUSTERS, PROCESS)


def _posterior(x: np.ndarray) -> np.ndarray:
    """Of the data points given x, (queries, points)."""
    logs = -np.sum((x[:, None] - A * POINTS) ** 2, -1) / (2 * S**2)
    r = np.exp(logs - logs.max(1, keepdims=True))
    return r / r.sum(1, keepdims=True)


def _of_clusters(r: np.ndarray) -> np.ndarray:
    return np.stack([r[:, i == LABELS].sum(1) for i in range(3)], 1)


def _logits(x, t):
    return jnp.stack([x[:, 0] + t, -x[:, 1], 0.3 * x[:, 0] * x[:, 1]], -1)


@pytest.fixture(scope="module")
def noised() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the data, their noise, and the noised points."""
    rows = np.array([0, 4, 4, 9, 7])
    eps = np.random.default_rng(1).normal(size=(5, 2))
    return rows, eps, A * POINTS[rows] + S * eps


def test_values(noised: tuple[np.ndarray, np.ndarray, np.ndarray]):
    rows, eps, x = noised
    data = (jnp.asarray(POINTS[rows]), T, jnp.asarray(eps))
    logits = np.asarray(_logits(jnp.asarray(x), T))
    pi = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -np.mean(np.log(pi[np.arange(5), LABELS[rows]]))
    labels = jnp.asarray(LABELS[rows])
    found = routing.label_loss(_logits, PROCESS, data[0], labels, *data[1:])
    assert float(found) == pytest.approx(expected, rel=1e-12)
    r = _posterior(x)
    exact = _of_clusters(r)
    expected = np.mean(np.sum((pi - exact) ** 2, 1))
    found = routing.weight_loss(_logits, EXACT, *data)
    assert float(found) == pytest.approx(expected, rel=1e-12)
    # d log r_j / dt = psi_j - <psi>, psi_j = eps_j . (v_j - v) / s, along the path v = eps - x_0
    eps_j = (x[:, None] - A * POINTS) / S
    apart = (eps_j - POINTS) - (eps - POINTS[rows])[:, None]
    psi = np.sum(eps_j * apart, -1) / S
    target = _of_clusters(r * (psi - np.sum(r * psi, 1, keepdims=True)))
    rates = exact * (logits - np.sum(exact * logits, 1, keepdims=True))
    # log_snr = 2 log(1 - t) - 2 log t
    unit = 2 / A + 2 / S
    expected = np.mean(np.sum(((rates - target) / unit) ** 2, 1))
    found = routing.weight_rate_loss(_logits, EXACT, *data)
    assert float(found) == pytest.approx(expected, rel=1e-9)


def _stationary(loss, network, x: np.ndarray) -> np.ndarray:
    """Derivatives of the loss's mean over data points given x, in the network's outputs."""
    r = _posterior(x)

    def term(shift, x, point, label):
        eps = (x - A * point) / S
        return loss(lambda x, t: network(x, t) + shift, point[None], label[None], eps[None])

    def mean(shift):
        over_data = jax.vmap(term, in_axes=(None, None, 0, 0))
        rows = jax.vmap(over_data, in_axes=(0, 0, None, None))
        found = rows(shift, jnp.asarray(x), jnp.asarray(POINTS), jnp.asarray(LABELS))
        return jnp.sum(jnp.asarray(r) * found)

    return np.asarray(jax.jit(jax.grad(mean))(jnp.zeros((len(x), 3))))


def test_right_weights_and_rates_are_stationary():
    """Given x the mean of every loss over data points is smallest for what it should teach.

    For the rates that is the derivative along the flow, though the target follows a data point.
    """

    def label(network, x0, labels, eps):
        return routing.label_loss(network, PROCESS, x0, labels, T, eps)

    def weight(network, x0, labels, eps):
        return routing.weight_loss(network, EXACT, x0, T, eps)

    def rate(network, x0, labels, eps):
        return routing.weight_rate_loss(network, EXACT, x0, T, eps)

    def flow_rates(x, t):
        return EXACT.log_weight_rates(x, t, EXACT.velocity(x, t))

    x = np.random.default_rng(2).normal(size=(3, 2))
    for loss, right in ((label, EXACT.router), (weight, EXACT.router), (rate, flow_rates)):
        assert np.abs(_stationary(loss, right, x)).max() < 1e-9
        assert np.all(np.abs(_stationary(loss, _logits, x)).max(1) > 1e-4)
