"""Fields of the archives of policies that other learners trained, older kinds included, and of their training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from rrpolicy.common.fields import BoxFields, Count, NetArchFields, Seed, StatisticsFields, Widths
from rrpolicy.common.schema import Fields

_Dim = Annotated[list[Annotated[int, Field(ge=1, le=2**16)]], Field(min_length=1, max_length=1)]
_Dims = Annotated[list[_Dim], Field(min_length=2, max_length=2)]


class PolicyFields(Fields):
    """A policy without planning, whichever algorithm trained it; sizes are those of its weights."""

    network: Literal["actor-critic", "squashed-gaussian", "deterministic", "search"]
    algorithm: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+ -]{0,100}$")] = ""
    activation: Literal["ReLU", "Tanh", "ELU", "LeakyReLU", "SiLU"]
    observation_space: BoxFields
    action_space: BoxFields
    action_repeat: Annotated[int, Field(ge=1, le=2**24)] = 1
    statistics: StatisticsFields | None = None


class Sb3PolicyFields(Fields):
    """A policy that Stable-Baselines3 trained, as older versions wrote it."""

    algorithm: Literal["PPO", "SAC"]
    dims: _Dims
    net_arch: Widths | NetArchFields | None
    action_space: BoxFields | None = None


class OfflinePolicyFields(Fields):
    """A policy that TD3+BC trained, as older versions wrote it."""

    dims: _Dims
    net_arch: Widths
    action_space: BoxFields | None = None


def _generator_state(value: list[Any]) -> list[Any]:
    """numpy's Mersenne twister but for its keys: name, position, whether a Gaussian is kept, and that."""
    wanted = (("MT19937",), range(625), (0, 1))
    known = len(value) == 4 and all(one in some for one, some in zip(value, wanted, strict=False))
    if not known or not isinstance(value[3], int | float) or not abs(value[3]) < 1e3:
        raise ValueError("wanted the state of a Mersenne twister")
    return value


class ReplayTrainingFields(Fields):
    """A run of SAC with its replay buffer; ``arguments`` are compared with those of the run, never used."""

    env_id: Annotated[str, Field(max_length=200)]
    seed: Seed
    arguments: dict[str, Any]
    num_timesteps: Count
    n_updates: Count
    numpy: Annotated[list[Any], AfterValidator(_generator_state)]
