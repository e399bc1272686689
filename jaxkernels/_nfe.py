"""What operations on a network cost, in NFE: evaluations of the network at one point."""

EVALUATION = 1
"""The network at one point."""

VECTOR_JACOBIAN_PRODUCT = 2
"""A backward pass, after the evaluation at the same point, which is counted apart."""

JACOBIAN_VECTOR_PRODUCT = 1
"""A tangent, beside the evaluation at the same point, which is counted apart."""
