"""The reverse diffusion coefficient h(t): the cost of a score error, and the best h."""

from ._affine import affine_leading_order as affine_leading_order
from ._bound import (
    diffusion_bound as diffusion_bound,
    gaussian_bound as gaussian_bound,
)
from ._continuous import (
    OptimalDiffusion as OptimalDiffusion,
    optimize_diffusion as optimize_diffusion,
)
from ._continuous_affine import optimize_affine_diffusion as optimize_affine_diffusion
from ._continuous_mixture import optimize_mixture_diffusion as optimize_mixture_diffusion
from ._density import (
    TailBounds as TailBounds,
    density_information as density_information,
    density_tail_bounds as density_tail_bounds,
    density_tail_constant as density_tail_constant,
    density_window_leading_order as density_window_leading_order,
)
from ._discrete import (
    DiscreteStochasticity as DiscreteStochasticity,
    optimize_discrete_stochasticity as optimize_discrete_stochasticity,
)
from ._feynman_kac import leading_order_samples as leading_order_samples
from ._fokker_planck import (
    FokkerPlanckResult as FokkerPlanckResult,
    leading_order_1d as leading_order_1d,
)
from ._grid_2d import leading_order_2d as leading_order_2d
from ._infimum import (
    Infimum as Infimum,
    diffusion_infimum as diffusion_infimum,
)
from ._leading_order import (
    CellResponses as CellResponses,
    cell_responses as cell_responses,
    leading_order as leading_order,
)
from ._limits import (
    affine_tail_constant as affine_tail_constant,
    pulse_bound as pulse_bound,
    pulse_leading_order as pulse_leading_order,
    tail_constant as tail_constant,
    tail_leading_order as tail_leading_order,
    window_leading_order as window_leading_order,
)
from ._losses import (
    kl_rate as kl_rate,
    kl_weight as kl_weight,
    relative_score_loss as relative_score_loss,
    score_loss_profile as score_loss_profile,
    score_matching_loss as score_matching_loss,
)
from ._measured import (
    MeasuredDiffusion as MeasuredDiffusion,
    optimize_measured_diffusion as optimize_measured_diffusion,
)
from ._published import (
    PulseConstants as PulseConstants,
    pulse_constants as pulse_constants,
)
from ._search import BestConstant as BestConstant
from ._symmetrized_kl import SymmetrizedKL as SymmetrizedKL
from ._terminal_distribution import (
    TerminalDistribution as TerminalDistribution,
    affine_terminal_distribution as affine_terminal_distribution,
    terminal_distribution as terminal_distribution,
)
from ._time_change import (
    inverse_time_change as inverse_time_change,
    time_change as time_change,
)
from ._weights import (
    TerminalKernel as TerminalKernel,
    terminal_kernel as terminal_kernel,
    training_weight as training_weight,
)
