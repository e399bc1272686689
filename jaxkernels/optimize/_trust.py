"""Whether a selection is resolved, and whether it holds beyond the model."""

from collections.abc import Callable, Iterable

from ..comparison import WEIGHED, Comparison

# standard errors beyond which the schedule that data lead to is said to be worse than a baseline
_MISLED = 2.0
# smaller errors than this many times the reference's own are not resolved
_RESOLVED = 2.0


def unresolved(comparison: Comparison) -> tuple[str, ...]:
    """Whether the selected schedule is about as accurate as the reference it was compared with."""
    error = comparison.statistic("rms")[comparison.leader]
    if not error < _RESOLVED * comparison.reference_error:
        return ()
    return (
        f"the selected schedule is {error:.2g} from the reference solution, which itself is "
        f"accurate to {comparison.reference_error:.2g}: which schedule is best is not resolved; a "
        "larger t_min may help",
    )


def unproven(
    comparison: Comparison, baselines: Iterable[str], predicted: bool = False
) -> tuple[str, ...]:
    """In which statistics the selection on a mixture gains nothing beyond the standard error.

    `predicted`, on a model of the network that recorded trajectories correct.

    There a network was seen to reverse the order: where few trajectories make up the error, those
    that change between clusters.
    """
    if comparison.ranking_statistic != "geometric_mean":
        return ()
    found = _doubtful(
        comparison, comparison.leader, baselines, lambda value, error: not value + error < 1.0
    )
    if not found:
        return ()
    where = "on other noise, the mixture shows"
    why = "the data alone do"
    how = "selection=Selection(denoiser=...)"
    if predicted:
        where = "a model of the network shows"
        why = "the record does"
        how = "budget=... or compare_schedules"
    return (
        f"{where} no gain beyond the standard error in {', '.join(found)}: {why} not show which "
        f"schedule is best; compare on the network, with {how}",
    )


def misled(comparison: Comparison, known: str, baselines: Iterable[str]) -> tuple[str, ...]:
    """Where the schedule `known`, that data alone lead to, is worse than a baseline on the network.

    On a model of it that recorded trajectories correct, few of which say so.
    """
    if known not in comparison.names or comparison.leader == known:
        return ()
    found = _doubtful(
        comparison, known, baselines, lambda value, error: value - _MISLED * error > 1.0
    )
    if not found:
        return ()
    return (
        f"the schedule that the data alone lead to has more error on a model of the network than a "
        f"baseline, in {', '.join(found)}: the data do not tell where this network errs; use no "
        "schedule for it that does not come from its own record",
    )


def _doubtful(
    comparison: Comparison,
    label: str,
    baselines: Iterable[str],
    is_doubtful: Callable[[float, float], bool],
) -> list[str]:
    """The statistics whose ratio to the best baseline, and its standard error, raise a doubt."""
    found = []
    for statistic in WEIGHED:
        values = comparison.statistic(statistic)
        name = min(baselines, key=values.__getitem__)
        ratio = comparison.ratio(statistic, label, name)
        if is_doubtful(ratio.value, ratio.standard_error):
            shown = f"{ratio.value:.2f} ± {ratio.standard_error:.2f} of that of {name}"
            found.append(f"{statistic} ({shown})")
    return found
