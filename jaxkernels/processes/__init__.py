"""Forward processes: how data turn into noise."""

from ._base import (
    AbstractProcess as AbstractProcess,
    check_process as check_process,
    same_process as same_process,
)
from ._config import (
    PROCESSES as PROCESSES,
    check_process_name as check_process_name,
    describe_process as describe_process,
    from_config as from_config,
    parameters as parameters,
    to_config as to_config,
)
from ._flow import (
    FlowMatching as FlowMatching,
)
from ._range import (
    check_continuous_rates as check_continuous_rates,
    check_range as check_range,
    check_times as check_times,
    sigma_range as sigma_range,
)
from ._ve import (
    EDM as EDM,
    VE as VE,
)
from ._vp import (
    OU as OU,
    VP as VP,
    AbstractVariancePreserving as AbstractVariancePreserving,
    CosineVP as CosineVP,
    DiscreteVP as DiscreteVP,
    PowerVP as PowerVP,
)
