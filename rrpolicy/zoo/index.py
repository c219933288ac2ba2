"""Entries of the zoo by name: their folders, their cards, and loading what an archive holds.

It is read from the top folder of a checkout or from inside an installed wheel; names never lead out of its folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Unpack

import torch

from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.agents.environment import Env, flat_environment
from rrpolicy.agents.guided_planner import GuidedPlanner
from rrpolicy.common import hub, publish
from rrpolicy.common.archive import read_archive
from rrpolicy.common.kinds import EntryFields
from rrpolicy.common.messages import at, printable
from rrpolicy.common.publish import PushOptions
from rrpolicy.common.schema import checked, from_json, read_small
from rrpolicy.export.session import GraphFile
from rrpolicy.images.classifier import ImageClassifier
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.training import ImageDiffusion
from rrpolicy.rewards.algebra import KIND as REWARDS_KIND
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.rewards.reward_archive import AnyReward
from rrpolicy.rewards.reward_archive import load_reward as load_any_reward
from rrpolicy.rl import sb3_files
from rrpolicy.rl.policies import POLICY_KINDS, Policy, load_policy

Loaded = DiffusionAgent | AnyReward | GuidedPlanner | Policy | ImageDiffusion | ImageReward | ImageClassifier

FOLDER_VARIABLE = "RRPOLICY_ZOO"
CARD = "card.json"
MAX_NAME = 1024  # characters of a zoo name or a path
_CLASSES: tuple[Any, ...] = (
    DiffusionAgent,
    RelativeReward,
    GuidedPlanner,
    ImageDiffusion,
    ImageReward,
    ImageClassifier,
)
_LOADERS: dict[str, Callable[..., Loaded]] = {
    **{cls.kind: cls.load for cls in _CLASSES},
    **dict.fromkeys(POLICY_KINDS, load_policy),
    REWARDS_KIND: load_any_reward,
}
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_NAME = re.compile(rf"{_PART}/{_PART}")


def folder() -> Path:
    """
    Where the zoo lies: ``$RRPOLICY_ZOO``, else inside the installed package, else beside it in a checkout.

    :raises FileNotFoundError: when there is none
    """
    package = Path(__file__).resolve().parents[1]
    chosen = os.environ.get(FOLDER_VARIABLE)
    candidates = [Path(chosen)] if chosen else [package / "_zoo", package.parent / "zoo"]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"no zoo: looked for the folders {', '.join(map(str, candidates))}")


def load(name: str | os.PathLike[str], env: Env | str | None = None, device: torch.device | str = "auto") -> Loaded:
    """
    Load an agent, a reward, a guided planner, a policy or an image model, its reward or classifier, whichever the
    archive holds.

    :param name: a zoo name (``"PointMaze_UMaze-v3/base"``), the path of an archive (``.zip`` may be left out) or of a
        folder with one, or ``"hub:<owner>/<repository>[@<revision>]/<file>"``; with ``env``, an agent in a file of
        Stable-Baselines3 or one of its hub repositories (``"sb3/tqc-Hopper-v3"``)
    :param env: an environment, or its id, for what acts in one, as its ``load`` takes it
    :param device: of the weights
    :raises FileNotFoundError: when a path leads nowhere
    :raises ValueError: for a name that the zoo does not have, listing near ones, for a damaged or foreign archive, for
        an environment that does not fit, and for an image model without the extra ``images``
    """
    path = name if sb3_files.is_sb3_agent(name) else find(name)
    if sb3_files.is_sb3_agent(path):
        return _load_sb3(path, env, device)
    return _LOADERS[read_archive(path, tuple(_LOADERS)).kind](path, env, device)


def push(source: str | os.PathLike[str], repository: str, **options: Unpack[PushOptions]) -> str:
    """
    Upload an archive to the Hugging Face hub with a model card, as one commit; see `common.publish.push`.

    :param source: of an agent, a planner, a reward, a policy or an image model: a path, or a name as in :func:`load`
    :param repository: ``"owner/name"``
    :param options: those of `common.publish.PushOptions`
    :return: the name that loads exactly this
    :raises ValueError: as there, and for an archive of another kind, or an ONNX file that cannot be run
    """
    path = find(source)
    read_archive(path, tuple(_LOADERS))
    if (onnx := options.get("onnx")) is not None:
        GraphFile(onnx, "planner", "policy", "reward")
    return publish.push(path, repository, **options)


def load_agent(name: str | os.PathLike[str]) -> DiffusionAgent:
    """
    Load a diffusion agent.

    :param name: as in :func:`load`
    :raises ValueError: when it names something else than a diffusion agent
    """
    return DiffusionAgent.load(find(name))


def load_reward(name: str | os.PathLike[str]) -> AnyReward:
    """
    Load a reward, a sum of rewards or an ensemble.

    :param name: as in :func:`load`
    :raises ValueError: when it names something else than a reward
    """
    return load_any_reward(find(name))


def card(name: str | os.PathLike[str]) -> dict[str, Any]:
    """The facts that an archive carries about itself: environment, maze, goal, seed, measured numbers."""
    return read_archive(find(name), tuple(_LOADERS)).card


def find(name: str | os.PathLike[str]) -> Path:
    """
    The archive that a name stands for.

    :param name: as in :func:`load`
    """
    text = os.fspath(name)
    if not 0 < len(text) <= MAX_NAME:
        raise ValueError(f"the name of an archive has {len(text)} characters, wanted 1 to {MAX_NAME}")
    if text.startswith(hub.PREFIX):
        return hub.download(text)
    path = Path(text)
    for candidate in (path, path.with_name(path.name + ".zip")) if path.name else ():
        if candidate.is_file():
            return candidate
    if path.is_dir():
        return _archive_in(path)
    if _NAME.fullmatch(text):
        entry = folder() / "agents" / text
        if (entry / CARD).is_file():
            return _archive_in(entry)
    if path.suffix == ".zip" or path.is_absolute():
        raise FileNotFoundError(f"{path}: no such archive")
    raise ValueError(f"{printable(text)!r} is neither a file nor a name in the zoo{_near(text)}")


def entries(root: Path | None = None) -> list[dict[str, Any]]:
    """
    The cards of everything in the zoo, by environment and name.

    :param root: the zoo; None: :func:`folder`
    :raises ValueError: for a card that cannot be read, naming it
    """
    return [_read_card(path) for path in sorted(((root or folder()) / "agents").glob(f"*/*/{CARD}"))]


def info(name: str) -> dict[str, Any]:
    """
    The card of one entry.

    :param name: such as ``"PointMaze_UMaze-v3/expert-3-1"``
    :raises ValueError: for a name that the zoo does not have, listing near ones
    """
    path = folder() / "agents" / name / CARD
    if not _NAME.fullmatch(name) or not path.is_file():
        raise ValueError(f"{printable(name)!r} is not in the zoo{_near(name)}")
    return _read_card(path)


def goal_name(kind: str, goal: Iterable[float]) -> str:
    """The name of a goal's entry: ``("expert", (3, 1))`` -> ``"expert-3-1"``."""
    return "-".join([kind, *(f"{value:g}" for value in goal)])


def is_image(card: Mapping[str, Any]) -> bool:
    """Whether an entry is about images: a model of them, its reward or its classifier."""
    return str(card["kind"]).startswith("image-")


# ---------------------------------------------------------------------- helpers


def _load_sb3(source: str | os.PathLike[str], env: Env | str | None, device: torch.device | str) -> sb3_files.Sb3Agent:
    """An agent in a file of Stable-Baselines3, for the spaces of an environment."""
    if env is None:
        fault = "is of Stable-Baselines3, whose pickles are not opened; to take its weights for an environment give env"
        raise ValueError(at(Path(source), fault))
    made = flat_environment(env)
    try:
        env_id = env if isinstance(env, str) else getattr(getattr(made, "spec", None), "id", "")
        return sb3_files.load_sb3_agent(source, env_id, made.observation_space, made.action_space, device=device)
    finally:
        if isinstance(env, str):
            made.close()


def _archive_in(path: Path) -> Path:
    """The one archive of a folder."""
    found = [path / f"{kind}.zip" for kind in _LOADERS if (path / f"{kind}.zip").is_file()]
    if len(found) != 1:
        wanted = ", ".join(f"{kind}.zip" for kind in _LOADERS)
        raise ValueError(f"{path}: holds {len(found)} of {wanted}, wanted exactly one; name the file")
    return found[0]


def _near(name: str) -> str:
    """The end of the message about a name that was not found."""
    known = [f"{path.parent.parent.name}/{path.parent.name}" for path in sorted(folder().glob(f"agents/*/*/{CARD}"))]
    near = get_close_matches(name, known, n=5, cutoff=0.3) or known
    return f"; it has {', '.join(near)}" if near else "; the zoo is empty"


def _read_card(path: Path) -> dict[str, Any]:
    wanted = {"name", "kind", "environment", "results", "bytes"}
    try:
        values = from_json(read_small(path))
        if not isinstance(values, dict) or not wanted <= set(values):
            raise ValueError(f"wanted a JSON object with {sorted(wanted)}")
        checked(EntryFields, values, path.name)
    except (OSError, ValueError) as error:
        raise ValueError(at(path, f"not a card: {error}")) from error
    return values
