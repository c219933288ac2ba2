"""What a build leaves in the zoo: for each entry an archive in half precision and, written last, its card.

An entry with a card is finished, so a build that was stopped goes on with what has none.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rrpolicy import zoo
from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.common.files import write_json
from rrpolicy.common.version import __version__
from rrpolicy.evaluation import Row
from rrpolicy.pipeline.recipes import Recipe
from rrpolicy.pipeline.steps import save_agent
from rrpolicy.pipeline.task import Task
from rrpolicy.rewards.relative_reward import RelativeReward


def today() -> str:
    """YYYY-MM-DD."""
    return datetime.date.today().isoformat()


@dataclass(frozen=True)
class Entries:
    """
    The entries of one environment.

    :param env_id: the environment
    :param recipe: with which they are made
    :param seed: of data, training and episodes
    :param folder: the zoo
    :param date: of the cards, YYYY-MM-DD
    :param facts: what every card says beside that, e.g. the kind of data; an entry made otherwise is not finished
    """

    env_id: str
    recipe: Recipe
    seed: int
    folder: Path
    date: str = field(default_factory=today)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def place(self, name: str) -> Path:
        """The folder of an entry."""
        return self.folder / "agents" / self.env_id / name

    def begin(self, name: str) -> None:
        """From here on the entry is unfinished."""
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
        return zoo.load_agent(self.place(name) / "agent.zip")

    def reward(self, name: str) -> RelativeReward:
        """A reward as it is shipped."""
        return zoo.load_reward(self.place(name) / "reward.zip")

    def ship(self, made: DiffusionAgent | RelativeReward, name: str) -> None:
        """Write the archive alone: what is measured is what is shipped."""
        self._save(made, name, {})

    def finish(
        self, made: DiffusionAgent | RelativeReward, name: str, task: Task, rows: list[Row], **facts: Any
    ) -> None:
        """
        Write the archive with its card, and the card beside it.

        :param task: which the card names
        :param rows: what was measured
        :param facts: of this entry alone
        """
        card = {
            "name": f"{self.env_id}/{name}",
            "kind": made.kind,
            **task.to_card(),
            "results": rows,
            "date": self.date,
            "version": __version__,
            "recipe": self.recipe.get("name"),
            **self._made_with,
            **facts,
        }
        path = self._save(made, name, card)
        write_json(path.parent / zoo.CARD, {**card, "bytes": path.stat().st_size})

    @property
    def _made_with(self) -> dict[str, Any]:
        return {"seed": self.seed, "recipe_sha256": recipe_digest(self.recipe), **self.facts}

    def _save(self, made: DiffusionAgent | RelativeReward, name: str, card: Mapping[str, Any]) -> Path:
        path = self.place(name) / f"{made.kind}.zip"
        if isinstance(made, DiffusionAgent):
            save_agent(made, path, card, half=True)
        else:
            made.save(path, half=True, card=card)
        return path


def recipe_digest(recipe: Recipe) -> str:
    """16 hexadecimal digits of a recipe's content."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
