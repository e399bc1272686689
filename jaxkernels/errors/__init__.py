"""The terminal error of a sampler on a Gaussian: budget, kernels and expectation."""

from ._analysis import (
    ErrorCurve as ErrorCurve,
    KernelParts as KernelParts,
    TimeModes as TimeModes,
    error_curve as error_curve,
    kernel_parts as kernel_parts,
    stability_constant as stability_constant,
    time_modes as time_modes,
)
from ._budget import (
    ErrorBudget as ErrorBudget,
)
from ._continuous import (
    ContinuousKernel as ContinuousKernel,
    continuous_kernel as continuous_kernel,
)
from ._evaluate import (
    Evaluation as Evaluation,
    evaluate_schedule as evaluate_schedule,
)
from ._expected import (
    ExpectedError as ExpectedError,
    centred as centred,
    expected_error as expected_error,
    finite_second_order as finite_second_order,
    second_order as second_order,
)
from ._kernel import (
    Blocks as Blocks,
    ErrorKernel as ErrorKernel,
    check_kernel as check_kernel,
    contract as contract,
    error_kernel as error_kernel,
    factored as factored,
)
from ._objective import (
    BoundLocalError as BoundLocalError,
    BoundTerminalError as BoundTerminalError,
    LocalError as LocalError,
    TerminalError as TerminalError,
)
from ._saved import (
    local_error_config as local_error_config,
    local_error_from_config as local_error_from_config,
)
from ._sweep import (
    ErrorSweep as ErrorSweep,
    error_sweep as error_sweep,
)
from ._trust import (
    model_warnings as model_warnings,
    unchangeable_warnings as unchangeable_warnings,
    violations as violations,
)
from ._window_sum import limit_modes as limit_modes
