"""Names of other tools: what is the same thing is taken, for the rest the right name is given."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxkernels as jk
from jaxkernels import _checks, _field_names
from jaxkernels.prediction import PREDICTION_TYPES
from jaxkernels.processes import PROCESSES, check_process_name, from_config
from jaxkernels.samplers import SAMPLERS, as_sampler, check_sampler_name
from jaxkernels.schedules import SCHEDULES

KNOWN = {
    "sampler": list(SAMPLERS),
    "prediction type": list(PREDICTION_TYPES),
    "schedule": list(SCHEDULES),
    "process": list(PROCESSES),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_the_table_agrees_with_what_is_built_in(kind: str):
    """Synonyms lead to known names, and no two names are spelt alike."""
    names = [*KNOWN[kind], *_field_names.SYNONYMS[kind], *_field_names.ANSWERS[kind]]
    assert set(_field_names.SYNONYMS[kind].values()) <= set(KNOWN[kind])
    plain = [_field_names._plain(name) for name in names]
    assert len(set(plain)) == len(plain)


def test_what_names_no_prediction_type_is_none():
    """The prefix of k-diffusion's samplers is a part of "sample_prediction"."""
    with pytest.raises(ValueError, match="prediction_type='prediction' is not known"):
        jk.Denoiser(lambda x, t: x, jk.VP(), "prediction")
    assert jk.Denoiser(lambda x, t: x, jk.VP(), "sample_prediction").prediction_type == "x0"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("DPM++ 2M", "dpmpp_2m"),
        ("dpm++_2m", "dpmpp_2m"),
        ("DPMPP-2M", "dpmpp_2m"),
        ("DDIMScheduler", "ddim"),
        ("Heun", "heun"),
        ("HeunDiscreteScheduler", "heun"),
        ("Euler-Maruyama", "euler_maruyama"),
        ("RK4", "rk4"),
        ("euler", "ddim"),
        ("EulerDiscreteScheduler", "ddim"),
        ("FlowMatchEulerDiscreteScheduler", "ddim"),
        ("UniPCMultistepScheduler", "unipc"),
        ("DEISMultistepScheduler", "deis"),
        ("LMSDiscreteScheduler", "lms"),
        ("KDPM2DiscreteScheduler", "dpm_2"),
        ("DPM2", "dpm_2"),
        ("DPM++ 3M", "dpmpp_3m"),
        ("ddim_scheduler", "ddim"),
        ("FlowMatchHeunDiscreteScheduler", "heun"),
        # as papers write them, as functions of k-diffusion, and as classes without "Scheduler"
        ("DPM-Solver++(2M)", "dpmpp_2m"),
        ("DPM-Solver++(3M)", "dpmpp_3m"),
        ("sample_dpmpp_2m", "dpmpp_2m"),
        ("sample_euler", "ddim"),
        ("k_euler", "ddim"),
        ("k_lms", "lms"),
        ("LMSDiscrete", "lms"),
        ("FlowMatchEuler", "ddim"),
        ("UniPC bh2", "unipc"),
        ("ExponentialIntegrator", "exponential_integrator"),
    ],
)
def test_samplers_in_any_spelling(name: str, expected: str):
    assert check_sampler_name(name) == expected
    assert type(as_sampler(name)) is SAMPLERS[expected]


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("euler_ancestral", "'ddim' with stochasticity 1"),
        ("Euler a", "'ddim' with stochasticity 1"),
        ("ddpm", "'ddim' with stochasticity 1"),
        ("DPMSolverMultistepScheduler", "'dpmpp_2m'"),
        ("DPM++ 2M SDE", r"'dpmpp_2m' with stochasticity sqrt\(eta\)"),
        ("sa_solver", "nearest, 'ddim' with stochasticity"),
        ("DPM++ 2M Karras", "the sampler 'dpmpp_2m' with the schedule 'karras'"),
        ("edm", "'heun'"),
        ("dpm_fast", "its own levels, uniform in log sigma"),
        ("dpm_adaptive", "adapt to the network"),
        ("heunpp2", "nearest, 'heun'"),
        ("restart", "goes back to earlier noise levels"),
        ("dpmpp_2m_sde_gpu", "'dpmpp_2m' with stochasticity"),
        ("ipndm_v", "nearest, 'lms'"),
        ("TCDScheduler", "'ddim' with a large stochasticity"),
        ("DPMSolverSinglestepScheduler", "'dpmpp_2s'"),
        ("EDMDPMSolverMultistepScheduler", "'dpmpp_2m' here, with process 'edm'"),
        ("KDPM2AncestralDiscreteScheduler", "nearest, 'ddim'"),
        ("CogVideoXDPMScheduler", "nearest, 'dpmpp_2m'"),
        ("seeds_2", "nearest, 'ddim'"),
        ("gradient_estimation", "nearest, 'dpmpp_2m'"),
        # sampler and schedule as one name, where the sampler has an answer itself
        ("DPM++ 2M SDE Karras", "'dpmpp_2m' with stochasticity .* the schedule 'karras': name"),
        ("DPM++ 3M SDE Exponential", "'dpmpp_3m' with .* the schedule 'exponential': name"),
        ("DPM++ 2S a Karras", "nearest, 'ddim' .* the schedule 'karras': name"),
        ("Euler a SGM Uniform", "'ddim' with .* the schedule 'sgm_uniform': name"),
        ("dpmpp_2m_cfg_pp", "'dpmpp_2m' with a network so guided"),
        ("euler_ancestral_cfg_pp", "'ddim' with .* with a network so guided"),
        ("sde-dpmsolver++", "'dpmpp_2m' with stochasticity"),
        ("DPM-Solver-3", "nearest, 'dpmpp_3m'"),
        ("k_euler_a", "'ddim' with stochasticity 1"),
        ("sample_dpmpp_3m_sde", "'dpmpp_3m' with stochasticity"),
        ("RK2", "'heun' or 'midpoint'"),
        ("res_2m", "nearest, 'dpmpp_2m'"),
        ("res_multistep_ancestral", "nearest, 'ddim' with stochasticity"),
        ("exp_heun_2_x0", "nearest, 'dpmpp_2s'"),
        ("DPM++ 2M SDE Heun", "nearest, 'dpmpp_2m' with stochasticity"),
        ("DPMSolverSDEScheduler", "nearest, 'ddim' with stochasticity"),
        ("DPM-Solver-v3", "nearest, 'unipc'"),
        ("PC sampler", "Langevin steps are not built in"),
        ("KarrasVeScheduler", "'edm_sampler' with churn"),
        ("RePaintScheduler", "goes back to earlier noise levels"),
        ("ancestral sampling", "'ddim' with stochasticity 1"),
        ("churn", "'edm_sampler'"),
    ],
)
def test_samplers_of_other_names_are_answered(name: str, right: str):
    with pytest.raises(ValueError, match=f"sampler='.*' is not known. .*{right}"):
        as_sampler(name)


def test_eulers_method_in_sigma_is_ddim():
    """What the table says, by Euler's step of dx/dsigma = (x - D) / sigma written out."""
    denoiser = jk.Gaussian([0.3], [0.5]).denoiser(jk.EDM())
    schedule = jk.schedules.karras(jk.EDM(), 5, 0.01)
    x = jnp.array([[60.0]])
    levels = np.asarray(schedule.times)
    expected = x
    for level, below in zip(levels, levels[1:]):
        slope = (expected - denoiser(expected, level).x0) / level
        expected = expected + slope * (below - level)
    found = jk.sample(denoiser, "ddim", schedule, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v_prediction", "v"),
        ("v-prediction", "v"),
        ("eps", "epsilon"),
        ("epsilon", "epsilon"),
        ("sample", "x0"),
        ("x_0", "x0"),
        ("flow_prediction", "flow"),
        ("x_prediction", "x0"),
        ("pred_noise", "epsilon"),
        ("pred_x_start", "x0"),
        ("pred_v", "v"),
        ("V-Pred", "v"),
        ("Flow Velocity", "flow"),
    ],
)
def test_prediction_types(name: str, expected: str):
    denoiser = jk.Denoiser(lambda x, t: x, jk.VP(), name)
    assert denoiser.prediction_type == expected


def test_a_velocity_has_two_meanings():
    with pytest.raises(ValueError, match=r"prediction_type='velocity'.*'v' here.*'flow'"):
        jk.Denoiser(lambda x, t: x, jk.VP(), "velocity")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vpsde", "vp"),
        ("Rectified Flow", "flow_matching"),
        ("EDM", "edm"),
        ("CosineVP", "cosine_vp"),
        ("RF", "flow_matching"),
        ("cond-OT", "flow_matching"),
        ("OT-CFM", "flow_matching"),
        ("variance preserving", "vp"),
    ],
)
def test_processes(name: str, expected: str):
    assert check_process_name(name) == expected
    assert type(from_config({"type": name})) is PROCESSES[expected]


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("ddpm", "'discrete_vp'"),
        ("scaled_linear", "'discrete_vp'"),
        ("vesde", "'edm'"),
        ("sd", "'discrete_vp'"),
        ("wan", "'flow_matching'"),
        ("SD 2.1", "'discrete_vp'"),
        ("svd", "'edm'"),
        ("CogVideoX", "'discrete_vp'"),
        ("HunyuanVideo", "'flow_matching'"),
    ],
)
def test_processes_of_other_names_are_answered(name: str, right: str):
    with pytest.raises(ValueError, match=f"process='{name}' is not known. .*{right}"):
        from_config({"type": name})


def test_schedules():
    target = jk.Gaussian(0.0, [1.0])
    for name, right in [
        ("sgm_uniform", "'uniform'"),
        ("polyexponential", "'log_snr'"),
        ("beta57", "alpha = 0.5 and beta = 0.7"),
        ("AYS GITS", "from_sigmas takes their levels"),
    ]:
        with pytest.raises(ValueError, match=f"starts='{name}' is not known. .*{right}"):
            jk.optimize_schedule(target, jk.VP(), "ddim", 2, t_min=1e-3, starts=[name])
    known = {
        "exponential": "log_snr",
        "AYS": "align_your_steps",
        "edm": "karras",
        "time_quadratic": "quadratic",
    }
    for name, expected in known.items():
        found = _field_names.known_name("schedule", "schedule", name, SCHEDULES)
        assert found == expected


def test_the_exponential_schedule_is_uniform_in_log_sigma():
    """k-diffusion's get_sigmas_exponential: linspace of log sigma, then exp."""
    schedule = jk.schedules.log_snr(jk.EDM(), 6, 0.02)
    expected = np.exp(np.linspace(np.log(80.0), np.log(0.02), 7))
    np.testing.assert_allclose(schedule.sigmas(jk.EDM()), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "name", "right"),
    [
        ("sampler", "karras", "schedule"),
        ("sampler", "sgm_uniform", "schedule"),
        ("sampler", "log_snr", "schedule"),
        ("sampler", "v_prediction", "prediction type"),
        ("schedule", "DPM++ 2M", "sampler"),
        ("schedule", "EulerAncestralDiscreteScheduler", "sampler"),
        ("process", "heun", "sampler"),
        ("prediction type", "flux", "process"),
    ],
)
def test_a_name_of_another_kind_is_said_to_be_one(kind: str, name: str, right: str):
    with pytest.raises(ValueError, match=f"It names a {right}, not a {kind}"):
        _field_names.known_name(kind, "argument", name, KNOWN[kind])


def test_guidance_is_no_schedule():
    with pytest.raises(ValueError, match=r"sampler='cfg_pp' is not known\. Known: "):
        check_sampler_name("cfg_pp")


def test_unknown_everywhere():
    with pytest.raises(ValueError, match=r"sampler='ddmi' is not known\. Did you mean 'ddim'"):
        as_sampler("ddmi")


def test_a_hint_is_a_name_that_was_begun_or_is_written_alike():
    """Not any name that shares a few letters."""
    known: dict[str, None] = dict.fromkeys(("ddpm", "dpm_multistep", "score"))
    for name, hint in (("dpm", "'dpm_multistep'"), ("ddmp", "'ddpm'"), ("scores", "'score'")):
        with pytest.raises(ValueError, match=f"Did you mean {hint}"):
            _checks.lookup("scheduler", name, known)
    with pytest.raises(ValueError, match=r"eps_pred' is not known\. Known: ddpm"):
        _checks.lookup("scheduler", "eps_pred", known)
    for name in ("adams", "ralston", "ttm", "2m"):
        with pytest.raises(ValueError, match=f"sampler='{name}' is not known. Known: ddim"):
            as_sampler(name)
    for name in ("heun_2nd", "midpoint method", "unipc_3"):
        with pytest.raises(ValueError, match=f"Did you mean '{name[:4]}"):
            as_sampler(name)
    with pytest.raises(ValueError, match="Did you mean 'vp'"):
        check_process_name("vq")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("eps_pred", "epsilon"), ("noise_pred", "epsilon"), ("x0_pred", "x0"), ("flow_pred", "flow")],
)
def test_abbreviated_prediction_types(name: str, expected: str):
    assert jk.Denoiser(lambda x, t: x, jk.FlowMatching(), name).prediction_type == expected
