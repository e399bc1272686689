"""Bounds on the terminal error."""

from ._accumulation import (
    AccumulationBound as AccumulationBound,
    accumulation_operators as accumulation_operators,
    hessian_interval as hessian_interval,
    lipschitz_accumulation as lipschitz_accumulation,
)
