"""How schedulers write noise levels."""

import abc
import dataclasses
import math
from typing import ClassVar, TypeVar

import numpy as np

from .. import _checks
from ..processes import EDM, VE, AbstractProcess, DiscreteVP, sigma_range
from ._plan import Levels, Unit
from ._render import written

Self = TypeVar("Self", bound="AbstractLevels")
OnTable = TypeVar("OnTable", bound="AbstractTableLevels")

# of EDM's networks
_USUAL_SIGMA_MAX = 80.0


class AbstractLevels(abc.ABC):
    """Define how a scheduler writes the noise levels of a schedule.

    A subclass is a frozen dataclass. Its `unit` is that of the levels; the fields named in
    `options` are what a user may set in the call of `export`.

    **Example:**

    ```python
    >>> class Variances(jk.exports.AbstractLevels):
    ...     unit = "sigma"
    ...
    ...     def write(self, levels):
    ...         return tuple((levels**2).tolist())
    >>> Variances().write(np.array([80.0, 0.5]))
    (6400.0, 0.25)
    ```
    """

    unit: ClassVar[Unit]

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the fields that are options of `export`."""
        return ()

    def for_process(self: Self, process: AbstractProcess) -> Self:
        """Fill in what follows from the process, where the user did not set it.

        By default nothing does.

        **Arguments:**

        - `process`: the process that the schedule was made for.

        **Returns:** levels of the same type.
        """
        return self

    def check(self, levels: Levels, name: str) -> tuple[str, ...]:
        """Return warnings on the levels that the scheduler `name` is told.

        **Arguments:**

        - `levels`: (K+1,), the last of which is where sampling ends.
        - `name`: the scheduler's name, for messages.

        **Returns:** warnings on what the scheduler changes.

        **Raises:** ValueError for levels that it cannot represent. By default these are neighbours
        that are equal in float32.
        """
        same = np.diff(np.float32(levels)) >= 0
        if same.any():
            k = int(np.argmax(same))
            raise ValueError(
                f"levels {k} and {k + 1} of the schedule, {levels[k]:.9g} and {levels[k + 1]:.9g}, "
                "are equal in float32, in which the tools compute."
            )
        return ()

    @abc.abstractmethod
    def write(self, levels: Levels) -> tuple[float | int, ...]:
        """Convert levels into the numbers that stand for them.

        **Arguments:**

        - `levels`: (n,) decreasing, in the unit `unit`; the last one may be 0.

        **Returns:** n numbers, as the scheduler takes them.
        """


@dataclasses.dataclass(frozen=True)
class Sigmas(AbstractLevels):
    """Write levels as sigma = s/a, in units of the data.

    **Example:**

    ```python
    >>> jk.exports.Sigmas().write(np.array([80.0, 0.1]))
    (80.0, 0.1)
    ```
    """

    unit: ClassVar[Unit] = "sigma"

    def write(self, levels: Levels) -> tuple[float | int, ...]:
        return written(levels)


@dataclasses.dataclass(frozen=True)
class KarrasRamp(AbstractLevels):
    """Write levels as positions on a ramp, which the scheduler maps to levels.

        sigma = (sigma_max^(1/rho) + ramp (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho

    The inverse of that map is applied. The ramp leaves [0, 1] where a level lies outside
    [sigma_min, sigma_max].

    **Arguments:**

    - `sigma_min`, `sigma_max`: the scheduler's own, 0 < sigma_min < sigma_max. It scales the
      initial noise by the second, which is by default that of the process `EDM` or `VE`, else 80.
    - `rho`: the scheduler's own, > 0.

    **Raises:** ValueError for values out of range.

    **Example:**

    ```python
    >>> jk.exports.KarrasRamp(rho=1.0).write(np.array([80.0, 0.002]))
    (0.0, 1.0)
    ```

    Source: Karras et al., "Elucidating the design space of diffusion-based generative models"
    (2022), equation (5), https://arxiv.org/abs/2206.00364.
    """

    unit: ClassVar[Unit] = "sigma"
    sigma_min: float = 0.002
    sigma_max: float | None = None
    rho: float = 7.0

    def __post_init__(self):
        rho = _checks.scalar("rho", self.rho, above=0.0)
        sigma_min = _checks.scalar("sigma_min", self.sigma_min, above=0.0)
        object.__setattr__(self, "rho", float(rho))
        object.__setattr__(self, "sigma_min", float(sigma_min))
        if self.sigma_max is not None:
            sigma_max = _checks.scalar("sigma_max", self.sigma_max, above=float(sigma_min))
            object.__setattr__(self, "sigma_max", float(sigma_max))

    @property
    def options(self) -> tuple[str, ...]:
        """The parameters of the scheduler's map."""
        return ("sigma_min", "sigma_max", "rho")

    def for_process(self, process: AbstractProcess) -> "KarrasRamp":
        if self.sigma_max is not None:
            return self
        largest = _USUAL_SIGMA_MAX
        if isinstance(process, EDM | VE):
            whole = process if process.full_t_max is None else process.sub_range(process.full_t_max)
            largest = sigma_range(whole, 0.0)[0]
        return dataclasses.replace(self, sigma_max=largest)

    def write(self, levels: Levels) -> tuple[float | int, ...]:
        sigma_max = _USUAL_SIGMA_MAX if self.sigma_max is None else self.sigma_max
        low = self.sigma_min ** (1.0 / self.rho)
        high = sigma_max ** (1.0 / self.rho)
        # all digits: the scheduler computes in float64, and a power rho amplifies what is cut off
        return tuple(((high - levels ** (1.0 / self.rho)) / (high - low)).tolist())


@dataclasses.dataclass(frozen=True)
class FlowSigmas(AbstractLevels):
    """Write levels as l = s/(a + s), in [0, 1], as flow models take them.

    **Arguments:**

    - `shift`: that of a scheduler which maps what it is given, x -> shift x / (1 + (shift - 1) x),
      > 0; the inverse of that map is applied. None for a scheduler that maps nothing.

    **Raises:** ValueError for a shift that is not > 0.

    **Example:**

    ```python
    >>> jk.exports.FlowSigmas(shift=3.0).write(np.array([1.0, 0.75]))
    (1.0, 0.5)
    ```
    """

    unit: ClassVar[Unit] = "flow"
    shift: float | None = None

    def __post_init__(self):
        if self.shift is not None:
            shift = float(_checks.scalar("shift", self.shift, above=0.0))
            object.__setattr__(self, "shift", shift)

    @property
    def options(self) -> tuple[str, ...]:
        """The shift, if the scheduler has one."""
        return () if self.shift is None else ("shift",)

    def write(self, levels: Levels) -> tuple[float | int, ...]:
        if self.shift is None:
            return written(levels)
        return written(levels / (self.shift - (self.shift - 1.0) * levels))


@dataclasses.dataclass(frozen=True)
class AbstractTableLevels(AbstractLevels):
    """Define levels of a network that was trained at the levels of a table.

    **Arguments:**

    - `table`: a `DiscreteVP`; by default the process if it is one, else Stable Diffusion's.

    **Raises:** ValueError for another type.

    **Example:**

    ```python
    >>> class Fractions(jk.exports.AbstractTableLevels):
    ...     def write(self, levels):
    ...         return tuple((self.positions(levels) / 1000.0).round(4).tolist())
    >>> Fractions().write(np.exp(jk.DiscreteVP.scaled_linear().log_sigmas[np.array([999, 20])]))
    (0.999, 0.02)
    ```
    """

    unit: ClassVar[Unit] = "sigma"
    table: DiscreteVP | None = None

    def __post_init__(self):
        if self.table is not None:
            _checks.instance("table", self.table, DiscreteVP)

    @property
    def options(self) -> tuple[str, ...]:
        """The table."""
        return ("table",)

    def for_process(self: OnTable, process: AbstractProcess) -> OnTable:
        if self.table is not None:
            return self
        own = process if isinstance(process, DiscreteVP) else DiscreteVP.scaled_linear()
        return dataclasses.replace(self, table=own)

    @property
    def log_sigmas(self) -> np.ndarray:
        """log sigma of the table, ascending."""
        table = DiscreteVP.scaled_linear() if self.table is None else self.table
        return np.asarray(table.log_sigmas)

    def is_smallest(self, sigma: float) -> bool:
        """Return whether a level is the smallest one of the table.

        **Arguments:**

        - `sigma`: the level, > 0.

        **Returns:** True if it is, to 5 digits.
        """
        return math.isclose(sigma, math.exp(float(self.log_sigmas[0])), rel_tol=1e-5)

    def positions(self, sigmas: Levels) -> np.ndarray:
        """Locate levels in the table, with log sigma linear in between.

        **Arguments:**

        - `sigmas`: (n,), within the levels of the table.

        **Returns:** (n,) fractional timesteps, counted from 0.

        **Raises:** ValueError for levels outside the table.
        """
        low, high = np.exp(self.log_sigmas[[0, -1]])
        outside = (sigmas > high * (1.0 + 1e-6)) | (sigmas < low * (1.0 - 1e-6))
        if outside.any():
            k = int(np.argmax(outside))
            raise ValueError(
                f"sigma = {sigmas[k]:.6g} of step {k} lies outside the levels of the table, "
                f"{low:.6g} .. {high:.6g}, on which the network was trained; make the schedule for "
                "DiscreteVP with the network's table, or pass that table."
            )
        return np.interp(np.log(sigmas), self.log_sigmas, np.arange(self.log_sigmas.size))


@dataclasses.dataclass(frozen=True)
class TableSigmas(AbstractTableLevels):
    """Write levels as sigma = s/a, within a table from which the scheduler finds the timesteps.

    **Arguments:**

    - `table`: as in `AbstractTableLevels`.

    **Example:**

    ```python
    >>> jk.exports.TableSigmas().write(np.array([14.0, 0.1]))
    (14.0, 0.1)
    ```
    """

    def check(self, levels: Levels, name: str) -> tuple[str, ...]:
        # the scheduler would silently clip a level beyond the table
        self.positions(levels[:-1])
        return super().check(levels, name)

    def write(self, levels: Levels) -> tuple[float | int, ...]:
        return written(levels)


@dataclasses.dataclass(frozen=True)
class Timesteps(AbstractTableLevels):
    """Write levels as timesteps of a table, counted from 0.

    **Arguments:**

    - `table`: as in `AbstractTableLevels`.
    - `integer`: the scheduler truncates fractions, so integers are written and the levels move: of
      all distinct timesteps, those with the smallest sum of squared changes of log sigma are taken.
      Otherwise it interpolates sigma (not log sigma) between integer timesteps, and the fractions
      are those that give exactly the schedule's levels.

    **Example:**

    ```python
    >>> sigmas = np.exp(np.asarray(jk.DiscreteVP.scaled_linear().log_sigmas))
    >>> jk.exports.Timesteps(integer=True).write(sigmas[[999, 20]])
    (999, 20)
    ```
    """

    integer: bool = False

    def check(self, levels: Levels, name: str) -> tuple[str, ...]:
        if not self.integer:
            self.positions(levels[:-1])
            return super().check(levels, name)
        levels = levels[levels > 0]
        timesteps = np.asarray(self.write(levels), int)
        moved = np.abs(self.log_sigmas[timesteps] - np.log(levels)).max()
        if moved < 1e-6:
            return ()
        warning = f"rounding to distinct integer timesteps moves log sigma by at most {moved:.2g}"
        if np.any(np.diff(np.rint(self.positions(levels))) == 0):
            warning += (
                "; two levels have the same nearest timestep, and the nearest distinct ones are "
                "taken: those with the smallest error are selected by jaxkernels export with "
                "--data or --spectrum, and by jk.optimize.on_integer_timesteps"
            )
        return (warning,)

    def write(self, levels: Levels) -> tuple[float | int, ...]:
        if self.integer:
            self.positions(levels)
            return _nearest_increasing(np.log(levels)[::-1], self.log_sigmas)[::-1]
        sigmas = np.exp(self.log_sigmas)
        return written(np.interp(levels, sigmas, np.arange(sigmas.size)))


def _nearest_increasing(values: np.ndarray, table: np.ndarray) -> tuple[int, ...]:
    """Increasing indices of the table's entries that are closest to the values, by least squares.

    Solved exactly by dynamic programming: `best[k][n]` is the least sum for the first k + 1 values
    if the last of them goes to entry n.
    """
    if values.size > table.size:
        raise ValueError(
            f"the schedule has {values.size} levels, which are more than the {table.size} entries "
            "of the table: no two may share a timestep; use fewer steps."
        )
    squares = (values[:, None] - table) ** 2
    best = [squares[0]]
    for square in squares[1:]:
        before = np.minimum.accumulate(best[-1])[:-1]
        best.append(square + np.append(np.inf, before))
    indices = [int(np.argmin(best[-1]))]
    for total in best[-2::-1]:
        indices.append(int(np.argmin(total[: indices[-1]])))
    return tuple(indices[::-1])
