"""Whether a selection is resolved, and whether it holds beyond the model."""

from collections.abc import Iterable

from ..comparison import WEIGHED, Comparison
from ..errors import model_warnings as model_warnings, violations as violations

# errors below this many times the distance between the reference and one of half its steps are not told apart
_RESOLVED = 2.0


def unresolved(comparison: Comparison, chosen: str) -> tuple[str, ...]:
    """Whether the chosen schedule is about as accurate as the reference it was chosen by."""
    error = comparison.statistic("rms")[chosen]
    if not error < _RESOLVED * comparison.reference_error:
        return ()
    return (
        f"the chosen schedule is {error:.2g} from the fine reference, which itself is accurate to "
        f"{comparison.reference_error:.2g}: which schedule is best is not resolved; a larger t_min may help",
    )


def unproven(comparison: Comparison, chosen: str, baselines: Iterable[str]) -> tuple[str, ...]:
    """In which statistics a mixture's choice is no better than the best baseline beyond the standard error.

    There a network was seen to reverse the order: where few trajectories decide, those that change between clusters.
    """
    if comparison.criterion != "geometric_mean":
        return ()
    found = []
    for kind in WEIGHED:
        values = comparison.statistic(kind)
        grid = min(baselines, key=values.__getitem__)
        ratio, spread = comparison.ratio(kind, chosen, grid)
        if not ratio + spread < 1.0:
            found.append(f"{kind} ({ratio:.2f} ± {spread:.2f} of that of {grid})")
    if not found:
        return ()
    return (
        f"on fresh noises of the mixture it gains nothing beyond the standard error in {', '.join(found)}: the data "
        "alone do not decide; compare on the network, by score_fn",
    )
