"""Exports against the conventions of each tool, written out here by hand.

tests/test_external.py runs the exports with diffusers and k-diffusion themselves; what those do
with the numbers is restated below in a few lines of NumPy, so that these tests need neither.
"""

import ast
import dataclasses
import itertools
import re
from collections.abc import Sequence

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import jaxkernels as jk
from jaxkernels import Export, export, exports
from jaxkernels.exports import NO_TIMESTEPS, SCHEDULERS, TOOLS, UNSUPPORTED, Scheduler, Tool

TABLE = jk.DiscreteVP.scaled_linear()
TABLE_SIGMAS = np.exp(np.asarray(TABLE.log_sigmas))

# what float32 keeps of a number
RTOL = 2.0**-23

unit = st.floats(0.02, 0.98)
interior = st.lists(unit, min_size=4, max_size=4, unique_by=lambda v: round(v, 3)).map(sorted)


def _schedule(points: list[float], top: float, bottom: float, alpha: float = 0.0) -> jk.Schedule:
    """Times from top to bottom, through points of (0, 1)."""
    inner = bottom + (top - bottom) * np.asarray(points[::-1])
    return jk.Schedule(np.array([top, *inner, bottom]), alpha)


def _at(times: Sequence[float], alpha: float | np.ndarray = 0.0) -> jk.Schedule:
    return jk.Schedule(np.array(times), alpha)


def _assigned(result: Export, name: str) -> list[float]:
    """The list that the exported Python text assigns to `name`."""
    for node in ast.walk(ast.parse(result.text)):
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == name for t in node.targets
        ):
            lists = [n for n in ast.walk(node.value) if isinstance(n, ast.List)]
            return ast.literal_eval(lists[0])
    raise AssertionError(f"{name} is not assigned in the text")


class TestLevels:
    @settings(max_examples=20)
    @given(interior)
    def test_replacing_the_last_level_by_zero(self, points: list[float]):
        schedule = _schedule(points, 80.0, 0.002)
        sigmas = export(schedule, jk.EDM(), "k-diffusion", end="replace").values["sigmas"]
        np.testing.assert_allclose(sigmas[:-1], np.asarray(schedule.times)[:-1], rtol=RTOL)
        assert sigmas[-1] == 0.0
        assert len(sigmas) == schedule.num_steps + 1

    def test_appending_costs_one_step_more(self):
        schedule = _schedule([0.1, 0.5], 80.0, 0.002)
        result = export(schedule, jk.EDM(), "k-diffusion", end="append")
        np.testing.assert_allclose(
            result.values["sigmas"], [*np.asarray(schedule.times), 0.0], rtol=RTOL
        )
        assert any("appended: 4 steps" in note for note in result.notes)

    def test_a_replaced_level_is_a_warning(self):
        """The last step is then another one than was evaluated."""
        schedule = _at([80.0, 3.0, 0.5])
        (warning,) = export(schedule, jk.EDM(), "k-diffusion", end="replace").warnings
        assert "the last level 0.5 is replaced by 0" in warning
        assert "end='keep' stops there" in warning
        (warning, *_) = export(schedule, jk.EDM(), "edm").warnings
        assert "keep" not in warning.removeprefix(
            "the last level 0.5 is replaced by 0 to keep 2 steps"
        ).replace("end='append' keeps", "")

    @pytest.mark.parametrize("tool", ["k-diffusion", "comfyui"])
    def test_the_last_level_is_kept(self, tool: str):
        """By default, as it is the last step that was evaluated."""
        result = export(_at([80.0, 3.0, 0.5], 1.0), jk.EDM(), tool)
        assert result == export(_at([80.0, 3.0, 0.5], 1.0), jk.EDM(), tool, end="keep")
        assert result.values["sigmas"] == (80.0, 3.0, 0.5)
        assert result.values["eta"] == (1.0, 1.0), "a step above 0 keeps its noise"
        assert result.warnings == ()

    @pytest.mark.parametrize(
        ("tool", "options"),
        [
            ("edm", {}),
            *(
                ("diffusers", {"scheduler": name})
                for name in ("edm_euler", "flow_match_euler", "unipc")
            ),
        ],
    )
    def test_tools_that_cannot_stop_above_zero(self, tool: str, options: dict):
        with pytest.raises(
            ValueError, match=r"end='keep': .* cannot stop at the level 0\.\d+; use"
        ):
            export(_at([80.0, 3.0, 0.5]), jk.EDM(), tool, end="keep", **options)
        result = export(_at([80.0, 3.0, 0.5]), jk.EDM(), tool, **options)
        assert result == export(_at([80.0, 3.0, 0.5]), jk.EDM(), tool, end="replace", **options)

    @pytest.mark.parametrize(
        ("process", "times", "start"),
        [
            (jk.EDM(), [80.0, 1.0, 0.0], "sigmas[0]"),
            (jk.VP(), [1.0, 0.1, 0.0], "(1 + sigmas[0] ** 2) ** 0.5"),
        ],
    )
    def test_the_initial_noise_is_that_of_the_process(
        self, process, times: list[float], start: str
    ):
        assert (
            f"x = torch.randn(shape) * {start}\n" in export(_at(times), process, "k-diffusion").text
        )

    @pytest.mark.parametrize("end", ["replace", "append", "keep"])
    def test_a_schedule_that_ends_at_zero_is_kept(self, end: str):
        schedule = _at([80.0, 3.0, 0.0])
        result = export(schedule, jk.EDM(), "k-diffusion", end=end)
        assert result.values["sigmas"] == (80.0, 3.0, 0.0)
        assert result.notes == ()

    def test_variance_preserving_levels_are_noise_over_signal(self):
        """sigma^2 = exp(beta_d t^2 / 2 + beta_min t) - 1, the form k-diffusion gives for VP."""
        t = np.array([1.0, 0.6, 0.2, 0.01])
        sigmas = export(jk.Schedule(t), jk.VP(0.1, 20.0), "edm").values["t_steps"]
        expected = np.sqrt(np.expm1(19.9 * t**2 / 2 + 0.1 * t))
        np.testing.assert_allclose(sigmas, [*expected[:-1], 0.0], rtol=1e-6)

    def test_levels_that_float32_cannot_tell_apart(self):
        schedule = jk.Schedule(np.array([80.0, 1.0 + 1e-9, 1.0, 0.0]))
        with pytest.raises(ValueError, match=r"levels 1 and 2 of the schedule.*equal in float32"):
            export(schedule, jk.EDM(), "k-diffusion")

    @pytest.mark.parametrize("tool", ["k-diffusion", "edm"])
    def test_infinite_levels_are_refused(self, tool: str):
        schedule = _at([1.0, 0.5, 0.1])
        with pytest.raises(ValueError, match=r"times\[0\] = 1 has no signal left"):
            export(schedule, jk.CosineVP(), tool)
        with pytest.raises(ValueError, match="process FlowMatching"):
            export(schedule, jk.FlowMatching(), tool)

    @pytest.mark.parametrize("tool", TOOLS)
    def test_the_text_holds_the_values(self, tool: str):
        result = export(_schedule([0.1, 0.3, 0.6], 80.0, 0.002), jk.EDM(), tool, sampler="heun")
        assert result.tool == tool
        for name, values in result.values.items():
            if tool == "comfyui":
                assert result.text == ", ".join(map(str, values))
            else:
                assert _assigned(result, "ramp" if tool == "diffusers" else name) == list(values)

    def test_printing_shows_all(self):
        result = export(_at([80.0, 3.0, 0.5]), jk.EDM(), "edm", sampler="heun")
        lines = str(result).split("\n")
        assert str(result).endswith(result.text)
        assert lines[: len(result.notes)] == [
            *(f"# warning: {warning}" for warning in result.warnings),
            *(f"# note: {remark}" for remark in result.remarks),
        ]


class TestComfyUI:
    @settings(max_examples=30)
    @given(st.lists(st.floats(1e-7, 1e3), min_size=2, max_size=6, unique_by=lambda v: f"{v:.3g}"))
    def test_the_node_reads_the_same_numbers_back(self, levels: list[float]):
        """ManualSigmas takes every match of this pattern for a number: no exponent survives it."""
        schedule = jk.Schedule(np.sort(levels)[::-1])
        result = export(schedule, jk.EDM(sigma_max=2e3), "comfyui")
        read = [float(word) for word in re.findall(r"[-+]?(?:\d*\.*\d+)", result.text)]
        assert read == list(result.values["sigmas"])
        assert re.fullmatch(r"\d+\.\d+(, \d+\.\d+)*", result.text)

    @pytest.mark.parametrize(
        ("process", "times", "scale"),
        [
            (jk.FlowMatching(), [0.8, 0.5, 0.02], "0.8; the schedule starts from 1"),
            (jk.FlowMatching(), [1.0, 0.5, 0.02], None),
            (
                jk.DiscreteVP.scaled_linear(),
                [500.0, 50.0, 1.0],
                "1.61.*; the schedule starts from 1.89",
            ),
            (jk.DiscreteVP.scaled_linear(), [1000.0, 50.0, 1.0], None),
        ],
    )
    def test_initial_noise_below_the_top_is_a_warning(
        self, process, times: list[float], scale: str | None
    ):
        """ComfyUI multiplies unit noise by the level.

        Only at the top of a table it multiplies by sqrt(1 + sigma^2).
        """
        warnings = export(_at(times), process, "comfyui").warnings
        found = [text for text in warnings if "scales the initial noise by" in text]
        assert len(found) == (scale is not None)
        assert scale is None or re.search(scale, found[0])

    @pytest.mark.parametrize(
        ("process", "tool", "first"),
        [
            (jk.FlowMatching(t_max=0.875), "comfyui", r"level 0.875, .* \(1 - 0.875\) x0 \+ 0.875"),
            (jk.FlowMatching(t_max=0.875), "diffusers", r"level 0.875, .* \(1 - 0.875\) x0"),
            (jk.EDM(t_max=3.0), "k-diffusion", r"level 3, .* x0 \+ 3 noise"),
            (jk.EDM(t_max=3.0), "edm", r"level 3, .* x0 \+ 3 noise"),
            (jk.DiscreteVP.scaled_linear(t_max=700.0), "comfyui", r"level 3.32\d+, .* x0 \+ 3.32"),
        ],
    )
    def test_a_sub_range_starts_from_noised_data(
        self, process: jk.AbstractProcess, tool: str, first: str
    ):
        """What the tool makes of unit noise does not matter then."""
        schedule = jk.schedules.karras(process, 4, process.default_t_min)
        warnings = export(schedule, process, tool, sampler="ddim").warnings
        assert sum(bool(re.search(f"starts from noised data at {first}", w)) for w in warnings) == 1
        assert not any("scales the initial noise" in w for w in warnings)

    def test_samplers_of_flow_models(self):
        """Heun in the level t is Heun in the process's time.

        dpmpp_2m extrapolates in log t, not in log t/(1 - t).
        """
        schedule = _at([1.0, 0.75, 0.25, 0.02])
        assert export(schedule, jk.FlowMatching(), "comfyui", sampler="heun").warnings == ()
        (warning,) = export(schedule, jk.FlowMatching(), "comfyui", sampler="dpmpp_2m").warnings
        assert "second-order terms differ" in warning
        (warning,) = export(_at([1.0, 0.5, 0.02]), jk.VP(), "comfyui", sampler="heun").warnings
        assert "they agree for EDM" in warning

    def test_flow_models_take_the_time_itself(self):
        result = export(_at([1.0, 0.75, 0.25, 0.001]), jk.FlowMatching(), "comfyui")
        assert result.values["sigmas"] == (1.0, 0.75, 0.25, 0.001)

    def test_varying_stochasticity_is_left_out_with_a_warning(self):
        schedule = _at([80.0, 5.0, 1.0, 0.1], np.array([0.2, 0.7, 0.1]))
        result = export(schedule, jk.EDM(), "comfyui")
        assert "eta" not in result.values
        assert any("stochasticity cannot be exported" in note for note in result.notes)

    def test_ancestral_steps_are_eta_one(self):
        schedule = _at([80.0, 5.0, 1.0, 0.1], 1.0)
        result = export(schedule, jk.EDM(), "comfyui")
        assert result.values["eta"] == (1.0, 1.0, 1.0)
        assert any("SamplerEulerAncestral with eta 1.0" in note for note in result.notes)


class TestDiffusers:
    @settings(max_examples=20)
    @given(interior, st.floats(1.0, 12.0))
    def test_flow_levels_survive_the_shift(self, points: list[float], shift: float):
        schedule = _schedule(points, 1.0, 0.001)
        given_ = np.array(
            export(schedule, jk.FlowMatching(), "diffusers", shift=shift).values["sigmas"]
        )
        shifted = shift * given_ / (1 + (shift - 1) * given_)
        np.testing.assert_allclose(shifted, np.asarray(schedule.times)[:-1], rtol=4 * RTOL)
        assert given_[-1] > 0, "the scheduler appends the 0"

    def test_flow_scheduler_is_told_not_to_shift(self):
        text = export(_at([1.0, 0.5, 0.1]), jk.FlowMatching(), "diffusers").text
        assert "FlowMatchEulerDiscreteScheduler" in text
        assert "shift=1.0, use_dynamic_shifting=False" in text

    def test_other_processes_reach_flow_models_through_the_ratio(self):
        """A level sigma = s/a is the flow time sigma / (1 + sigma)."""
        schedule = _at([80.0, 3.0, 0.5, 0.01])
        result = export(schedule, jk.EDM(), "diffusers", scheduler="flow_match_euler")
        np.testing.assert_allclose(result.values["sigmas"], [80 / 81, 3 / 4, 1 / 3], rtol=RTOL)

    @settings(max_examples=20)
    @given(interior, st.floats(3.0, 9.0), st.floats(20.0, 700.0))
    def test_the_edm_ramp_is_mapped_back_to_the_levels(self, points, rho, sigma_max):
        schedule = _schedule(points, 80.0, 0.001)
        options = {"rho": rho, "sigma_max": sigma_max, "sigma_min": 0.002}
        ramp = np.array(export(schedule, jk.EDM(), "diffusers", **options).values["sigmas"])
        low, high = 0.002 ** (1 / rho), sigma_max ** (1 / rho)
        np.testing.assert_allclose(
            (high + ramp * (low - high)) ** rho, np.asarray(schedule.times)[:-1], rtol=1e-9
        )

    @pytest.mark.parametrize("process", [jk.EDM(12.0), jk.EDM(12.0, t_max=3.0), jk.VE(t_max=12.0)])
    def test_the_ramp_starts_from_the_noise_of_the_process(self, process: jk.AbstractProcess):
        """EDMEuler scales the initial noise by its sigma_max, which was 80 for every process."""
        top = float(process.sigma(12.0))
        schedule = jk.schedules.karras(process, 4, 0.01)
        result = export(schedule, process, "diffusers", scheduler="edm_euler")
        found = re.search(r"sigma_max=([\d.]+)", result.text)
        assert found is not None
        said = float(found[1])
        np.testing.assert_allclose(said, top, rtol=1e-6)
        ramp = np.array(result.values["sigmas"])
        low, high = 0.002 ** (1 / 7), said ** (1 / 7)
        levels = np.asarray(schedule.sigmas(process))[:-1]
        np.testing.assert_allclose((high + ramp * (low - high)) ** 7, levels, rtol=1e-5)

    def test_the_karras_schedule_is_the_uniform_ramp(self):
        schedule = jk.schedules.karras(jk.EDM(), 6, 0.0, last_sigma=0.002)
        ramp = export(schedule, jk.EDM(), "diffusers").values["sigmas"]
        np.testing.assert_allclose(ramp, np.linspace(0.0, 1.0, 6), atol=1e-9)

    def test_euler_takes_levels_with_the_last_one(self):
        schedule = _at([1000.0, 400.5, 20.0, 1.0])
        result = export(schedule, TABLE, "diffusers", sampler="ddim")
        between = np.sqrt(TABLE_SIGMAS[399] * TABLE_SIGMAS[400])
        expected = [TABLE_SIGMAS[999], between, TABLE_SIGMAS[19], TABLE_SIGMAS[0]]
        np.testing.assert_allclose(result.values["sigmas"], expected, rtol=RTOL)
        assert _assigned(result, "sigmas") == list(result.values["sigmas"])

    def test_multistep_timesteps_count_from_zero_and_are_integers(self):
        schedule = _at([1000.0, 700.3, 200.6, 1.0])
        result = export(schedule, TABLE, "diffusers", sampler="dpmpp_2m")
        assert result.values["timesteps"] == (999, 699, 200)
        moved = abs(np.log(TABLE_SIGMAS[200] / TABLE_SIGMAS[199])) * 0.4
        assert any(f"at most {moved:.2g}" in note for note in result.notes)

    @pytest.mark.parametrize("scheduler", ["dpm_multistep", "ddpm"])
    def test_two_levels_at_one_timestep(self, scheduler: str):
        """At 699.3 and 699.1: the one moves up, as 0.7 and 0.1 are less than 0.3 and 1.1."""
        schedule = _at([1000.0, 700.3, 700.1, 1.0])
        result = export(schedule, TABLE, "diffusers", scheduler=scheduler, end="replace")
        assert result.values["timesteps"] == (999, 700, 699)
        moved = abs(np.log(TABLE_SIGMAS[700] / TABLE_SIGMAS[699])) * 0.7
        assert any(f"at most {moved:.2g}" in note for note in result.warnings)

    def test_no_step_of_length_zero_at_the_end(self):
        """A level that rounds to the table's smallest, at which the sampler stops."""
        schedule = _at([1000.0, 700.0, 1.3, 1.0])
        result = export(schedule, TABLE, "diffusers", sampler="dpmpp_2m", end="keep")
        assert result.values["timesteps"] == (999, 699, 1)
        result = export(schedule, TABLE, "diffusers", sampler="dpmpp_2m", end="replace")
        assert result.values["timesteps"] == (999, 699, 0)

    @pytest.mark.parametrize("seed", range(4))
    def test_integer_timesteps_are_the_nearest_of_all(self, seed: int):
        """Of all 184756 selections of 10 from a table of 20 entries."""
        rng = np.random.default_rng(seed)
        table = jk.DiscreteVP(np.cumprod(rng.uniform(0.5, 0.98, 20)))
        log_sigmas = np.asarray(table.log_sigmas)
        times = np.sort(rng.uniform(2.0, 8.0, 10))[::-1]
        result = export(
            jk.Schedule(np.append(times, 0.0)), table, "diffusers", scheduler="dpm_multistep"
        )
        wanted = np.log(np.asarray(jk.Schedule(times).sigmas(table), np.float64))[::-1]
        every = np.array(list(itertools.combinations(range(20), 10)))
        sums = ((log_sigmas[every] - wanted) ** 2).sum(1)
        found = np.array(result.values["timesteps"])[::-1]
        assert ((log_sigmas[found] - wanted) ** 2).sum() == pytest.approx(sums.min(), rel=1e-5)
        moved = np.abs(log_sigmas[found] - wanted).max()
        assert any(f"at most {moved:.2g}" in warning for warning in result.warnings)

    @pytest.mark.parametrize("steps", [43, 44, 100, 1000])
    def test_karras_of_any_length_on_the_table_of_stable_diffusion(self, steps: int):
        """Its last levels lie closer than the entries of the table."""
        schedule = jk.schedules.karras(TABLE, steps, 0.0, last_sigma=float(TABLE_SIGMAS[0]))
        result = export(schedule, TABLE, "diffusers", scheduler="dpm_multistep")
        timesteps = np.array(result.values["timesteps"])
        assert timesteps.size == steps
        assert np.all(np.diff(timesteps) < 0)
        assert timesteps[0] <= 999
        assert timesteps[-1] >= 0

    def test_more_steps_than_entries(self):
        """No distinct timesteps exist."""
        table = jk.DiscreteVP([0.9, 0.5, 0.1])
        schedule = _at([3.0, 2.5, 2.0, 1.5, 0.0])
        with pytest.raises(ValueError, match="4 levels, which are more than the 3 entries"):
            export(schedule, table, "diffusers", scheduler="ddpm")

    def test_multistep_ends_at_the_smallest_level_of_the_table(self):
        """Where it stops without a step to 0, and only there."""
        result = export(_at([1000.0, 700.0, 1.0]), TABLE, "diffusers", sampler="dpmpp_2m")
        assert 'final_sigmas_type="sigma_min"' in result.text
        assert "lower_order_final=False" in result.text
        assert result.warnings == ()
        with pytest.raises(ValueError, match=r"cannot stop at the level 0\.134"):
            export(_at([1000.0, 700.0, 20.0]), TABLE, "diffusers", sampler="dpmpp_2m", end="keep")
        result = export(_at([1000.0, 700.0, 20.0]), TABLE, "diffusers", sampler="dpmpp_2m")
        assert 'final_sigmas_type="zero"' in result.text

    def test_flow_models_have_a_multistep_scheduler(self):
        result = export(
            _at([0.9956, 0.75, 0.001]), jk.FlowMatching(), "diffusers", sampler="dpmpp_2m"
        )
        np.testing.assert_allclose(result.values["sigmas"], [0.9956, 0.75], rtol=RTOL)
        assert "disable_corrector=list(range(2))" in result.text.replace("\n   ", "")
        close = export(
            _at([0.9, 0.7503, 0.7501, 0.0]), jk.FlowMatching(), "diffusers", scheduler="unipc"
        )
        np.testing.assert_allclose(close.values["sigmas"], [0.9, 0.7503, 0.7501], rtol=RTOL)
        assert close.warnings == ()

    def test_the_initial_noise_of_a_pipeline(self):
        """EDMEuler scales it by its own sigma_max, DPMSolverMultistep to variance 1 + sigma^2."""
        schedule = _at([3.0, 1.0, 0.0])
        for scheduler, scale in (("edm_euler", "80.0062"), ("dpm_multistep", "3.16228")):
            warnings = export(schedule, jk.EDM(), "diffusers", scheduler=scheduler).warnings
            assert any(
                f"scales the initial noise by {scale}; the schedule starts from 3" in w
                for w in warnings
            )
        assert (
            'timestep_spacing="trailing"'
            in export(schedule, jk.EDM(), "diffusers", scheduler="euler").text
        )
        assert 'timestep_spacing="leading"' in export(_at([900.0, 0.0]), TABLE, "diffusers").text

    def test_heun_fractions_give_the_exact_levels(self):
        """It interpolates sigma linearly between integer timesteps."""
        schedule = _at([1000.0, 700.3, 200.6, 1.5, 1.0])
        timesteps = export(schedule, TABLE, "diffusers", sampler="heun").values["timesteps"]
        levels = np.interp(timesteps, np.arange(1000), TABLE_SIGMAS)
        np.testing.assert_allclose(levels, np.asarray(schedule.sigmas(TABLE))[:-1], rtol=1e-6)

    def test_another_process_is_mapped_by_its_levels(self):
        schedule = _at([TABLE_SIGMAS[-1], TABLE_SIGMAS[300], 0.0])
        for scheduler, expected in (("dpm_multistep", (999, 300)), ("heun", (999.0, 300.0))):
            result = export(schedule, jk.EDM(), "diffusers", scheduler=scheduler)
            np.testing.assert_allclose(result.values["timesteps"], expected, atol=1e-4)

    @pytest.mark.parametrize("scheduler", ["euler", "dpm_multistep", "heun"])
    @pytest.mark.parametrize("level", [15.0, 0.02])
    def test_levels_outside_the_table_are_refused(self, scheduler: str, level: float):
        """EulerDiscrete would take them and silently clip the timestep."""
        schedule = jk.Schedule(np.array([level, 0.01, 0.0]))
        with pytest.raises(
            ValueError, match=f"sigma = {level:g} of step 0 lies outside the levels of the table"
        ):
            export(schedule, jk.EDM(), "diffusers", scheduler=scheduler)

    def test_the_table_can_be_another(self):
        table = jk.DiscreteVP.scaled_linear(1e-4, 0.02)
        level = float(np.exp(np.asarray(table.log_sigmas)[500]))
        result = export(
            _at([level, 0.0]), jk.EDM(), "diffusers", scheduler="dpm_multistep", table=table
        )
        assert result.values["timesteps"] == (500,)


class TestStochasticity:
    ALPHA = np.array([0.3, 2.0, 0.0, 0.5])
    TIMES = np.array([80.0, 5.0, 1.0, 0.2, 0.01])

    @pytest.mark.parametrize("tool", ["k-diffusion", "diffusers"])
    def test_ancestral_split_of_the_next_level(self, tool: str):
        """sigma_up = eta sigma' sqrt(1 - r^2), sigma_down = sigma' r^(alpha^2).

        r = sigma'/sigma.
        """
        eta = np.array(
            export(jk.Schedule(self.TIMES, self.ALPHA), jk.EDM(), tool, end="replace").values["eta"]
        )
        r = self.TIMES[1:] / self.TIMES[:-1]
        up = eta * self.TIMES[1:] * np.sqrt(1 - r**2)
        down = self.TIMES[1:] * r ** (self.ALPHA**2)
        np.testing.assert_allclose(np.hypot(up, down)[:-1], self.TIMES[1:-1], rtol=1e-6)
        assert eta[-1] == 0.0, "the step to 0 injects nothing"

    def test_churn_keeps_the_same_part_of_the_old_noise(self):
        gamma = np.array(
            export(jk.Schedule(self.TIMES, self.ALPHA), jk.EDM(), "edm").values["gamma"]
        )
        kept = (self.TIMES[1:] / self.TIMES[:-1]) ** (self.ALPHA**2)
        np.testing.assert_allclose(1 / (1 + gamma[:-1]), kept[:-1], rtol=1e-6)
        assert gamma[-1] == 0.0

    def test_the_written_loop_samples_the_distribution_of_the_schedule(self):
        """The exported loop is run on a Gaussian, with the methods of a scheduler that it uses."""
        variance, times = 0.3, np.array([80.0, 5.0, 1.0, 0.2, 0.0])
        schedule = jk.Schedule(times, self.ALPHA)
        result = export(schedule, jk.EDM(), "k-diffusion")
        rng = np.random.default_rng(0)

        def sample_euler_ancestral(model, x, sigmas, eta):
            s, u = sigmas
            up = min(u, eta * (u**2 * (s**2 - u**2) / s**2) ** 0.5)
            down = (u**2 - up**2) ** 0.5
            return x + (x - model(x, s)) / s * (down - s) + up * rng.normal(size=x.shape)

        x = rng.normal(size=100_000) * 80.0
        names = {
            "sample_euler_ancestral": sample_euler_ancestral,
            "model": lambda x, s: x * variance / (variance + s**2),
            "sigmas": result.values["sigmas"],
            "eta": result.values["eta"],
            "x": x,
        }
        loop = result.text[result.text.index("for i in") :]
        exec(loop, names)
        exact = jk.evaluate_schedule(
            jk.Gaussian(0.0, np.array([variance])), jk.EDM(), "ddim", schedule
        )
        assert np.var(names["x"]) == pytest.approx(float(exact.variance[0]), rel=0.02)

    def test_flow_levels_are_split_as_the_scheduler_does(self):
        """l_down = l' (1 - eta (1 - l'/l)), rescaled to l'.

        It keeps (sigma'/sigma)^(alpha^2) of the old noise.
        """
        levels = np.array([0.99, 0.8, 0.5, 0.2, 0.01])
        result = export(
            jk.Schedule(levels, self.ALPHA), jk.FlowMatching(), "diffusers", sampler="ddim"
        )
        assert "LTXEulerAncestralRFScheduler" in result.text
        eta, odds = np.array(result.values["eta"]), levels / (1 - levels)
        down = levels[1:] * (1 - eta * (1 - levels[1:] / levels[:-1]))
        kept = down / (1 - down) / odds[1:]
        np.testing.assert_allclose(kept, (odds[1:] / odds[:-1]) ** (self.ALPHA**2), rtol=1e-5)
        assert result.warnings == ()

    def test_ddpm_has_stochasticity_one_only(self):
        times = [1000.0, 500.0, 100.0, 1.0]
        assert len(export(_at(times, 1.0), TABLE, "diffusers", scheduler="ddpm").warnings) == 1
        result = export(_at(times, np.array([0.5, 2.0, 1.0])), TABLE, "diffusers", scheduler="ddpm")
        assert result.values["timesteps"] == (999, 499, 99)
        assert any(
            "the schedule's, from 0.5 to 2, cannot be exported" in warning
            for warning in result.warnings
        )

    def test_the_raised_level_of_churn_is_a_warning(self):
        result = export(jk.Schedule(self.TIMES, self.ALPHA), jk.EDM(), "edm")
        assert any("raised level" in warning for warning in result.warnings)

    @pytest.mark.parametrize("scheduler", ["dpm_multistep", "heun", "flow_match_euler", "unipc"])
    def test_deterministic_schedulers_say_so(self, scheduler: str):
        schedule = _at([14.0, 5.0, 1.0, 0.1], 0.5)
        result = export(schedule, jk.EDM(), "diffusers", scheduler=scheduler)
        assert any("stochasticity cannot be exported" in warning for warning in result.warnings)

    @pytest.mark.parametrize("tool", TOOLS)
    def test_a_schedule_without_noise_sets_none(self, tool: str):
        result = export(_at([80.0, 1.0, 0.1]), jk.EDM(), tool)
        assert len(result.values) == 1


class TestOptions:
    SCHEDULE = _at([80.0, 1.0, 0.1])

    @pytest.mark.parametrize(
        ("tool", "options", "fault"),
        [
            ("difusers", {}, "tool='difusers' is not known. Did you mean 'diffusers'"),
            ("edm", {"shift": 2.0}, "tool 'edm' has no option 'shift'; it takes end, sampler"),
            ("diffusers", {"shift": 2.0}, "scheduler 'edm_euler' has no option 'shift'"),
            (
                "diffusers",
                {"scheduler": "heunn"},
                "scheduler='heunn' is not known. Did you mean 'heun'",
            ),
            ("k-diffusion", {"end": "drop"}, "end='drop' is not known"),
            ("diffusers", {"rho": 0.0}, "rho = 0 must be > 0"),
            (
                "diffusers",
                {"scheduler": "flow_match_euler", "shift": -1.0},
                "shift = -1 must be > 0",
            ),
            ("diffusers", {"sigma_min": 90.0}, "sigma_max = 80 must be > 90"),
        ],
    )
    def test_faults_are_named(self, tool: str, options: dict, fault: str):
        with pytest.raises(ValueError, match=re.escape(fault)):
            export(self.SCHEDULE, jk.EDM(), tool, **options)

    def test_a_schedule_of_another_process(self):
        with pytest.raises(
            ValueError, match=r"times\[0\] = 80 lies beyond the process's t_max = 1"
        ):
            export(self.SCHEDULE, jk.VP(), "k-diffusion")

    @pytest.mark.parametrize(
        ("process", "sampler", "scheduler"),
        [
            (jk.FlowMatching(), "ddim", "FlowMatchEuler"),
            (jk.FlowMatching(), "dpmpp_2m", "UniPC"),
            (jk.EDM(14.0), "dpmpp_2m", "EDMEuler"),
            (TABLE, "ddim", "EulerDiscrete"),
            (TABLE, "dpmpp_2m", "DPMSolverMultistep"),
            (TABLE, "heun", "HeunDiscrete"),
        ],
    )
    def test_scheduler_follows_process_and_sampler(self, process, sampler: str, scheduler: str):
        top = float(np.asarray(process.t_max))
        schedule = _at([top, 0.5 * top, 0.1 * top])
        assert scheduler in export(schedule, process, "diffusers", sampler=sampler).text

    @pytest.mark.parametrize("scheduler", SCHEDULERS)
    def test_text_is_python(self, scheduler: str):
        schedule = _at([14.0, 5.0, 1.0, 0.1], 0.5)
        ast.parse(export(schedule, jk.EDM(), "diffusers", scheduler=scheduler).text)

    def test_the_sampler_is_checked(self):
        assert export(
            self.SCHEDULE, jk.EDM(), "k-diffusion", sampler=jk.samplers.DPMSolverPP2M()
        ) == export(self.SCHEDULE, jk.EDM(), "k-diffusion", sampler="dpmpp_2m")
        with pytest.raises(ValueError, match="Did you mean 'dpmpp_2m'"):
            export(self.SCHEDULE, jk.EDM(), "k-diffusion", sampler="dpmpp_22m")
        with pytest.raises(ValueError, match="sampler must be a sampler or a name; got 3"):
            export(self.SCHEDULE, jk.EDM(), "k-diffusion", sampler=3)
        with pytest.raises(ValueError, match="no meaning for Heun"):
            export(jk.Schedule(self.SCHEDULE.times, 1.0), jk.EDM(), "k-diffusion", sampler="heun")

    @pytest.mark.parametrize(
        ("sampler", "tools", "process", "last", "option"),
        [
            (jk.Heun(final="full"), ["k-diffusion", "comfyui", "edm"], jk.EDM(), 0.0, "final"),
            (jk.Heun(final="full"), ["k-diffusion", "comfyui"], jk.EDM(), 0.1, None),
            (jk.Heun(final="full"), ["diffusers"], TABLE, 0.0, "final"),
            (
                jk.DPMSolverPP2M(lower_order_final=True),
                ["k-diffusion", "comfyui"],
                jk.EDM(),
                0.1,
                "lower_order_final",
            ),
            (jk.DPMSolverPP2M(lower_order_final=True), ["k-diffusion"], jk.EDM(), 0.0, None),
            (jk.DPMSolverPP2M(lower_order_final=True), ["diffusers"], TABLE, 0.0, None),
        ],
    )
    def test_options_of_a_sampler_that_the_tool_takes_otherwise(
        self, sampler, tools: list[str], process, last: float, option: str | None
    ):
        """In a step to level 0 Heun's `final`, else the multistep's `lower_order_final`."""
        for tool in tools:
            result = export(_at([80.0, 5.0, last]), process, tool, sampler=sampler)
            found = [text for text in result.warnings if "takes the steps of" in text]
            assert len(found) == (option is not None)
            assert option is None or f"{type(sampler).__name__}({option}=" in found[0]

    def test_another_sampler_is_pointed_out(self):
        result = export(self.SCHEDULE, jk.EDM(), "k-diffusion", sampler="rk4")
        assert any("made for the sampler rk4" in note for note in result.notes)


@pytest.fixture(scope="module")
def result() -> jk.OptimizedSchedule:
    return jk.optimize_schedule(
        jk.Gaussian(0.0, np.array([0.3, 1.0])), jk.EDM(14.0), "ddim", 4, t_min=0.05
    )


class TestResult:
    """The schedule of an optimisation is exported as any other."""

    @pytest.mark.parametrize(
        ("tool", "options"),
        [
            ("k-diffusion", {"end": "keep"}),
            ("comfyui", {"end": "append"}),
            ("edm", {}),
            ("diffusers", {"sigma_max": 14.0}),
            ("diffusers", {"scheduler": "dpm_multistep", "table": TABLE}),
        ],
    )
    def test_it_is_exported(self, result: jk.OptimizedSchedule, tool: str, options: dict):
        exported = export(result.schedule, result.process, tool, sampler="ddim", **options)
        times = np.asarray(result.schedule.times)
        assert exported == export(jk.Schedule(times), jk.EDM(14.0), tool, sampler="ddim", **options)
        assert exported.tool == tool

    def test_faults_are_named(self, result: jk.OptimizedSchedule):
        with pytest.raises(ValueError, match="scheduler 'edm_euler' has no option 'shift'"):
            export(result.schedule, result.process, "diffusers", shift=2.0)


PLAIN = exports.Text("{numbers}")
LOOP = exports.Text("{numbers} {parts}")
FUNCTION = exports.Text("{config} {function}")
RECORDS = {
    f"{tool.name}/{name}": record
    for tool in TOOLS.values()
    for name, record in tool.schedulers.items()
}


def _process(record: Scheduler) -> jk.processes.AbstractProcess:
    """A process whose levels this scheduler takes."""
    return jk.FlowMatching() if record.levels.unit == "flow" else TABLE


class TestDeclarations:
    """Every record of every tool, and what may not be declared."""

    @pytest.mark.parametrize("name", RECORDS)
    def test_numbers_have_the_declared_end(self, name: str):
        """K + 1 numbers where the final level is written, K where the tool appends it."""
        record, process = RECORDS[name], _process(RECORDS[name])
        tool = Tool("tool", {"only": record})
        schedule = _at([0.9, 0.5, 0.1, 0.0] if process is not TABLE else [900.0, 500.0, 90.0, 0.0])
        numbers = export(schedule, process, tool).values[record.keyword]
        assert len(numbers) == schedule.num_steps + (record.final_zero == "written")
        assert (numbers[-1] == 0.0) == (record.final_zero == "written")

    @pytest.mark.parametrize("name", RECORDS)
    def test_it_stops_above_zero_where_it_is_declared_to(self, name: str):
        record, process = RECORDS[name], _process(RECORDS[name])
        tool = Tool("tool", {"only": record})
        top = float(np.asarray(process.t_max))
        for last, stops in ((0.1 * top, {"anywhere"}), (1.0, {"anywhere", "table_minimum"})):
            schedule = _at([top, 0.5 * top, last if process is TABLE else 0.01 * last])
            if record.stops in stops and (process is TABLE or record.stops == "anywhere"):
                assert export(schedule, process, tool, end="keep") == export(
                    schedule, process, tool
                )
            else:
                with pytest.raises(ValueError, match="cannot stop at the level"):
                    export(schedule, process, tool, end="keep")

    @pytest.mark.parametrize("name", RECORDS)
    @pytest.mark.parametrize("alpha", [0.0, 1.0, np.array([0.3, 1.0, 0.5])])
    @pytest.mark.parametrize("end", ["replace", "append"])
    def test_no_placeholder_is_left(self, name: str, alpha: float | np.ndarray, end: str):
        record, process = RECORDS[name], _process(RECORDS[name])
        top = float(np.asarray(process.t_max))
        schedule = _at([0.9 * top, 0.5 * top, 0.1 * top, 0.01 * top], alpha)
        result = export(schedule, process, Tool("tool", {"only": record}), end=end)
        assert not re.search(r"[{}]", "".join([result.text, *result.notes]))

    @pytest.mark.parametrize("name", RECORDS)
    def test_every_other_sampler_is_a_warning(self, name: str):
        record, process = RECORDS[name], _process(RECORDS[name])
        for sampler in jk.samplers.SAMPLERS:
            found = record.sampler_warnings(sampler, process)
            entry = record.emulation(sampler)
            if entry is None:
                assert "the schedule was made for the sampler" in found[0]
            else:
                assert bool(found) == (not isinstance(process, entry.exact_for))
        assert record.sampler_warnings(None, process) == ()

    @pytest.mark.parametrize("tool", TOOLS)
    def test_a_default_exists_for_every_process(self, tool: str):
        schedule = _at([0.9, 0.1])
        for process in (jk.EDM(), jk.VE(), jk.VP(), jk.OU(), TABLE, jk.FlowMatching()):
            for sampler in (None, *jk.samplers.SAMPLERS):
                selected = TOOLS[tool].select(schedule, process, sampler, None)
                assert selected in TOOLS[tool].schedulers

    @pytest.mark.parametrize(
        ("scheduler", "changes", "fault"),
        [
            ("euler", {"final_zero": "none"}, "final_zero='none' is not known"),
            ("euler", {"stops": "sometimes"}, "stops='sometimes' is not known"),
            ("euler", {"keyword": "no name"}, "keyword and variable must be names"),
            (
                "euler",
                {"final_zero": "appended"},
                "final_zero='appended' contradicts stops='anywhere'",
            ),
            ("edm_euler", {"stops": "table_minimum"}, "needs levels on a table"),
            ("heun", {"settings_above_zero": ("a=1",)}, "settings_above_zero need stops="),
            ("euler", {"noise": exports.Churn(LOOP)}, "{parts} is no placeholder"),
            ("unipc", {"noise": exports.Churn(PLAIN)}, "Churn is for levels in sigma"),
            ("euler", {"noise": exports.FlowEta(PLAIN, PLAIN)}, "FlowEta is for levels of flow"),
            (
                "ddpm",
                {"initial_noise": exports.UnitVariance()},
                "UnitVariance is for levels of flow",
            ),
            (
                "ddpm",
                {"initial_noise": exports.Scaled("sigma_max")},
                "levels with an option sigma_max",
            ),
            ("euler", {"emulates": ()}, "emulates must name at least one sampler"),
            (
                "euler",
                {"emulates": (exports.Emulation("ddim"), exports.Emulation("ddim"))},
                "emulates must name at least one sampler, each once",
            ),
            (
                "euler",
                {"text": exports.Text("{shift}")},
                "{shift} is no placeholder; known: config",
            ),
            ("euler", {"text": FUNCTION}, "{function} is used, but not given for ddim"),
            ("ddpm", {"text": PLAIN}, "settings are given, but no text contains {config}"),
            (
                "ddpm",
                {"initial_noise": exports.WrittenOut()},
                "no text or setting contains {initial_std}",
            ),
        ],
    )
    def test_contradictions_are_refused(self, scheduler: str, changes: dict, fault: str):
        with pytest.raises(ValueError, match=re.escape(fault)):
            dataclasses.replace(SCHEDULERS[scheduler], **changes)

    def test_contradictions_of_the_parts_are_refused(self):
        record = SCHEDULERS["euler"]
        for declare, fault in (
            (lambda: exports.Eta(), "per_step or the reason"),
            (lambda: exports.Eta(per_step=PLAIN, reason="one"), "per_step or the reason"),
            (lambda: exports.Emulation("ddpm"), "sampler='ddpm' is not known"),
            (
                lambda: exports.Emulation("heun", exact_for=(jk.EDM,)),
                "must say how the steps differ",
            ),
            (lambda: exports.Emulation("heun", difference="none"), "be empty if there are none"),
            (lambda: Tool("tool", {}), "schedulers is empty"),
            (
                lambda: Tool("tool", {"euler": record}, (exports.Default("heun"),)),
                "scheduler='heun' is not known",
            ),
            (
                lambda: Tool(
                    "tool", {"euler": record}, (exports.Default("euler", sampler="ddim"),)
                ),
                "the last of its defaults must always apply",
            ),
            (
                lambda: Tool("tool", {"euler": record}, unsupported={"Euler": "is slow"}),
                "euler is both supported and unsupported",
            ),
            (lambda: exports.Scaled("sigma"), "by='sigma' is not known"),
            (lambda: exports.FlowSigmas(shift=0.0), "shift = 0 must be > 0"),
        ):
            with pytest.raises(ValueError, match=re.escape(fault)):
                declare()


class TestUnsupported:
    SCHEDULE = _at([80.0, 1.0, 0.1])

    @pytest.mark.parametrize("name", UNSUPPORTED)
    def test_the_error_gives_the_reason(self, name: str):
        """Not the nearest name: the scheduler is known, and does not take the schedule."""
        with pytest.raises(ValueError, match=re.escape(f"{name} {UNSUPPORTED[name]}")) as error:
            export(self.SCHEDULE, jk.EDM(), "diffusers", scheduler=name)
        assert "Did you mean" not in str(error.value)
        assert "Supported: euler, dpm_multistep" in str(error.value)

    @pytest.mark.parametrize("name", ["DEISMultistepScheduler", "deis_multistep", "deis-multistep"])
    def test_in_any_spelling(self, name: str):
        with pytest.raises(ValueError, match=f"DEISMultistep {NO_TIMESTEPS}"):
            export(self.SCHEDULE, jk.EDM(), "diffusers", scheduler=name)

    def test_of_a_tool_without_a_selection(self):
        with pytest.raises(ValueError, match="sample_dpm_fast takes no custom noise levels"):
            export(self.SCHEDULE, jk.EDM(), "k-diffusion", scheduler="sample_dpm_fast")
        with pytest.raises(ValueError, match="tool 'edm' has no option 'scheduler'"):
            export(self.SCHEDULE, jk.EDM(), "edm", scheduler="edm_sampler")

    def test_the_table_names_everything(self):
        table = exports.tools_table()
        for tool in TOOLS.values():
            assert all(f"| {tool.name} | `{name}` |" in table for name in tool.schedulers)
            assert all(
                name in table and reason in table for name, reason in tool.unsupported.items()
            )


class TestOwnTool:
    """One record is all that a new tool needs."""

    LOOP = Scheduler(
        name="my_loop",
        keyword="levels",
        levels=exports.Sigmas(),
        final_zero="appended",
        stops="never",
        noise=exports.Eta(per_step=exports.Text("{numbers}\n{parameters}", ("{num_steps} steps",))),
        emulates=(exports.Emulation("ddim"),),
        initial_noise=exports.Scaled("variance_preserving"),
        text=exports.Text("{numbers}"),
    )

    def test_it_is_exported(self):
        result = export(_at([2.0, 1.0, 0.1]), jk.EDM(), Tool("mine", {"my_loop": self.LOOP}))
        assert result.tool == "mine"
        assert result.text == "levels = [2.0, 1.0]"
        replaced, initial = result.warnings
        assert "the last level 0.1 is replaced by 0" in replaced
        assert initial == "my_loop scales the initial noise by 2.23607; the schedule starts from 2"

    def test_its_noise_is_set(self):
        """Stochasticity 1 is eta 1; the step to 0 has none."""
        tool = Tool("mine", {"my_loop": self.LOOP})
        result = export(_at([2.0, 1.0, 0.1], 1.0), jk.EDM(), tool, sampler="ddim")
        assert result.text == "levels = [2.0, 1.0]\neta = [1.0, 0.0]"
        assert result.remarks == ("2 steps",)

    def test_its_options_are_its_own(self):
        with pytest.raises(ValueError, match="tool 'mine' has no option 'rho'; it takes end, samp"):
            export(_at([2.0, 0.1]), jk.EDM(), Tool("mine", {"my_loop": self.LOOP}), rho=7.0)
