"""Distances between distributions: of Gaussians in closed form, of samples by estimators."""

from ._bures import (
    bures_squared as bures_squared,
    sqrtm as sqrtm,
    sylvester as sylvester,
    transport_map as transport_map,
)
from ._gaussian import (
    DENSE_METRICS as DENSE_METRICS,
    METRICS as METRICS,
    Metric as Metric,
    dense_kl as dense_kl,
    dense_log_chi_squared as dense_log_chi_squared,
    dense_w2_squared as dense_w2_squared,
    kl as kl,
    log_chi_squared as log_chi_squared,
    per_mode as per_mode,
    resolve as resolve,
    reverse_kl as reverse_kl,
    w2_squared as w2_squared,
)
from ._mmd import MMDSquared as MMDSquared
from ._samples import (
    Estimate as Estimate,
    frechet as frechet,
    projected_w2_squared as projected_w2_squared,
    quantiles as quantiles,
    sliced_w2 as sliced_w2,
)
