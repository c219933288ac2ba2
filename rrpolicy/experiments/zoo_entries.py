"""Entries that a build writes into the zoo: for each an archive, in half precision but for policies, and its card.

The card is written last. An entry with a card is finished, so a build that was stopped goes on with what has none.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rrpolicy import zoo
from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.common.files import write_json
from rrpolicy.common.learner import Learner
from rrpolicy.common.version import __version__
from rrpolicy.evaluation import Row
from rrpolicy.experiments.recipes import Recipe
from rrpolicy.experiments.results import flat_rows
from rrpolicy.experiments.task import Task
from rrpolicy.images.classifier import ImageClassifier
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.training import ImageDiffusion
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.rl.policies import POLICY_KIND, Policy, Sb3Agent, load_policy, save_policy

Made = DiffusionAgent | RelativeReward | ImageDiffusion | ImageReward | ImageClassifier | Sb3Agent
Shipped = TypeVar("Shipped", DiffusionAgent, RelativeReward, ImageDiffusion, ImageReward, ImageClassifier)


def today() -> str:
    """Today's date as YYYY-MM-DD."""
    return datetime.date.today().isoformat()


@dataclass(frozen=True)
class Entries:
    """
    The entries of one environment, or of one set of images.

    :param group: the environment's id, or the name of the images: what stands before the slash
    :param recipe: with which they are made
    :param seed: of data, training and episodes
    :param folder: the zoo
    :param date: of the cards, YYYY-MM-DD
    :param facts: what every card holds beside that, e.g. the kind of data; an entry made otherwise is not finished
    """

    group: str
    recipe: Recipe
    seed: int
    folder: Path
    date: str = field(default_factory=today)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def place(self, name: str) -> Path:
        """The folder of an entry."""
        return self.folder / "agents" / self.group / name

    def begin(self, name: str) -> None:
        """Mark an entry as unfinished."""
        (self.place(name) / zoo.CARD).unlink(missing_ok=True)

    def finished(self, name: str, kind: str) -> bool:
        """Whether the entry is there, made with this recipe, seed and facts."""
        try:
            card = self.card(name)
        except (OSError, ValueError):
            return False
        same = all(card.get(key) == value for key, value in self._made_with.items())
        return same and (self.place(name) / f"{kind}.zip").is_file()

    def card(self, name: str) -> dict[str, Any]:
        """The card of a finished entry."""
        values: dict[str, Any] = json.loads((self.place(name) / zoo.CARD).read_text(encoding="utf-8"))
        return values

    def agent(self, name: str) -> DiffusionAgent:
        """An agent as it is shipped."""
        return self.shipped(DiffusionAgent, name)

    def reward(self, name: str) -> RelativeReward:
        """A reward as it is shipped."""
        return self.shipped(RelativeReward, name)

    def policy(self, name: str) -> Policy:
        """A policy without planning as it is shipped."""
        return load_policy(self.place(name) / f"{POLICY_KIND}.zip")

    def shipped(self, kind: type[Shipped], name: str) -> Shipped:
        """Anything as it is shipped."""
        return kind.load(self.place(name) / f"{kind.kind}.zip")

    def ship(self, made: Made, name: str) -> None:
        """Write the archive alone: what is measured is what is shipped."""
        self._save(made, name, {})

    def finish(self, made: Made, name: str, task: Task | None, rows: list[Row], **facts: Any) -> None:
        """
        Write the archive with its card, and the card beside it.

        :param task: which the card names; None for images, which have no environment
        :param rows: what was measured
        :param facts: of this entry alone
        """
        card = {
            "name": f"{self.group}/{name}",
            "kind": _kind(made),
            **({"environment": None} if task is None else task.to_card()),
            "results": flat_rows(rows),
            "date": self.date,
            "version": __version__,
            "recipe": self.recipe.get("name"),
            **self._made_with,
            **facts,
        }
        path = self._save(made, name, card)
        write_json(path.parent / zoo.CARD, {**zoo.card(path), "bytes": path.stat().st_size})

    @property
    def _made_with(self) -> dict[str, Any]:
        return {"seed": self.seed, "recipe_sha256": recipe_digest(self.recipe), **self.facts}

    def _save(self, made: Made, name: str, card: Mapping[str, Any]) -> Path:
        path = self.place(name) / f"{_kind(made)}.zip"
        if isinstance(made, Sb3Agent):
            save_policy(made, path, card)
        elif isinstance(made, Learner):
            made.save(path, resumable=False, half=True, card=card)
        else:
            made.save(path, half=True, card=card)
        return path


def _kind(made: Made) -> str:
    return POLICY_KIND if isinstance(made, Sb3Agent) else made.kind


def recipe_digest(recipe: Recipe) -> str:
    """16 hexadecimal digits of a recipe's content."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
