"""The reverse diffusion coefficient h(t): what a score error costs for a given h, and the h that minimises it."""

from ._bound import (
    density_information as density_information,
    diffusion_bound as diffusion_bound,
    gaussian_bound as gaussian_bound,
)
from ._clock import (
    clock as clock,
    time_at_clock as time_at_clock,
)
from ._few_steps import (
    EvenKL as EvenKL,
    FewSteps as FewSteps,
    optimize_few_steps as optimize_few_steps,
)
from ._fokker_planck import (
    FokkerPlanckResult as FokkerPlanckResult,
    leading_order_1d as leading_order_1d,
)
from ._leading_order import (
    CellResponses as CellResponses,
    affine_leading_order as affine_leading_order,
    cell_responses as cell_responses,
    leading_order as leading_order,
)
from ._limits import (
    Statement as Statement,
    affine_tail_constant as affine_tail_constant,
    density_tail_constant as density_tail_constant,
    pulse_leading_order as pulse_leading_order,
    pulse_statement as pulse_statement,
    tail_constant as tail_constant,
    tail_statement as tail_statement,
    window_statement as window_statement,
)
from ._moments import (
    TerminalLaw as TerminalLaw,
    affine_terminal_law as affine_terminal_law,
    terminal_law as terminal_law,
)
from ._optimal import (
    Infimum as Infimum,
    OptimalDiffusion as OptimalDiffusion,
    diffusion_infimum as diffusion_infimum,
    optimize_diffusion as optimize_diffusion,
)
from ._weights import (
    TerminalKernel as TerminalKernel,
    terminal_kernel as terminal_kernel,
    training_weight as training_weight,
)
