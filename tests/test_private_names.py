"""Tests use what users use: they reach into few private names of the library, and change few of its constants.

The numbers may only become smaller. Lower them when a test is made to use a public name or an argument.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parent
LIBRARY = TESTS.parent / "rrpolicy"
MOST_PRIVATE, MOST_CONSTANTS = 8, 24
OF_OTHERS = {"_n_updates", "_replace"}  # Stable-Baselines3's, and a method of every named tuple
PRIVATE, CONSTANT = re.compile(r"_[a-z]\w*", re.I), re.compile(r"[A-Z][A-Z0-9_]+")


def trees(folder: Path) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(folder.rglob("*.py")):
        yield path.name, ast.parse(path.read_text(encoding="utf-8"))


def defined(tree: ast.AST) -> set[str]:
    """Names of functions, classes, attributes and variables that are made there."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return found


def patched(node: ast.AST) -> str:
    """What ``setattr`` changes, the last part of its name; empty for another node."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr"):
        return ""
    texts = [one.value for one in node.args[:2] if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    return texts[0].rpartition(".")[2] if texts else ""


def used(node: ast.AST) -> Iterator[str]:
    """Names that a node takes from elsewhere."""
    if isinstance(node, ast.ImportFrom) and str(node.module).startswith("rrpolicy"):
        yield from (alias.name for alias in node.names)
    own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
    if isinstance(node, ast.Attribute) and not own:
        yield node.attr
    yield patched(node)


def test_few_private_names_are_used_and_few_constants_changed() -> None:
    known = set().union(*(defined(tree) for _, tree in trees(LIBRARY))) - OF_OTHERS
    private, constants = [], []
    for name, tree in trees(TESTS):
        for node in ast.walk(tree):
            where = f"{name}, line {getattr(node, 'lineno', 0)}"
            private += [f"{where}: {one}" for one in used(node) if PRIVATE.fullmatch(one) and one in known]
            constants += [f"{where}: {one}" for one in (patched(node),) if CONSTANT.fullmatch(one) and one in known]
    assert len(private) <= MOST_PRIVATE, "\n".join(private)
    assert len(constants) <= MOST_CONSTANTS, "\n".join(constants)
