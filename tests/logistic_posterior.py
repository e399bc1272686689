"""Moments of the posterior of a penalised logistic regression."""

import numpy as np

# two-dimensional quadrature by an independent computation
MEAN = np.array([0.300995684, 0.004080033])
COVARIANCE = np.array([[0.792581309, -0.027036928], [-0.027036928, 0.757685333]])
SECOND_MOMENT = MEAN @ MEAN + np.trace(COVARIANCE)
