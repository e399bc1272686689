"""Exports pasted into the pipelines of diffusers themselves, built with small random weights.

The levels at which the network is called are recorded: their number, values and order must be those
of the schedule. `pip install ".[test,external]"` installs what is needed; nothing is downloaded.
"""

import math
import types
import warnings
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxkernels as jk
from jaxkernels import Schedule, export
from jaxkernels.exports import bind

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch: Any = pytest.importorskip("torch")
    diffusers: Any = pytest.importorskip("diffusers")
    transformers: Any = pytest.importorskip("transformers")

pytestmark = [pytest.mark.external, pytest.mark.filterwarnings("ignore")]

TABLE = jk.DiscreteVP.scaled_linear()
BETAS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
TABLE_TIMES = np.array([1000.0, 811.0, 455.0, 170.0, 24.0, 1.0])
FLOW_TIMES = np.array([1.0, 0.9, 0.6, 0.25, 0.02, 0.0])
SIZE, TOKENS = 32, 8


class Tokenizer:
    """Every prompt is a row of zeros."""

    model_max_length = TOKENS

    def __call__(self, prompt: Any, padding: Any = None, max_length: int = TOKENS, **_: Any) -> Any:
        shape = (1 if isinstance(prompt, str) else len(prompt), max_length)
        ids = torch.zeros(shape, dtype=torch.long)
        return types.SimpleNamespace(input_ids=ids, attention_mask=torch.ones_like(ids))

    def tokenize(self, prompt: str) -> list[str]:
        return []

    def batch_decode(self, ids: Any) -> list[str]:
        return ["" for _ in ids]


def clip(projection: bool = False) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=16,
        hidden_size=SIZE,
        intermediate_size=37,
        projection_dim=SIZE,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
    )
    with_projection = transformers.CLIPTextModelWithProjection
    return (with_projection if projection else transformers.CLIPTextModel)(config).eval()


def t5(name: str = "T5") -> Any:
    config = getattr(transformers, f"{name}Config")(
        vocab_size=16, d_model=SIZE, d_kv=8, d_ff=37, num_layers=1, num_heads=4
    )
    return getattr(transformers, f"{name}EncoderModel")(config).eval()


def autoencoder(channels: int = 4) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=[32, 32],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=channels,
        shift_factor=0.0,
        scaling_factor=1.0,
    )


def conditional_unet(**settings: Any) -> Any:
    given: dict[str, Any] = {
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": SIZE,
        "attention_head_dim": 4,
        **settings,
    }
    return diffusers.UNet2DConditionModel(**given)


def table_scheduler(name: str = "PNDMScheduler") -> Any:
    return getattr(diffusers, name)(**BETAS)


def flow_scheduler() -> Any:
    """That of Flux, which shifts by the number of tokens."""
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def stable_diffusion(name: str = "StableDiffusionPipeline") -> Any:
    return getattr(diffusers, name)(
        vae=autoencoder(),
        text_encoder=clip(),
        tokenizer=Tokenizer(),
        unet=conditional_unet(),
        scheduler=table_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> Any:
    unet = conditional_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + SIZE,
        cross_attention_dim=2 * SIZE,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=clip(),
        text_encoder_2=clip(projection=True),
        tokenizer=Tokenizer(),
        tokenizer_2=Tokenizer(),
        unet=unet,
        scheduler=table_scheduler("EulerDiscreteScheduler"),
        add_watermarker=False,
    )


def stable_diffusion_3() -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=2 * SIZE,
        pooled_projection_dim=2 * SIZE,
        out_channels=4,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(),
        text_encoder=clip(projection=True),
        tokenizer=Tokenizer(),
        text_encoder_2=clip(projection=True),
        tokenizer_2=Tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def flux(name: str = "FluxPipeline") -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=SIZE,
        pooled_projection_dim=SIZE,
        axes_dims_rope=[4, 4, 8],
    )
    return getattr(diffusers, name)(
        scheduler=flow_scheduler(),
        vae=autoencoder(1),
        text_encoder=clip(),
        tokenizer=Tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=Tokenizer(),
        transformer=transformer,
    )


def unconditional(name: str) -> Any:
    unet = diffusers.UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return getattr(diffusers, name)(unet, diffusers.DDPMScheduler(**BETAS))


def dit() -> Any:
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=4,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        attention_bias=True,
        num_embeds_ada_norm=1000,
    )
    return diffusers.DiTPipeline(transformer, autoencoder(), diffusers.DDIMScheduler(**BETAS))


def kandinsky() -> Any:
    unet = conditional_unet(
        out_channels=8,
        addition_embed_type="image",
        encoder_hid_dim=SIZE,
        encoder_hid_dim_type="image_proj",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
    )
    movq = diffusers.VQModel(
        block_out_channels=[32, 32],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
    )
    scheduler = diffusers.DDPMScheduler(**BETAS, variance_type="learned_range")
    return diffusers.KandinskyV22Pipeline(unet=unet, scheduler=scheduler, movq=movq)


def ltx() -> Any:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=SIZE,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
        patch_size_t=1,
    )
    return diffusers.LTXPipeline(
        scheduler=flow_scheduler(),
        vae=vae,
        text_encoder=t5(),
        tokenizer=Tokenizer(),
        transformer=transformer,
    )


def wan() -> Any:
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=SIZE,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )
    vae = diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    return diffusers.WanPipeline(
        tokenizer=Tokenizer(),
        text_encoder=t5("UMT5"),
        vae=vae,
        scheduler=scheduler,
        transformer=transformer,
    )


def audio() -> Any:
    unet = diffusers.AudioLDM2UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=((SIZE, SIZE),) * 2,
    )
    vocoder = transformers.SpeechT5HifiGanConfig(
        model_in_dim=8,
        upsample_initial_channel=16,
        upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
    )
    language = transformers.GPT2Config(
        vocab_size=16, n_positions=8, n_embd=SIZE, n_layer=1, n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return diffusers.AudioLDM2Pipeline(
        vae=autoencoder(),
        text_encoder=None,
        text_encoder_2=t5(),
        projection_model=None,
        language_model=transformers.GPT2LMHeadModel(language),
        tokenizer=None,
        tokenizer_2=None,
        feature_extractor=None,
        unet=unet.eval(),
        scheduler=table_scheduler("DDIMScheduler"),
        vocoder=transformers.SpeechT5HifiGan(vocoder),
    )


SPOKEN: dict[str, Any] = {
    "prompt_embeds": torch.zeros(1, 4, SIZE),
    "generated_prompt_embeds": torch.zeros(1, 4, SIZE),
    "attention_mask": torch.ones(1, 4, dtype=torch.long),
    "guidance_scale": 1.0,
    "output_type": "latent",
}
SMALL: dict[str, Any] = {"height": 16, "width": 16}
VIDEO: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 9}
EMBEDS: dict[str, Any] = {
    "image_embeds": torch.zeros(1, SIZE),
    "negative_image_embeds": torch.zeros(1, SIZE),
}


class Watched:
    """A pipeline in a small size, and the timesteps that its network was told."""

    def __init__(self, pipe: Any, **size: Any):
        self.pipe, self._size = pipe, size
        self.told: list[float] = []
        self.network = getattr(pipe, "unet", None) or pipe.transformer
        self.network.register_forward_pre_hook(self._note, with_kwargs=True)
        pipe.set_progress_bar_config(disable=True)

    def _note(self, module: Any, args: Any, named: dict[str, Any]) -> None:
        t = named["timestep"] if "timestep" in named else args[1]
        t = float(torch.as_tensor(t).flatten()[0])
        if t not in self.told[-1:]:  # guidance may call it twice
            self.told.append(t)

    @property
    def scheduler(self) -> Any:
        return self.pipe.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self.pipe.scheduler = scheduler

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.pipe(*args, **named, **self._size)


def times(process: Any) -> np.ndarray:
    return TABLE_TIMES if process is TABLE else FLOW_TIMES


def timesteps(process: Any) -> np.ndarray:
    """What a network of this process is told at the levels of `times`."""
    return times(process)[:-1] - 1.0 if process is TABLE else 1000.0 * times(process)[:-1]


FLOW = jk.FlowMatching()
PASTED: list[Any] = [
    pytest.param(stable_diffusion, TABLE, "ddim", {}, SMALL, id="sd-euler"),
    pytest.param(stable_diffusion, TABLE, "dpmpp_2m", {}, SMALL, id="sd-dpm"),
    pytest.param(stable_diffusion_xl, TABLE, "ddim", {}, SMALL, id="sdxl-euler"),
    pytest.param(stable_diffusion_xl, TABLE, "dpmpp_2m", {}, SMALL, id="sdxl-dpm"),
    pytest.param(stable_diffusion_3, FLOW, "ddim", {}, SMALL, id="sd3-euler"),
    pytest.param(stable_diffusion_3, FLOW, "dpmpp_2m", {}, SMALL, id="sd3-unipc"),
    pytest.param(flux, FLOW, "ddim", {}, SMALL, id="flux-euler"),
    pytest.param(flux, FLOW, "dpmpp_2m", {}, SMALL, id="flux-unipc"),
    pytest.param(
        lambda: unconditional("DDPMPipeline"), TABLE, "ddim", {"scheduler": "ddpm"}, {}, id="ddpm"
    ),
]


@pytest.mark.parametrize(("make", "process", "sampler", "options", "size"), PASTED)
def test_the_pasted_text_runs_the_schedule(
    make: Callable[[], Any], process: Any, sampler: str, options: Any, size: Any
):
    """In the pipeline that it names, which is replaced by nothing."""
    result = export(Schedule(times(process)), process, "diffusers", sampler=sampler, **options)
    pipe = Watched(make(), **size)
    assert type(pipe.pipe).__name__ in " ".join(result.remarks)
    names: dict[str, Any] = {"pipe": pipe, "prompt": "a cat"}
    exec(compile(result.text, "export", "exec"), names)
    np.testing.assert_allclose(
        pipe.told, timesteps(process) / (1000.0 if make is flux else 1.0), rtol=2e-6, atol=0.02
    )
    assert names["image"].size == (16, 16) if size else names["image"].size == (8, 8)


def test_the_pasted_text_of_a_network_in_the_preconditioning_of_edm():
    """SDXL with EDMEuler, whose network is told log(sigma) / 4."""
    levels = np.array([80.0, 12.0, 2.0, 0.3, 0.0])
    result = export(Schedule(levels), jk.EDM(), "diffusers", sampler="ddim")
    pipe = Watched(stable_diffusion_xl(), **SMALL)
    exec(result.text, {"pipe": pipe, "prompt": "a cat"})
    np.testing.assert_allclose(pipe.told, np.log(levels[:-1]) / 4.0, rtol=1e-5)


def test_the_pasted_text_of_heun():
    """Every level but the first is met twice, at the end of a step and at the start of the next."""
    schedule = Schedule(np.append(TABLE_TIMES[:-1], 0.0))
    result = export(schedule, TABLE, "diffusers", sampler="heun")
    pipe = Watched(stable_diffusion(), **SMALL)
    calls: list[None] = []
    pipe.network.register_forward_pre_hook(lambda *_: calls.append(None))
    exec(result.text, {"pipe": pipe, "prompt": "a cat"})
    np.testing.assert_allclose(pipe.told, timesteps(TABLE), atol=0.02)
    assert len(calls) == 9


def test_the_pasted_text_of_a_video_pipeline():
    """LTX, which evaluates the network once more after the last level."""
    levels = np.array([0.9, 0.6, 0.3, 0.1])
    result = export(Schedule(levels), FLOW, "diffusers", scheduler="ltx_euler_ancestral")
    pipe = Watched(ltx(), **VIDEO)
    names: dict[str, Any] = {"pipe": pipe, "prompt": "a cat"}
    exec(compile(result.text, "export", "exec"), names)
    np.testing.assert_allclose(pipe.told[:3], 1000.0 * levels[:3], rtol=1e-6)
    assert len(names["video"]) == 9


BOUND: list[Any] = [
    pytest.param(lambda: unconditional("DDPMPipeline"), TABLE, "ddim", {}, id="ddpm"),
    pytest.param(lambda: unconditional("DDIMPipeline"), TABLE, "ddim", {}, id="ddim"),
    pytest.param(lambda: unconditional("DDIMPipeline"), TABLE, "dpmpp_2m", {}, id="ddim-2m"),
    pytest.param(dit, TABLE, "ddim", {"class_labels": [1]}, id="dit"),
    pytest.param(kandinsky, TABLE, "dpmpp_2m", {**EMBEDS, **SMALL}, id="kandinsky"),
    pytest.param(audio, TABLE, "ddim", SPOKEN, id="audio"),
    pytest.param(audio, TABLE, "dpmpp_2m", SPOKEN, id="audio-2m"),
    pytest.param(ltx, FLOW, "ddim", {"prompt": "", **VIDEO}, id="ltx"),
    pytest.param(ltx, FLOW, "dpmpp_2m", {"prompt": "", **VIDEO}, id="ltx-unipc"),
    pytest.param(wan, FLOW, "ddim", {"prompt": "", **SMALL, "num_frames": 5}, id="wan"),
    pytest.param(wan, FLOW, "dpmpp_2m", {"prompt": "", **SMALL, "num_frames": 5}, id="wan-unipc"),
]


@pytest.mark.parametrize(("make", "process", "sampler", "call"), BOUND)
def test_pipelines_without_an_argument_for_the_schedule(
    make: Callable[[], Any], process: Any, sampler: str, call: Any
):
    """The scheduler keeps to it."""
    pipe = Watched(make())
    scheduler = "dpm_multistep" if process is TABLE else None
    result = bind(pipe, Schedule(times(process)), process, sampler=sampler, scheduler=scheduler)
    assert result.warnings == ()
    pipe(num_inference_steps=5, **call)
    np.testing.assert_allclose(pipe.told, timesteps(process), rtol=2e-6)


def test_every_text_of_a_pipeline_names_those_that_cut_by_strength():
    for scheduler in jk.exports.SCHEDULERS:
        result = export(
            Schedule(np.array([14.0, 1.0, 0.0])), jk.EDM(14.0), "diffusers", scheduler=scheduler
        )
        (remark,) = [text for text in result.remarks if "strength" in text]
        assert "run the last int(2 * strength) of these steps" in remark


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_image_to_image_runs_the_last_steps(strength: float, sampler: str):
    pipe = Watched(stable_diffusion("StableDiffusionImg2ImgPipeline"))
    bind(pipe, Schedule(TABLE_TIMES), TABLE, sampler=sampler)
    pipe("", torch.zeros(1, 3, 16, 16), strength=strength, num_inference_steps=5)
    kept = timesteps(TABLE)[-int(5 * strength) :]
    np.testing.assert_allclose(pipe.told, kept, atol=0.02)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_image_to_image_of_flux_runs_the_last_steps(sampler: str):
    pipe = Watched(flux("FluxImg2ImgPipeline"), **SMALL)
    bind(pipe, Schedule(FLOW_TIMES), FLOW, sampler=sampler)
    pipe("", image=torch.zeros(1, 3, 16, 16), strength=0.6, num_inference_steps=5)
    np.testing.assert_allclose(pipe.told, timesteps(FLOW)[-3:] / 1000.0, rtol=2e-6)


@pytest.mark.parametrize(
    ("make", "process", "kind", "noising"),
    [
        (lambda: stable_diffusion("StableDiffusionImg2ImgPipeline"), TABLE.sub_range(700.0),
         "EulerDiscreteScheduler", "add_noise"),
        (lambda: flux("FluxImg2ImgPipeline"), FLOW.sub_range(0.8),
         "FlowMatchEulerDiscreteScheduler", "scale_noise"),
    ],
)  # fmt: skip
def test_the_pasted_text_starts_from_noised_data(
    make: Callable[[], Any],
    process: Any,
    kind: str,
    noising: str,
    monkeypatch: pytest.MonkeyPatch,
):
    """The image gets noise of the first level of a sub-range, and every step is run."""
    of_flow = isinstance(process, jk.FlowMatching)
    at = np.array([0.8, 0.4, 0.05, 0.0]) if of_flow else np.array([700.0, 300.0, 40.0, 1.0])
    told = 1000.0 * at[:-1] if of_flow else at[:-1] - 1.0
    noised: list[float] = []
    scheduler = getattr(diffusers, kind)
    plain = getattr(scheduler, noising)

    def noted(self: Any, sample: Any, *others: Any) -> Any:
        (t,) = {float(t) for other in others if other.ndim == 1 for t in other}
        noised.append(t)
        return plain(self, sample, *others)

    monkeypatch.setattr(scheduler, noising, noted)
    size: Any = SMALL if of_flow else {}
    pipe = Watched(make(), **size)
    result = export(Schedule(at), process, "diffusers", sampler="ddim")
    names = {"pipe": pipe, "prompt": "", "image": torch.zeros(1, 3, 16, 16)}
    exec(compile(result.text, "export", "exec"), names)
    np.testing.assert_allclose(noised, told[:1], atol=0.02)
    np.testing.assert_allclose(pipe.told, told / 1000.0 if of_flow else told, atol=0.02)


def test_no_call_is_written_of_pipelines_that_start_from_pure_noise():
    process = TABLE.sub_range(700.0)
    schedule = Schedule(np.array([700.0, 300.0, 1.0]))
    result = export(schedule, process, "diffusers", scheduler="ddpm")
    assert "pipe(" not in result.text
    assert result.binding == result.text
    assert any("no call is written: DDPMPipeline always" in text for text in result.remarks)


def test_another_number_of_steps_is_an_error():
    """Image-to-image would otherwise skip the whole schedule without a word."""
    pipe = Watched(stable_diffusion(), **SMALL)
    bind(pipe, Schedule(TABLE_TIMES), TABLE, sampler="ddim")
    with pytest.raises(ValueError, match="the schedule needs num_inference_steps=5"):
        pipe("", num_inference_steps=50)


@pytest.mark.parametrize("scheduler", ["euler", "heun"])
@pytest.mark.parametrize(
    "make", [lambda: unconditional("DDPMPipeline"), lambda: unconditional("DDIMPipeline"), dit,
             kandinsky]
)  # fmt: skip
def test_a_pipeline_that_does_not_scale_is_an_error(make: Callable[[], Any], scheduler: str):
    """It would show the network noise of standard deviation 14.6 in place of 1, or 1 of 14.6."""
    pipe = Watched(make())
    bind(pipe, Schedule(TABLE_TIMES), TABLE, scheduler=scheduler)
    call = {dit: {"class_labels": [1]}, kandinsky: {**EMBEDS, **SMALL}}.get(make, {})
    with pytest.raises(ValueError, match="does not scale by sigma: export to 'dpm_multistep'"):
        pipe(num_inference_steps=5, **call)


def test_two_schedules_do_not_mix():
    """Binding another schedule to another pipeline leaves the first as it is."""
    first, second = Watched(stable_diffusion(), **SMALL), Watched(stable_diffusion(), **SMALL)
    names: dict[str, Any] = {}
    for pipe, at in ((first, TABLE_TIMES), (second, np.array([900.0, 300.0, 1.0]))):
        exec(
            export(Schedule(at), TABLE, "diffusers", sampler="ddim").binding,
            {**names, "pipe": pipe},
        )
    first("", num_inference_steps=5)
    second("", num_inference_steps=2)
    np.testing.assert_allclose(first.told, timesteps(TABLE), atol=0.02)
    np.testing.assert_allclose(second.told, [899.0, 299.0], atol=0.02)


MEAN, VARIANCE = 0.5, 0.3


def exact(pipe: Any) -> None:
    """Make the network exact for data N(0.5, 0.3), in each element."""
    network = pipe.network
    sigmas = np.exp(np.asarray(TABLE.log_sigmas))

    def epsilon(x: Any, timestep: Any, **_: Any) -> Any:
        t = float(torch.as_tensor(timestep).flatten()[0])
        sigma = math.exp(np.interp(t, np.arange(1000), np.log(sigmas)))
        a = 1.0 / math.hypot(1.0, sigma)
        x0 = MEAN + a * VARIANCE / (a**2 * (VARIANCE + sigma**2)) * (x - a * MEAN)
        eps = (x - a * x0) / (a * sigma)
        return diffusers.models.unets.unet_2d.UNet2DOutput(sample=eps)

    network.forward = epsilon


def ours(sampler: str, schedule: Schedule, x: Any) -> np.ndarray:
    """The samples that `jk.sample` makes from the same noise with the same network."""

    def denoiser(x: Any, t: Any) -> Any:
        a, s = TABLE.signal(t), TABLE.noise(t)
        return MEAN + a * VARIANCE / (a**2 * VARIANCE + s**2) * (x - a * MEAN)

    noise = jnp.asarray(x.double().numpy().reshape(-1, 1))
    result = jk.sample(jk.Denoiser(denoiser, TABLE, "x0"), sampler, schedule, noise)
    return np.asarray(result).reshape(x.shape)


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [("ddim", "euler"), ("ddim", "dpm_multistep"), ("dpmpp_2m", "dpm_multistep")],
)
def test_samples_of_stable_diffusion(sampler: str, scheduler: str):
    """With noise, network and schedule known, the samples are those of `jk.sample`."""
    pipe = Watched(stable_diffusion(), **SMALL)
    exact(pipe)
    schedule = Schedule(np.append(TABLE_TIMES[:-1], 0.0))
    bind(pipe, schedule, TABLE, sampler=sampler, scheduler=scheduler)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    latents = pipe(
        "", num_inference_steps=5, latents=noise.clone(), guidance_scale=1.0, output_type="latent"
    ).images
    np.testing.assert_allclose(latents, ours(sampler, schedule, noise), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["DDPMPipeline", "DDIMPipeline"])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_samples_of_unconditional_pipelines(name: str, sampler: str):
    pipe = Watched(unconditional(name))
    exact(pipe)
    schedule = Schedule(np.append(TABLE_TIMES[:-1], 0.0))
    bind(pipe, schedule, TABLE, sampler=sampler, scheduler="dpm_multistep")
    images = pipe(
        num_inference_steps=5, generator=torch.Generator().manual_seed(0), output_type="np"
    ).images
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = np.clip(ours(sampler, schedule, noise) / 2.0 + 0.5, 0.0, 1.0).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(images, wanted, rtol=2e-4, atol=2e-4)


def test_bind_names_what_it_cannot_do():
    schedule = Schedule(np.array([1000.0, 300.0, 24.0, 1.0]), np.array([0.1, 0.9, 0.0]))
    with pytest.raises(ValueError, match="pipe must have a scheduler of diffusers"):
        bind(object(), schedule, TABLE)
    holder = types.SimpleNamespace(scheduler=table_scheduler())
    with pytest.raises(ValueError, match="stochasticity varies from step to step"):
        bind(holder, schedule, TABLE, sampler="ddim")
    plain = Schedule(TABLE_TIMES)
    with pytest.raises(ValueError, match=r"'edm_euler' tells its network other levels .* 'euler'"):
        bind(holder, plain, TABLE, scheduler="edm_euler")
    assert type(holder.scheduler).__name__ == "PNDMScheduler"
    of_edm = types.SimpleNamespace(scheduler=diffusers.EDMEulerScheduler())
    with pytest.raises(ValueError, match=r"'euler' tells its network other levels .* 'edm_euler'"):
        bind(of_edm, Schedule([80.0, 2.0, 0.1]), jk.EDM(), scheduler="euler")


def test_a_flow_that_counts_time_from_noise():
    """Its own kind of scheduler inverts the levels; the others would run it in reverse."""
    schedule = Schedule(FLOW_TIMES)
    own = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    pipe = types.SimpleNamespace(scheduler=own)
    bind(pipe, schedule, FLOW, sampler="ddim")
    pipe.scheduler.set_timesteps(5)
    np.testing.assert_allclose(pipe.scheduler.timesteps, 1000.0 - 1000.0 * FLOW_TIMES[:-1], 1e-6)
    for sampler, scheduler in (("dpmpp_2m", "unipc"), ("ddim", "ltx_euler_ancestral")):
        pipe.scheduler = own
        scheduled = export(schedule, FLOW, "diffusers", sampler=sampler, scheduler=scheduler)
        with pytest.raises(ValueError, match="time is inverted: export to 'flow_match_euler'"):
            exec(f"{scheduled.binding}\npipe.scheduler.set_timesteps(5)", {"pipe": pipe})


@pytest.mark.parametrize(
    "own",
    [
        lambda: diffusers.CosineDPMSolverMultistepScheduler(),
        lambda: diffusers.DDPMWuerstchenScheduler(),
        lambda: diffusers.IPNDMScheduler(),
        # Stable Video Diffusion, whose network is told log(sigma) / 4
        lambda: diffusers.EulerDiscreteScheduler(
            timestep_type="continuous", prediction_type="v_prediction"
        ),
    ],
)
def test_networks_that_are_told_something_else_keep_their_scheduler(own: Callable[[], Any]):
    """Another one would tell them timesteps of Stable Diffusion's table, or log(sigma) / 4."""
    pipe = types.SimpleNamespace(scheduler=own())
    name = type(pipe.scheduler).__name__
    for schedule, process in ((Schedule(TABLE_TIMES), TABLE), (Schedule([80.0, 1.0]), jk.EDM())):
        with pytest.raises(ValueError, match=f"no scheduler can take the place of {name}"):
            bind(pipe, schedule, process)
    assert type(pipe.scheduler).__name__ == name


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_levels_of_another_process_are_told_as_timesteps_of_the_network(sampler: str):
    """Sigmas of an EDM schedule on Stable Diffusion, and of a table's on a network of EDM."""
    sigmas = np.asarray(Schedule(TABLE_TIMES).sigmas(TABLE))
    pipe = Watched(stable_diffusion(), **SMALL)
    bind(pipe, Schedule(sigmas), jk.EDM(float(sigmas[0])), sampler=sampler)
    pipe("", num_inference_steps=5)
    np.testing.assert_allclose(pipe.told, timesteps(TABLE), atol=0.02)
    pipe = Watched(stable_diffusion(), **SMALL)
    pipe.scheduler = diffusers.EDMEulerScheduler(sigma_max=float(sigmas[0]))
    bind(pipe, Schedule(TABLE_TIMES), TABLE)
    pipe("", num_inference_steps=5)
    np.testing.assert_allclose(np.exp(4.0 * np.array(pipe.told)), sigmas[:-1], rtol=1e-3)
