"""What the documentation says can be done: its Python blocks run, and its commands have the options that it names.

The blocks of a page share one namespace and run in an empty folder. A block that cannot run stands below a line
``<!-- not executed: REASON -->`` and is counted here.
"""

import ast
import pkgutil
import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from helpers import markdown
from helpers.agents import NARROW, few_own_samples
from helpers.exported import FOLDER, source
from helpers.program import invoke

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(page for page in (ROOT / "docs").rglob("*.md") if not {"_build", "api"} & set(page.parts))
EVERY_PAGE = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "zoo" / "README.md"]
EXECUTED = [page for page in PAGES if markdown.python_blocks(page)]  # README.md: tests/test_readme.py

GROUPS = {"benchmark", "images", "plot", "reproduce", "zoo"}

NOT_EXECUTED = {"docs/images.md": 2, "docs/locomotion.md": 1}
"""Pages with blocks that do not run, and how many; the reasons stand in the pages."""


SMALLER = {
    "docs/tutorial_own_data.md": {
        "total_timesteps=500": "total_timesteps=40",
        "total_timesteps=100)": "total_timesteps=10)",
        "n_eval_episodes=8": "n_eval_episodes=2",
        "DriftEnv(n_steps=30": "DriftEnv(n_steps=12",
        "draw(512,": "draw(64,",
        "n_episodes=60, seed=0": "n_episodes=20, seed=0",
        "n_episodes=60, seed=1000": "n_episodes=20, seed=1000",
        "buffer_size=1024": "buffer_size=128",
        '"width": 64, "n_blocks": 2': '"width": 16, "n_blocks": 1',
        "RewardExtractor(base, expert,": "RewardExtractor(base, expert, window_kwargs=NARROW, step_kwargs=NARROW,",
        "n_rounds=1, rounds": "n_rounds=1, total_timesteps=5, rounds",
    },
    "docs/quickstart.md": {"n_eval_episodes=4": "n_eval_episodes=1"},
    "docs/guides/bring_your_own_model.md": {
        "1000), 150,": "1000), 10,",
        "randn(1000, 2)": "randn(50, 2)",
        "expand(1000)": "expand(50)",
    },
    "docs/guides/compare_policies.md": {
        "agent.learn(dataset, 30)": "agent.learn(dataset, 3)",
        "n_samples=32": "n_samples=16",
        "total_timesteps=10,": "total_timesteps=3,",
        "buffer_size=256": "buffer_size=128",
        '"buffer_size": 256': '"buffer_size": 128',
        "learn(datasets, 10)": "learn(datasets, 2)",
        "n_events=64": "n_events=8",
    },
    "docs/guides/deploy.md": {  # new files, which take seconds: tests/test_export.py
        'zoo.load("PointMaze_UMaze-v3/base"), zoo.load("PointMaze_UMaze-v3/reward-3-1")': "kept.agent, kept.reward",
        "GuidedPlanner(base, reward).with_planning(n_sampling_steps=2)": "kept",
        'export_onnx(planner, "planner.onnx", card={"environment": "PointMaze_UMaze-v3"})': "kept_file",
    },
}
"""Texts of a page, and those that its blocks run with here; as they are printed they run with ``-m slow``."""


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", EXECUTED, ids=name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few_own_samples(monkeypatch)
    namespace = markdown.run(
        page,
        {"__name__": "__main__", "kept": source("planner"), "kept_file": FOLDER / "planner.onnx", "NARROW": NARROW},
        SMALLER.get(name(page), {}),
    )
    if page.name == "quickstart.md":
        assert namespace["result"].success_rate == 1 and namespace["heat_map"].same_cell((2, 3))
    if page.name == "tutorial_own_data.md":
        assert (tmp_path / "steered.mp4").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in EXECUTED if name(page) in SMALLER], ids=name)
def test_pages_show_what_they_say(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = markdown.run(page)
    if page.name == "tutorial_own_data.md":
        base, steered, expert = (namespace["results"][agent].returns.mean() for agent in ("base", "steered", "expert"))
        assert base + 0.8 < steered < expert + 0.5 and (tmp_path / "steered.mp4").is_file()
    if page.name == "quickstart.md":
        assert namespace["result"].success_rate == 1 and namespace["heat_map"].same_cell((2, 3))


def test_what_the_docs_import_from_a_package_is_in_its_all() -> None:
    missing = []
    for page in EVERY_PAGE:
        for block in markdown.blocks(page):
            if block.language != "python":
                continue
            for node in ast.walk(ast.parse(block.text)):
                if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "rrpolicy":
                    module = import_module(str(node.module))
                    known = getattr(module, "__all__", dir(module))
                    modules = {found.name for found in pkgutil.iter_modules(getattr(module, "__path__", []))}
                    missing += [f"{node.module}.{one.name}" for one in node.names if one.name not in {*known, *modules}]
    assert missing == []


def test_blocks_that_do_not_run_are_known() -> None:
    found = {name(page): sum(block.reason is not None for block in markdown.blocks(page)) for page in EVERY_PAGE}
    assert {page: number for page, number in found.items() if number} == NOT_EXECUTED


@cache
def options(*command: str) -> set[str] | None:
    """The options of a command as its ``--help`` names them; None where there is no such command."""
    result = invoke([*command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", result.output)) if result.exit_code == 0 else None


def faults(arguments: list[str]) -> list[str]:
    """What a command line names that there is not."""
    depth = 2 if arguments[:1] and arguments[0] in GROUPS else 1
    known = options(*arguments[:depth])
    if known is None:
        return arguments[:depth]
    named = [token.split("=")[0] for token in arguments if re.match(r"--?[a-zA-Z]", token)]
    return [name for name in named if name not in known]


@pytest.mark.parametrize("page", EVERY_PAGE, ids=name)
def test_commands_have_the_options_that_are_named(page: Path) -> None:
    found = {" ".join(arguments): faults(arguments) for arguments in markdown.command_lines(page)}
    assert {line: fault for line, fault in found.items() if fault} == {}


def test_the_checks_find_what_they_look_for(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\na = 1\n```\ntext\n\n<!-- not executed: needs a GPU -->\n```python\na = 2\n```\n"
        "```bash\npip install . && rrpolicy demo --n-episode 2 \\\n    --seed 0  # why\n```\n"
        "`rrpolicy demos` and `rrpolicy zoo\nlist --no-such`\n```python\nb = a + 1\n```\n",
        encoding="utf-8",
    )
    namespace = markdown.run(page)
    assert (namespace["a"], namespace["b"]) == (1, 2)
    assert [block.reason for block in markdown.blocks(page)] == [None, "needs a GPU", None, None]
    lines = markdown.command_lines(page)
    assert lines == [["demo", "--n-episode", "2", "--seed", "0"], ["demos"], ["zoo", "list", "--no-such"]]
    assert [faults(line) for line in lines] == [["--n-episode"], ["demos"], ["--no-such"]]
