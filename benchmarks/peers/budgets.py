"""Errors of searched schedules against the NFE of the search, a curve per network.

Run by `python -m benchmarks.peers.budgets`, with `--help` for a subset. Every schedule is written
when it is known, so that an interrupted run goes on where it stopped. NFE are for the settings of
`SETTINGS` together: each search is told what it may spend, and those that serve several settings
are paid for once.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import jaxkernels as jk
from jaxkernels._plot import SERIES, Axis, FigureSpec, Guide, Line, Panel, render

from ..environment import CACHE, HERE, save, table
from ..networks.data import PROCESS, T_MIN
from ..networks.study import denoiser_of
from ..networks.train import train
from . import gits, ld3, oss
from .__main__ import NETWORKS, STATISTICS, UNSEEN, resume
from .found import Found

SETTINGS = (("ddim", 8), ("dpmpp_2m", 8))
BUDGETS = (1_000, 4_000, 16_000, 64_000, 256_000, 1_000_000)
NOISE = 8192
FIGURE = HERE.parent / "notebooks" / "peer_budgets.png"

Search = Callable[..., Found]
Cell = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.budgets", description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", default=None, help="default: all")
    options = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str(CACHE / "jax"))
    cells = []
    for name in options.networks:
        cells += study(name, options.methods)
    path = save("peer_budgets", {"unseen": UNSEEN, "settings": SETTINGS, "cells": cells})
    text = report(cells)
    path.with_suffix(".md").write_text(text)
    render(figure(cells), FIGURE)
    print(text)


def study(network: str, methods: list[str] | None) -> list[Cell]:
    """The points of all curves of one network."""
    problem = NETWORKS[network]
    _, data = problem.split()
    denoiser = denoiser_of(train(problem, data))
    searches = all_searches(denoiser, data)
    unseen = jax.random.normal(jax.random.key(3), (UNSEEN, data.shape[1]))
    # every setting's, by method and budget
    found: dict[tuple[str, int], list[Cell]] = {}
    for method in methods or searches:
        search, least, most = searches[method]
        for budget in BUDGETS:
            if least <= budget <= most:
                found[method, budget] = [
                    resume(
                        network,
                        sampler,
                        num_steps,
                        f"{method} at {budget}",
                        functools.partial(search, budget=budget),
                    )
                    for sampler, num_steps in SETTINGS
                ]
        jax.clear_caches()
    logs = {key: dict.fromkeys(STATISTICS, 0.0) for key in found}
    for place, (sampler, num_steps) in enumerate(SETTINGS):
        baselines = jk.schedules.BASELINES.items()
        schedules = {name: make(PROCESS, num_steps, T_MIN) for name, make in baselines}
        for (method, budget), cells in found.items():
            schedules[f"{method} at {budget}"] = jk.Schedule(np.asarray(cells[place]["times"]))
        compared = jk.compare_schedules(denoiser, sampler, schedules, unseen, progress=False)
        for statistic in STATISTICS:
            values = compared.statistic(statistic)
            best = min(values[name] for name in jk.schedules.BASELINES)
            for method, budget in found:
                ratio = values[f"{method} at {budget}"] / best
                logs[method, budget][statistic] += float(np.log(ratio)) / len(SETTINGS)
    return [
        {
            "network": network,
            "method": method,
            "budget": budget,
            "nfe": spent(method, [cell["nfe"] for cell in cells]),
            "seconds": sum(cell["seconds"] for cell in cells),
            **{name: float(np.exp(value)) for name, value in logs[method, budget].items()},
        }
        for (method, budget), cells in found.items()
    ]


def spent(method: str, nfe: list[int]) -> int:
    """NFE of all settings: what LD3 takes for each, and what the others share."""
    return sum(nfe) if method == "LD3" else max(nfe)


def all_searches(
    denoiser: jk.AbstractDenoiser, data: np.ndarray
) -> dict[str, tuple[Search, int, int]]:
    """Every search by name, with the least and the largest budget that changes what it does."""
    noise = jax.random.normal(jax.random.key(11), (NOISE, data.shape[1]))
    samplers = [sampler for sampler, _ in SETTINGS]
    steps = sorted({num_steps for _, num_steps in SETTINGS})
    # a teacher and the student's states for every number of steps, of one trajectory
    trajectory = oss.TEACHER_STEPS * (1 + max(steps))

    @functools.cache
    def sweep(budget: int, with_data: bool) -> jk.ScheduleSweep:
        selection = jk.Selection(noise=noise, denoiser=denoiser if with_data else None)
        target = data if with_data else denoiser
        return jk.optimize_schedules(
            target, PROCESS, samplers, steps, t_min=T_MIN, selection=selection, budget=budget
        )

    def ours(sampler: str, num_steps: int, budget: int, with_data: bool) -> Found:
        found = sweep(budget, with_data)
        result = found[sampler, num_steps]
        return Found(result.schedule, found.nfe, result.seconds)

    def trajectory_regularity(sampler: str, num_steps: int, budget: int) -> Found:
        del sampler
        rows = noise[: budget // (gits.POINTS - 1)]
        return gits.search(denoiser, num_steps, rows, T_MIN, "dev")

    def optimal_step_sizes(sampler: str, num_steps: int, budget: int) -> Found:
        del sampler
        rows = noise[: budget // trajectory]
        return oss.search(denoiser, num_steps, rows, T_MIN)

    def unrolled(sampler: str, num_steps: int, budget: int) -> Found:
        share = budget // len(SETTINGS)
        return ld3.search(denoiser, sampler, num_steps, noise, T_MIN, share)

    every = BUDGETS[-1]
    return {
        "ours": (functools.partial(ours, with_data=False), 0, every),
        "ours, with data": (functools.partial(ours, with_data=True), 0, 64_000),
        "GITS": (trajectory_regularity, gits.POINTS, 64_000),
        "OSS": (optimal_step_sizes, trajectory, 256_000),
        "LD3": (unrolled, 4_000, every),
    }


def report(cells: list[Cell]) -> str:
    """The points of every curve, and their geometric means over networks."""
    head = ["method", "budget", *STATISTICS, "NFE", "seconds"]
    keys = dict.fromkeys((cell["method"], cell["budget"]) for cell in cells)
    means = []
    for method, budget in keys:
        own = [cell for cell in cells if (cell["method"], cell["budget"]) == (method, budget)]
        logs = [np.mean([np.log(cell[name]) for cell in own]) for name in STATISTICS]
        nfe = np.mean([cell["nfe"] for cell in own])
        seconds = np.mean([cell["seconds"] for cell in own])
        ratios = [f"{np.exp(value):.3f}" for value in logs]
        means.append([method, f"{budget:,}", *ratios, f"{nfe:,.0f}", f"{seconds:.0f}"])
    each = [
        [
            cell["network"],
            cell["method"],
            f"{cell['budget']:,}",
            *(f"{cell[name]:.3f}" for name in STATISTICS),
            f"{cell['nfe']:,}",
            f"{cell['seconds']:.0f}",
        ]
        for cell in cells
    ]
    settings = ", ".join(f"{sampler} with K = {num_steps}" for sampler, num_steps in SETTINGS)
    networks = len({cell["network"] for cell in cells})
    lines = [
        "# Errors against the NFE of a search",
        "",
        "Written by `python -m benchmarks.peers.budgets`. Ratio of an error from initial noise",
        "that no search has seen to that of the best of six baseline schedules in hindsight,",
        f"geometric mean of {settings}. NFE and seconds are for both; LD3's teacher is",
        "not counted.",
        "",
        f"## Geometric mean of {networks} networks",
        "",
        table(head, means),
        "",
        "## Each network",
        "",
        table(["network", *head], each),
        "",
    ]
    return "\n".join(lines)


def figure(cells: list[Cell]) -> FigureSpec:
    """The geometric mean of the three ratios against the NFE spent, a panel per network."""
    panels = []
    for network in dict.fromkeys(cell["network"] for cell in cells):
        lines = []
        own = [cell for cell in cells if cell["network"] == network]
        for method, (color, marker) in zip(
            dict.fromkeys(cell["method"] for cell in cells), SERIES, strict=False
        ):
            points = [cell for cell in own if cell["method"] == method]
            y = [np.exp(np.mean([np.log(cell[name]) for name in STATISTICS])) for cell in points]
            x = np.array([cell["nfe"] for cell in points], float)
            lines.append(Line(x, np.array(y), method, color, marker))
        axis = Axis("NFE of the search", "log")
        marks = [*lines, Guide(1.0, "y")]
        panels.append(
            Panel(network, marks, axis, Axis("error / best baseline", "log", ticks="ratio"))
        )
    return FigureSpec(panels, (2.6 * len(panels) + 1.6, 3.2), shared_y=True, legend=True)


if __name__ == "__main__":
    main()
