"""Gauss quadrature of a spectral measure in the logarithm of the eigenvalue."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Compression:
    """What a compression did: `modes` eigenvalues spanning `log_range` = log(max/min) became `nodes`."""

    nodes: int
    modes: int
    log_range: float

    def relative_bound(self, strip: float = math.pi) -> float:
        """A bound on |sum_i w_i phi(lambda_i) - quadrature| / (W M), W the total weight.

        Assumption: phi as a function of log lambda is analytic, and bounded by M, for imaginary parts up
        to `strip` around the spectrum. Per-mode errors of samplers are functions of lambda + sigma^2 with
        sigma > 0 real, singular at lambda = -sigma^2, that is at the distance pi; a mode's variance that
        has complex zeros closer than that needs a smaller strip.

        Gauss quadrature with n positive weights is exact to degree 2n - 1, so its error is at most twice
        that of the best polynomial, 2 M rho^(1-2n) / (rho - 1) on the Bernstein ellipse of parameter rho
        that fits into the strip (Trefethen, "Approximation Theory and Approximation Practice", ch. 8, 19).
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

    Lanczos with full reorthogonalisation on the diagonal matrix of log eigenvalues; the eigenvalues of
    the resulting tridiagonal matrix are the nodes (Golub and Welsch, 1969). Eigenvalues equal to 0 (no
    logarithm) keep a node of their own. Returns fewer nodes if the measure has fewer points.
    """
    zero = (eigenvalues == 0.0) & (weights > 0)
    used = (eigenvalues > 0.0) & (weights > 0)
    levels, masses = np.zeros(0), np.zeros(0)
    if used.any():
        x, mass = np.log(eigenvalues[used]), weights[used]
        total, center = mass.sum(), x.mean()
        vectors = [np.sqrt(mass / total)]
        diagonal, off = [], []
        scale = max(np.ptp(x), 1e-300)
        for _ in range(min(nodes, x.size)):
            v = (x - center) * vectors[-1]
            diagonal.append(v @ vectors[-1])
            basis = np.array(vectors)
            for _ in range(2):
                v = v - basis.T @ (basis @ v)
            norm = np.linalg.norm(v)
            if norm <= 1e-13 * scale:
                break
            off.append(norm)
            vectors.append(v / norm)
        jacobi = np.diag(diagonal) + np.diag(off[: len(diagonal) - 1], 1)
        jacobi += np.diag(off[: len(diagonal) - 1], -1)
        y, q = np.linalg.eigh(jacobi)
        levels, masses = np.exp(y + center), total * q[0] ** 2
    if zero.any():
        levels, masses = np.append(levels, 0.0), np.append(masses, weights[zero].sum())
    return levels, masses
