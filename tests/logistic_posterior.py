"""The data of a penalised logistic regression, and moments of its posterior by quadrature."""

import numpy as np

FEATURES = np.array([[2.0 * np.cos(i), 2.0 * np.sin(2.0 * i)] for i in range(1, 9)])
LABELS = np.sign(np.cos(np.arange(1, 9)) + 0.5 * np.sin(np.arange(1, 9)))
# two-dimensional quadrature by an independent computation
MEAN = np.array([0.300995684, 0.004080033])
COVARIANCE = np.array([[0.792581309, -0.027036928], [-0.027036928, 0.757685333]])
SECOND_MOMENT = MEAN @ MEAN + np.trace(COVARIANCE)
