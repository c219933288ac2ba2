"""The relative reward ρ(x, t): a scalar whose gradient is the score difference of an expert and a base.

∇ρ(x_t, t) = s_expert(x_t, t) - s_base(x_t, t) (Nuti, Franzmeyer, Henriques 2023, definition 3.1). One object holds up
to two heads: ``window`` takes a whole event and steers; ``step`` is a sum over the steps of a window and makes maps and
per-state rewards. At the cleanest levels the step head is a function of the state without its noise, E[ρ(x_t, t) | x0]:
noise would move states into walls, where directions from both sides disagree and no potential fits them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from rrpolicy.common.archive import read_archive, write_archive
from rrpolicy.common.arguments import flag
from rrpolicy.common.device import resolve
from rrpolicy.common.kinds import check_network
from rrpolicy.common.messages import printable
from rrpolicy.common.publish import Published
from rrpolicy.common.schema import native
from rrpolicy.common.spaces import Env, check_widths
from rrpolicy.common.torch_mode import usual_tensor, usual_torch
from rrpolicy.common.typing import Array
from rrpolicy.common.weights import check_weights, stored_weights
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import Normalizer
from rrpolicy.diffusion.networks import ResidualMLP
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.score_model import ScoreModel, layout_of, normalizer_of, pinned_mask
from rrpolicy.diffusion.unet_encoder import UNetEncoder, config_of_model
from rrpolicy.rewards.algebra import RewardAlgebra
from rrpolicy.rewards.fit_report import FitReport, fit_fact
from rrpolicy.rewards.heads import archived_window, restored_window, window_network

Head = Literal["window", "step"]
CLEAN_FRACTION = 0.3  # of the levels: where the step head takes states without noise; maps use a third of it


class RelativeReward(RewardAlgebra, Published, nn.Module):
    """
    A scalar function of noised events, in nats.

    :param process: noise levels of the two models
    :param event_shape: shape of one event, (H, D) for windows
    :param pinned: bool ``event_shape``, conditioned entries; None for none
    :param layout: what a window holds; None for events that are not windows
    :param normalizer: environment units -> normalised; None for events that are not windows
    :param heads: ``"window"``, ``"step"`` or both; a step head needs events (H, D)
    :param window_kwargs: arguments of the window head's network; ``"network"`` chooses it: ``"mlp"`` (default), for
        events (C, H, W) ``"conv"`` or ``"unet-encoder"``, which starts from the base's U-Net, or an own class, made by
        ``network(process, event_shape, pinned, n_outputs=1, **others)``, whose output is (B, 1)
    :param step_kwargs: arguments of the step head's network, ``n_clean_levels`` among them
    :param value_units: the window head predicts in units of the spread of values at each level, not of score
        differences
    :param source: how the reward was made, kept in the archive
    """

    kind: ClassVar[str] = "reward"
    fit: FitReport | None = None  # what the extraction found; None where nothing was measured
    pinned: Tensor
    gradient_scale: Tensor
    value_scale: Tensor

    @usual_torch()
    def __init__(
        self,
        process: DiffusionProcess,
        event_shape: Sequence[int],
        pinned: Tensor | None = None,
        layout: TrajectoryLayout | None = None,
        normalizer: Normalizer | None = None,
        heads: Sequence[Head] = ("window", "step"),
        window_kwargs: Mapping[str, Any] | None = None,
        step_kwargs: Mapping[str, Any] | None = None,
        value_units: bool = False,
        source: str = "extraction",
    ) -> None:
        super().__init__()
        if not heads or set(heads) - {"window", "step"}:
            raise ValueError(f"heads is {heads}, it must name 'window', 'step' or both")
        if "step" in heads and len(event_shape) != 2:
            raise ValueError(f"a step head needs events of shape (H, D), event_shape is {tuple(event_shape)}")
        self.process = process
        self.event_shape = tuple(event_shape)
        self.layout = layout
        self.normalizer = normalizer
        if layout is not None and normalizer is not None:
            normalizer.packed(layout)  # of the same widths
        if layout is not None and tuple(event_shape) != layout.event_shape:
            raise ValueError(f"event_shape is {tuple(event_shape)}, the layout's windows have {layout.event_shape}")
        self.heads = tuple(heads)
        self.source = source
        self.window_kwargs: dict[str, Any] = native(window_kwargs or {})
        if layout is None and self.window_kwargs.get("network", "mlp") == "mlp":
            # Fourier features place steps in space; an event that is not a window has no steps to place
            self.window_kwargs = {"n_fourier_features": 0, **self.window_kwargs}
        if isinstance(self.window_kwargs.get("network", "mlp"), str):
            check_network(self.window_kwargs, "window_kwargs")
        check_network(step_kwargs or {}, "step_kwargs")
        n_clean_levels = 1 + round(CLEAN_FRACTION * process.n_diffusion_steps)
        self.step_kwargs = {"width": 64, "n_blocks": 3, "n_clean_levels": n_clean_levels, **native(step_kwargs or {})}
        mask = torch.zeros(self.event_shape, dtype=torch.bool, device="cpu") if pinned is None else pinned.clone()
        self.register_buffer("pinned", mask, persistent=False)
        # RMS of the score difference per level: heads predict in units of it, so that every level is equally hard
        self.register_buffer("gradient_scale", torch.ones(process.n_diffusion_steps))
        self.value_units = flag("value_units", value_units)
        if self.value_units:
            self.register_buffer("value_scale", torch.ones(process.n_diffusion_steps))
        if "window" in heads:
            self.window = window_network(process, self.event_shape, mask, **self.window_kwargs)
        if "step" in heads:
            nothing = torch.zeros(self.event_shape[1:], dtype=torch.bool, device="cpu")
            self.step = ResidualMLP(process, self.event_shape[1:], nothing, n_outputs=1, **self.step_kwargs)

    @classmethod
    def for_model(cls, model: ScoreModel, window_kwargs: Mapping[str, Any] | None = None, **kwargs: Any) -> Self:
        """
        An untrained reward over the events of ``model``.

        :param window_kwargs: as in the constructor; with the network ``"unet-encoder"`` and no ``"unet_config"`` the
            window head has the architecture and the weights of the model's U-Net
        :param kwargs: as in the constructor
        :raises ValueError: as the constructor, and for a model without such a U-Net
        """
        window_kwargs = {**(window_kwargs or {})}
        starts = window_kwargs.get("network") == "unet-encoder" and "unet_config" not in window_kwargs
        if starts:
            window_kwargs["unet_config"] = config_of_model(model)
        reward = cls(
            model.process,
            model.event_shape,
            pinned_mask(model).cpu(),
            layout=layout_of(model),
            normalizer=normalizer_of(model),
            window_kwargs=window_kwargs,
            **kwargs,
        )
        window = getattr(reward, "window", None)
        if starts and isinstance(window, UNetEncoder):
            window.start_from(model)
        return reward

    def forward(self, x_t: Tensor, t: Tensor, head: Head | None = None) -> Tensor:
        """
        ρ of noised events, with gradients.

        :param x_t: (B, *event_shape), normalised, clean at pinned entries
        :param t: levels (B,) int64
        :param head: ``"window"`` (the default where there is one) or ``"step"``
        :return: (B,) in nats, up to a constant per level when values were not matched
        :raises ValueError: for a wrong shape or a head that this reward does not have
        """
        if x_t.ndim != len(self.event_shape) + 1 or tuple(x_t.shape[1:]) != self.event_shape:
            raise ValueError(f"x_t has shape {tuple(x_t.shape)}, wanted (B, {', '.join(map(str, self.event_shape))})")
        if t.shape != x_t.shape[:1]:
            raise ValueError(f"t has shape {tuple(t.shape)}, wanted ({len(x_t)},)")
        return self.unchecked(x_t, t, head)

    def unchecked(self, x_t: Tensor, t: Tensor, head: Head | None = None) -> Tensor:
        """As :meth:`forward`, without its checks; ``t`` may be the one level (1,) of all events."""
        head = self._head(head)
        if head == "window":
            scale = self.value_scale if self.value_units else self.gradient_scale
            output = self.window(x_t, t)
            if output.shape != (x_t.shape[0], 1):
                raise ValueError(f"the window head's network returned {tuple(output.shape)}, wanted ({len(x_t)}, 1)")
            return scale[t] * output.squeeze(1)
        free = (~self.pinned).any(dim=1)
        levels = t[:, None].expand(x_t.shape[0], self.event_shape[0]).flatten()
        rows = self.forward_steps(x_t.flatten(0, 1), levels)
        return (rows.view(x_t.shape[0], -1) * free).sum(dim=1)

    def forward_steps(self, x_t: Tensor, t: Tensor) -> Tensor:
        """
        ρ of single steps, whose sum over a window is the step head's ρ.

        :param x_t: (N, D) normalised, as :meth:`step_inputs` gives them
        :param t: (N,)
        :return: (N,)
        """
        self._head("step")
        return self.gradient_scale[t] * self.step(x_t, t).squeeze(1)

    def step_inputs(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Inputs of the step head: α x0 at the cleanest levels, x_t elsewhere; all (N, ..., D)."""
        clean = (t < self.n_clean_levels).view(-1, *(1,) * (x_t.ndim - 1))
        return torch.where(clean, self.process.levels(x_t, t)[0] * x0, x_t)

    @usual_torch()
    def gradient(self, x_t: Tensor, t: Tensor, head: Head | None = None) -> Tensor:
        """∇ρ with respect to x_t (B, *event_shape); zero at pinned entries. Leaves no trace on ``x_t``."""
        with torch.enable_grad():
            inputs = usual_tensor(x_t.detach()).requires_grad_(True)
            (gradient,) = torch.autograd.grad(self(inputs, usual_tensor(t), head).sum(), inputs)
        return torch.where(self.pinned, 0.0, gradient)

    # ------------------------------------------------------------------ numpy, in environment units

    @usual_torch()
    @torch.no_grad()
    def predict(self, observations: Array, actions: Array | None = None, levels: Sequence[int] | None = None) -> Array:
        """
        Reward of clean data in environment units.

        :param observations: single steps (n, obs_dim), scored by the step head, or windows (n, H, obs_dim), scored by
            the window head (rows ``layout.stride`` environment steps apart)
        :param actions: (n, act_dim) or (n, H, act_dim); may be None when actions are not planned
        :param levels: noise levels to average over; default: step head ``map_level``, window head t = 0
        :return: (n,) float32 in nats
        :raises ValueError: for wrong shapes, NaN, or a head that this reward does not have
        """
        x0 = self.packed(observations, actions)
        head: Head = "step" if x0.ndim == 2 else "window" if "window" in self.heads else "step"
        levels = [self.map_level if head == "step" else 0] if levels is None else levels
        n_levels = self.process.n_diffusion_steps
        chosen = list(levels) if isinstance(levels, Sequence) or np.ndim(levels) == 1 else []
        whole = all(isinstance(level, int | np.integer) and not isinstance(level, bool) for level in chosen)
        if not chosen or not whole or not all(0 <= level < n_levels for level in chosen):
            raise ValueError(f"levels is {printable(levels)}, wanted some of 0..{n_levels - 1}")
        rewards = torch.zeros(len(x0), device=x0.device)
        for level in chosen:
            t = torch.full((len(x0),), level, dtype=torch.int64, device=x0.device)
            alpha = self.process.alpha(level)  # the noised event's mean: x_t without its noise
            x_t = torch.where(self.pinned, x0, alpha * x0) if x0.ndim == 3 else alpha * x0
            rewards += self.forward_steps(x_t, t) if x0.ndim == 2 else self(x_t, t, head)
        if not bool(torch.isfinite(rewards).all()):
            raise ValueError("the rewards hold NaN or infinite numbers: weights or data are too large to compute with")
        return (rewards / len(chosen)).cpu().numpy()

    @property
    def device(self) -> torch.device:
        """Where the reward computes, and its events have to be."""
        return self.pinned.device

    @property
    def n_clean_levels(self) -> int:
        """Cleanest levels, at which the step head takes states without their noise."""
        return int(self.step_kwargs["n_clean_levels"])

    def _head(self, head: Head | None) -> Head:
        if head is None:
            return self.heads[0] if "window" not in self.heads else "window"
        if head not in self.heads:
            raise ValueError(f"head is {head!r}, this reward has {self.heads}")
        return head

    def packed(self, observations: Array, actions: Array | None) -> Tensor:
        """Environment units, as :meth:`predict` takes them -> clean normalised packed (n, D) or (n, H, D)."""
        layout, normalizer = self.layout, self.normalizer
        if layout is None or normalizer is None:
            raise ValueError("this reward has no layout and normalizer, so it has no environment units; call it on x_t")
        values = np.asarray(observations, dtype=np.float32)
        steps, windows = ("n", layout.observation_dim), ("n", layout.horizon, layout.observation_dim)
        fits = values.ndim in (2, 3) and values.shape[-1] == layout.observation_dim
        if not fits or (values.ndim == 3 and values.shape[1] != layout.horizon):
            raise ValueError(f"observations has shape {values.shape}, wanted {steps} or {windows}")
        normalised = [normalizer.observations.normalize(values)]
        if layout.plan_actions:
            wanted = (*values.shape[:-1], layout.action_dim)
            given = np.zeros(0, np.float32) if actions is None else np.asarray(actions, dtype=np.float32)
            if given.shape != wanted:
                raise ValueError(f"actions has shape {given.shape if actions is not None else None}, wanted {wanted}")
            normalised.append(normalizer.actions.normalize(given))
        if not all(np.isfinite(array).all() for array in normalised):
            raise ValueError(f"observations or actions (observations of shape {values.shape}) hold NaN or inf")
        return torch.as_tensor(layout.pack(*normalised), dtype=torch.float32).to(self.device)

    # ------------------------------------------------------------------ persistence

    def to_config(self) -> dict[str, Any]:
        """Everything but tensors that :meth:`from_config` needs."""
        return {
            "process": self.process.to_dict(),
            "event_shape": list(self.event_shape),
            "pinned": self.pinned.cpu().flatten().nonzero().flatten().tolist(),
            "layout": None if self.layout is None else self.layout.to_dict(),
            "heads": list(self.heads),
            "window_kwargs": archived_window(self.window_kwargs),
            "step_kwargs": self.step_kwargs,
            "value_units": self.value_units,
            "source": self.source,
            **({} if self.fit is None else {"fit": self.fit.to_dict()}),
        }

    def normalizer_tensors(self) -> dict[str, dict[str, Tensor]]:
        known = {} if self.normalizer is None else self.normalizer.to_arrays()
        return {"normalizer": {name: torch.tensor(array) for name, array in known.items()}} if known else {}

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        tensors: Mapping[str, Mapping[str, Tensor]],
        network: type[nn.Module] | None = None,
    ) -> Self:
        """
        An untrained reward with the architecture of ``config`` and the normaliser in ``tensors``.

        :param network: class of the window head's network, where that is not one of the library's
        """
        pinned = torch.zeros(tuple(config["event_shape"]), dtype=torch.bool, device="cpu")
        pinned.view(-1)[config["pinned"]] = True
        reward = cls(
            DiffusionProcess(**config["process"]),
            config["event_shape"],
            pinned,
            layout=None if config["layout"] is None else TrajectoryLayout.from_dict(config["layout"]),
            normalizer=Normalizer.from_tensors(tensors["normalizer"]) if "normalizer" in tensors else None,
            heads=tuple(config["heads"]),
            window_kwargs=restored_window(config["window_kwargs"], network),
            step_kwargs=config["step_kwargs"],
            value_units=config.get("value_units", False),
            source=config["source"],
        )
        reward.fit = FitReport.from_dict(config.get("fit"))
        return reward

    def save(self, path: str | Path, *, half: bool = False, card: Mapping[str, Any] | None = None) -> None:
        """
        Write one archive (no pickle).

        :param path: file; ``.zip`` is added when missing
        :param half: store weights in half precision
        :param card: facts about the reward, to which its fit report is added
        """
        tensors, config = {"weights": stored_weights(self, half), **self.normalizer_tensors()}, self.to_config()
        write_archive(path, self.kind, config, tensors, {**fit_fact(config), **(card or {})})

    @classmethod
    @usual_torch()
    def load(
        cls,
        path: str | Path,
        env: Env | str | None = None,
        device: torch.device | str = "auto",
        *,
        network: type[nn.Module] | None = None,
    ) -> Self:
        """
        Read what :meth:`save` wrote.

        :param path: file, with or without ``.zip``
        :param env: an environment or its id, whose spaces must be those that the reward was made for; it is not kept
        :param device: of the reward, see `common.device.resolve`
        :param network: class of the window head's network, where that is not one of the library's
        :raises FileNotFoundError: when there is no such file
        :raises ValueError: when the archive is damaged, foreign, unsafe or of another kind, naming file and fault, and
            for another environment, naming both spaces
        """
        place = resolve(device)
        archive = read_archive(path, cls.kind)
        with archive.rebuilding():
            reward = cls.from_archive(archive.config, archive.tensors, archive.tensors["weights"], network)
            if env is not None:
                reward.check_environment(env)
        return reward.to(place)

    def check_environment(self, env: Env | str) -> None:
        """
        Check that an environment is one that the reward was made for.

        :param env: an environment, a vectorised one of Stable-Baselines3, or an id
        :raises ValueError: when its spaces have other widths, naming both, or the reward knows no environment
        """
        if self.layout is None:
            raise ValueError("env was given, and a reward without a layout knows no environment: leave it out")
        check_widths(env, self.layout.observation_dim, self.layout.action_dim)

    @classmethod
    def from_archive(
        cls,
        config: Mapping[str, Any],
        tensors: Mapping[str, Mapping[str, Tensor]],
        weights: Mapping[str, Tensor],
        network: type[nn.Module] | None = None,
    ) -> Self:
        """
        A reward as it stands in an archive, ready to score.

        :param config: what :meth:`to_config` returned
        :param tensors: the archive's, with the group ``"normalizer"`` where there is one
        :param weights: the state dictionary
        :param network: class of the window head's network, where that is not one of the library's
        :raises ValueError: for weights that are not those of the configuration
        """
        check_weights(lambda: cls.from_config(config, tensors, network), weights)
        reward = cls.from_config(config, tensors, network)
        reward.load_state_dict(dict(weights))
        return reward.requires_grad_(False).eval()
