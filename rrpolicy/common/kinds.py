"""What a file may say: the fields of every kind of archive, card and manifest, with their types and bounds.

Each reader and each writer of an archive goes through :func:`check_config` and :class:`CardFields`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from rrpolicy.common.fields import (
    AgentTrainingFields,
    BoxFields,
    ControllerFields,
    Count,
    DistillationFields,
    EnvId,
    FitFields,
    ImageTrainingFields,
    LatentCodecFields,
    Layout,
    LearnerFields,
    Levels,
    Name,
    NetworkFields,
    NotNegative,
    Number,
    PixelCodecFields,
    PlanDistillationFields,
    PlanningFields,
    Positive,
    ProcessFields,
    Shape,
    Size,
    Text,
    TrainingFields,
    UNetFields,
    bounded_event,
)
from rrpolicy.common.policy_fields import OfflinePolicyFields, PolicyFields, ReplayTrainingFields, Sb3PolicyFields
from rrpolicy.common.schema import Fields, check_depth, checked, plain

MAX_PLACES = 2**12  # of a map over which a network attends
MAX_NUMBERS = 2**25  # of a batch of windows
MAX_REWARDS = 48  # of an archive of sums or ensembles


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

    @model_validator(mode="after")
    def _bounded_together(self) -> Self:
        """What is in memory at once when it acts and when it learns."""
        window = self.layout.horizon * (self.layout.observation_dim + self.layout.action_dim)
        for name, count in (("n_candidates", self.planning.n_candidates), ("batch_size", self.training.batch_size)):
            if count * window > MAX_NUMBERS:
                raise ValueError(f"{name} {count} with windows of {window} numbers is more than {MAX_NUMBERS} numbers")
        return self


class RewardFields(Fields):
    """A `RelativeReward`."""

    process: ProcessFields
    event_shape: Annotated[Shape, AfterValidator(bounded_event)]
    pinned: Annotated[list[Annotated[int, Field(ge=0, lt=2**24)]], Field(max_length=2**22)]
    layout: Layout | None
    heads: Annotated[list[Literal["window", "step"]], Field(min_length=1, max_length=2)]
    window_kwargs: NetworkFields
    step_kwargs: NetworkFields
    value_units: bool = False
    source: Name
    fit: FitFields | None = None

    @model_validator(mode="after")
    def _bounded_attention(self) -> Self:
        """Attention compares every place of a map with every other one."""
        unet = self.window_kwargs.unet_config
        if unet is not None and len(self.event_shape) == 3:
            blocks = unet.down_block_types or []
            height, width = self.event_shape[1:]
            for i, block in enumerate([*blocks, "Attn" if unet.add_attention else ""]):
                places = -(-height // 2**i) * -(-width // 2**i)
                if block.startswith("Attn") and places > MAX_PLACES:
                    raise ValueError(f"attention over {places} places of an event, at most {MAX_PLACES}")
        return self


class TermsFields(Fields):
    """A sum of rewards: numbers of the rewards, and the factor of each."""

    factors: Annotated[list[Number], Field(min_length=1, max_length=MAX_REWARDS)]
    rewards: Annotated[list[Annotated[int, Field(ge=0, lt=MAX_REWARDS)]], Field(min_length=1, max_length=MAX_REWARDS)]


class RewardsFields(Fields):
    """
    A `CombinedReward` or an `Ensemble`: rewards, each once, and the factors with which they make its members. Of a
    `LaplaceReward` there is one; its covariance is a tensor.
    """

    form: Literal["sum", "ensemble", "laplace"]
    members: Annotated[list[TermsFields], Field(min_length=1, max_length=MAX_REWARDS)]
    rewards: Annotated[list[RewardFields], Field(min_length=1, max_length=MAX_REWARDS)]
    score: Literal["mean", "lower"] = "mean"
    n_deviations: NotNegative = 1.0
    max_uncertainty: Positive | None = None

    @model_validator(mode="after")
    def _known_rewards(self) -> Self:
        """Members are sums of the rewards that there are; only an ensemble has several, and a posterior one reward."""
        for terms in self.members:
            if len(terms.factors) != len(terms.rewards) or max(terms.rewards) >= len(self.rewards):
                raise ValueError(f"members do not fit to {len(self.rewards)} rewards")
        if (self.form == "ensemble") != (len(self.members) > 1):
            raise ValueError(f"form is {self.form!r} with {len(self.members)} members")
        if self.form == "laplace" and (self.members[0].factors != [1.0] or len(self.rewards) != 1):
            raise ValueError("form is 'laplace', whose only member is a reward alone")
        return self


class PlannerFields(Fields):
    """A `GuidedPlanner`, whose reward is one alone, or a sum or an ensemble."""

    agent: AgentFields
    reward: RewardFields | None = None
    rewards: RewardsFields | None = None
    scale: NotNegative
    max_shift: Positive | None
    gradient_at: Literal["noised", "clean"] = "noised"
    planning: PlanningFields

    @model_validator(mode="after")
    def _one_reward(self) -> Self:
        if (self.reward is None) == (self.rewards is None):
            raise ValueError("it must have one of reward and rewards")
        return self


class ExtractorTrainingFields(TrainingFields):
    """Those of a `RewardExtractor`."""

    buffer_size: Annotated[int, Field(ge=1, le=2**20)]
    n_epochs: Annotated[int, Field(ge=1, le=2**20)]
    value_coef: NotNegative
    n_value_draws: Annotated[int, Field(ge=0, le=256)]
    value_units: bool = False
    n_step_rows: Annotated[int, Field(ge=1, le=1024)]
    row_weighting: bool = True
    first_action_weight: Positive = 1.0
    row_floor: Positive = 0.02
    value_clip: Positive = 10.0


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
    training: ImageTrainingFields


class ImageClassifierFields(LearnerFields):
    """An `ImageClassifier`."""

    shape: Annotated[list[Size], Field(min_length=3, max_length=3)]
    class_names: Annotated[list[Text], Field(min_length=2, max_length=2**14)]
    width: Size
    training: ImageTrainingFields


class ErrorRangesFields(Fields):
    """The ranges of a base's denoising errors over two models' samples."""

    n: Count
    levels: Annotated[list[Annotated[int, Field(ge=0, lt=10_000)]], Field(min_length=1, max_length=64)]
    low: Annotated[list[Number], Field(min_length=1, max_length=64)]
    high: Annotated[list[Number], Field(min_length=1, max_length=64)]


class SupportFields(Fields):
    """The ranges of statistics of two models' samples."""

    n: Count
    low: Annotated[list[Number], Field(min_length=1, max_length=2**14)]
    high: Annotated[list[Number], Field(min_length=1, max_length=2**14)]
    errors: ErrorRangesFields | None = None


class ImageRewardFields(Fields):
    """An `ImageReward`."""

    reward: RewardFields
    codec: PixelCodecFields | LatentCodecFields
    zero: Number = 0.0
    in_nats: bool | None = None
    level: Annotated[int, Field(ge=0, lt=10_000)] = 0
    support: SupportFields | None = None
    difference: bool = True
    explained: Number | None = None


class CodecFields(Fields):
    """The codec that a folder of an image model tells of itself."""

    codec: PixelCodecFields | LatentCodecFields


class SpaceFields(Fields):
    """The space of the two models of a recording."""

    process: ProcessFields
    event_shape: Annotated[Shape, AfterValidator(bounded_event)]
    fingerprint: Annotated[str, Field(max_length=2**20)]


class RecordingFields(Fields, extra="allow"):
    """How pairs were recorded; further facts may be any JSON values."""

    space: SpaceFields
    codec: PixelCodecFields | LatentCodecFields | None = None
    n_value_draws: Annotated[int, Field(ge=0, le=2**14)] = 0


class ManifestFields(Fields, extra="allow"):
    """The manifest of a recording: its shards in order, and how they were made."""

    format: Literal[1]
    shards: Annotated[list[Annotated[list[Any], Field(min_length=2, max_length=2)]], Field(min_length=1)]
    about: RecordingFields


class NoFields(Fields):
    """Nothing."""


KINDS: Mapping[str, type[Fields]] = {
    "agent": AgentFields,
    "reward": RewardFields,
    "rewards": RewardsFields,
    "planner": PlannerFields,
    "extractor": ExtractorFields,
    "discriminator": DiscriminatorFields,
    "distillation": DistillationFields,
    "plan-distillation": PlanDistillationFields,
    "image-diffusion": ImageDiffusionFields,
    "image-judge": ImageClassifierFields,
    "image-reward": ImageRewardFields,
    "image-samples": NoFields,
    "policy": PolicyFields,
    "sb3-policy": Sb3PolicyFields,
    "offline-policy": OfflinePolicyFields,
    "replay-training": ReplayTrainingFields,
}
"""What the configuration of each kind of archive may say; other kinds, of users' own classes, are only bounded."""


MAX_CELLS = 4096  # of a maze; the largest in the literature has 108


class PlaceFields(Fields, extra="allow"):
    """Where an agent or a dataset belongs: an environment by its registered id, a maze by its rows, a goal."""

    environment: EnvId | None = None
    env_id: EnvId | None = None
    maze: Annotated[list[Annotated[str, Field(max_length=256)]], Field(min_length=1, max_length=256)] | None = None
    goal: Annotated[list[Number], Field(min_length=2, max_length=2)] | None = None

    @field_validator("maze")
    @classmethod
    def _bounded_maze(cls, rows: list[str] | None) -> list[str] | None:
        """MuJoCo takes a second for a thousand cells."""
        if (n_cells := sum(map(len, rows or ()))) > MAX_CELLS:
            raise ValueError(f"a maze of {n_cells} cells, wanted at most {MAX_CELLS}")
        return rows


class RolloutFields(Fields, extra="allow"):
    """What metadata tell of roll-outs, whole or of one agent; further facts may be any JSON values."""

    returns: Annotated[list[Number], Field(max_length=2**24, default_factory=list)]


class DatasetFields(PlaceFields, RolloutFields):
    """Metadata of a dataset, as far as something reads them; further facts may be any JSON values."""

    source: Text | None = None
    agents: Annotated[list[RolloutFields], Field(max_length=2**14, default_factory=list)]


class RowFields(Fields):
    """One measured number."""

    agent: Text
    metric: Text
    mean: Number
    ci_low: Number
    ci_high: Number
    n: Count


EntryName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./+ -]{0,199}$")]


class CardFields(PlaceFields):
    """What an archive tells of itself; further facts may be any JSON values."""

    kind: Name | None = None
    name: EntryName | None = None
    version: Name | None = None
    bytes: Count | None = None
    cpu_seconds: NotNegative | None = None
    case: Name | None = None
    video: Name | None = None
    picture: Name | None = None
    unwanted: Annotated[list[Text], Field(max_length=2**14)] | None = None
    results: Annotated[list[RowFields], Field(max_length=10_000)] | None = None
    fit: FitFields | None = None


class EntryFields(CardFields):
    """What an entry of the zoo tells of itself."""

    kind: Name
    name: EntryName
    bytes: Count
    results: Annotated[list[RowFields], Field(max_length=10_000)]


def check_network(arguments: Mapping[str, Any], what: str) -> None:
    """
    Refuse sizes of a network that cannot be built; arguments that are not known here are left to the network.

    :param arguments: of the network, numbers of Python or numpy
    :param what: what they are called, such as ``"policy_kwargs"``
    :raises ValueError: naming the first that is of another type or out of bounds
    """
    known = {name: value for name, value in arguments.items() if name in NetworkFields.model_fields}
    try:
        checked(NetworkFields, plain(known, allow_nan=True), what)
    except TypeError as error:
        raise ValueError(f"{what}: {error}") from None


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
