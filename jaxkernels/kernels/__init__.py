"""What score errors cost: the terminal error as a function of them, and its expectation."""

from ._expected import (
    ExpectedError as ExpectedError,
    centred as centred,
    expected_error as expected_error,
    second_order as second_order,
)
from ._kernel import (
    Blocks as Blocks,
    ErrorKernel as ErrorKernel,
    contract as contract,
    error_kernel as error_kernel,
    factored as factored,
)
