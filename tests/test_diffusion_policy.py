"""Checkpoints of Diffusion Policy are read as data: folders of LeRobot, older and newer, and the original's files."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from helpers.policies import STATISTICS, original_weights, policy_unet, write_lerobot
from safetensors.torch import save_file
from torch import nn

from rrpolicy.models import load_diffusion_policy, load_lerobot, policy_events

SCHEDULER = diffusers.DDPMScheduler(20, beta_schedule="squaredcos_cap_v2")

# of LeRobot's DiffusionConditionalUnet1d with down_dims (8, 16), kernel 3, embedding 8 and 10 numbers observed
NAMES = {
    "diffusion_step_encoder.1.weight": (32, 8),
    "diffusion_step_encoder.3.bias": (8,),
    "down_modules.0.0.conv1.block.0.weight": (8, 2, 3),
    "down_modules.0.0.conv1.block.1.weight": (8,),
    "down_modules.0.0.cond_encoder.1.weight": (16, 18),
    "down_modules.0.0.residual_conv.weight": (8, 2, 1),
    "down_modules.0.2.weight": (8, 8, 3),
    "down_modules.1.1.conv2.block.0.weight": (16, 16, 3),
    "mid_modules.1.conv1.block.0.weight": (16, 16, 3),
    "up_modules.0.0.conv1.block.0.weight": (8, 32, 3),
    "up_modules.0.2.weight": (8, 8, 4),
    "final_conv.0.block.0.weight": (8, 8, 3),
    "final_conv.1.weight": (2, 8, 1),
}


def data(n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations and actions in environment units."""
    generator = torch.Generator().manual_seed(0)
    observations, actions = (torch.randn(n, *shape, generator=generator) for shape in ((2, 5), (8, 2)))
    observations[..., 2] = 2.0
    return observations, actions


def test_weights_have_the_names_and_shapes_of_lerobot() -> None:
    stored = {name: tuple(value.shape) for name, value in policy_unet().state_dict().items()}
    assert NAMES.items() <= stored.items() and len(stored) == 100
    assert "down_modules.0.1.residual_conv.weight" not in stored and "down_modules.1.2.weight" not in stored
    shifted = policy_unet(scales=False).state_dict()
    assert tuple(shifted["down_modules.0.0.cond_encoder.1.weight"].shape) == (8, 18)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_a_folder_of_lerobot_is_a_score_model(tmp_path: Path, older: bool, prediction: str) -> None:
    unet = policy_unet()
    model = load_lerobot(write_lerobot(tmp_path, unet, older, prediction_type=prediction))
    assert model.event_shape == (8 * 2 + 2 * 5,) and int(model.pinned.sum()) == 10 and model.clip == 1.0
    observations, actions = data()
    events = policy_events(model, observations.numpy(), actions)
    low, high = STATISTICS["action.min"], STATISTICS["action.max"]
    torch.testing.assert_close(events[:, :16].view(-1, 8, 2), 2 * (actions - low) / (high - low) - 1)
    given = torch.cat(  # per step: state, its constant column at -1, then environment state
        [
            (observations[..., :2] - torch.tensor([1.0, 0.5])) / torch.tensor([2.0, 0.5]),
            torch.full((6, 2, 1), -1.0),
            (observations[..., 3:] - torch.tensor([1.0, -2.0])) / torch.tensor([0.5, 2.0]),
        ],
        dim=2,
    ).flatten(1)
    torch.testing.assert_close(events[:, 16:], given)
    t = torch.tensor([0, 3, 7, 12, 18, 19])
    assert torch.allclose(model.path.a.float() ** 2, SCHEDULER.alphas_cumprod, atol=1e-5)
    output = unet(events[:, :16].view(-1, 8, 2), t, global_cond=given).detach()
    alpha, sigma = model.process.levels(output, t)
    wanted = output if prediction == "epsilon" else (events[:, :16].view(-1, 8, 2) - alpha * output) / sigma
    torch.testing.assert_close(model.eps(events, t)[:, :16], wanted.flatten(1), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"shapes \(6, 2, 5\) and \(6, 7, 2\), wanted \(N, 2, 5\) and \(N, 8, 2\)"):
        policy_events(model, observations, actions[:, :7])


def test_features_and_levels_change_what_the_network_gives() -> None:
    """Each input reaches the output, and without scales features only shift."""
    for scales in (True, False):
        unet, x = policy_unet(scales=scales), torch.randn(4, 8, 2)
        features = torch.randn(4, 10)
        with torch.no_grad():
            one = unet(x, 3, global_cond=features)
            assert torch.equal(one, unet(x, torch.full((4,), 3), global_cond=features)) and one.shape == x.shape
            for other in (unet(x, 4, global_cond=features), unet(x, 3, global_cond=-features), unet(-x, 3, features)):
                assert float((other - one).abs().max()) > 1e-3


def test_older_and_newer_folders_are_one_model(tmp_path: Path) -> None:
    models = [load_lerobot(write_lerobot(tmp_path / str(older), policy_unet(), older)) for older in (False, True)]
    compiled = policy_unet()
    write_lerobot(tmp_path / "compiled", compiled)
    save_file(
        {f"diffusion.unet._orig_mod.{name}": value for name, value in compiled.state_dict().items()},
        tmp_path / "compiled" / "model.safetensors",
    )
    models.append(load_lerobot(tmp_path / "compiled"))
    events = policy_events(models[0], *data())
    for other in models[1:]:
        assert other.fingerprint() == models[0].fingerprint()
        assert torch.equal(other.eps(events, torch.full((6,), 5)), models[0].eps(events, torch.full((6,), 5)))


FAULTS: list[tuple[dict[str, Any], str]] = [
    (
        {"input_features": {"observation.images.top": {"type": "VISUAL", "shape": [3, 96, 96]}}},
        "observation.images.top is a picture: load the policy .* features of its encoder as the condition",
    ),
    ({"type": "act"}, "config.json: type: .*'diffusion', got act"),
    ({"horizon": 7}, "the horizon is 7, wanted a multiple of 2"),
    ({"kernel_size": 5}, r"tensor .*conv1.* has shape \(8, 2, 3\), wanted \(8, 2, 5\)"),
    ({"down_dims": [2**20]}, "config.json: down_dims.0: .* got 1048576"),
    ({"n_groups": 3}, r"divisible by num_groups \(3\)"),
    ({"n_obs_steps": 3}, "cond_encoder.1.weight has shape"),
    ({"beta_schedule": "jump"}, "jump"),
    ({"noise_scheduler_type": "LCM"}, "noise_scheduler_type: .* got LCM"),
    ({"normalization_mapping": {"STATE": "QUANTILES"}}, "no observation.state.q01 of 3 numbers, which QUANTILES needs"),
    ({"input_features": {"observation.effort": {"type": "STATE", "shape": [3]}}}, "observation.effort is not known"),
    ({"input_shapes": {}}, "config.json: is of a version before 2025"),
]


@pytest.mark.parametrize(("changes", "fault"), FAULTS)
def test_what_a_folder_cannot_mean_is_named(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as caught:
        load_lerobot(write_lerobot(tmp_path, policy_unet(), **changes))
    assert str(tmp_path) in str(caught.value)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json: .*No such file"):
        load_lerobot(tmp_path)
    write_lerobot(tmp_path, policy_unet())
    preprocessor = json.loads((tmp_path / "policy_preprocessor.json").read_text())
    for state_file in ("../secret.safetensors", "/etc/x.safetensors", "weights.pkl"):
        preprocessor["steps"][1]["state_file"] = state_file
        (tmp_path / "policy_preprocessor.json").write_text(json.dumps(preprocessor))
        with pytest.raises(ValueError, match=r"policy_preprocessor\.json: steps\.1\.state_file"):
            load_lerobot(tmp_path)
    preprocessor["steps"][0] = {"registry_name": "relative_actions_processor", "config": {"enabled": True}}
    preprocessor["steps"][1]["state_file"] = None
    (tmp_path / "policy_preprocessor.json").write_text(json.dumps(preprocessor))
    with pytest.raises(ValueError, match="actions are relative"):
        load_lerobot(tmp_path)
    (tmp_path / "policy_preprocessor.json").unlink()
    with pytest.raises(ValueError, match=r"no observation\.state\.min"):
        load_lerobot(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"model\.safetensors: "):
        load_lerobot(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds a list, wanted an object"):
        load_lerobot(tmp_path)


# ---------------------------------------------------------------------- the original


def checkpoint(path: Path, **groups: Any) -> Path:
    torch.save({"cfg": {}, "state_dicts": groups, "pickles": {"_output_dir": b"code"}}, path)
    return path


def test_weights_of_the_original_are_read_as_data(tmp_path: Path) -> None:
    unet, other = policy_unet(), policy_unet(1)
    file = checkpoint(tmp_path / "a.ckpt", ema_model=original_weights(unet), model=original_weights(other))
    model = load_diffusion_policy(file, SCHEDULER, 8, n_groups=4)
    observations, actions = data()
    events = policy_events(model, observations, actions)
    np.testing.assert_allclose(events[:, 16:].view(-1, 2, 5), 2 * observations + torch.arange(5.0), rtol=1e-5)
    low, high = STATISTICS["action.min"], STATISTICS["action.max"]
    torch.testing.assert_close(events[:, :16].view(-1, 8, 2), 2 * (actions - low) / (high - low) - 1)
    t = torch.arange(6)
    for loaded, wanted in ((model, unet), (load_diffusion_policy(file, SCHEDULER, 8, 4, ema=False), other)):
        output = wanted(events[:, :16].view(-1, 8, 2), t, global_cond=events[:, 16:]).detach()
        torch.testing.assert_close(loaded.eps(events, t)[:, :16], output.flatten(1))


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    """The remedy is named where weights would be built by code; code elsewhere in the file is left where it is."""
    weights = original_weights(policy_unet())
    file = checkpoint(tmp_path / "code.ckpt", ema_model={**weights, "model.final_conv.1.bias": nn.Linear(1, 1)})
    with pytest.raises(ValueError, match=r"code\.ckpt: .*would be built by torch.*save what is data, torch\.save"):
        load_diffusion_policy(file, SCHEDULER, 8)
    torch.save({"state_dicts": {"ema_model": weights}, "cfg": Trap(tmp_path / "trap")}, tmp_path / "trap.ckpt")
    assert load_diffusion_policy(tmp_path / "trap.ckpt", SCHEDULER, 8, 4).event_shape == (26,)
    assert not (tmp_path / "trap").exists()


class Trap:
    """A configuration that would write a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_what_a_checkpoint_of_the_original_cannot_mean_is_named(tmp_path: Path) -> None:
    weights = original_weights(policy_unet())
    faults: list[tuple[dict[str, Any], str]] = [
        ({"obs_encoder.obs_nets.rgb.weight": torch.zeros(1)}, "obs_nets.rgb.weight encodes pictures: load the policy"),
        ({"model.local_cond_encoder.0.weight": torch.zeros(1)}, "wanted obs_as_global_cond"),
        ({"normalizer.params_dict.obs.scale": torch.ones(7)}, "no normaliser of obs"),
        ({"normalizer.params_dict.action.scale": torch.zeros(2)}, "no normaliser of action"),
        (
            {f"normalizer.params_dict.obs.{name}": torch.ones(3) for name in ("scale", "offset")},
            "given 10, .* 3 observed",
        ),
    ]
    for changes, fault in faults:
        with pytest.raises(ValueError, match=fault):
            load_diffusion_policy(checkpoint(tmp_path / "a.ckpt", ema_model={**weights, **changes}), SCHEDULER, 8, 4)
    with pytest.raises(ValueError, match="no weights of a conditional U-Net"):
        rest = {name: value for name, value in weights.items() if not name.startswith("model.")}
        load_diffusion_policy(checkpoint(tmp_path / "b.ckpt", ema_model=rest), SCHEDULER, 8, 4)
    with pytest.raises(ValueError, match="has no 'ema_model', its keys are"):
        load_diffusion_policy(checkpoint(tmp_path / "c.ckpt", model=weights), SCHEDULER, 8, 4)
    with pytest.raises(ValueError, match=r"none\.ckpt: .*No such file"):
        load_diffusion_policy(tmp_path / "none.ckpt", SCHEDULER, 8, 4)
