"""Fields that configurations have in common, with their types and bounds: processes, layouts, networks, spaces, ...

`common.kinds` puts them together to what each kind of file may say.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from rrpolicy.common.schema import Fields

Count = Annotated[int, Field(ge=0, le=2**53)]
Size = Annotated[int, Field(ge=1, le=2**14)]
Levels = Annotated[int, Field(ge=2, le=10_000)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]
Positive = Annotated[float, Field(gt=0, le=1e38)]
NotNegative = Annotated[float, Field(ge=0, le=1e38)]
Number = Annotated[float, Field(ge=-1e38, le=1e38)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+ -]{0,99}$")]
Text = Annotated[str, Field(max_length=1000)]


def is_env_id(value: object) -> bool:
    """Whether a registered environment may have this id; never ``module:Env-v0``, which gymnasium would import."""
    if not isinstance(value, str) or len(value) > 100 or ".." in value or not value.isprintable():
        return False
    return re.fullmatch(r"([\w-]+/)?[\w.-]+", value) is not None


def _registered_form(value: str) -> str:
    if not is_env_id(value):
        raise ValueError("an environment is named by its registered id, such as Hopper-v5, without a module")
    return value


EnvId = Annotated[str, AfterValidator(_registered_form)]
Widths = Annotated[list[Size], Field(max_length=16)]
Shape = Annotated[list[Annotated[int, Field(ge=1, le=2**16)]], Field(min_length=1, max_length=4)]
Columns = Annotated[list[Annotated[int, Field(ge=0, lt=2**16)]], Field(max_length=2**16)]


class ProcessFields(Fields):
    """Arguments of a `DiffusionProcess`."""

    n_diffusion_steps: Levels
    schedule: Annotated[str, Field(pattern=r"^(cosine|linear|table( [0-9a-f]{8})?)$")]
    prediction: Literal["x0", "eps", "v"]
    alphas_cumprod: Annotated[list[float], Field(max_length=10_000)] | None = None


Level = Annotated[int, Field(ge=0, lt=10_000)]


class LevelFitFields(Fields):
    """How well one head of a reward explains some noise levels."""

    head: Literal["window", "step"]
    first_level: Level
    last_level: Level
    r2: Number
    r2_winsorized: Number
    r2_permuted: Number


class FitFields(Fields):
    """The fit report of a reward."""

    n_events: Count
    held_out: bool
    levels: Annotated[list[LevelFitFields], Field(max_length=256, default_factory=list)]
    map_level: Level | None = None
    window_range: NotNegative | None = None
    step_range: NotNegative | None = None
    clipped: Annotated[float, Field(ge=0, le=1)] | None = None
    unfitted_levels: Annotated[
        list[Annotated[list[Level], Field(min_length=2, max_length=2)]], Field(max_length=10_000, default_factory=list)
    ]


class LayoutFields(Fields):
    """Arguments of a `TrajectoryLayout`."""

    observation_dim: Annotated[int, Field(ge=1, le=2**16)]
    action_dim: Annotated[int, Field(ge=1, le=2**16)]
    horizon: Size
    stride: Annotated[int, Field(ge=1, le=10_000)] = 1
    observation_columns: Columns | None = None
    plan_actions: bool = True
    n_observation_rows: Size = 1


def _bounded_window(layout: LayoutFields) -> LayoutFields:
    if layout.horizon * (layout.observation_dim + layout.action_dim) > 2**22:
        raise ValueError(
            f"windows of {layout.horizon} rows with {layout.observation_dim + layout.action_dim} columns "
            f"hold more than {2**22} numbers"
        )
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

    network: Name | None = None
    width: Size | None = None
    n_blocks: Annotated[int, Field(ge=0, le=128)] | None = None
    n_fourier_features: Annotated[int, Field(ge=0, le=2**14)] | None = None
    bandwidth: Positive | None = None
    n_clean_levels: Annotated[int, Field(ge=0, le=10_000)] | None = None
    n_heads: Annotated[int, Field(ge=1, le=128)] | None = None
    multipliers: Annotated[list[Annotated[int, Field(ge=1, le=64)]], Field(min_length=1, max_length=8)] | None = None
    unet_config: UNetFields | None = None
    own: Annotated[dict[Name, Any], Field(max_length=64)] | None = None  # of a network that the caller passes

    @field_validator(
        "width",
        "n_blocks",
        "n_fourier_features",
        "bandwidth",
        "n_clean_levels",
        "n_heads",
        "multipliers",
        mode="before",
    )
    @classmethod
    def _left_out_or_a_number(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("is null, wanted a number or nothing at all")
        return value


class BoxFields(Fields):
    """A flat Box space; None stands for an infinite bound."""

    low: Annotated[list[float | None], Field(min_length=1, max_length=2**16)]
    high: Annotated[list[float | None], Field(min_length=1, max_length=2**16)]
    dtype: Literal["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"]


class NetArchFields(Fields):
    """Hidden widths of a policy of Stable-Baselines3."""

    pi: Widths | None = None
    vf: Widths | None = None
    qf: Widths | None = None


class StatisticsFields(Fields):
    """How observations are normalised, beside their mean and variance."""

    clip: Positive
    epsilon: Positive


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

    learning_rate: Annotated[float, Field(gt=0, le=1e30)] | None
    batch_size: Annotated[int, Field(ge=1, le=2**15)]
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NotNegative
    max_grad_norm: Positive
    seed: Seed | None
    fast_noise: bool = False
    accumulate: Annotated[int, Field(ge=1, le=2**15)] = 1
    precision: Literal["fp32", "bf16"] = "fp32"


class AgentTrainingFields(TrainingFields):
    """Those of a `DiffusionAgent`."""

    first_action_weight: Positive = 1.0
    padding: bool = True


class LearnerFields(Fields):
    """What every learner's archive says."""

    num_timesteps: Annotated[int, Field(ge=0, le=2**48)]  # from which can be counted on
    total_timesteps: Count
    best_step: Count | None = None
    best_loss: Number | None = None
    tensorboard_run: Annotated[str, Field(pattern=r"^[a-z-]{1,40}_[0-9]{1,9}$")] | None = None


class ImageTrainingFields(TrainingFields):
    """Arguments of what learns from images, of which a whole batch passes through a convolutional network."""

    batch_size: Annotated[int, Field(ge=1, le=2**13)]


class PixelCodecFields(Fields):
    """Arguments of a `PixelCodec`."""

    kind: Literal["pixels"] = "pixels"
    shape: Annotated[list[Annotated[int, Field(ge=1, le=2048)]], Field(min_length=3, max_length=3)]
    unshuffle: Annotated[int, Field(ge=1, le=64)] = 1


class LatentCodecFields(Fields):
    """Arguments of a `LatentCodec`."""

    kind: Literal["latents"]
    event_shape: Annotated[list[Size], Field(min_length=3, max_length=3)]
    image_shape: Annotated[list[Size], Field(min_length=3, max_length=3)]
    scaling_factor: Positive
    shift_factor: Number = 0.0
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


def bounded_event(value: list[int]) -> list[int]:
    """The shape of an event, refused where it holds too many numbers."""
    product = 1
    for size in value:
        product *= size
    if product > 2**24:
        raise ValueError(f"events of shape {value} hold more than {2**24} numbers")
    return value


class DaggerFields(LearnerFields):
    """What is distilled from a planner, which is given when it is loaded."""

    observation_space: BoxFields
    action_space: BoxFields
    round: Count
    training: TrainingFields


class DistillationFields(DaggerFields):
    """A `Distillation`."""

    net_arch: Widths


class PlanDistillationFields(DaggerFields):
    """A `PlanDistillation`."""

    n_sampling_steps: Annotated[int, Field(ge=1, le=10_000)]
