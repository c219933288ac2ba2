"""Statements of the audit page that depend on the reward: what numbers mean, where they come from, and their limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rrpolicy.images.reward import NO_DIFFERENCE, ImageReward
from rrpolicy.images.support import NOT_CHECKED

LIMITS = (
    "ρ compares two models with one another: it says what the second makes likelier than the first, not what is good.",
    "Of pictures that neither model would make, ρ says nothing, and only gross ones, such as noise, can be flagged.",
    "ρ is a network that was fitted to the two models; the explained share of their differences is a fact above.",
    "Two trainings of one and the same model differ as well: small differences of ρ are no findings by themselves.",
    "Intervals are of the pictures shown here; they do not cover another training of the reward or of the models.",
)
_DIGEST = 12  # characters of a digest that are shown
_TITLES = {
    "n_prompts": "prompts",
    "pairs": "pairs recorded",
    "steps": "gradient steps",
    "r2": "R² of score differences",
    "held_out": "R² is of",
    "calibration": "zero is from",
    "seed": "seed",
    "date": "extracted on",
    "version": "version of rrpolicy",
}


@dataclass(frozen=True)
class Evidence:
    """
    What is known of the scores on a page.

    :param in_nats: whether they are log density ratios; else they order images, and nothing more
    :param has_zero: whether the zero was found from samples of both models; a sign means something only then
    :param level: noise level at which the scores were taken
    :param difference: whether the two models differ at all
    :param support: which pictures are flagged as unlike anything that the two models make, in a sentence
    :param nothing: why there is nothing in the scores, see :attr:`ImageReward.nothing`
    :param facts: names and values of where the numbers come from, in the order in which they are shown
    """

    in_nats: bool = True
    has_zero: bool = True
    level: int = 0
    difference: bool = True
    support: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    nothing: str = ""

    @classmethod
    def of(cls, reward: ImageReward, card: Mapping[str, Any], denoised: bool = False, **facts: object) -> Evidence:
        """
        The evidence from a reward and the card of its archive.

        :param denoised: whether pictures were flagged by their denoising error, too
        :param facts: further ones, whose names have underscores for spaces
        """
        told = [*_facts(card), *((name.replace("_", " "), str(value)) for name, value in facts.items())]
        differ = reward.difference
        has_zero = differ and reward.in_nats and reward.zero != 0.0
        support = NOT_CHECKED if reward.support is None else reward.support.rule
        if denoised and reward.support is not None and reward.support.errors is not None:
            support = f"{support} {reward.support.errors.rule}"
        return cls(reward.in_nats, has_zero, reward.level, differ, support, tuple(told), reward.nothing)

    @property
    def title(self) -> str:
        if not self.difference:
            return NO_DIFFERENCE[0].upper() + NO_DIFFERENCE[1:]
        return "What the expert prefers" if self.has_zero else "How a reward orders pictures"

    @property
    def unit(self) -> str:
        """The unit of a score, for headings."""
        return "nats" if self.in_nats else "no unit"

    @property
    def meaning(self) -> str:
        """The meaning of a score, in a few sentences."""
        if self.difference and self.nothing:
            return f"{self.nothing[0].upper()}{self.nothing[1:]}. {replace(self, nothing='').meaning}"
        if not self.difference:
            return (
                f"{self.title}: base and expert predict the same at all recorded pairs. "
                "There is nothing to find, and the scores below mean nothing."
            )
        if not self.in_nats:
            return (
                "ρ was extracted from two image generators without values, from the differences of their scores alone. "
                f"It orders pictures, here at noise level {self.level}: a higher one is more like the expert's than a "
                "lower one. It has no unit, no zero and no sign."
            )
        ratio = (
            "ρ is a log density ratio extracted from two image generators: how much likelier the expert makes a "
            "picture than the base does, in nats."
        )
        if self.has_zero:
            return f"{ratio} At zero the two make a picture equally often, as found from samples of both."
        return f"{ratio} Its zero was not found from samples of both models: differences mean something, signs do not."


UNKNOWN = Evidence()
"""Scores in nats with a zero, of which nothing more is known."""


def _facts(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Facts of a card, as far as it holds them; its content is not trusted."""
    recording, found = card.get("recording"), []
    recording = recording if isinstance(recording, Mapping) else {}
    models, digests = recording.get("models"), recording.get("digests")
    for name in ("base", "expert"):
        value = models.get(name) if isinstance(models, Mapping) else card.get(name)
        weights = digests.get(name) if isinstance(digests, Mapping) else None
        if value is not None:
            marks = sorted(str(one)[:_DIGEST] for one in weights.values()) if isinstance(weights, Mapping) else []
            found.append((name, f"{value}" + (f", weights SHA-256 {', '.join(marks)}" if marks else "")))
    return found + [(title, str(card[name])) for name, title in _TITLES.items() if card.get(name) is not None]
