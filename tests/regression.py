"""Digests of everything that a change of structure must leave as it is; run before and after each step of it.

``python tests/regression.py`` prints one JSON object: the episodes of each pair of the zoo and its image models, bit
for bit; the tables of each experiment, to the digit; what each archive of ``tests/data/archives`` holds. Digests of
episodes are equal on one machine; ``--compare FILE`` exits with 1 and names what differs from an earlier output.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers.old_archives import ARCHIVES, answers

from rrpolicy import GuidedPlanner, evaluate, zoo
from rrpolicy.experiments import images, locomotion, maze2d
from rrpolicy.images.sampling import sample_images

EXPERIMENTS = {"maze2d": maze2d, "locomotion": locomotion, "images": images}
ROWS = {"maze2d": "maze2d", "locomotion": "locomotion", "images": "images_2026-11-26"}  # those of the first output
RESULTS = Path(__file__).parents[1] / "docs" / "results"
RENAMED = {  # variants and labels whose names have changed since
    "no-row-weighting": "rows-alike",
    "classifier is right": "judge is right",
    "classifier's confidence": "judge's confidence",
}
N_EPISODES, MAX_STEPS, N_IMAGES = 2, 100, 4


def digest(*values: Any) -> str:
    """Of arrays and texts, bit for bit."""
    found = hashlib.sha256()
    for value in values:
        found.update(value.encode() if isinstance(value, str) else np.ascontiguousarray(value).tobytes())
    return found.hexdigest()[:16]


def names(pattern: str) -> list[str]:
    """The zoo's names that match a pattern."""
    agents = zoo.folder() / "agents"
    return sorted(str(path.relative_to(agents)) for path in agents.glob(pattern))


def episodes() -> Iterator[tuple[str, str]]:
    """Of the base of each environment alone and steered by each of its rewards."""
    for base_name in names("*/base"):
        env_id = base_name.split("/")[0]
        if env_id == "FashionMNIST":
            continue
        base = zoo.load_agent(base_name)
        agents: dict[str, Any] = {base_name: base}
        for name in names(f"{env_id}/reward*"):
            agents[name] = GuidedPlanner(base, zoo.load_reward(name), scale=1.0)
        for name, agent in agents.items():
            made = evaluate(agent, env_id, N_EPISODES, seed=7, max_episode_steps=MAX_STEPS, record_observations=True)
            yield f"episodes {name}", digest(np.asarray(made.returns), *made.observations)


def pictures() -> Iterator[tuple[str, str]]:
    """Samples of the zoo's image models and their scores."""
    base, expert = zoo.load("FashionMNIST/base"), zoo.load("FashionMNIST/expert")
    reward, classifier = zoo.load("FashionMNIST/reward"), zoo.load("FashionMNIST/judge")
    made = {
        "base": sample_images(base, N_IMAGES, seed=7, n_sampling_steps=10),
        "expert": sample_images(expert, N_IMAGES, seed=7, n_sampling_steps=10),
        "steered": sample_images(base, N_IMAGES, seed=7, n_sampling_steps=10, reward=reward, scale=1.0),
    }
    for name, drawn in made.items():
        yield f"images {name}", digest(drawn, reward.predict(drawn), classifier.predict(drawn))


def tables() -> Iterator[tuple[str, str]]:
    """The tables of each experiment, drawn from its committed rows."""
    for name, experiment in EXPERIMENTS.items():
        results = experiment.read_results(RESULTS / f"{ROWS[name]}.csv")
        text = experiment.summary(results)
        for new, old in RENAMED.items():
            text = text.replace(new, old)
        yield f"tables {name}", digest(text)


def archives() -> Iterator[tuple[str, str]]:
    """What each kept archive answers."""
    for path in sorted(ARCHIVES.glob("*.zip")):
        yield f"archive {path.stem}", digest(*(np.round(value, 5) for value in answers(path)))


def main(arguments: list[str] | None = None) -> int:
    """Print the digests, and compare them with earlier ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compare", type=Path, help="an earlier output")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = dict(line for part in (archives, tables, pictures, episodes) for line in part())
    print(json.dumps(found, indent=1))
    if options.compare is None:
        return 0
    before = json.loads(options.compare.read_text(encoding="utf-8"))
    changed = [name for name in sorted({*before, *found}) if before.get(name) != found.get(name)]
    print("\n".join(f"differs: {name}" for name in changed) or "nothing differs", file=sys.stderr)
    return int(bool(changed))


if __name__ == "__main__":
    sys.exit(main())
