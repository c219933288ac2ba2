"""The base steered by a reward, in closed loop: gradient guidance, best-of-N, or both.

Only a predictor: the base agent is used as it is and never modified. `scale=1` with an exact ρ acts as the expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.agents.options import Planning
from rrpolicy.agents.planning import Planner
from rrpolicy.common.archive import read_archive, write_archive
from rrpolicy.common.arguments import number
from rrpolicy.common.device import resolve
from rrpolicy.common.noise import generator
from rrpolicy.common.publish import Published
from rrpolicy.common.spaces import Env
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.common.weights import check_weights
from rrpolicy.data.normalizer import Normalizer
from rrpolicy.diffusion.sampling import Solver, SolverName
from rrpolicy.diffusion.score_model import Denoiser, pinned_on
from rrpolicy.export.compiled import digest_of
from rrpolicy.rewards.algebra import CompositeReward, RewardAlgebra, check_space
from rrpolicy.rewards.guidance import GradientAt, check_gradient_at, guided
from rrpolicy.rewards.protocol import RewardFunction, check_reward_function
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.rewards.reward_archive import AnyReward, restored_terms
from rrpolicy.rewards.uncertain import with_max_uncertainty


class GuidedPlanner(Published, Planner):
    """
    Plans with the base's denoiser plus scale · ∇ρ, and keeps the best of ``n_candidates`` plans by ρ.

    :param agent: the base: a `DiffusionAgent`, a `ModelPlanner` or any other `Planner`
    :param reward: ρ over the base's windows, or any function or module of (x_t, t), see `RewardFunction`
    :param scale: guidance strength; 0 is the base
    :param n_candidates: plans per environment of which the one with the highest ρ is kept
    :param max_shift: largest change of a normalised plan entry by guidance in one denoising step; None, the default,
        for no bound, with which an exact ρ at scale 1 acts as the expert. A bound guards against gradients that leave
        the data, at the price of modes that are rare in the base; :attr:`share_bound` is how often it is reached
    :param n_action_steps: environment steps executed before planning again; None: the base's
    :param n_sampling_steps: denoising steps per plan; None: the base's
    :param sampler: ``"ddim"``, ``"ddpm"`` or ``"dpm++"``; None: the base's
    :param warm_start: noise level from which the previous plan is refined; None: the base's
    :param max_uncertainty: standard deviation in nats of an `UncertainReward` beyond which it steers less, see
        `Ensemble`; None for none
    :param gradient_at: ``"noised"`` for ∇ρ(x_t, t); ``"clean"`` for ∇ρ(x̂0, 0) at the base's clean estimate, which suits
        rewards that know nothing of noised plans (Q-Guided Flow, Peng et al. 2026), see `rewards.guided`
    :raises ValueError: when agent and reward do not share their space, or an option is out of range
    """

    kind: ClassVar[str] = "planner"

    def __init__(
        self,
        agent: Planner,
        reward: RelativeReward | RewardFunction,
        scale: float = 1.0,
        n_candidates: int = 1,
        n_action_steps: int | None = None,
        n_sampling_steps: int | None = None,
        sampler: SolverName | Solver | None = None,
        warm_start: int | None = None,
        max_shift: float | None = None,
        *,
        max_uncertainty: float | None = None,
        gradient_at: GradientAt = "noised",
    ) -> None:
        self.scale = float(number("scale", scale, lowest=0))
        self.max_shift: float | None = None if max_shift is None else number("max_shift", max_shift, above=0)
        self.gradient_at = check_gradient_at(gradient_at)
        reward = with_max_uncertainty(reward, max_uncertainty)
        _check_space(agent, reward)
        self.agent = agent
        self.reward = reward
        self.observation_space = agent.observation_space
        self.action_space = agent.action_space
        self.layout = agent.layout
        self.process = agent.process
        self.controller = agent.controller
        wanted: dict[str, Any] = {
            "n_candidates": n_candidates,
            "n_action_steps": n_action_steps,
            "n_sampling_steps": n_sampling_steps,
            "sampler": sampler,
            "warm_start": warm_start,
        }
        self.planning = replace(agent.planning, **{name: value for name, value in wanted.items() if value is not None})
        self._check_planning()
        self._acting_generator = generator(getattr(agent, "seed", None) or 0)
        self._n_steered: int = 0
        self._n_bound: int | Tensor = 0

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where the agent computes; the reward has to be there, too."""
        return self.agent.device

    @property
    def normalizer(self) -> Normalizer:
        return self.agent.normalizer

    @property
    def fast_noise(self) -> bool:  # type: ignore[override]
        """Whether noise is drawn where the agent computes, as the agent has it."""
        return self.agent.fast_noise

    @property
    def n_candidates(self) -> int:
        return self.planning.n_candidates

    @property
    def share_bound(self) -> float:
        """
        Share of the free plan entries whose guidance ``max_shift`` bound, over all denoising steps of all plans so far;
        0 without a bound and before the first plan.
        """
        return float(self._n_bound) / max(self._n_steered, 1)

    def with_planning(self, **options: Any) -> Self:
        other = super().with_planning(**options)
        other._n_steered, other._n_bound = 0, 0
        return other

    # ------------------------------------------------------------------ hooks

    def _denoiser(self) -> Denoiser:
        return self._denoiser_at(self.scale)

    def _denoiser_at(self, scale: float | Tensor) -> Denoiser:
        """The steered noise predictor at another scale, or at one (B,) for each plan."""
        own = None if isinstance(self.reward, RewardAlgebra) else pinned_on(self.layout, self.device)
        base = self.agent._denoiser()
        return guided(base, self.reward, self.process, scale, self.max_shift, self._count_bound, own, self.gradient_at)

    def _count_bound(self, bound: Tensor) -> None:
        self._n_steered += bound.shape[0] * int((~self.layout.pinned).sum())  # pinned entries are never changed
        self._n_bound = bound.sum() + self._n_bound  # on the device, which need not wait for it

    def _value(self, plans: Tensor) -> Tensor:
        return self.reward(plans, torch.zeros(plans.shape[0], dtype=torch.int64, device=plans.device))

    def _digest(self) -> str | None:
        agent, reward = self.agent._digest(), self.reward
        if agent is None or not isinstance(reward, RelativeReward) or not isinstance(self.planning.sampler, str):
            return None
        if not isinstance(reward.window_kwargs.get("network", ""), str):
            return None
        options = {**self._steering(), "planning": self.planning.to_dict()}
        config = {name: value for name, value in reward.to_config().items() if name != "fit"}  # which nothing acts by
        return digest_of({"agent": agent, "reward": config, **options}, {"reward": reward.state_dict()})

    def _steering(self) -> dict[str, Any]:
        """The options of guidance that archives and digests hold; the usual place of the gradient is not among them."""
        clean = {} if self.gradient_at == "noised" else {"gradient_at": self.gradient_at}
        return {"scale": self.scale, "max_shift": self.max_shift, **clean}

    # ------------------------------------------------------------------ persistence

    def save(self, path: str | Path, *, card: Mapping[str, Any] | None = None) -> None:
        """
        Write agent, reward and options as one archive (no pickle).

        :param path: file; ``.zip`` is added when missing
        :param card: facts about the planner
        :raises ValueError: for a base, a reward or a sampler of the user's own, which no archive holds
        """
        if not isinstance(self.agent, DiffusionAgent):
            raise ValueError(
                f"agent is a {type(self.agent).__name__}, which no archive holds: save the reward, reward.save(path), "
                "and steer your own agent with what is loaded, GuidedPlanner(agent, reward)"
            )
        if not isinstance(self.reward, RelativeReward | CompositeReward):
            raise ValueError(
                f"reward is a {getattr(self.reward, '__name__', type(self.reward).__name__)}, which no archive holds: "
                "save the agent, planner.agent.save(path), and steer what is loaded, GuidedPlanner(agent, reward)"
            )
        name, reward_config, reward_tensors = _archived(self.reward)
        config = {
            "agent": self.agent._archive_config(),
            name: reward_config,
            **self._steering(),
            "planning": self.planning.to_dict(),
        }
        agent_tensors = {**self.agent._extra_tensors(), "averaged": self.agent.averaged.state_dict()}
        tensors = {f"agent-{name}": group for name, group in agent_tensors.items()}
        tensors |= {f"reward-{name}": group for name, group in reward_tensors.items()}
        write_archive(path, self.kind, config, tensors, {**self.agent._card(), **(card or {})})

    @classmethod
    @usual_torch()
    def load(
        cls,
        path: str | Path,
        env: Env | str | None = None,
        device: torch.device | str = "auto",
        *,
        policy: type[nn.Module] | None = None,
        network: type[nn.Module] | None = None,
    ) -> Self:
        """
        Read what :meth:`save` wrote.

        :param path: file, with or without ``.zip``
        :param env: an environment or its id, whose spaces must be those that the agent was made for; the agent has it
            from now on
        :param device: where agent and reward compute, see `common.device.resolve`
        :param policy: class of the agent's network, where that is not one of the library's
        :param network: class of the reward's network, where that is not one of the library's
        :raises FileNotFoundError: when there is no such file
        :raises ValueError: when the archive is damaged, foreign, unsafe or of another kind, naming file and fault, and
            for another environment, naming both spaces
        """
        place = resolve(device)
        archive = read_archive(path, cls.kind)
        with archive.rebuilding():
            config = archive.config
            tensors = {name.removeprefix("agent-"): group for name, group in archive.tensors.items()}
            check_weights(
                lambda: DiffusionAgent._module_of(config["agent"], tensors, policy=policy), tensors["averaged"]
            )
            agent = DiffusionAgent._from_config(config["agent"], tensors, policy)
            agent._restore(config["agent"], tensors)
            if env is not None:
                agent.set_env(env)
            reward = _restored(config, archive.tensors, network)
            steering = {name: config[name] for name in ("scale", "max_shift", "gradient_at") if name in config}
            planner = cls(agent.to(place), reward.to(place), **steering)
            planner.planning = Planning(**config["planning"])
            planner._check_planning()
        return planner

    def to(self, device: torch.device | str) -> Self:
        """
        Move agent and reward to a device.

        :param device: see `common.device.resolve`
        :return: itself
        """
        for part in (self.agent, self.reward):
            if hasattr(part, "to"):
                part.to(device)
        self._n_bound = int(self._n_bound)
        return self


def _archived(reward: RelativeReward | CompositeReward) -> tuple[str, dict[str, Any], dict[str, dict[str, Tensor]]]:
    """The field of a planner's archive that a reward has, its configuration and its groups of tensors."""
    if isinstance(reward, CompositeReward):
        return "rewards", *reward.archived()
    return "reward", reward.to_config(), {"weights": reward.state_dict()}


def _restored(
    config: Mapping[str, Any], tensors: Mapping[str, dict[str, Tensor]], network: type[nn.Module] | None
) -> AnyReward:
    """The reward of a planner's archive, which has the agent's normaliser."""
    shared = {"normalizer": tensors["agent-normalizer"]} if "agent-normalizer" in tensors else {}
    groups = {name.removeprefix("reward-"): group for name, group in tensors.items() if name.startswith("reward-")}
    if config.get("rewards") is not None:
        return restored_terms(config["rewards"], {**groups, **shared}, network)
    return RelativeReward.from_archive(config["reward"], shared, groups["weights"], network)


def _check_space(agent: Planner, reward: RelativeReward | RewardFunction) -> None:
    if not isinstance(reward, RewardAlgebra):
        check_reward_function(reward, agent.layout.event_shape, agent.process.n_diffusion_steps, agent.device)
        return
    if reward.device != agent.device:
        raise ValueError(
            f"the agent is on {agent.device}, the reward on {reward.device}: move one, such as reward.to(agent.device)"
        )
    check_space(agent, reward, "agent")  # type: ignore[arg-type]
