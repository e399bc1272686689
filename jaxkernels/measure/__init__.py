"""What a network, its data or its loss curve say about how well it denoises."""

from ._measure import measure as measure
from ._measurement import Measurement as Measurement
