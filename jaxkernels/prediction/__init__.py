"""Denoisers: what a network predicts, and networks of other libraries."""

from ._denoiser import (
    PREDICTION_TYPES as PREDICTION_TYPES,
    AbstractDenoiser as AbstractDenoiser,
    Denoiser as Denoiser,
    Predict as Predict,
    Prediction as Prediction,
    check_denoiser as check_denoiser,
    in_working_precision as in_working_precision,
)
from ._torch import from_torch as from_torch
