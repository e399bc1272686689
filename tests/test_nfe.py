"""NFE as they are reported, against the calls of a network that counts them while it runs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_derivatives import linear_call
from jaxtyping import Array

import jaxkernels as jk
from jaxkernels.optimize._budget import Costs, make_plan, plan_sweep

PROCESS, T_MIN = jk.VP(), 1e-3
MIXTURE = jk.GaussianMixture([0.5, 0.5], [[1.5, 0.0], [-1.5, 0.5]], np.full((2, 2), 0.02))
NOISE = jnp.asarray(np.random.default_rng(0).standard_normal((48, 2)))


class Counter:
    """Points at which a network was evaluated and, apart, its products with vectors."""

    def __init__(self) -> None:
        self.evaluations = 0
        self.vector_jacobian = 0
        self.jacobian_vector = 0

    @property
    def nfe(self) -> int:
        """Forward 1, vector-Jacobian product 2, Jacobian-vector product 1."""
        jax.effects_barrier()
        return self.evaluations + 2 * self.vector_jacobian + self.jacobian_vector

    def add(self, name: str, x: Array) -> None:
        # rows, and the directions of several products at once
        setattr(self, name, getattr(self, name) + int(np.prod(x.shape[:-1])))

    def reverse(self, x: Array) -> Array:
        """x, counted, also in vector-Jacobian products."""

        @jax.custom_vjp
        def counted(x: Array) -> Array:
            jax.debug.callback(lambda x: self.add("evaluations", x), x)
            return x

        def pull_back(_: None, g: Array) -> tuple[Array]:
            jax.debug.callback(lambda g: self.add("vector_jacobian", g), g)
            return (g,)

        counted.defvjp(lambda x: (counted(x), None), pull_back)
        return counted(x)

    def both(self, x: Array) -> Array:
        """x, counted, also in products of either kind; not under vmap."""

        @jax.custom_jvp
        def counted(x: Array) -> Array:
            jax.debug.callback(lambda x: self.add("evaluations", x), x)
            return x

        def forward(_: tuple[()], v: Array) -> Array:
            jax.debug.callback(lambda v: self.add("jacobian_vector", v), v)
            return v

        def backward(_: tuple[()], g: Array) -> Array:
            jax.debug.callback(lambda g: self.add("vector_jacobian", g), g)
            return g

        @counted.defjvp
        def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
            return counted(*primals), linear_call(forward, backward, (), *tangents)

        return counted(x)


# one network for all tests, so that programs are compiled once
COUNTER = Counter()


def _network(x: Array, t: Array) -> Array:
    return MIXTURE.score(PROCESS, COUNTER.reverse(x), t)


DENOISER = jk.Denoiser(_network, PROCESS, "score")


@pytest.mark.parametrize(("sampler", "t_min"), [("heun", 0.0), ("rk4", 0.1), ("dpmpp_2s", 0.0)])
def test_comparisons_count_what_a_last_step_leaves_out(sampler: str, t_min: float) -> None:
    process = jk.EDM(20.0)
    counter = Counter()
    denoiser = jk.Denoiser(lambda x, t: 0.5 * counter.reverse(x), process, "x0")
    schedules = {"karras": jk.schedules.karras(process, 3, t_min)}
    found = jk.compare_schedules(denoiser, sampler, schedules, NOISE[:5], progress=False)
    assert found.nfe == counter.nfe
    left_out = 0 if t_min else 1
    each = jk.samplers.as_sampler(sampler).nfe_per_step * 3 - left_out
    assert found.sampling_nfe == 5 * each
    assert found.take(["karras"]).nfe == found.nfe


def test_a_report_counts_its_reference_once() -> None:
    before = COUNTER.nfe
    found = jk.compare_samplers(
        DENOISER, ["ddim", "dpmpp_2m"], [2, 3], NOISE[:4], t_min=T_MIN, progress=False
    )
    assert found.nfe == COUNTER.nfe - before == 4 * (300 + 6 * (2 + 3) * 2)


@pytest.mark.parametrize("batch", [3, 4])
def test_a_record_counts_rows_that_fill_up_a_batch(batch: int) -> None:
    before = COUNTER.nfe
    options: dict[str, Any] = {"t_min": T_MIN, "nodes": 8, "batch": batch, "progress": False}
    found = jk.record(DENOISER, NOISE[:7], directions=2, **options)
    assert found.nfe == COUNTER.nfe - before
    rows = {3: 9, 4: 8}[batch]
    assert found.nfe == rows * (7 * (5 + 2 * 2) + 1)
    np.testing.assert_array_equal(found.noise, NOISE[:7])
    both = found.concatenate([found])
    assert both.nfe == 2 * found.nfe


def test_a_measurement_counts_both_products() -> None:
    counter = Counter()

    def network(x: Array, t: Array) -> Array:
        return 0.3 * jnp.tanh(counter.both(x))

    denoiser = jk.Denoiser(network, PROCESS, "x0")
    samples = np.random.default_rng(1).standard_normal((10, 3))
    found = jk.measure(
        denoiser,
        samples,
        [0.8, 0.3],
        key=jax.random.key(0),
        batch=4,
        draws=2,
        lipschitz_points=2,
        progress=False,
    )
    # three batches of four, the last one filled up
    iterations = int(found.iterations.sum())
    assert found.nfe == counter.nfe == 2 * 2 * 12 + 2 * 5 * iterations


@pytest.mark.slow
def test_a_network_as_target_counts_every_stage() -> None:
    before = COUNTER.nfe
    result = _optimize(selection=jk.Selection(noise=NOISE[:8]))
    assert result.nfe == COUNTER.nfe - before == sum(result.nfe_by_stage.values())
    # 8 samples of 16 steps, and as many trajectories of 40 nodes and 2 directions
    assert result.nfe_by_stage["samples"] == 8 * 16
    assert result.nfe_by_stage["record"] == 8 * (39 * (5 + 2 * 2) + 1)
    # four optima, interpolated with six baselines
    candidates = 4 * 7 + 6
    each = 4 * (200 + 100 + 3 * candidates)
    assert result.nfe_by_stage["selection"] == result.nfe_by_stage["evidence"] == each
    assert f"{result.nfe:,}: samples 128" in repr(result)


def _optimize(target: Any = DENOISER, **options: Any) -> jk.OptimizedSchedule:
    """Three steps of DDIM on the network that counts."""
    return jk.optimize_schedule(
        target, PROCESS, "ddim", 3, t_min=T_MIN, starts=["quadratic"], progress=False, **options
    )


# recorded with coarse runs, a candidate and three baselines, then the evidence
LEAST = 4 * (24 + 20) + 4 * 4 * 3 + 4 * (90 + 7 * 3)


@pytest.mark.parametrize("budget", [LEAST, pytest.param(16_000, marks=pytest.mark.slow)])
def test_a_budget_is_never_exceeded(budget: int) -> None:
    before = COUNTER.nfe
    result = _optimize(selection=jk.Selection(noise=NOISE), budget=budget)
    assert result.nfe == COUNTER.nfe - before <= budget
    plan = result.plan
    assert plan is not None
    assert plan.budget == budget
    assert result.nfe_by_stage["record"] == plan.nfe["record"]
    assert result.nfe_by_stage["selection"] <= plan.nfe["selection"]
    assert result.nfe_by_stage["fine-tuning"] <= plan.nfe["fine-tuning"]
    assert result.nfe_by_stage["evidence"] <= plan.nfe["evidence"]
    assert "samples select" in repr(result)
    assert result.verified
    comparison = result.comparison
    assert comparison is not None
    assert set(comparison.names) == {result.selected, *result.baselines}
    # noise that selected nothing
    fresh = NOISE[plan.trajectories : plan.trajectories + plan.evidence]
    schedules = {"returned": result.schedule}
    again = jk.compare_schedules(DENOISER, "ddim", schedules, fresh, progress=False)
    row = comparison.names.index(result.selected)
    assert comparison.errors.shape[1] == plan.evidence
    np.testing.assert_allclose(comparison.errors[row], again.errors[0], rtol=0.1)


def test_a_budget_too_small_names_the_least() -> None:
    before = COUNTER.nfe
    with pytest.raises(ValueError, match=f"budget = {LEAST - 1} must be at least {LEAST} NFE"):
        _optimize(selection=jk.Selection(noise=NOISE), budget=LEAST - 1)
    assert COUNTER.nfe == before


@pytest.mark.slow
def test_one_record_serves_every_setting() -> None:
    """Its initial noise selects, its end points are the reference; nothing is recorded again."""
    record = jk.record_denoised(DENOISER, NOISE[:16], t_min=T_MIN, nodes=16, progress=False)
    before = COUNTER.nfe
    result = _optimize(selection=jk.Selection(record=record), budget=3_000)
    assert result.nfe == COUNTER.nfe - before <= 3_000
    assert result.nfe_by_stage["record"] == 0
    assert result.plan is not None
    assert result.plan.selecting == 16
    assert "a given record" in repr(result)
    # the Gaussian that is solved for is that of the recorded end points
    np.testing.assert_allclose(result.target.mean, np.asarray(record.ends).mean(0), rtol=1e-6)


@pytest.mark.slow
def test_a_sweep_samples_and_records_once() -> None:
    """For DDIM of two lengths; RK4, whose errors a record does not predict, does without."""
    before = COUNTER.nfe
    selection = jk.Selection(noise=NOISE[:8])
    run = (DENOISER, PROCESS, ["ddim", "rk4"], [2, 3])
    options: dict[str, Any] = {"t_min": T_MIN, "selection": selection, "starts": ["quadratic"]}
    sweep = jk.optimize_schedules(*run, progress=False, **options)
    assert sweep.nfe == COUNTER.nfe - before
    assert sweep.shared_nfe == {"samples": 8 * 16, "record": 8 * (39 * (5 + 2 * 2) + 1)}
    recorded = {setting: "recorded" in str(r.candidates) for setting, r in sweep.results.items()}
    assert recorded == {(name, k): name == "ddim" for name in ("ddim", "rk4") for k in (2, 3)}
    alone = _optimize(selection=selection)
    np.testing.assert_array_equal(sweep["ddim", 3].schedule.times, alone.schedule.times)


def test_a_sweep_divides_a_budget() -> None:
    """A small one is recorded once, and two fifths decide; so does a record that is given."""
    before = COUNTER.nfe
    selection = jk.Selection(noise=NOISE)
    run = (DENOISER, PROCESS, ["ddim"], [2, 3])
    options: dict[str, Any] = {"t_min": T_MIN, "starts": ["quadratic"], "progress": False}
    sweep = jk.optimize_schedules(*run, selection=selection, budget=1_000, **options)
    # a candidate and the baselines of each setting are run
    deciding = 12 * (1 + 6) * (2 + 3)
    assert sweep.nfe == COUNTER.nfe - before == 12 * (24 + 20) + deciding
    assert sweep.shared_nfe == {"record": 12 * (24 + 20)}
    assert "1,000: 12 trajectories, 24 nodes; 12 of them decide" in repr(sweep)
    record = jk.record_denoised(
        DENOISER, NOISE[:12], t_min=T_MIN, nodes=24, batch=3, progress=False
    )
    before = COUNTER.nfe
    given = jk.optimize_schedules(
        *run, selection=jk.Selection(record=record), budget=deciding, **options
    )
    assert given.nfe == COUNTER.nfe - before == deciding
    for setting, result in sweep.results.items():
        assert not result.verified
        np.testing.assert_array_equal(result.schedule.times, given[setting].schedule.times)


@pytest.mark.slow
def test_what_a_record_leaves_selects() -> None:
    """A large budget: on the recorded noise, with evidence from other noise."""
    noise = jax.random.normal(jax.random.key(7), (64, 2))
    before = COUNTER.nfe
    sweep = jk.optimize_schedules(
        DENOISER,
        PROCESS,
        ["ddim"],
        [2, 3],
        t_min=T_MIN,
        starts=["quadratic"],
        selection=jk.Selection(noise=noise),
        budget=20_000,
        progress=False,
    )
    assert sweep.nfe == COUNTER.nfe - before <= 20_000
    assert sweep.plan is not None
    assert sweep.plan.shares is not None
    for result, share in zip(sweep.results.values(), sweep.plan.shares, strict=True):
        assert result.verified
        assert 0 < result.nfe <= share


def test_what_decides_leaves_the_least_record() -> None:
    """The least budget, which is eight trajectories of 24 nodes; runs of one step are cheap."""
    plan = plan_sweep(8 * (24 + 20), [Costs(1, 6, 1, 3)], None, None)
    assert plan.trajectories == 8
    assert plan.checked == 0


@pytest.mark.parametrize("recorded", [None, 40])
def test_sweeps_stay_within_their_budget(recorded: int | None) -> None:
    """For random settings, rows and budgets from the least one."""
    rng = np.random.default_rng(0)
    selects = []
    for _ in range(60):
        settings = [
            Costs(int(rng.integers(1, 40)), 6, 1 + int(rng.integers(2)), 3, per_call=2)
            for _ in range(int(rng.integers(1, 9)))
        ]
        rows = None if rng.random() < 0.5 else int(rng.integers(8, 500))
        least = 0
        if recorded is None:
            with pytest.raises(ValueError, match="must be at least") as refused:
                plan_sweep(1, settings, rows, recorded)
            least = int(str(refused.value).split("at least ")[1].split()[0])
        budget = int(max(least, 400) * 10.0 ** rng.uniform(0.0, 4.0))
        plan = plan_sweep(budget, settings, rows, recorded)
        record = 2 * plan.trajectories * (plan.nodes + 20 * (plan.nodes > 0))
        shares = plan.shares or ()
        each = sum((c.candidates + c.baselines) * c.per_sample for c in settings)
        deciding = 2 * plan.checked * each
        assert record + sum(shares) + deciding <= budget
        assert not (shares and plan.checked)
        assert plan.checked <= (recorded or plan.trajectories)
        assert plan.trajectories % 4 == 0
        assert (plan.trajectories >= 8) == (recorded is None)
        assert rows is None or plan.trajectories <= rows
        selects.append(bool(shares))
        for share, costs in zip(shares, settings, strict=bool(shares)):
            left = None if rows is None else rows - plan.trajectories
            own = make_plan(share, costs, left, recorded or plan.trajectories)
            assert own.selecting >= 4
    assert 0.1 < np.mean(selects) < 0.9


@pytest.mark.slow
def test_fine_tuning_stays_within_a_budget() -> None:
    """Of a network; gradients are through a model of it, and what they lead to is run on it."""
    noise = jax.random.normal(jax.random.key(7), (64, 2))
    selection = jk.Selection(noise=noise, fine_tune=40)
    before = COUNTER.nfe
    result = _optimize(selection=selection, budget=8_000)
    assert result.nfe == COUNTER.nfe - before <= 8_000
    assert result.nfe_by_stage["fine-tuning"] > 0


@pytest.mark.parametrize("recorded", [None, 40])
@pytest.mark.parametrize("rounds", [0, 3])
@pytest.mark.parametrize("candidates", [1, 2])
def test_plans_stay_within_their_budget(recorded: int | None, rounds: int, candidates: int) -> None:
    """For random numbers of steps, rows and budgets from the least one."""
    rng = np.random.default_rng(0)
    used = []
    for _ in range(60):
        costs = Costs(int(rng.integers(1, 40)), 6 + int(rng.integers(3)), candidates, rounds)
        rows = None if rng.random() < 0.5 else int(rng.integers(8, 500))
        options = (rows, recorded)
        with pytest.raises(ValueError, match="must be at least") as refused:
            make_plan(1, costs, *options)
        least = int(str(refused.value).split("at least ")[1].split()[0])
        budget = int(least * 10.0 ** rng.uniform(0.0, 3.0))
        plan = make_plan(budget, costs, *options)
        assert sum(plan.nfe.values()) <= budget
        assert min(plan.selecting, plan.evidence) >= 4
        assert plan.selecting <= (plan.trajectories if recorded is None else recorded)
        assert plan.rounds <= rounds
        if rows is not None:
            assert plan.trajectories + plan.evidence <= rows
        assert plan.trajectories % 4 == 0
        used.append(sum(plan.nfe.values()) / budget)
        smallest = make_plan(least, costs, *options)
        assert sum(smallest.nfe.values()) == least
        with pytest.raises(ValueError, match=f"must be at least {least}"):
            make_plan(least - 1, costs, *options)
    assert max(used) <= 1.0


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (MIXTURE, {}, r"budget = 5000 is of a network: pass its Denoiser"),
        (
            None,
            {"record": False},
            "these need a deterministic sampler, stochasticity 0, and a record",
        ),
        (None, {"budget": 0}, "budget = 0 must be at least 1"),
        (None, {"noise": NOISE[:8], "budget": 300}, "budget = 300 must be at least"),
        (None, {"noise": 32}, r"input shape .* is unknown"),
    ],
)
def test_what_a_budget_refuses(target: Any, options: dict[str, Any], message: str) -> None:
    given = {name: options[name] for name in ("record", "noise") if name in options}
    fields: dict[str, Any] = {"noise": NOISE} | given
    with pytest.raises(ValueError, match=message):
        jk.optimize_schedule(
            DENOISER if target is None else target,
            PROCESS,
            options.get("sampler", "ddim"),
            3,
            t_min=T_MIN,
            selection=jk.Selection(**fields),
            budget=options.get("budget", 5_000),
            progress=False,
        )
