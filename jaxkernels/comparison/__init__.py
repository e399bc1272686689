"""Schedules and samplers compared on a network."""

from ._compare import (
    check_schedules as check_schedules,
    compare_ends as compare_ends,
    compare_schedules as compare_schedules,
    compare_to as compare_to,
    comparison_nfe as comparison_nfe,
)
from ._comparison import Comparison as Comparison
from ._criteria import (
    BALANCED as BALANCED,
    WEIGHED as WEIGHED,
    balance as balance,
)
from ._figure import report_figure as report_figure
from ._reference import (
    Reference as Reference,
    as_reference as as_reference,
    check_data as check_data,
    reference_nfe as reference_nfe,
    reference_steps as reference_steps,
    sample_ends as sample_ends,
    solve_reference as solve_reference,
)
from ._report import (
    SamplerReport as SamplerReport,
    Setting as Setting,
    compare_samplers as compare_samplers,
    sampler_settings as sampler_settings,
)
from ._statistics import (
    STATISTICS as STATISTICS,
    statistic as statistic,
)
