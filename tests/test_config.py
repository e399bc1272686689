"""Processes as JSON and back, to the last bit."""

import json
import re

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings

import jaxkernels as jk
from jaxkernels.processes import PROCESSES, AbstractProcess, from_config, parameters, to_config

EXAMPLES = [
    jk.VP(0.1, 1 / 3),
    jk.OU(2 / 3, 7),
    jk.VE(0.1),
    jk.EDM(80.3),
    jk.CosineVP(0.008, 0.9946),
    jk.PowerVP(2),
    jk.FlowMatching(),
    jk.DiscreteVP.scaled_linear(),
    jk.VP(t_max=0.7),
    jk.OU(2.0, 5.0).sub_range(1 / 3),
    jk.VE(0.1).sub_range(2.0),
    jk.EDM(80.3, t_max=3.1),
    jk.FlowMatching(t_max=0.875),
    jk.DiscreteVP([0.9, 0.5, 0.1], t_max=2.5),
]


def _same(a: AbstractProcess, b: AbstractProcess) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in leaves
    )


def test_a_sub_range_is_one_number_beside_the_whole_process():
    assert to_config(jk.EDM(14.0, t_max=3.0)) == {
        "type": "edm",
        "sigma_max": 14.0,
        "sub_range": 3.0,
    }
    assert to_config(jk.EDM(14.0)) == {"type": "edm", "sigma_max": 14.0}
    assert to_config(jk.FlowMatching()) == {"type": "flow_matching"}
    assert _same(from_config({"type": "vp", "t_max": 0.7}), jk.VP(t_max=0.7))


def test_every_process_is_covered():
    assert {type(process) for process in EXAMPLES} == set(PROCESSES.values())


@pytest.mark.parametrize("process", EXAMPLES, ids=lambda p: type(p).__name__)
def test_round_trip_through_text(process: AbstractProcess):
    config = json.loads(json.dumps(to_config(process), allow_nan=False))
    assert PROCESSES[config["type"]] is type(process)
    assert _same(from_config(config), process)


@settings(max_examples=50)
@given(st.lists(st.floats(1e-12, 1 - 1e-12), min_size=2, max_size=30, unique=True))
def test_tables_come_back_exactly(table: list[float]):
    values = np.sort(table)[::-1]
    # levels that are apart by round-off are refused
    assume(np.all(np.diff(np.log(values) - np.log1p(-values)) < -1e-12))
    process = jk.DiscreteVP(values)
    assert _same(from_config(to_config(process)), process)


def test_arguments_left_out_are_defaults():
    assert _same(from_config({"type": "vp"}), jk.VP())
    assert parameters("vp") == ("beta_min", "beta_max", "t_max")


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({}, "with a 'type'; got {}"),
        ({"type": "vpp"}, "process='vpp' is not known. Did you mean 'vp'"),
        (
            {"type": "vp", "rate": 1.0},
            "process 'vp' has no parameter 'rate'; it takes beta_min, beta_max",
        ),
        ({"type": "vp", "beta_min": -1.0}, "beta_min = -1 must be > 0"),
        ({"type": "discrete_vp"}, "'discrete_vp' needs the parameter 'alphas_cumprod'"),
    ],
)
def test_faults_are_named(config: dict, fault: str):
    with pytest.raises(ValueError, match=re.escape(fault)):
        from_config(config)


def test_a_process_of_ones_own_has_no_configuration():
    class Own(jk.FlowMatching):
        def __init__(self):
            self.t_max = jnp.asarray(1.0)

    with pytest.raises(ValueError, match="process Own is not built in"):
        to_config(Own())


def test_levels_apart_by_round_off_are_refused():
    with pytest.raises(ValueError, match="alphas_cumprod must decrease; entries 1 and 2"):
        jk.DiscreteVP([0.5, 1.0000000000000002e-12, 1e-12])
