"""What folders name as scheduler and pipeline: read where it is a table of betas, else refused with the reason."""

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from helpers.pipelines import SCALED, unet, write_ddpm, write_stable_diffusion
from test_cli import fault

from rrpolicy.diffusion.sampling import sample
from rrpolicy.diffusion.schedulers import REFUSED, SUPPORTED, process_of, process_of_config
from rrpolicy.images import schedulers
from rrpolicy.images.parts import PIPELINES
from rrpolicy.images.stable_diffusion import StableDiffusion
from rrpolicy.images.unet import UNetScoreModel

DOCS = Path(__file__).resolve().parents[1] / "docs"


def set_config(folder: Path, name: str, **values: Any) -> Path:
    """A folder one of whose configurations has been changed; None takes an entry away."""
    path = folder / name
    config = {**json.loads(path.read_text()), **values} if path.is_file() else values
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return folder


# ---------------------------------------------------------------------- tables of betas


@pytest.mark.parametrize("kind", SUPPORTED)
def test_supported_schedulers_are_read_as_their_own_tables(kind: str) -> None:
    config = {"_class_name": kind, **SCALED, "num_train_timesteps": 100}
    wanted = diffusers.DDPMScheduler(**SCALED, num_train_timesteps=100).alphas_cumprod
    process = process_of_config(config)
    torch.testing.assert_close(process.alpha(torch.arange(100)) ** 2, wanted)
    try:
        theirs = getattr(diffusers, kind)(**SCALED, num_train_timesteps=100)
    except ImportError:  # some of them need further packages, to sample
        return
    assert process_of(theirs) == process
    torch.testing.assert_close(theirs.alphas_cumprod, wanted)


@pytest.mark.parametrize("kind", SUPPORTED)
def test_what_a_configuration_leaves_out_is_the_default_of_its_class(kind: str) -> None:
    defaults = inspect.signature(getattr(diffusers, kind).__init__).parameters
    if "beta_start" in defaults:  # not where the class stands in for a missing package
        assert {name: defaults[name].default for name in ("beta_start", "beta_end")} == SUPPORTED[kind]
        assert (defaults["num_train_timesteps"].default, defaults["beta_schedule"].default) == (1000, "linear")
    betas = torch.linspace(SUPPORTED[kind]["beta_start"], SUPPORTED[kind]["beta_end"], 1000, dtype=torch.float64)
    process = process_of_config({"_class_name": kind})
    got = process.alpha(torch.arange(1000)).double() ** 2
    torch.testing.assert_close(got, torch.cumprod(1 - betas, dim=0), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", [f"{kind}Scheduler" for kind in ("DDPM", "DDIM", "EulerDiscrete", "UniPCMultistep")])
def test_the_level_without_signal_is_left_out(kind: str) -> None:
    """Zero terminal SNR (Lin et al. 2024): some classes write the last level as 0, others as 2^-24."""
    scheduler = getattr(diffusers, kind)(**SCALED, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    process = process_of(scheduler)
    assert process.n_diffusion_steps == 999 and process.prediction == "v"
    torch.testing.assert_close(process.alpha(torch.arange(999)) ** 2, scheduler.alphas_cumprod[:-1])
    assert process == process_of(
        diffusers.DDIMScheduler(**SCALED, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    )


def test_zero_terminal_snr_is_denoised_to_what_the_network_knows(tmp_path: Path) -> None:
    """A network that knows x0 = 0.5 everywhere, in terms of v: DDIM from almost pure noise ends there."""
    unet().save_pretrained(tmp_path / "unet")
    diffusers.DDPMScheduler(
        num_train_timesteps=100, prediction_type="v_prediction", rescale_betas_zero_snr=True
    ).save_pretrained(tmp_path / "scheduler")
    process = UNetScoreModel.from_pretrained(tmp_path).process

    def eps(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = process.levels(x_t, t)
        return process.eps_from_output(x_t, t, (alpha * x_t - 0.5) / sigma)

    drawn = sample(eps, process, torch.randn(2, 1, 8, 8), process.timesteps(10))
    torch.testing.assert_close(drawn, torch.full((2, 1, 8, 8), 0.5), rtol=0, atol=2e-3)


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        *(({"_class_name": kind}, f"{kind} {reason}") for kind, reason in REFUSED.items()),
        ({"_class_name": "MyScheduler"}, "'?MyScheduler'? is not known here to have a table of betas"),
        ({"_class_name": ["DDPMScheduler"]}, "is not known here"),
        ({}, "lacks _class_name, wanted the name of a scheduler"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "with use_flow_sigmas has the levels of"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "timestep_type continuous has lev"),
        ({"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"}, "prediction_type is"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}, "trailing, as Turbo and Lightning"),
        ({"_class_name": "HeunDiscreteScheduler", "beta_schedule": "exp"}, "the scheduler names no noise levels: exp"),
        ({"_class_name": "DDPMScheduler", "trained_betas": ["a"]}, "the scheduler names no noise levels"),
        ({"_class_name": "DDPMScheduler", "trained_betas": 0}, "the scheduler names no noise levels"),
        ({"_class_name": "DDPMScheduler", "trained_betas": [[0.1]]}, "the scheduler names no noise levels"),
        ({"_class_name": "DDPMScheduler", "trained_betas": []}, "the scheduler names no noise levels"),
    ],
)
def test_other_schedulers_are_refused_with_the_reason(config: dict[str, Any], reason: str, tmp_path: Path) -> None:
    folder = write_ddpm(tmp_path / "model")
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({**config, "num_train_timesteps": 40}))
    with pytest.raises(ValueError, match=reason) as caught:
        UNetScoreModel.from_pretrained(folder)
    said = str(caught.value)
    assert said.startswith(f"{folder}/scheduler/scheduler_config.json: ") and len(said) <= 300 and said.isprintable()


def test_trailing_steps_of_a_model_with_zero_terminal_snr_are_no_sign_of_distillation() -> None:
    config = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    assert process_of_config(config).n_diffusion_steps == 999
    assert process_of_config({**config, "_class_name": "DDIMScheduler"}).n_diffusion_steps == 999


@pytest.mark.parametrize("kind", PIPELINES)
def test_pipelines_of_another_kind_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    folder = set_config(write_ddpm(tmp_path / "model"), "model_index.json", _class_name=kind)
    with pytest.raises(ValueError, match=f"model_index.json: a {kind} ") as caught:
        UNetScoreModel.from_pretrained(folder)
    assert PIPELINES[kind] in str(caught.value) and len(str(caught.value)) <= 300


def test_latents_of_a_vector_quantised_autoencoder_are_not_taken_for_pixels(tmp_path: Path) -> None:
    folder = write_ddpm(tmp_path / "model")
    (folder / "vqvae").mkdir()
    (folder / "model_index.json").unlink()
    with pytest.raises(ValueError, match="a unet beside a vqvae denoises latents of a vector-quantised autoencoder"):
        UNetScoreModel.from_pretrained(folder)


def test_damaged_indices_are_named(tmp_path: Path) -> None:
    folder = write_ddpm(tmp_path / "model")
    (folder / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=r"model_index\.json: could not be read"):
        UNetScoreModel.from_pretrained(folder)


def test_a_distilled_network_is_known_by_its_guidance_embedding(tmp_path: Path) -> None:
    pipeline = StableDiffusion.from_pretrained(write_stable_diffusion(tmp_path / "sd"))
    config = {**pipeline.unet.config, "time_cond_proj_dim": 8}
    network = diffusers.UNet2DConditionModel.from_config(config)
    with pytest.raises(ValueError, match=r"takes the guidance as a number, as LCM's does: it is distilled"):
        StableDiffusion(network, pipeline.codec.vae, pipeline.text_encoder, pipeline.tokenizer, pipeline.process)


def test_the_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    folder = write_ddpm(tmp_path / "model")
    set_config(folder, "scheduler/scheduler_config.json", _class_name="EDMEulerScheduler")
    said = fault("images", "sample", "--model", folder, "--out", tmp_path / "out")
    assert "scheduler_config.json: EDMEulerScheduler has levels of growing variance" in said
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------- documentation


def test_the_documentation_has_the_tables_of_the_code() -> None:
    assert schedulers.markdown() in (DOCS / "images.md").read_text(encoding="utf-8")
    for kind in SUPPORTED:
        assert hasattr(diffusers, kind)


# ---------------------------------------------------------------------- class labels


def test_a_class_label_is_what_the_network_is_asked_about(tmp_path: Path) -> None:
    network = unet(num_class_embeds=3)
    network.save_pretrained(tmp_path / "unet")
    diffusers.DDPMScheduler(num_train_timesteps=20).save_pretrained(tmp_path / "scheduler")
    x_t, t = torch.randn(5, 1, 8, 8), torch.tensor([0, 3, 7, 12, 19])
    for label in (0, 2):
        model = UNetScoreModel.from_pretrained(tmp_path, class_label=label)
        model.batch_size = 2
        with torch.no_grad():
            wanted = network(x_t, t, class_labels=torch.full((5,), label)).sample
        torch.testing.assert_close(model.eps(x_t, t), wanted, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=rf"{tmp_path}: the UNet is conditioned on class labels and class_label is N"):
        UNetScoreModel.from_pretrained(tmp_path)
