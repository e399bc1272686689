"""Schedules by published searches and by this package, in one table.

Run by `python -m benchmarks.peers`, with `--help` for a subset. Every cell is written when it is
known, so that an interrupted run goes on where it stopped.
"""

import argparse
import functools
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxkernels as jk
from jaxkernels._plot import BLUE, ORANGE, Axis, FigureSpec, Guide, Line, Mark, Panel, render
from jaxkernels._progress import Progress
from jaxkernels.comparison import compare_to, reference_steps, solve_reference
from jaxkernels.samplers import as_sampler

from ..environment import CACHE, HERE, save, table
from ..networks.data import BADLY_TRAINED, HELD_OUT, ORBITS, PROBLEMS, PROCESS, SOUNDS, T_MIN
from ..networks.study import denoiser_of
from ..networks.train import train
from . import ays, dmn, gits, hindsight, ld3, oss
from .found import Found, end_sigmas, from_sigmas

SAMPLERS = ("ddim", "dpmpp_2m", "unipc")
STEPS = (4, 5, 6, 8, 10, 12, 16, 20)
# NFE of ours, for all samplers and numbers of steps together
BUDGETS = (3_000, 16_000)
LD3_WITHIN = f"LD3, {BUDGETS[-1]:,} NFE"
ORDERS = {"ddim": 1, "dpmpp_2m": 2, "unipc": 2}
# initial noise that no search has seen
UNSEEN = 1024
STATISTICS = ("geometric_mean", "rms", "sliced_w2")
OURS = "ours"
HINDSIGHT = "hindsight"
# what a method's NFE are paid for once
SHARED = {
    "GITS": ("sampler", "num_steps"),
    "OSS": ("sampler",),
    "AYS": ("sampler",),
    "tangent": ("sampler",),
}
FIGURE = HERE.parent / "notebooks" / "peers.png"
# networks that are reported alone, the first of which nothing was developed on
APART = {
    ORBITS.name: "A network of chaotic orbits, held out and run once",
    SOUNDS.name: "A network of sounds",
    BADLY_TRAINED.name: "A badly trained network of sparse images",
}
NETWORKS = {p.name: p for p in (*PROBLEMS, HELD_OUT, ORBITS, SOUNDS, BADLY_TRAINED)}

Search = Callable[[str, int], Found]
Cell = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS))
    parser.add_argument("--methods", nargs="+", default=None, help="default: all")
    parser.add_argument("--known", action="store_true", help="report what is known, search nothing")
    options = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str(CACHE / "jax"))
    cells = []
    for name in options.networks:
        settings = itertools.product(options.samplers, options.steps)
        cells += study(name, list(settings), options.methods, options.known)
    path = save("peers", {"unseen": UNSEEN, "cells": cells})
    text = report(cells)
    path.with_suffix(".md").write_text(text)
    counted, *_ = split(cells)
    if counted:
        render(figure(counted), FIGURE)
    print(text)


def study(
    network: str, settings: list[tuple[str, int]], methods: list[str] | None, only_known: bool
) -> list[Cell]:
    """The cells of one network."""
    problem = NETWORKS[network]
    _, data = problem.split()
    denoiser = denoiser_of(train(problem, data))
    searches = all_searches(denoiser, data)
    wanted = {name: searches[name] for name in (methods or searches) if name != HINDSIGHT}
    best_possible = methods is None or HINDSIGHT in methods
    unseen = jax.random.normal(jax.random.key(3), (UNSEEN, data.shape[1]))
    span = float(PROCESS.t_max), T_MIN
    reference = solve_reference(denoiser, unseen, reference_steps(max(STEPS)), span, None)
    cells = []
    for sampler, num_steps in settings:

        def known(name: str, where: tuple[str, str, int] = (network, sampler, num_steps)) -> bool:
            return not only_known or cell_path(*where, name).exists()

        found = {
            name: resume(network, sampler, num_steps, name, search)
            for name, search in wanted.items()
            if known(name)
        }
        schedules = {
            **{n: make(PROCESS, num_steps, T_MIN) for n, make in jk.schedules.BASELINES.items()},
            **{n: jk.Schedule(np.asarray(cell["times"])) for n, cell in found.items()},
        }
        if best_possible and known(HINDSIGHT):
            search = partial(hindsight.search, denoiser, schedules=schedules, noise=unseen)
            found[HINDSIGHT] = cell = resume(network, sampler, num_steps, HINDSIGHT, search)
            schedules[HINDSIGHT] = jk.Schedule(np.asarray(cell["times"]))
        line = Progress("", enabled=False)
        compared = compare_to(
            reference, as_sampler(sampler), schedules, key=None, line=line, planned=0
        )
        where = {"network": network, "sampler": sampler, "num_steps": num_steps}
        peers = [name for name in found if not name.startswith((OURS, HINDSIGHT))]
        cells += [
            {**where, "method": name, **cell, **ratios(compared, name, peers)}
            for name, cell in found.items()
        ]
    return cells


def all_searches(denoiser: jk.AbstractDenoiser, data: np.ndarray) -> dict[str, Search]:
    """Every search by name, each with initial noise of its own."""
    dim = data.shape[1]
    noise = jax.random.normal(jax.random.key(11), (4096, dim))
    gits_noise = noise[: gits.TRAJECTORIES]
    scale = float(np.sqrt(data.var(0).mean()))
    share = BUDGETS[-1] // (len(SAMPLERS) * len(STEPS))

    @functools.cache
    def sweep(budget: int, with_data: bool) -> jk.ScheduleSweep:
        setting: dict[str, Any] = {"t_min": T_MIN}
        if budget:
            own = denoiser if with_data else None
            setting |= {"selection": jk.Selection(noise=noise, denoiser=own), "budget": budget}
        target = data if with_data else denoiser
        return jk.optimize_schedules(target, PROCESS, SAMPLERS, STEPS, **setting)

    def within(sampler: str, num_steps: int, budget: int, with_data: bool) -> Found:
        found = sweep(budget, with_data)
        result = found[sampler, num_steps]
        # those of the mixture are none of the network
        return Found(result.schedule, found.nfe if budget else 0, result.seconds)

    def selected(sampler: str, num_steps: int, fine_tune: int = 0) -> Found:
        selection = jk.Selection(noise=noise[:2048], fine_tune=fine_tune)
        setting = {"t_min": T_MIN, "selection": selection}
        result = jk.optimize_schedule(denoiser, PROCESS, sampler, num_steps, **setting)
        return Found(result.schedule, result.nfe)

    @functools.cache
    def aligned(num_steps: int) -> Found:
        began = time.perf_counter()
        start = jk.schedules.log_snr(PROCESS, num_steps, T_MIN)
        found = ays.search(denoiser, data, T_MIN, start)
        return found._replace(seconds=time.perf_counter() - began)

    return {
        "tangent": lambda _, k: tangent(k, scale),
        "AYS": lambda _, k: aligned(k),
        "DMN": lambda sampler, k: dmn.search(PROCESS, k, T_MIN, ORDERS[sampler]),
        "GITS, deviation": lambda _, k: gits.search(denoiser, k, gits_noise, T_MIN, "dev"),
        "GITS, l2": lambda _, k: gits.search(denoiser, k, gits_noise, T_MIN, "l2"),
        "OSS": lambda _, k: oss.search(denoiser, k, noise[: oss.TRAJECTORIES], T_MIN),
        "LD3": lambda sampler, k: ld3.search(denoiser, sampler, k, noise, T_MIN),
        LD3_WITHIN: lambda sampler, k: ld3.search(denoiser, sampler, k, noise, T_MIN, share),
        "ours, data alone": partial(within, budget=0, with_data=True),
        **{
            f"ours, {known}{budget:,} NFE": partial(within, budget=budget, with_data=bool(known))
            for known in ("", "data and ")
            for budget in BUDGETS
        },
        "ours, selected": selected,
        "ours, fine-tuned": partial(selected, fine_tune=40),
    }


def tangent(num_steps: int, scale: float) -> Found:
    """Levels that are evenly spaced in arctan(sigma / c), optimal for isotropic Gaussian data."""
    high, low = np.arctan(end_sigmas(PROCESS, T_MIN) / scale)
    angles = np.linspace(high, low, num_steps + 1)
    return Found(from_sigmas(PROCESS, scale * np.tan(angles), T_MIN), 0)


def resume(network: str, sampler: str, num_steps: int, method: str, search: Search) -> Cell:
    """The schedule of one cell, with what it took, from its file or found now."""
    path = cell_path(network, sampler, num_steps, method)
    if path.exists():
        return json.loads(path.read_text())
    print(f"{network}, {sampler}, K = {num_steps}: {method}", flush=True)
    # programs of other searches fill the memory
    jax.clear_caches()
    began = time.perf_counter()
    found = search(sampler, num_steps)
    cell = {
        "times": np.asarray(found.schedule.times, np.float64).tolist(),
        "nfe": found.nfe,
        "seconds": found.seconds or time.perf_counter() - began,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(cell))
    return cell


def cell_path(network: str, sampler: str, num_steps: int, method: str) -> Path:
    """The file of a cell."""
    name = f"{network}_{sampler}_{num_steps}_{method}".replace(" ", "_").replace(",", "")
    return Path(CACHE / "peers" / f"{name}.json")


def ratios(compared: jk.Comparison, name: str, peers: list[str]) -> Cell:
    """Every statistic with its ratios and their standard errors.

    To the best baseline in hindsight, to the best of all baselines and peers, and to each peer.
    """
    found = {}
    for statistic in STATISTICS:
        values = compared.statistic(statistic)
        best = min(jk.schedules.BASELINES, key=values.__getitem__)
        rivals = [*jk.schedules.BASELINES, *(peer for peer in peers if peer != name)]
        ratio = compared.ratio(statistic, name, best)
        of_all = compared.ratio(statistic, name, min(rivals, key=values.__getitem__))
        found[statistic] = {
            "error": values[name],
            "ratio": ratio.value,
            "se": ratio.standard_error,
            "ratio_to_all": of_all.value,
            "se_to_all": of_all.standard_error,
            "ratio_to_peers": {peer: values[name] / values[peer] for peer in peers},
        }
    return found


def report(cells: list[Cell]) -> str:
    """All settings together, then each."""
    cells, *apart = split(cells)
    settings = {(c["network"], c["sampler"], c["num_steps"]) for c in cells}
    head = ["method", *STATISTICS, "NFE", "seconds"]
    each = [
        [
            cell["network"],
            cell["sampler"],
            str(cell["num_steps"]),
            cell["method"],
            *("{ratio:.3f} ± {se:.3f}".format(**cell[statistic]) for statistic in STATISTICS),
            f"{cell['nfe']:,}",
            f"{cell['seconds']:.1f}",
        ]
        for cell in itertools.chain(cells, *apart)
    ]
    lines = [
        "# Published searches and ours",
        "",
        "Written by `python -m benchmarks.peers`. Errors from initial noise that no search has",
        "seen; the machine is named in the .json file beside this one.",
        "",
        f"Geometric means over those of {len(settings)} settings where a method was run. NFE are",
        "for all settings of a network together, on average over networks; what serves several is",
        "paid for once. Seconds, compiling included, are for a setting.",
        "",
        "## Ratio to the best of six baseline schedules in hindsight",
        "",
        summary(cells, "ratio", "se"),
        "",
        "## Ratio to the best of all baselines and all other peers in hindsight",
        "",
        summary(cells, "ratio_to_all", "se_to_all"),
        "",
        "## Against LD3",
        "",
        against(cells, "LD3"),
        "",
        "## Against LD3 with the NFE of ours, its teacher not counted",
        "",
        against([c for c in cells if c["method"].endswith(f"{BUDGETS[-1]:,} NFE")], LD3_WITHIN),
        "",
        *itertools.chain.from_iterable(
            [f"## {title}, ratio to the best baseline", "", summary(own, "ratio", "se"), ""]
            for title, own in zip(APART.values(), apart, strict=True)
            if own
        ),
        "## Each setting, ratio to the best baseline",
        "",
        table(["network", "sampler", "K", *head], each),
        "",
    ]
    return "\n".join(lines)


def split(cells: list[Cell]) -> list[list[Cell]]:
    """The cells that count together, and those of each network that is reported alone."""
    counted = [cell for cell in cells if cell["network"] not in APART]
    return [counted, *([cell for cell in cells if cell["network"] == name] for name in APART)]


def summary(cells: list[Cell], ratio: str, error: str) -> str:
    """Geometric means of a ratio, with the worst setting, by method."""
    rows = []
    for method in dict.fromkeys(cell["method"] for cell in cells):
        own = [cell for cell in cells if cell["method"] == method]
        means = []
        for statistic in STATISTICS:
            logs = np.log([cell[statistic][ratio] for cell in own])
            relative = [cell[statistic][error] / cell[statistic][ratio] for cell in own]
            mean = np.exp(np.mean(logs))
            se = mean * np.sqrt(np.sum(np.square(relative))) / len(own)
            means.append(f"{mean:.3f} ± {se:.3f} (worst {np.exp(np.max(logs)):.2f})")
        seconds = np.mean([cell["seconds"] for cell in own])
        nfe = total_nfe(own)
        rows.append([method, str(len(own)), *means, f"{nfe:,.0f}", f"{seconds:.1f}"])
    return table(["method", "settings", *STATISTICS, "NFE", "seconds"], rows)


def total_nfe(cells: list[Cell]) -> float:
    """NFE of a method for all settings of a network, on average over networks.

    A schedule that serves all samplers, or a record that serves all settings, is paid for once.
    """
    shared = SHARED.get(cells[0]["method"].split(",")[0], ())
    if within_budget(cells[0]["method"]):
        shared = ("sampler", "num_steps")
    paid = {}
    for cell in cells:
        key = [cell[name] for name in ("network", "sampler", "num_steps") if name not in shared]
        paid[tuple(key)] = cell["nfe"]
    return sum(paid.values()) / len({cell["network"] for cell in cells})


def within_budget(method: str) -> bool:
    """Whether its budget is for all settings of a network."""
    return method.startswith(OURS) and method.endswith("NFE")


def figure(cells: list[Cell]) -> FigureSpec:
    """Ratios to the best baseline, a row for each method that was run in every setting."""
    most = max(Counter(cell["method"] for cell in cells).values())
    rows = {}
    for method in dict.fromkeys(cell["method"] for cell in cells):
        own = [cell for cell in cells if cell["method"] == method]
        if len(own) == most:
            rows[f"{method} ({total_nfe(own):,.0f} NFE)"] = own
    place = np.arange(len(rows), dtype=float)
    ours = np.array([label.startswith(OURS) for label in rows])
    panels = []
    for statistic in STATISTICS:
        logs = [np.mean([np.log(c[statistic]["ratio"]) for c in own]) for own in rows.values()]
        marks: list[Mark] = [Guide(1.0, "x")]
        for which, color in ((ours, BLUE), (~ours, ORANGE)):
            x = np.exp(logs)[which]
            marks.append(Line(x, place[which], color=color, marker="o", style=""))
        axis = Axis("error / best baseline", "log", ticks="ratio")
        panels.append(Panel(statistic.replace("_", " "), marks, axis, Axis.of_rows(list(rows))))
    return FigureSpec(panels, (11.0, 0.6 + 0.3 * len(rows)), shared_y=True)


def against(cells: list[Cell], peer: str) -> str:
    """In how many settings ours has the lower error, and its largest ratio."""
    rows = []
    for method in dict.fromkeys(cell["method"] for cell in cells):
        own = [c for c in cells if c["method"] == method and peer in c["rms"]["ratio_to_peers"]]
        if not own or not method.startswith(OURS):
            continue
        entries = []
        for statistic in STATISTICS:
            found = [cell[statistic]["ratio_to_peers"][peer] for cell in own]
            share = np.mean(np.array(found) < 1.0)
            entries.append(f"{share:.0%} lower (worst {max(found):.2f})")
        rows.append([method, str(len(own)), *entries])
    return table(["method", "settings", *STATISTICS], rows)


if __name__ == "__main__":
    main()
