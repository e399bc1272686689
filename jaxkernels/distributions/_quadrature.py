"""Gauss quadrature of a spectral measure in the logarithm of the eigenvalue."""

import dataclasses
import math

import numpy as np

# A larger measure is first replaced by a rule of a few nodes in each of many cells, see
# `_condense`. 64 cells for each final node and 4 nodes in each cell change polynomials of the final
# degree by less than a rounding error.
_CELLS_PER_NODE = 64
_NODES_PER_CELL = 4


@dataclasses.dataclass(frozen=True)
class Compression:
    """Record of a compression: `modes` eigenvalues became a quadrature of `nodes` nodes.

    **Arguments:**

    - `nodes`: number of quadrature nodes.
    - `modes`: number of eigenvalues before the compression.
    - `log_range`: log of the largest over the smallest positive eigenvalue, in nats.
    """

    nodes: int
    modes: int
    log_range: float

    def relative_bound(self, strip: float = math.pi) -> float:
        """Bound the relative error of a compressed total.

            |sum_i w_i phi(lambda_i) - quadrature| <= relative_bound W M,   W = sum_i |w_i|

        Assumption: phi as a function of log lambda is analytic, and bounded by M, for imaginary
        parts up to `strip` around the spectrum. Per-mode errors of samplers are functions of lambda
        + sigma^2 with sigma > 0 real, singular at lambda = -sigma^2, that is at the distance pi; a
        mode's variance that has complex zeros closer than that needs a smaller strip.

        Gauss quadrature with n positive weights is exact to degree 2n - 1, so its error is at most
        twice that of the best polynomial, 2 M rho^(1-2n) / (rho - 1) on the Bernstein ellipse of
        parameter rho that fits into the strip.

        **Arguments:**

        - `strip`: half-width of the strip of analyticity, > 0, in nats of log lambda.

        **Returns:** the bound, >= 0; 0 if all eigenvalues are equal.

        **Example:**

        ```python
        >>> small = jk.Gaussian(0.0, np.linspace(1.0, 2.0, 100)).compress(8)
        >>> small.compression.relative_bound() < 1e-12
        True
        ```

        Source: Trefethen, "Approximation Theory and Approximation Practice" (2013), theorems 8.2
        and 19.3.
        """
        if self.log_range == 0.0:
            return 0.0
        height = 2.0 * strip / self.log_range
        # rho - 1 without cancellation for wide spectra, rho = height + sqrt(1 + height^2)
        excess = height + height**2 / (1.0 + math.sqrt(1.0 + height**2))
        return 4.0 * math.exp((1 - 2 * self.nodes) * math.log1p(excess)) / excess


def gauss_rule(
    eigenvalues: np.ndarray, weights: np.ndarray, nodes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes (eigenvalues) and weights of the Gauss rule of sum_i w_i delta(log lambda_i).

    Eigenvalues equal to 0 (no logarithm) keep a node of their own. Fewer nodes are returned if the
    measure has fewer points. Points of weight <= 0 are left out.
    """
    zero = (eigenvalues == 0.0) & (weights > 0)
    used = (eigenvalues > 0.0) & (weights > 0)
    levels = np.zeros(0)
    masses = np.zeros(0)
    if used.any():
        points = np.log(eigenvalues[used])
        mass = weights[used]
        cells = _CELLS_PER_NODE * nodes
        if points.size > 2 * cells * _NODES_PER_CELL:
            points, mass = _condense(points, mass, cells)
        points, masses = _golub_welsch(points, mass, nodes)
        levels = np.exp(points)
    if zero.any():
        levels = np.append(levels, 0.0)
        masses = np.append(masses, weights[zero].sum())
    return levels, masses


def _golub_welsch(
    points: np.ndarray, weights: np.ndarray, nodes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the Gauss rule of sum_i w_i delta(x_i), all weights positive.

    Lanczos with full reorthogonalisation on the diagonal matrix of the points; the eigenvalues of
    the resulting tridiagonal matrix are the nodes. Golub and Welsch, "Calculation of Gauss
    quadrature rules" (1969).
    """
    total = weights.sum()
    center = points.mean()
    steps = min(nodes, points.size)
    smallest = 1e-13 * max(np.ptp(points), 1e-300)
    basis = np.empty((steps + 1, points.size))
    basis[0] = np.sqrt(weights / total)
    diagonal = []
    off = []
    for k in range(steps):
        v = (points - center) * basis[k]
        diagonal.append(v @ basis[k])
        for _ in range(2):
            v -= basis[: k + 1].T @ (basis[: k + 1] @ v)
        norm = np.linalg.norm(v)
        if norm <= smallest:  # the measure has no more points
            break
        off.append(norm)
        basis[k + 1] = v / norm
    beside = off[: len(diagonal) - 1]
    jacobi = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    values, vectors = np.linalg.eigh(jacobi)
    return values + center, total * vectors[0] ** 2


def _condense(points: np.ndarray, weights: np.ndarray, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """A measure of at most `_NODES_PER_CELL` points per cell, by the Gauss rule of every cell.

    The cells divide arccos of the points, scaled to [-1, 1], evenly, as the zeros of polynomials
    lie. A polynomial of degree D in one cell is then one of low degree up to an error that falls
    like (D / cells)^(2 nodes per cell), and the rule of the cell is exact for that one.
    """
    middle = 0.5 * (points.max() + points.min())
    half = max(0.5 * np.ptp(points), 1e-300)
    angle = np.arccos(np.clip((points - middle) / half, -1.0, 1.0))
    cell = np.minimum((angle * (cells / np.pi)).astype(np.int64), cells - 1)
    used = np.flatnonzero(np.bincount(cell, minlength=cells))
    number = np.zeros(cells, np.int64)
    number[used] = np.arange(used.size)
    cell = number[cell]
    edges = middle + half * np.cos(np.pi / cells * np.arange(cells + 1))
    center = 0.5 * (edges[used] + edges[used + 1])
    radius = 0.5 * (edges[used] - edges[used + 1])
    alpha, beta = _recurrences((points - center[cell]) / radius[cell], weights, cell, used.size)
    values, vectors = np.linalg.eigh(_jacobi(alpha, beta[1:]))
    masses = beta[0][:, None] * vectors[:, 0, :] ** 2
    # a cell of fewer points than nodes has nodes without mass
    present = masses > 1e-30 * beta[0][:, None]
    return (center[:, None] + radius[:, None] * values)[present], masses[present]


def _recurrences(
    x: np.ndarray, weights: np.ndarray, cell: np.ndarray, cells: int
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (nodes, cells) of the monic orthogonal polynomials of every cell's measure.

        p_(k+1) = (x - alpha_k) p_k - beta_k p_(k-1),     beta_0 = the cell's mass

    Stieltjes' procedure, which loses no digits at so low degrees.
    """
    alpha = np.zeros((_NODES_PER_CELL, cells))
    beta = np.zeros((_NODES_PER_CELL, cells))
    before = np.zeros_like(x)
    now = np.ones_like(x)
    norm = np.ones(cells)
    for k in range(_NODES_PER_CELL):
        density = weights * now**2
        previous = norm
        norm = np.bincount(cell, density, cells)
        beta[k] = _ratio(norm, previous)
        alpha[k] = _ratio(np.bincount(cell, density * x, cells), norm)
        after = (x - alpha[k][cell]) * now
        if k:
            after -= beta[k][cell] * before
        before = now
        now = after
    return alpha, beta


def _ratio(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x / y, and 0 where y = 0."""
    return np.divide(x, y, out=np.zeros_like(x), where=y > 0)


def _jacobi(diagonal: np.ndarray, squared_off: np.ndarray) -> np.ndarray:
    """Symmetric tridiagonal matrices (cells, n, n) from entries (n, cells) and (n - 1, cells)."""
    size, cells = diagonal.shape
    k = np.arange(size)
    matrices = np.zeros((cells, size, size))
    matrices[:, k, k] = diagonal.T
    matrices[:, k[:-1], k[1:]] = np.sqrt(squared_off.T)
    matrices[:, k[1:], k[:-1]] = np.sqrt(squared_off.T)
    return matrices
