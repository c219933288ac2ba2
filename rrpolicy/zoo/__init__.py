"""The zoo: pretrained agents, image models and rewards by name, each with a card of measured numbers, and recipes.

It is read from the top folder of a checkout or from inside an installed wheel; names never lead out of its folder.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.agents.guided_planner import GuidedPlanner
from rrpolicy.common.archive import read_archive
from rrpolicy.common.kinds import EntryFields
from rrpolicy.common.messages import at, printable
from rrpolicy.common.schema import check_depth, checked, from_json, read_small
from rrpolicy.images.judge import ImageJudge
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.training import ImageDiffusion
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.zoo import hub

Loaded = DiffusionAgent | RelativeReward | GuidedPlanner | ImageDiffusion | ImageReward | ImageJudge

FOLDER_VARIABLE = "RRPOLICY_ZOO"
CARD = "card.json"
MAX_NAME = 1024  # characters of a zoo name or a path
MAX_RECIPE_BYTES = 2**14  # keys of many parts take memory that grows with the square of their number
_KINDS: tuple[type[Loaded], ...] = (
    DiffusionAgent, RelativeReward, GuidedPlanner, ImageDiffusion, ImageReward, ImageJudge,
)  # fmt: skip
_LOADERS: dict[str, type[Loaded]] = {cls.kind: cls for cls in _KINDS}
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


def load(name: str | os.PathLike[str]) -> Loaded:
    """
    Load an agent, a reward, a guided planner or an image model, its reward or judge, whichever the archive holds.

    :param name: a zoo name (``"PointMaze_UMaze-v3/base"``), the path of an archive (``.zip`` may be left out) or of a
        folder with one, or ``"hub:<owner>/<repository>[@<revision>]/<file>"``
    :raises FileNotFoundError: when a path leads nowhere
    :raises ValueError: for a name that the zoo does not have, listing near ones, for a damaged or foreign archive, and
        for an image model without the extra ``images``
    """
    path = find(name)
    return _LOADERS[read_archive(path, tuple(_LOADERS)).kind].load(path)


def load_agent(name: str | os.PathLike[str]) -> DiffusionAgent:
    """
    Load a diffusion agent.

    :param name: as in :func:`load`
    :raises ValueError: when it names something else than a diffusion agent
    """
    return DiffusionAgent.load(find(name))


def load_reward(name: str | os.PathLike[str]) -> RelativeReward:
    """
    Load a reward.

    :param name: as in :func:`load`
    :raises ValueError: when it names something else than a reward
    """
    return RelativeReward.load(find(name))


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


def recipe(name: str, default: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """
    The recipe of an environment.

    :param name: environment id, or the recipe's own name
    :param default: where there is none
    :raises ValueError: when there is none, and no default
    """
    known = {path.stem: path for path in sorted((folder() / "recipes").glob("*.toml"))}
    for stem, path in known.items():
        values = read_recipe(path)
        if name == stem or any(fnmatchcase(name, pattern) for pattern in values.get("environments", [])):
            return values
    if default is not None:
        return default
    raise ValueError(f"no recipe for {printable(name)!r}, there are {', '.join(known) or 'none'}")


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    Read a recipe file; its name goes into the entry ``"name"``.

    :param path: TOML file
    :raises FileNotFoundError: when there is no such file
    :raises ValueError: when it is not TOML, naming file and place
    """
    source = Path(path)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such recipe")
    try:
        values = tomllib.loads(read_small(source, MAX_RECIPE_BYTES).decode())
        check_depth(values, "it")
    except (OSError, RecursionError, ValueError) as error:
        raise ValueError(at(source, f"not a TOML file: {error}")) from error
    return {"name": source.stem, **values}


# ---------------------------------------------------------------------- the table

HEADER = """# The zoo

Agents and rewards for `rrpolicy`, loaded by name: `zoo.load("PointMaze_UMaze-v3/base")`. Every number was measured by
`rrpolicy zoo build` in the real environment: success at the end of an episode, mean over seed-matched episodes with its
95 % interval. This page is generated by `rrpolicy zoo table --write`.

"""
COLUMNS = ("name", "success", "steered, scale 1", "steered, scale 2", "discriminator", "goal error (cells)", "size")
ROBOTS_HEADER = """
## Robots

Numbers are D4RL's normalised scores (0 a random policy, 100 the expert), mean over seed-matched episodes with its 95 %
interval. The base is steered as its robot's recipe says, and at scales 1 and 2; below stands the share of the way
from the base to the expert that it makes. Cards also hold returns, paired differences and how the data were collected.

"""
ROBOT_COLUMNS = ("name", "data", "score of the data", "score", "steered", "steered, scale 1", "steered, scale 2",
                 "discriminator", "video", "size")  # fmt: skip
SCORE = "normalized_score"
IMAGES_HEADER = """
## Images

Two image models, the reward that tells them apart, and a judge, a classifier that only counts. AUROC: wanted over
unwanted held-out images, each scored by one forward pass; harmful share: of a model's own samples or of the base's
steered ones, as the judge sees them; accuracy: of the judge on held-out images. Intervals are 95 % intervals.

"""
IMAGE_COLUMNS = ("name", "unwanted", "AUROC", "harmful share", "steered, scale 1", "steered, scale 2", "accuracy",
                 "picture", "size")  # fmt: skip
HARMFUL = "harmful_share"


def table(root: Path | None = None) -> str:
    """
    Markdown page with a row for each entry, the text of the zoo's ``README.md``.

    :param root: the zoo; None: :func:`folder`
    """
    cards = entries(root)
    images = [card for card in cards if is_image(card)]
    robots = [card for card in cards if any(row["metric"] == SCORE for row in card["results"])]
    mazes = [card for card in cards if card not in images and card not in robots]
    page = HEADER + _markdown(COLUMNS, map(_maze_cells, mazes))
    page += ROBOTS_HEADER + _markdown(ROBOT_COLUMNS, map(_robot_cells, robots)) if robots else ""
    return page + (IMAGES_HEADER + _markdown(IMAGE_COLUMNS, map(_image_cells, images)) if images else "")


def is_image(card: Mapping[str, Any]) -> bool:
    """Whether an entry is about images: a model of them, its reward or its judge."""
    return str(card["kind"]).startswith("image-")


def _maze_cells(card: Mapping[str, Any]) -> list[str]:
    rows = _by_key(card)
    by_goal = [f"{_escaped(agent.removeprefix('base-'))}: {_cell(row, interval=True)}"
               for (agent, metric), row in rows.items() if agent.startswith("base-") and metric == "success_rate"]
    own = _cell(rows.get(("agent", "success_rate")), interval=True)
    cells = [f"`{card['name']}`", "<br>".join(by_goal) or own]
    for agent, metric in (
        ("steered-1", "success_rate"),
        ("steered-2", "success_rate"),
        ("discriminator", "success_rate"),
        ("reward", "goal_error_cells"),
    ):
        cells.append(_cell(rows.get((agent, metric)), interval=metric == "success_rate"))
    return [*cells, _size(card)]


def _robot_cells(card: Mapping[str, Any]) -> list[str]:
    rows = _by_key(card)
    cells = [f"`{card['name']}`", _escaped(card.get("case") or "")]
    for agent in ("data", "agent", "steered", "steered-1", "steered-2", "discriminator"):
        share = rows.get((agent, "gap_closed")) if agent.startswith("steered") else None
        below = f"<br>{_cell(share, interval=False)} of the gap" if share else ""
        cells.append(_cell(rows.get((agent, SCORE)), interval=True, digits=1) + below)
    video = f"[video](agents/{card['name']}/{card['video']})" if card.get("video") else ""
    return [*cells, video, _size(card)]


def _image_cells(card: Mapping[str, Any]) -> list[str]:
    rows, shown = _by_key(card), (("rho", "auroc"), ("agent", HARMFUL), ("steered-1", HARMFUL),
                                  ("steered-2", HARMFUL), ("judge", "accuracy"))  # fmt: skip
    cells = [_cell(rows.get(key), interval=True, digits=3) for key in shown]
    picture = f"[picture](agents/{card['name']}/{card['picture']})" if card.get("picture") else ""
    return [f"`{card['name']}`", _escaped(", ".join(card.get("unwanted") or ())), *cells, picture, _size(card)]


def _by_key(card: Mapping[str, Any]) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(row["agent"], row["metric"]): row for row in card["results"]}


def _cell(row: Mapping[str, Any] | None, interval: bool, digits: int = 2) -> str:
    if row is None:
        return ""
    bounds = f" [{row['ci_low']:.{digits}f}, {row['ci_high']:.{digits}f}]" if interval else ""
    return f"{row['mean']:.{digits}f}{bounds}"


def _escaped(text: str) -> str:
    """Text of a card that stays text in Markdown and in HTML."""
    line = printable(text, 500).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~]|^[#+-])", r"\\\1", line)


def _size(card: Mapping[str, Any]) -> str:
    return f"{card['bytes'] / 2**20:.1f} MiB"


def _markdown(columns: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A table, a text for each cell."""
    heading = list(columns)
    rule = f"|{' --- |' * len(heading)}\n"
    return f"| {' | '.join(heading)} |\n{rule}" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


# ---------------------------------------------------------------------- helpers


def _archive_in(path: Path) -> Path:
    """The one archive of a folder."""
    found = [path / f"{kind}.zip" for kind in _LOADERS if (path / f"{kind}.zip").is_file()]
    if len(found) != 1:
        wanted = ", ".join(f"{kind}.zip" for kind in _LOADERS)
        raise ValueError(f"{path}: holds {len(found)} of {wanted}, wanted exactly one; name the file")
    return found[0]


def _near(name: str) -> str:
    """What to say about a name that was not found."""
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
