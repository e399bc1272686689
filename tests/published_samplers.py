"""Samplers as their papers and implementations write them, in NumPy, to be compared with.

Each is a function of (process, denoise, times, x, z, alpha): `process` has a(t), s(t), their
derivatives and the time at a value of log(a/s), `denoise(x, t)` is E[X_0 | x], z[k] the unit noise
of step k, and alpha[k] its stochasticity. It returns x at all times.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.polynomial import Polynomial
from scipy.integrate import quad

from jaxkernels import samplers

# those of the reverse SDE alone are in test_reverse_sde_samplers.py
SAMPLERS = {name: kind for name, kind in samplers.SAMPLERS.items() if not kind.reverse_sde_only}

Path = list[np.ndarray]
Denoise = Callable[[np.ndarray, float], np.ndarray]


def _lambdas(process: Any, times: np.ndarray) -> np.ndarray:
    """log(a/s)"""
    with np.errstate(divide="ignore"):
        return np.array([np.log(process.a(t)) - np.log(process.s(t)) for t in times])


def dpmpp_2m(
    process: Any,
    denoise: Denoise,
    times: np.ndarray,
    x: np.ndarray,
    z: Any,
    alpha: np.ndarray,
    lower_order_final: bool = False,
) -> Path:
    """k-diffusion's `sample_dpmpp_2m_sde` (midpoint) with eta = alpha^2, for x = a x0 + s eps."""
    logs = _lambdas(process, times)
    path = [x]
    old = None
    for k, (t, u) in enumerate(zip(times[:-1], times[1:], strict=True)):
        d = denoise(x, t)
        if process.s(u) == 0.0:
            x = process.a(u) * d
        else:
            h = logs[k + 1] - logs[k]
            eta_h = alpha[k] ** 2 * h if alpha[k] else 0.0
            factor = -process.a(u) * np.expm1(-h - eta_h)
            x = process.s(u) / process.s(t) * np.exp(-eta_h) * x + factor * d
            lower = lower_order_final and k == len(times) - 2
            if old is not None and process.a(times[k - 1]) > 0.0 and not lower:
                r = (logs[k] - logs[k - 1]) / h
                x = x + 0.5 * factor * (d - old) / r
            x = x + process.s(u) * np.sqrt(-np.expm1(-2.0 * eta_h)) * z[k]
        old = d
        path.append(x)
    return path


def dpmpp_3m(
    process: Any,
    denoise: Denoise,
    times: np.ndarray,
    x: np.ndarray,
    z: Any,
    alpha: np.ndarray,
    lower_order_final: bool = False,
) -> Path:
    """k-diffusion's `sample_dpmpp_3m_sde` with eta = alpha^2, for x = a x0 + s eps."""
    logs = _lambdas(process, times)
    path = [x]
    seen: list[np.ndarray] = []
    for k, (t, u) in enumerate(zip(times[:-1], times[1:], strict=True)):
        seen.insert(0, denoise(x, t))
        if process.s(u) == 0.0:
            path.append(process.a(u) * seen[0])
            continue
        h = logs[k + 1] - logs[k]
        eta = alpha[k] ** 2
        eta_h = eta * h if eta else 0.0
        h_eta = h + eta_h
        x = process.s(u) / process.s(t) * np.exp(-eta_h) * x
        x = x - process.a(u) * np.expm1(-h_eta) * seen[0]
        known = sum(process.a(earlier) > 0.0 for earlier in times[:k])
        if lower_order_final:
            known = min(known, len(times) - 2 - k)
        if known:
            phi_2 = np.expm1(-h_eta) / h_eta + 1.0
            r0 = (logs[k] - logs[k - 1]) / h
            d1 = d1_0 = (seen[0] - seen[1]) / r0
            if known > 1:
                r1 = (logs[k - 1] - logs[k - 2]) / h
                d1_1 = (seen[1] - seen[2]) / r1
                d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
                d2 = (d1_0 - d1_1) / (r0 + r1)
                phi_3 = phi_2 / h_eta - 0.5
                x = x - process.a(u) * phi_3 * d2
            x = x + process.a(u) * phi_2 * d1
        x = x + process.s(u) * np.sqrt(-np.expm1(-2.0 * eta_h)) * z[k]
        path.append(x)
    return path


def unipc(
    process: Any,
    denoise: Denoise,
    times: np.ndarray,
    x: np.ndarray,
    z: Any,
    alpha: np.ndarray,
    order: int = 2,
    lower_order_final: bool = True,
) -> Path:
    """Zhao et al. (2023), Algorithm 1 and 2 with B_2, as a loop of predict, evaluate, correct.

    The state is the corrected x, and the unknown weights solve the linear system (R, b).
    """
    del z, alpha
    logs = _lambdas(process, times)
    steps = len(times) - 1
    path = [x]
    seen: list[np.ndarray] = [denoise(x, times[0])]

    def weights(h: float, nodes: list[float]) -> np.ndarray:
        """Solution of R w = b, or the value that replaces it for one unknown."""
        if len(nodes) == 1:
            return np.array([0.5])
        hh = -h
        b_h = np.expm1(hh)
        h_phi = np.expm1(hh) / hh - 1.0
        factorial = 1.0
        r, b = [], []
        for i in range(1, len(nodes) + 1):
            r.append(np.array(nodes) ** (i - 1))
            b.append(h_phi * factorial / b_h)
            factorial *= i + 1
            h_phi = h_phi / hh - 1.0 / factorial
        return np.linalg.solve(np.array(r), np.array(b))

    for k, (t, u) in enumerate(zip(times[:-1], times[1:], strict=True)):
        if process.s(u) == 0.0:
            path.append(process.a(u) * seen[0])
            continue
        known = sum(process.a(earlier) > 0.0 for earlier in times[:k])
        p = min(order, known + 1, steps - k if lower_order_final else order)
        h = logs[k + 1] - logs[k]
        nodes = [(logs[k - m] - logs[k]) / h for m in range(1, p)]
        slopes = [(seen[m] - seen[0]) / nodes[m - 1] for m in range(1, p)]
        frozen = process.s(u) / process.s(t) * x - process.a(u) * np.expm1(-h) * seen[0]
        b_h = np.expm1(-h)
        predicted = frozen
        if p > 1:
            rho = weights(h, nodes)
            predicted = frozen - process.a(u) * b_h * sum(
                w * d for w, d in zip(rho, slopes, strict=True)
            )
        path.append(predicted)
        if k == steps - 1:
            break
        new = denoise(predicted, u)
        x = predicted
        if process.a(t) > 0.0:
            rho = weights(h, [*nodes, 1.0])
            x = frozen - process.a(u) * b_h * sum(
                w * d for w, d in zip(rho, [*slopes, new - seen[0]], strict=True)
            )
        seen.insert(0, new)
    return path


def _adams_bashforth(
    weight: Callable[[int, int, int], float],
    process: Any,
    denoise: Denoise,
    times: np.ndarray,
    x: np.ndarray,
    order: int,
    to_zero: int,
) -> Path:
    """x/a moved by a sum of weights times eps, of this evaluation and those before."""
    path = [x]
    seen: list[np.ndarray] = []
    for k, (t, u) in enumerate(zip(times[:-1], times[1:], strict=True)):
        d = denoise(x, t)
        seen.insert(0, (x - process.a(t) * d) / process.s(t))
        if process.a(t) == 0.0:
            x = process.a(u) * d + process.s(u) * seen[0]
        else:
            known = sum(process.a(earlier) > 0.0 for earlier in times[:k])
            p = min(order, known + 1, order if process.s(u) > 0.0 else to_zero)
            moved = sum(weight(k, p, j) * seen[j] for j in range(p))
            x = process.a(u) * (x / process.a(t) + moved)
        path.append(x)
    return path


def lms(
    process: Any,
    denoise: Denoise,
    times: np.ndarray,
    x: np.ndarray,
    z: Any,
    alpha: np.ndarray,
    order: int = 4,
) -> Path:
    """k-diffusion's `sample_lms`: Lagrange's polynomials in sigma, by quadrature."""
    del z, alpha
    sigma = [process.s(t) / process.a(t) if process.a(t) else math.inf for t in times]

    def weight(k: int, p: int, j: int) -> float:
        roots = [sigma[k - i] for i in range(p) if i != j]
        lagrange = Polynomial.fromroots(roots) if roots else Polynomial([1.0])
        return float(quad(lagrange / lagrange(sigma[k - j]), sigma[k], sigma[k + 1])[0])

    return _adams_bashforth(weight, process, denoise, times, x, order, order)


def deis(
    process: Any,
    denoise: Denoise,
    times: np.ndarray,
    x: np.ndarray,
    z: Any,
    alpha: np.ndarray,
    order: int = 3,
) -> Path:
    """Zhang and Chen (2023), eq. (15): Lagrange's polynomials in log(sigma), by quadrature."""
    del z, alpha
    sigma = [process.s(t) / process.a(t) if process.a(t) else math.inf for t in times]

    def weight(k: int, p: int, j: int) -> float:
        if p == 1:
            return sigma[k + 1] - sigma[k]
        here = math.log(sigma[k])
        roots = [math.log(sigma[k - i]) - here for i in range(p) if i != j]
        lagrange = Polynomial.fromroots(roots)
        lagrange = lagrange / lagrange(math.log(sigma[k - j]) - here)
        return float(
            quad(lambda v: lagrange(math.log(v) - here), sigma[k], sigma[k + 1], epsabs=1e-13)[0]
        )

    return _adams_bashforth(weight, process, denoise, times, x, order, 1)


def ipndm(
    process: Any,
    denoise: Denoise,
    times: np.ndarray,
    x: np.ndarray,
    z: Any,
    alpha: np.ndarray,
    order: int = 4,
) -> Path:
    """diffusers' IPNDMScheduler: constant coefficients."""
    del z, alpha
    sigma = [process.s(t) / process.a(t) if process.a(t) else math.inf for t in times]
    rows = [[1.0], [1.5, -0.5], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]

    def weight(k: int, p: int, j: int) -> float:
        return rows[p - 1][j] * (sigma[k + 1] - sigma[k])

    return _adams_bashforth(weight, process, denoise, times, x, order, order)


def dpmpp_2s(
    process: Any,
    denoise: Denoise,
    times: np.ndarray,
    x: np.ndarray,
    z: Any,
    alpha: np.ndarray,
    r: float = 0.5,
) -> Path:
    """Lu et al. (2022b), Algorithm 1."""
    del z, alpha
    path = [x]
    for t, u in zip(times[:-1], times[1:], strict=True):
        d = denoise(x, t)
        if process.s(u) == 0.0 or process.a(t) == 0.0:
            x = process.a(u) * d + process.s(u) / process.s(t) * (x - process.a(t) * d)
        else:
            start, end = _lambdas(process, np.array([t, u]))
            h = end - start
            middle = process.at(start + r * h)
            inside = process.s(middle) / process.s(t) * x
            inside = inside - process.a(middle) * np.expm1(-r * h) * d
            d = (1.0 - 1.0 / (2.0 * r)) * d + 1.0 / (2.0 * r) * denoise(inside, middle)
            x = process.s(u) / process.s(t) * x - process.a(u) * np.expm1(-h) * d
        path.append(x)
    return path


def dpm2(
    process: Any,
    denoise: Denoise,
    times: np.ndarray,
    x: np.ndarray,
    z: Any,
    alpha: np.ndarray,
    r: float = 0.5,
) -> Path:
    """Lu et al. (2022a), Algorithm 1, with e^h - 1 in place of the first-order phi function."""
    del z, alpha
    path = [x]
    for t, u in zip(times[:-1], times[1:], strict=True):
        d = denoise(x, t)
        eps = (x - process.a(t) * d) / process.s(t)
        if process.s(u) == 0.0 or process.a(t) == 0.0:
            x = process.a(u) * d + process.s(u) * eps
        else:
            start, end = _lambdas(process, np.array([t, u]))
            h = end - start
            middle = process.at(start + r * h)
            inside = (
                process.a(middle) / process.a(t) * x - process.s(middle) * np.expm1(r * h) * eps
            )
            other = (inside - process.a(middle) * denoise(inside, middle)) / process.s(middle)
            x = process.a(u) / process.a(t) * x - process.s(u) * np.expm1(h) * (
                eps + (other - eps) / (2.0 * r)
            )
        path.append(x)
    return path


def midpoint(
    process: Any, denoise: Denoise, times: np.ndarray, x: np.ndarray, z: Any, alpha: np.ndarray
) -> Path:
    """The explicit midpoint rule on dx/dt = a'(t) x0 + s'(t) eps."""
    del z, alpha

    def velocity(x: np.ndarray, t: float) -> np.ndarray:
        d = denoise(x, t)
        return process.da(t) * d + process.ds(t) * (x - process.a(t) * d) / process.s(t)

    path = [x]
    for t, u in zip(times[:-1], times[1:], strict=True):
        x = x + (u - t) * velocity(x + 0.5 * (u - t) * velocity(x, t), 0.5 * (t + u))
        path.append(x)
    return path


def edm_sampler(
    process: Any,
    denoise: Denoise,
    times: np.ndarray,
    x: np.ndarray,
    z: Any,
    alpha: np.ndarray,
    s_noise: float = 1.0,
) -> Path:
    """Karras et al. (2022), Algorithm 2, on x/a, with 1 + gamma = (sigma/sigma')^(alpha^2)."""
    path = [x]
    for k, (t, u) in enumerate(zip(times[:-1], times[1:], strict=True)):
        if process.a(t) == 0.0:
            d = denoise(x, t)
            x = process.a(u) * d + process.s(u) * x / process.s(t)
            path.append(x)
            continue
        scaled = x / process.a(t)
        sigma, end = process.s(t) / process.a(t), process.s(u) / process.a(u)
        raised = sigma * (sigma / end) ** alpha[k] ** 2 if end > 0.0 else sigma
        t = process.at(-math.log(raised))
        scaled = scaled + s_noise * math.sqrt(max(raised**2 - sigma**2, 0.0)) * z[k]
        slope = (scaled - denoise(process.a(t) * scaled, t)) / raised
        new = scaled + (end - raised) * slope
        if end > 0.0:
            other = (new - denoise(process.a(u) * new, u)) / end
            new = scaled + (end - raised) * 0.5 * (slope + other)
        x = process.a(u) * new
        path.append(x)
    return path


PUBLISHED = {
    "dpmpp_2s": dpmpp_2s,
    "dpm_2": dpm2,
    "midpoint": midpoint,
    "edm_sampler": edm_sampler,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "unipc": unipc,
    "lms": lms,
    "deis": deis,
    "ipndm": ipndm,
}
