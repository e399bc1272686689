"""Schedules in the form that other tools take: numbers, and text to paste.

Tools differ in what a schedule is (noise levels, timesteps, a ramp), in whether its end at 0 is
written, and in what they do to it afterwards. Each is declared as a `Tool` of `Scheduler`s, one
file per tool; one engine, `export`, does the rest. They agree in this:

* a level is sigma = s/a in units of the data, except for flow models, whose level is s/(a + s);
* the network is evaluated for K steps. A schedule that ends at t_K > 0 stops there where the tool
  can (`end="keep"`, the default then), as `sample` does: the samples are those that
  `evaluate_schedule` describes, with the noise of that level in them. Other tools finish with the
  denoised point, so the last level is replaced by 0 (`end="replace"`, the default then). This
  changes the optimised last step; for small K the loss can exceed the gain, and a warning is
  issued. `end="append"` keeps the level and adds a step to 0, which raises NFE;
* stochasticity is exported where the tool has a parameter for it in every step, and a warning is
  issued where it has none. The step to 0 injects nothing whatever its parameter, which is therefore
  written as 0;
* the initial noise has the variance that `Evaluation` assumes, prior_variance(t_0), or a warning is
  issued;
* integer timesteps are the nearest ones of which no two agree, and a warning says how far they
  moved.

The text for diffusers gives `pipe.scheduler` the schedule, so that it runs in every pipeline;
`bind` does so for a pipeline that is at hand.

What is supported stands in `TOOLS` and, for diffusers, in `SCHEDULERS`; what is not, with the
reason, in `Tool.unsupported` and `UNSUPPORTED`. `tools_table()` shows both.
"""

from ._bind import (
    bind as bind,
)
from ._diffusers import (
    NO_TIMESTEPS as NO_TIMESTEPS,
    SCHEDULERS as SCHEDULERS,
    UNSUPPORTED as UNSUPPORTED,
)
from ._dispatch import (
    TOOLS as TOOLS,
    export as export,
)
from ._export import (
    Export as Export,
)
from ._initial_noise import (
    AbstractInitialNoise as AbstractInitialNoise,
    Scaled as Scaled,
    ScaledAtTableTop as ScaledAtTableTop,
    SpacingSetting as SpacingSetting,
    UnitVariance as UnitVariance,
    WrittenOut as WrittenOut,
)
from ._levels import (
    AbstractLevels as AbstractLevels,
    AbstractTableLevels as AbstractTableLevels,
    FlowSigmas as FlowSigmas,
    KarrasRamp as KarrasRamp,
    Sigmas as Sigmas,
    TableSigmas as TableSigmas,
    Timesteps as Timesteps,
)
from ._noise import (
    AbstractNoise as AbstractNoise,
    Churn as Churn,
    Deterministic as Deterministic,
    Eta as Eta,
    Fixed as Fixed,
    FlowEta as FlowEta,
    SDEEta as SDEEta,
)
from ._render import (
    Text as Text,
)
from ._scheduler import (
    PLACEHOLDERS as PLACEHOLDERS,
    Default as Default,
    Emulation as Emulation,
    Scheduler as Scheduler,
    Tool as Tool,
)
from ._table import (
    tools_table as tools_table,
)
