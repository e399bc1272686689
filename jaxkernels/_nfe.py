"""What operations on a network cost, in NFE: evaluations of the network at one point."""

EVALUATION = 1
"""The network at one point."""

VECTOR_JACOBIAN_PRODUCT = 2
"""A backward pass, after the evaluation at the same point, which is counted apart."""

JACOBIAN_VECTOR_PRODUCT = 1
"""A tangent, beside the evaluation at the same point, which is counted apart."""


def cost_text(planned: int | None) -> str:
    """What a status line says of a cost: the NFE, or that a model is run instead of a network."""
    return "on a model, no NFE" if planned is None else f"NFE {planned:,}"
