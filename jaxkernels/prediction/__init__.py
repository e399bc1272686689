"""Denoisers: what a network predicts, and networks of other libraries."""

from ._denoiser import (
    PREDICTION_TYPES as PREDICTION_TYPES,
    AbstractDenoiser as AbstractDenoiser,
    Denoiser as Denoiser,
    Predict as Predict,
    Prediction as Prediction,
    check_denoiser as check_denoiser,
    check_one_condition as check_one_condition,
    in_working_precision as in_working_precision,
)
from ._diffusers import (
    DiffusersNetwork as DiffusersNetwork,
    from_diffusers as from_diffusers,
    process_of_scheduler as process_of_scheduler,
)
from ._k_diffusion import from_k_diffusion as from_k_diffusion
from ._torch import from_torch as from_torch
