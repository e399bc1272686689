"""Names of samplers, processes, schedules and prediction types in other tools and in papers.

A synonym is exactly the same thing under another name. What is only related, or has one name for
several things, gets an answer that names the right thing here.
"""

import re
from collections.abc import Iterable

from . import _checks

_NO_SAMPLER = "is not built in; write it as an AbstractSampler, or use the nearest, "

SYNONYMS: dict[str, dict[str, str]] = {
    "sampler": {
        "flow_match_heun": "heun",
        "dpm_solver_pp_2m": "dpmpp_2m",
        "dpm_solver_pp_2s": "dpmpp_2s",
        "dpm_solver_pp_3m": "dpmpp_3m",
        "dpm_solver_1": "ddim",
        "dpmpp_1": "ddim",
        "euler": "ddim",
        "flow_match_euler": "ddim",
        "edm_euler": "ddim",
        "kdpm2": "dpm_2",
        "uni_pc_bh2": "unipc",
        "runge_kutta_4": "rk4",
        "flow_euler": "ddim",
        "rectified_flow_euler": "ddim",
    },
    "prediction type": {
        "eps": "epsilon",
        "noise": "epsilon",
        "noise_prediction": "epsilon",
        "epsilon_prediction": "epsilon",
        "eps_prediction": "epsilon",
        "eps_pred": "epsilon",
        "epsilon_pred": "epsilon",
        "pred_epsilon": "epsilon",
        "pred_noise": "epsilon",
        "pred_x0": "x0",
        "pred_x_start": "x0",
        "pred_v": "v",
        "sample_prediction": "x0",
        "noise_pred": "epsilon",
        "x0_pred": "x0",
        "x_pred": "x0",
        "x0_hat": "x0",
        "x_prediction": "x0",
        "flow_pred": "flow",
        "v_prediction": "v",
        "v_pred": "v",
        "sample": "x0",
        "x_start": "x0",
        "start_x": "x0",
        "x0_prediction": "x0",
        "data": "x0",
        "data_prediction": "x0",
        "denoised": "x0",
        "denoiser": "x0",
        "flow_prediction": "flow",
        "flow_velocity": "flow",
        "flow_matching": "flow",
        "rectified_flow": "flow",
    },
    "schedule": {
        "ays": "align_your_steps",
        "exponential": "log_snr",
        "log_linear": "log_snr",
        "edm": "karras",
        "time_uniform": "uniform",
        "time_quadratic": "quadratic",
    },
    "process": {
        "vp_sde": "vp",
        "variance_preserving": "vp",
        "cfm": "flow_matching",
        "ot_cfm": "flow_matching",
        "conditional_flow_matching": "flow_matching",
        "ornstein_uhlenbeck": "ou",
        "rectified_flow": "flow_matching",
        "flow": "flow_matching",
        "flow_match": "flow_matching",
        "cond_ot": "flow_matching",
        "rf": "flow_matching",
    },
}

ANSWERS: dict[str, dict[str, str]] = {
    "sampler": {
        "euler_ancestral": "It is 'ddim' with stochasticity 1 here (DDIM's eta = 1).",
        "euler_a": "It is 'ddim' with stochasticity 1 here (DDIM's eta = 1).",
        "ddpm": "Ancestral sampling is 'ddim' with stochasticity 1 here (DDIM's eta = 1).",
        "ancestral": "Ancestral sampling is 'ddim' with stochasticity 1 here (DDIM's eta = 1).",
        "dpm_solver": "With diffusers' defaults it is 'dpmpp_2m' here.",
        "dpm_solver_pp": "Its second-order multistep form is 'dpmpp_2m' here.",
        "dpm_solver_2": f"It {_NO_SAMPLER}'dpmpp_2s', of the same order in another variable.",
        "dpm_solver_3": f"It {_NO_SAMPLER}'dpmpp_3m', of the same order with fewer evaluations.",
        "sde_dpm_solver_pp": "Of order 2 it is 'dpmpp_2m' with stochasticity sqrt(eta) here.",
        "dpmpp": "Its second-order multistep form is 'dpmpp_2m' here.",
        "dpmpp_2m_sde": "It is 'dpmpp_2m' with stochasticity sqrt(eta) here.",
        "dpmpp_2m_sde_heun": f"It {_NO_SAMPLER}'dpmpp_2m' with stochasticity.",
        "dpmpp_3m_sde": "It is 'dpmpp_3m' with stochasticity sqrt(eta) here.",
        "dpmpp_sde": f"It {_NO_SAMPLER}'ddim' with stochasticity.",
        "dpmpp_2s_ancestral": f"It {_NO_SAMPLER}'ddim' with stochasticity.",
        "dpmpp_2s_a": f"It {_NO_SAMPLER}'ddim' with stochasticity.",
        "dpm_2_ancestral": f"It {_NO_SAMPLER}'ddim' with stochasticity.",
        "dpm2_a": f"It {_NO_SAMPLER}'ddim' with stochasticity.",
        "dpm_fast": "It makes its own levels, uniform in log sigma, and takes no schedule.",
        "dpm_adaptive": "Its steps adapt to the network; it has no timestep schedule.",
        "heunpp2": f"It {_NO_SAMPLER}'heun'.",
        "restart": "It goes back to earlier noise levels; a schedule here decreases.",
        "ipndm_v": f"It {_NO_SAMPLER}'lms', which is for uneven steps too.",
        "dpm_solver_singlestep": "Its second-order form is 'dpmpp_2s' here.",
        "edmdpm_solver": "With diffusers' defaults it is 'dpmpp_2m' here, with process 'edm'.",
        "cog_video_xdpm": f"It {_NO_SAMPLER}'dpmpp_2m' with stochasticity.",
        "kdpm2_ancestral": f"It {_NO_SAMPLER}'ddim' with stochasticity.",
        "tcd": "It draws fresh noise around x0: 'ddim' with a large stochasticity here.",
        "seeds_2": f"It {_NO_SAMPLER}'ddim' with stochasticity.",
        "seeds_3": f"It {_NO_SAMPLER}'ddim' with stochasticity.",
        "gradient_estimation": f"It {_NO_SAMPLER}'dpmpp_2m', which extrapolates as well.",
        "plms": f"It {_NO_SAMPLER}'dpmpp_2m', which has one evaluation per step as well.",
        "pndm": f"It {_NO_SAMPLER}'dpmpp_2m', which has one evaluation per step as well.",
        "s_pndm": f"It {_NO_SAMPLER}'dpmpp_2m', which has one evaluation per step as well.",
        "f_pndm": f"It {_NO_SAMPLER}'dpmpp_2m', which has one evaluation per step as well.",
        "dpm_solver_v3": f"It {_NO_SAMPLER}'unipc', which needs no statistics of the network.",
        "dpm_solver_sde": f"It {_NO_SAMPLER}'ddim' with stochasticity.",
        "exp_heun_2_x0": f"It {_NO_SAMPLER}'dpmpp_2s', of the same order.",
        "exp_heun_2_x0_sde": f"It {_NO_SAMPLER}'ddim' with stochasticity.",
        "res_2m": f"It {_NO_SAMPLER}'dpmpp_2m', of the same order.",
        "res_3m": f"It {_NO_SAMPLER}'dpmpp_3m', of the same order.",
        "res_2s": f"It {_NO_SAMPLER}'dpmpp_2s', of the same order.",
        "res_multistep_ancestral": f"It {_NO_SAMPLER}'ddim' with stochasticity.",
        "sa_solver_pece": f"It {_NO_SAMPLER}'ddim' with stochasticity.",
        "er_sde_solver": f"It {_NO_SAMPLER}'ddim' with stochasticity.",
        "res": f"It {_NO_SAMPLER}'dpmpp_2m', which has one evaluation per step as well.",
        "sa_solver": f"It {_NO_SAMPLER}'ddim' with stochasticity.",
        "er_sde": f"It {_NO_SAMPLER}'ddim' with stochasticity.",
        "lcm": "It draws fresh noise around x0: 'ddim' with a large stochasticity here.",
        "edm": "EDM's sampler is 'heun' without and 'edm_sampler' with churn here.",
        "edm_heun": "EDM's sampler is 'heun' without and 'edm_sampler' with churn here.",
        "reverse_sde": "Its integrators are 'euler_maruyama', 'exponential_integrator' and 'ddim'.",
        "ode": "All samplers of stochasticity 0 follow it, such as 'dpmpp_2m'.",
        "probability_flow": "All samplers of stochasticity 0 follow it, such as 'dpmpp_2m'.",
        "predictor_corrector": "'unipc' corrects its steps; Langevin steps are not built in.",
        "pc": "'unipc' corrects its steps; Langevin steps are not built in.",
        "pc_sampler": "'unipc' corrects its steps; Langevin steps are not built in.",
        "score_sde_ve": "'unipc' corrects its steps; Langevin steps are not built in.",
        "score_sde_vp": "It is 'euler_maruyama' with stochasticity 1 here.",
        "karras_ve": "EDM's sampler is 'heun' without and 'edm_sampler' with churn here.",
        "edm_stochastic": "EDM's sampler is 'heun' without and 'edm_sampler' with churn here.",
        **dict.fromkeys(
            ("ancestral_sampling", "ddpm_wuerstchen", "un_clip"),
            "Ancestral sampling is 'ddim' with stochasticity 1 here (DDIM's eta = 1).",
        ),
        "re_paint": "It goes back to earlier noise levels; a schedule here decreases.",
        "langevin": f"It {_NO_SAMPLER}'ddim' with stochasticity.",
        "churn": "EDM's sampler is 'heun' without and 'edm_sampler' with churn here.",
        "adams_bashforth": "It is 'lms' (in sigma), 'deis' or 'ipndm' here.",
        "rk2": "It is 'heun' or 'midpoint' here.",
        "ddim_inverse": "It runs from data to noise; a schedule here goes from noise to data.",
        "rk45": "A schedule is of fixed steps, 'rk4' here.",
        "dopri5": "A schedule is of fixed steps, 'rk4' here.",
    },
    "prediction type": {
        "velocity": "A diffusion model's v = a eps - s x0 is 'v' here, a flow's dx/dt is 'flow'.",
        "edm": "EDM's net(x, sigma), with its preconditioning, returns the denoised point: 'x0'.",
        "karras": "EDM's net(x, sigma), with its preconditioning, returns the denoised point: "
        "'x0'.",
        "raw": "EDM's raw network with its preconditioning around it is 'x0' here.",
        "trigflow": "With data of unit deviation it is the 'v' of a variance-preserving process.",
        "x1": "In flow matching x1 is the data, 'x0' here, where t = 0 is the data.",
        "const": "In ComfyUI it is a flow's dx/dt, 'flow' here.",
        "previous_x": "The mean of the next point is not taken: return its 'x0' or 'epsilon'.",
        "learned_range": "It names the variance; the prediction itself is 'epsilon' in these "
        "models. Return its first half of the channels.",
    },
    "schedule": {
        "simple": "Evenly spaced timesteps are 'uniform' here.",
        "normal": "Evenly spaced timesteps are 'uniform' here.",
        "sgm_uniform": "Evenly spaced timesteps are 'uniform' here.",
        "ddim_uniform": "Evenly spaced timesteps are 'uniform' here.",
        "linspace": "Evenly spaced timesteps are 'uniform' here.",
        "leading": "Evenly spaced timesteps are 'uniform' here.",
        "trailing": "Evenly spaced timesteps are 'uniform' here.",
        "linear": "Evenly spaced timesteps are 'uniform' here; evenly spaced log sigma, 'log_snr'.",
        "quad": "DDIM's is 'quadratic' here, up to the factor 0.8 of its first timestep.",
        "polyexponential": "With rho = 1 it is 'log_snr' here; with another it is not built in.",
        "beta57": "It is jk.schedules.beta with alpha = 0.5 and beta = 0.7.",
        "laplace": "Not built in; Schedule.from_sigmas takes its levels.",
        "lu": "Not built in; Schedule.from_sigmas takes its levels.",
        "optimal_steps": "Not built in; Schedule.from_sigmas takes its levels.",
        "ays_gits": "Its tables are not built in; Schedule.from_sigmas takes their levels.",
        "align_your_steps_gits": "Its tables are not built in; Schedule.from_sigmas takes their "
        "levels.",
        "bong_tangent": "Not built in; Schedule.from_sigmas takes its levels.",
        "kl_optimal": "Not built in; Schedule.from_sigmas takes its levels.",
        "linear_quadratic": "Not built in; Schedule.from_sigmas takes its levels.",
        "gits": "Its tables are not built in; Schedule.from_sigmas takes their levels.",
        "automatic": "A1111 selects one for each sampler; name that one.",
    },
    "process": {
        "ddpm": "In continuous time it is 'vp' here; with a network's own alphas_cumprod, "
        "'discrete_vp'.",
        "linear": "In continuous time it is 'vp' here; with a network's own alphas_cumprod, "
        "'discrete_vp'.",
        "scaled_linear": "It is the default table of 'discrete_vp' here.",
        "stable_diffusion": "Its table is the default of 'discrete_vp' here.",
        "sd": "Its table is the default of 'discrete_vp' here, that of SD 3 is 'flow_matching'.",
        "sd15": "Its table is the default of 'discrete_vp' here.",
        "sd2": "Its table is the default of 'discrete_vp' here.",
        "sd21": "Its table is the default of 'discrete_vp' here.",
        "stable_diffusion_2": "Its table is the default of 'discrete_vp' here.",
        "stable_video_diffusion": "Noise levels as time are 'edm' here.",
        "svd": "Noise levels as time are 'edm' here.",
        "variance_exploding": "Noise levels as time are 'edm' here, a time change of it.",
        "pixart": "It is 'discrete_vp' with its alphas_cumprod here.",
        "hunyuan_dit": "It is 'discrete_vp' with its alphas_cumprod here.",
        "cog_video_x": "It is 'discrete_vp' with its alphas_cumprod here.",
        "sdxl": "Its table is the default of 'discrete_vp' here.",
        "cosine": "In continuous time it is 'cosine_vp' here.",
        "squaredcos_cap_v2": "It is 'discrete_vp' with its alphas_cumprod here; in continuous time "
        "'cosine_vp'.",
        "karras": "Noise levels as time are 'edm' here.",
        "vesde": "Noise levels as time are 'edm' here, of which that is a time change.",
        "flux": "It is 'flow_matching' here; its shift belongs to the schedule.",
        **dict.fromkeys(
            ("qwen_image", "sana", "aura_flow", "chroma", "lumina_2", "hunyuan_video", "ltx_video"),
            "It is 'flow_matching' here; its shift belongs to the schedule.",
        ),
        "wan": "It is 'flow_matching' here; its shift belongs to the schedule.",
        "sd3": "It is 'flow_matching' here; its shift belongs to the schedule.",
        "subvp": "Not built in; write it as an AbstractProcess.",
    },
}

# before the name itself: functions of k-diffusion and their names in early tools, not the type
# "sample_prediction"
_BEFORE = re.compile(r"^(sample|sampler|k)_(?!prediction)")

_AFTER = ("scheduler", "gpu", "discrete", "multistep")

# A1111 writes sampler and schedule as one name, ComfyUI sampler and guidance
_SCHEDULES = ("karras", "exponential", "sgm_uniform", "uniform", "beta")
_PARTS = {
    **{schedule: f"with the schedule {schedule!r}: name them apart." for schedule in _SCHEDULES},
    "cfg_pp": "with a network so guided: guidance is a part of the network here.",
}


def known_name(kind: str, argument: str, name: str, known: Iterable[str]) -> str:
    """The name in `known` of what a user means. ValueError with the right name where there is one.

    `kind` is a key of `SYNONYMS`. Spelling is free: "DPM++ 2M" is "dpmpp_2m".
    """
    names = list(known)
    if name in names:
        return name
    plain = _plain(str(name))
    meant = _meant(kind, plain, names)
    if meant is not None:
        return meant
    answer = (
        _answer(kind, plain)
        or _answer_of_parts(kind, plain, names)
        or _answer_of_others(kind, plain)
    )
    if answer is not None:
        raise ValueError(f"{argument}={name!r} is not known. {answer} Known: {', '.join(names)}.")
    return _checks.one_of(argument, name, names)


def _plain(name: str) -> str:
    """A name's letters, in lower case, and digits, with "pp" for "++".

    Without what names of classes and functions of other tools add: EulerDiscreteScheduler is
    "euler".
    """
    spaced = re.sub(r"[^a-z0-9]+", "_", name.lower().replace("++", "pp")).strip("_")
    plain = _BEFORE.sub("", spaced).replace("_", "")
    for end in _AFTER:
        plain = plain.removesuffix(end)
    return plain


def _meant(kind: str, plain: str, known: list[str]) -> str | None:
    """The known name that is spelt so, or of which this is a synonym."""
    spelt = {_plain(synonym): right for synonym, right in SYNONYMS[kind].items() if right in known}
    return (spelt | {_plain(name): name for name in known}).get(plain)


def _answer(kind: str, plain: str) -> str | None:
    """The answer to a name of another tool."""
    return {_plain(name): text for name, text in ANSWERS[kind].items()}.get(plain)


def _answer_of_others(kind: str, plain: str) -> str | None:
    """The answer to a name of another kind."""
    # the first one, where a name is of several kinds
    for other in ("schedule", "sampler", "process", "prediction type"):
        synonyms = SYNONYMS[other]
        names = {*synonyms, *synonyms.values(), *ANSWERS[other]}
        if other == "schedule":
            names.update(_SCHEDULES)
        if other != kind and plain in map(_plain, names):
            return f"It names a {other}, not a {kind}."
    return None


def _answer_of_parts(kind: str, plain: str, known: list[str]) -> str | None:
    """The answer to a sampler and a schedule, or guidance, in one name."""
    if kind != "sampler":
        return None
    for end, said in _PARTS.items():
        first = plain.removesuffix(_plain(end))
        if first == plain:
            continue
        sampler = _meant(kind, first, known)
        if sampler is not None:
            return f"It is the sampler {sampler!r} {said}"
        answer = _answer(kind, first)
        if answer is not None:
            return f"{answer.removesuffix('.')}, {said}"
    return None
