"""What a file may say: the fields of every kind of archive and of every card, with their types and bounds.

Each reader and each writer of an archive goes through :func:`check_config` and :data:`CardFields`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from rrpolicy.common.schema import Fields, check_depth, checked

Count = Annotated[int, Field(ge=0, le=2**53)]
Size = Annotated[int, Field(ge=1, le=2**14)]
Levels = Annotated[int, Field(ge=2, le=10_000)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]
Positive = Annotated[float, Field(gt=0, le=1e38)]
NotNegative = Annotated[float, Field(ge=0, le=1e38)]
Number = Annotated[float, Field(ge=-1e38, le=1e38)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+ -]{0,99}$")]
Text = Annotated[str, Field(max_length=1000)]
EnvId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]{0,99}$", description="never module:Env-v0")]
Widths = Annotated[list[Size], Field(max_length=16)]
Shape = Annotated[list[Annotated[int, Field(ge=1, le=2**16)]], Field(min_length=1, max_length=4)]
Columns = Annotated[list[Annotated[int, Field(ge=0, lt=2**16)]], Field(max_length=2**16)]


class ProcessFields(Fields):
    """Arguments of a `DiffusionProcess`."""

    n_diffusion_steps: Levels
    schedule: Annotated[str, Field(pattern=r"^(cosine|linear|table( [0-9a-f]{8})?)$")]
    prediction: Literal["x0", "eps", "v"]
    alphas_cumprod: Annotated[list[float], Field(max_length=10_000)] | None = None


class LayoutFields(Fields):
    """Arguments of a `TrajectoryLayout`."""

    observation_dim: Annotated[int, Field(ge=1, le=2**16)]
    action_dim: Annotated[int, Field(ge=1, le=2**16)]
    horizon: Size
    stride: Annotated[int, Field(ge=1, le=10_000)] = 1
    observation_columns: Columns | None = None
    plan_actions: bool = True


def _bounded_window(layout: LayoutFields) -> LayoutFields:
    if layout.horizon * (layout.observation_dim + layout.action_dim) > 2**22:
        raise ValueError(f"windows of {layout.horizon} rows with {layout.observation_dim + layout.action_dim} columns "
                         f"hold more than {2**22} numbers")  # fmt: skip
    return layout


Layout = Annotated[LayoutFields, AfterValidator(_bounded_window)]


class UNetFields(Fields):
    """Arguments of a ``diffusers`` ``UNet2DModel`` that is unconditional."""

    sample_size: Size | Annotated[list[Size], Field(min_length=2, max_length=2)] | None = None
    in_channels: Size = 3
    out_channels: Size = 3
    center_input_sample: bool = False
    time_embedding_type: Literal["positional", "fourier"] = "positional"
    time_embedding_dim: Size | None = None
    freq_shift: Annotated[int, Field(ge=0, le=10)] = 0
    flip_sin_to_cos: bool = True
    down_block_types: Annotated[list[Name], Field(min_length=1, max_length=8)] | None = None
    mid_block_type: Name | None = None
    up_block_types: Annotated[list[Name], Field(min_length=1, max_length=8)] | None = None
    block_out_channels: Annotated[list[Size], Field(min_length=1, max_length=8)] | None = None
    layers_per_block: Annotated[int, Field(ge=1, le=16)] = 2
    mid_block_scale_factor: Positive = 1
    downsample_padding: Annotated[int, Field(ge=0, le=8)] = 1
    downsample_type: Literal["conv", "resnet"] = "conv"
    upsample_type: Literal["conv", "resnet"] = "conv"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    act_fn: Name = "silu"
    attention_head_dim: Size | None = 8
    norm_num_groups: Size = 32
    attn_norm_num_groups: Size | None = None
    norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    class_embed_type: None = None
    num_class_embeds: None = None
    num_train_timesteps: Levels | None = None
    add_attention: bool = True


class NetworkFields(Fields):
    """Arguments of the networks in `diffusion`, whichever takes them."""

    network: Literal["mlp", "conv", "unet-encoder"] | None = None
    width: Size | None = None
    n_blocks: Annotated[int, Field(ge=0, le=128)] | None = None
    n_fourier_features: Annotated[int, Field(ge=0, le=2**14)] | None = None
    bandwidth: Positive | None = None
    n_clean_levels: Annotated[int, Field(ge=0, le=10_000)] | None = None
    n_heads: Annotated[int, Field(ge=1, le=128)] | None = None
    multipliers: Annotated[list[Annotated[int, Field(ge=1, le=64)]], Field(min_length=1, max_length=8)] | None = None
    unet_config: UNetFields | None = None


class BoxFields(Fields):
    """A flat Box space; None stands for an infinite bound."""

    low: Annotated[list[float | None], Field(min_length=1, max_length=2**16)]
    high: Annotated[list[float | None], Field(min_length=1, max_length=2**16)]
    dtype: Literal["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"]


class ControllerFields(Fields):
    """Arguments of a `PDController`."""

    position_columns: Columns
    velocity_columns: Columns
    kp: Number
    kd: Number


class PlanningFields(Fields):
    """`PlanningOptions`."""

    n_action_steps: Annotated[int, Field(ge=1, le=2**24)]
    n_sampling_steps: Annotated[int, Field(ge=1, le=10_000)]
    sampler: Literal["ddim", "ddpm", "dpm++"]
    warm_start: Annotated[int, Field(ge=0, lt=10_000)] | None
    clip: Positive | None
    lookahead: Positive
    n_candidates: Annotated[int, Field(ge=1, le=2**14)] = 1


class TrainingFields(Fields):
    """Arguments that every `Learner` has; None is a learning-rate schedule, which no archive holds."""

    learning_rate: Positive | None
    batch_size: Annotated[int, Field(ge=1, le=2**20)]
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NotNegative
    max_grad_norm: Positive
    seed: Seed | None


class PixelCodecFields(Fields):
    """Arguments of a `PixelCodec`."""

    kind: Literal["pixels"] = "pixels"
    shape: Annotated[list[Size], Field(min_length=3, max_length=3)]
    unshuffle: Annotated[int, Field(ge=1, le=64)] = 1


class LatentCodecFields(Fields):
    """Arguments of a `LatentCodec`."""

    kind: Literal["latents"]
    event_shape: Annotated[list[Size], Field(min_length=3, max_length=3)]
    image_shape: Annotated[list[Size], Field(min_length=3, max_length=3)]
    scaling_factor: Positive


def _bounded_event(value: list[int]) -> list[int]:
    product = 1
    for size in value:
        product *= size
    if product > 2**24:
        raise ValueError(f"events of shape {value} hold more than {2**24} numbers")
    return value


class LearnerFields(Fields):
    """What every learner's archive says."""

    num_timesteps: Count
    total_timesteps: Count


class AgentTrainingFields(TrainingFields):
    """Those of a `DiffusionAgent`."""

    first_action_weight: Positive = 1.0
    padding: bool = True


class AgentFields(LearnerFields):
    """A `DiffusionAgent`."""

    policy: Name
    layout: Layout
    process: ProcessFields
    controller: ControllerFields | Literal["inverse-dynamics"] | None
    controller_kwargs: NetworkFields | None = None
    planning: PlanningFields
    observation_space: BoxFields
    action_space: BoxFields
    policy_kwargs: NetworkFields
    training: AgentTrainingFields


class RewardFields(Fields):
    """A `RelativeReward`."""

    process: ProcessFields
    event_shape: Annotated[Shape, AfterValidator(_bounded_event)]
    pinned: Annotated[list[Annotated[int, Field(ge=0, lt=2**24)]], Field(max_length=2**22)]
    layout: Layout | None
    heads: Annotated[list[Literal["window", "step"]], Field(min_length=1, max_length=2)]
    window_kwargs: NetworkFields
    step_kwargs: NetworkFields
    value_units: bool = False
    source: Name


class PlannerFields(Fields):
    """A `GuidedPlanner`."""

    agent: AgentFields
    reward: RewardFields
    scale: NotNegative
    max_shift: Positive | None
    planning: PlanningFields


class ExtractorTrainingFields(TrainingFields):
    """Those of a `RewardExtractor`."""

    buffer_size: Annotated[int, Field(ge=1, le=2**24)]
    n_epochs: Annotated[int, Field(ge=1, le=2**20)]
    value_coef: NotNegative
    n_value_draws: Annotated[int, Field(ge=0, le=2**14)]
    value_units: bool = False
    n_step_rows: Annotated[int, Field(ge=1, le=2**14)]
    row_weighting: bool = True
    first_action_weight: Positive = 1.0


class ExtractorFields(LearnerFields):
    """A `RewardExtractor`; its models are given when it is loaded."""

    reward: RewardFields
    fingerprint: Annotated[str, Field(max_length=2**20)]
    training: ExtractorTrainingFields
    steps_in_buffer: Count


class DiscriminatorFields(LearnerFields):
    """A `DiscriminatorReward`; its models are given when it is loaded."""

    window_kwargs: NetworkFields
    training: TrainingFields


class ImageDiffusionFields(LearnerFields):
    """An `ImageDiffusion`."""

    codec: PixelCodecFields
    n_diffusion_steps: Levels
    unet_kwargs: UNetFields
    training: TrainingFields


class ImageJudgeFields(LearnerFields):
    """An `ImageJudge`."""

    shape: Annotated[list[Size], Field(min_length=3, max_length=3)]
    class_names: Annotated[list[Text], Field(min_length=2, max_length=2**14)]
    width: Size
    training: TrainingFields


class ImageRewardFields(Fields):
    """An `ImageReward`."""

    reward: RewardFields
    codec: PixelCodecFields | LatentCodecFields
    zero: Number = 0.0


class NetArchFields(Fields):
    """Hidden widths of a policy of Stable-Baselines3."""

    pi: Widths | None = None
    vf: Widths | None = None
    qf: Widths | None = None


_Dim = Annotated[list[Annotated[int, Field(ge=1, le=2**16)]], Field(min_length=1, max_length=1)]
_Dims = Annotated[list[_Dim], Field(min_length=2, max_length=2)]


class Sb3PolicyFields(Fields):
    """A policy that Stable-Baselines3 trained."""

    algorithm: Literal["PPO", "SAC"]
    dims: _Dims
    net_arch: Widths | NetArchFields | None


class OfflinePolicyFields(Fields):
    """A policy that TD3+BC trained."""

    dims: _Dims
    net_arch: Widths


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


class NoFields(Fields):
    """Nothing."""


KINDS: Mapping[str, type[Fields]] = {
    "agent": AgentFields,
    "reward": RewardFields,
    "planner": PlannerFields,
    "extractor": ExtractorFields,
    "discriminator": DiscriminatorFields,
    "image-diffusion": ImageDiffusionFields,
    "image-judge": ImageJudgeFields,
    "image-reward": ImageRewardFields,
    "image-samples": NoFields,
    "sb3-policy": Sb3PolicyFields,
    "offline-policy": OfflinePolicyFields,
    "replay-training": ReplayTrainingFields,
}
"""What the configuration of each kind of archive may say; other kinds, of users' own classes, are only bounded."""


class PlaceFields(BaseModel):
    """Where an agent or a dataset belongs: an environment by its registered id, a maze by its rows, a goal."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)

    environment: EnvId | None = None
    env_id: EnvId | None = None
    maze: Annotated[list[Annotated[str, Field(max_length=256)]], Field(min_length=1, max_length=256)] | None = None
    goal: Annotated[list[Number], Field(min_length=2, max_length=2)] | None = None


class RowFields(Fields):
    """One measured number."""

    agent: Text
    metric: Text
    mean: Number
    ci_low: Number
    ci_high: Number
    n: Count


class CardFields(PlaceFields):
    """What an archive or an entry of the zoo tells of itself; further facts may be any JSON values."""

    kind: Name | None = None
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./+ -]{0,199}$")] | None = None
    version: Name | None = None
    bytes: Count | None = None
    cpu_seconds: NotNegative | None = None
    case: Name | None = None
    video: Name | None = None
    picture: Name | None = None
    unwanted: Annotated[list[Text], Field(max_length=2**14)] | None = None
    results: Annotated[list[RowFields], Field(max_length=10_000)] | None = None


def check_config(kind: str, config: Any, what: str = "config.json") -> None:
    """
    Refuse a configuration that its kind does not have.

    :param kind: of the archive; the fields of a kind that is not in :data:`KINDS` are free
    :raises ValueError: as :func:`checked`
    """
    if kind in KINDS:
        checked(KINDS[kind], config, what)
    else:
        check_depth(config, what)
