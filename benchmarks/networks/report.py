"""The results as Markdown."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from ..environment import table
from .study import BASELINES, SAMPLERS

STATISTICS = ("rms", "median", "geometric_mean", "sliced_w2_reference", "sliced_w2")
# those of the table of all networks
_SHORT = ("rms", "geometric_mean", "sliced_w2_reference", "sliced_w2")

Row = dict[str, Any]
Study = dict[str, Any]


def report(studies: list[Study]) -> str:
    """All tables; the last study is of the held-out network."""
    tested = [name for name in studies[0]["rows"][0]["times"] if name not in BASELINES]
    shown = [*tested, *BASELINES]
    *used, held_out = studies
    rows = [row for study in used for row in study["rows"]]
    lines = [
        "# Schedules on trained networks",
        "",
        "Written by `python -m benchmarks.networks`; how to read it: "
        "[README](../README.md#networks).",
        "",
        "## All networks but the held-out one, samplers and K together",
        "",
        *summary(rows, shown),
        "## Network by network",
        "",
        *by_network(studies, tested),
        f"## The held-out network: {held_out['problem']}",
        "",
        *summary(held_out["rows"], shown),
        "## Stochastic schedules: sliced W2 of DDIM, h selected on the network",
        "",
        *stochastic(studies),
        "## Rank correlation of predicted and measured geometric mean errors",
        "",
        *rank_correlations(studies),
    ]
    for study in studies:
        lines += one_network(study, tested)
    return "\n".join(lines)


def summary(rows: list[Row], shown: list[str]) -> list[str]:
    """Over all rows: geometric mean and worst ratio, how often a schedule is better or worse."""
    lines = []
    for statistic in STATISTICS:
        cells = []
        for name in shown:
            entries = [row[statistic][name] for row in rows]
            values = np.array([entry["ratio"] for entry in entries])
            errors = np.array([entry["ratio_se"] for entry in entries])
            cells.append(
                [
                    name,
                    f"{geometric_mean(values):.3f}",
                    f"{values.max():.2f}",
                    str(np.sum(values < 1.0 - errors)),
                    str(np.sum(values > 1.0 + errors)),
                ]
            )
        title = f"{statistic} error / best baseline"
        lines += [table([title, "geometric mean", "worst", "better", "worse"], cells), ""]
    return [*lines, f"better, worse: of {len(rows)} cases, by more than a standard error.", ""]


def by_network(studies: list[Study], tested: list[str]) -> list[str]:
    """Geometric means over K, and the worst ratio of all networks but the last."""
    cells = []
    for name, sampler in itertools.product(tested, SAMPLERS):
        groups = [[row for row in study["rows"] if row["sampler"] == sampler] for study in studies]
        used = [row for group in groups[:-1] for row in group]
        own = [_averages(group, name, geometric_mean) for group in groups]
        together = [_averages(used, name, geometric_mean), _averages(used, name, np.max)]
        cells.append([f"{sampler}, {name}", *own[:-1], *together, own[-1]])
    names = [study["problem"] for study in studies]
    head = ["sampler, schedule", *names[:-1], "these together", "worst of these"]
    return [
        f"Geometric means over K of {' / '.join(_SHORT)} error / best baseline.",
        "",
        table([*head, f"{names[-1]} (held out)"], cells),
        "",
    ]


def _averages(rows: list[Row], name: str, average: Callable[[np.ndarray], float]) -> str:
    """An average of a schedule's ratios over rows, for each statistic."""
    ratios = [np.array([row[statistic][name]["ratio"] for row in rows]) for statistic in _SHORT]
    return " / ".join(f"{average(values):.2f}" for values in ratios)


def geometric_mean(values: np.ndarray) -> float:
    return float(np.exp(np.mean(np.log(values))))


def stochastic(studies: list[Study]) -> list[str]:
    """Sliced W2 of the selected h and of its rivals."""
    cells = []
    for study in studies:
        for row in study["stochastic"]:
            values = [
                "{:.4f} ± {:.4f}".format(*row[name]) for name in ("h = 0", "h = g", "selected")
            ]
            ratio = "{:.3f} ± {:.3f}".format(*row["ratio"])
            largest = f"{max(row['stochasticity']):.2f}"
            setting = [study["problem"], str(row["num_steps"])]
            cells.append([*setting, *values, ratio, largest, row["candidate"]])
    head = ["network", "K", "h = 0, best baseline", "h = g, best baseline", "selected"]
    return [table([*head, "to the better", "largest h / g", "candidate"], cells), ""]


def rank_correlations(studies: list[Study]) -> list[str]:
    """How well the local error and the record rank the candidates."""
    cells = [
        [
            study["problem"],
            row["sampler"],
            str(row["num_steps"]),
            str(row["schedules"]),
            f"{row['spearman_local']:.2f}",
            f"{row['spearman_record']:.2f}",
            row["selected"],
        ]
        for study in studies
        for row in study["rows"]
    ]
    head = ["network", "sampler", "K", "schedules", "Spearman, local", "Spearman, record"]
    return [table([*head, "selected on the network"], cells), ""]


def one_network(study: Study, tested: list[str]) -> list[str]:
    """Every setting of one network."""
    loss = study["loss"] / study["affine_loss"]
    reference = study["rows"][-1]["reference_sliced_w2"]
    lines = [
        f"## {study['problem']}",
        "",
        f"d = {study['dimension']}, network predicts {study['predicts']}, held-out loss {loss:.2f} "
        f"of the best affine denoiser's, kurtosis {study['kurtosis']:.1f}, sliced W2 of the "
        f"reference solution {reference:.4f}.",
        "",
    ]
    columns = (*tested, "log_snr", "karras")
    for statistic in STATISTICS:
        cells = []
        for row in study["rows"]:
            entries = row[statistic]
            best = min(BASELINES, key=lambda name, entries=entries: entries[name]["error"])
            cells.append(
                [
                    row["sampler"],
                    str(row["num_steps"]),
                    f"{best}: {entries[best]['error']:.3g}",
                    *("{ratio:.2f} ± {ratio_se:.2f}".format(**entries[name]) for name in columns),
                ]
            )
        head = ["sampler", "K", f"best baseline: {statistic} error", *columns]
        lines += [table(head, cells), ""]
    return lines
