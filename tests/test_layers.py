"""The shape of the library: a module imports only from its own or a lower layer, without cycles, at its top.

The modules are read with ``ast`` and never imported, so a broken one cannot hide behind another.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS = {
    "common": 0,
    "envs": 0,
    "data": 1,
    "diffusion": 1,
    "rewards": 2,
    "agents": 3,
    "images": 3,
    "export": 3,
    "models": 3,
    "comparison": 4,
    "evaluation": 4,
    "rl": 4,
    "zoo": 4,
    "testing": 4,
    "": 4,  # rrpolicy/__init__.py, the public names
    "experiments": 5,
    "cli": 6,
    "__main__": 6,
}

# What an extra installs may be imported inside the function that needs it.
OPTIONAL = {
    "accelerate",
    "d3rlpy",
    "d4rl",
    "diffusers",
    "distributed",
    "huggingface_hub",
    "imitation",
    "moviepy",
    "numcodecs",
    "onnx",
    "onnxruntime",
    "optuna",
    "pyarrow",
    "sb3_contrib",
    "structlog",
    "tomli_w",
    "transformers",
}

MAX_LINES = {"rrpolicy": 400, "tests": 500}
MAX_CODE = 40  # lines of a function, without docstring, blank lines and comments

Modules = dict[str, ast.Module]


def read_modules(package: Path) -> Modules:
    """Parse every module of a package, keyed by its dotted name."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return modules


def import_nodes(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))


def imported_names(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Dotted names that a statement imports; a relative import is an error of its own."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]


def resolve(name: str, modules: Modules) -> str | None:
    """The module of this package that holds an imported name, None for other packages."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


def layer_of(module: str) -> int:
    top = module.split(".")[1] if "." in module else ""
    if top not in LAYERS:
        raise KeyError(f"{module} has no layer: add {top!r} to LAYERS")
    return LAYERS[top]


def dependencies(modules: Modules) -> dict[str, set[str]]:
    """For each module the modules of the same package that it imports."""
    graph: dict[str, set[str]] = {}
    for module, tree in modules.items():
        names = {name for node in import_nodes(tree) for name in imported_names(node)}
        graph[module] = {found for name in names if (found := resolve(name, modules)) is not None} - {module}
    return graph


def upward_imports(modules: Modules) -> list[str]:
    return [
        f"{module} (layer {layer_of(module)}) imports {other} (layer {layer_of(other)})"
        for module, others in dependencies(modules).items()
        for other in sorted(others)
        if layer_of(other) > layer_of(module)
    ]


def relative_imports(modules: Modules) -> list[str]:
    return [
        f"{module}, line {node.lineno}"
        for module, tree in modules.items()
        for node in import_nodes(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]


def inner_imports(modules: Modules) -> list[str]:
    """Imports inside functions, but for those of optional dependencies."""
    return sorted(
        {
            f"{module}, line {node.lineno}: {name}"
            for module, tree in modules.items()
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in import_nodes(function)
            for name in imported_names(node)
            if name.split(".")[0] not in OPTIONAL
        }
    )


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Definition]]:
    """Classes, functions and methods with their dotted names; not those inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            name = f"{prefix}.{child.name}"
            yield name, child
            if isinstance(child, ast.ClassDef):
                yield from definitions(child, name)


def code_lines(function: ast.AST, source: str) -> int:
    """Lines of a function's body without docstring, blank lines and comments."""
    body = list(function.body)  # type: ignore[attr-defined]
    if ast.get_docstring(function) is not None:  # type: ignore[arg-type]
        body = body[1:]
    if not body:
        return 0
    lines = [line.strip() for line in source.splitlines()[body[0].lineno - 1 : function.end_lineno]]  # type: ignore[attr-defined]
    return sum(bool(line) and not line.startswith("#") for line in lines)


def long_functions(modules: Modules, sources: dict[str, str]) -> set[str]:
    return {
        name
        for module, tree in modules.items()
        for name, node in definitions(tree, module)
        if not isinstance(node, ast.ClassDef) and code_lines(node, sources[module]) > MAX_CODE
    }


def without_sentence(modules: Modules) -> list[str]:
    """
    Public classes and functions whose docstring does not begin with a sentence about them. A method may have none, as
    one that is inherited from a protocol has.
    """
    found = []
    for module, tree in modules.items():
        for name, node in definitions(tree, module):
            path = name.removeprefix(f"{module}.").split(".")
            text = ast.get_docstring(node)
            if any(part.startswith("_") for part in path) or (text is None and len(path) > 1):
                continue
            if text is None or not text[:1].strip() or text.startswith(":"):
                found.append(name)
    return found


def cycle(modules: Modules) -> list[str]:
    """The modules of one import cycle, empty when there is none."""
    try:
        TopologicalSorter(dependencies(modules)).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def modules() -> Modules:
    return read_modules(ROOT / "rrpolicy")


def tree_source(module: str) -> str:
    path = ROOT / module.replace(".", "/")
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")


def test_every_module_is_seen(modules: Modules) -> None:
    assert {"rrpolicy", "rrpolicy.data", "rrpolicy.diffusion", "rrpolicy.envs.maze"} <= set(modules)


def test_modules_import_from_their_own_or_a_lower_layer(modules: Modules) -> None:
    assert upward_imports(modules) == []


def test_imports_are_absolute(modules: Modules) -> None:
    assert relative_imports(modules) == []


def test_no_import_cycles(modules: Modules) -> None:
    assert cycle(modules) == []


def test_imports_stand_at_the_top(modules: Modules) -> None:
    assert inner_imports(modules) == []


def test_files_are_short() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) - longest
        for folder, longest in MAX_LINES.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > 0} == {}


def test_functions_are_short(modules: Modules) -> None:
    sources = {module: tree_source(module) for module in modules}
    assert long_functions(modules, sources) == set()


def test_docstrings_begin_with_a_sentence(modules: Modules) -> None:
    assert without_sentence(modules) == []


def test_the_checks_of_functions_find_what_they_look_for() -> None:
    body = "\n".join(f"    a{i} = {i}\n    # comment\n" for i in range(41))
    others = 'class A:\n    """:param a: b"""\n\n    def g(self): ...\ndef h(): ...\n'
    source = f'def f():\n    """Sentence."""\n{body}\n{others}'
    tree = {"rrpolicy.x": ast.parse(source)}
    assert long_functions(tree, {"rrpolicy.x": source}) == {"rrpolicy.x.f"}
    assert long_functions(tree, {"rrpolicy.x": source.replace("    a0 = 0\n", "")}) == set()
    assert without_sentence(tree) == ["rrpolicy.x.A", "rrpolicy.x.h"]


def test_the_checks_find_what_they_look_for(tmp_path: Path) -> None:
    sources = {
        "__init__": "from rrpolicy.common import low",
        "common/__init__": "",
        "common/low": "import torch\nfrom rrpolicy.agents.high import Agent",
        "agents/__init__": "from .high import Agent",
        "agents/high": "import rrpolicy.common.low\ndef f():\n    import diffusers.utils\n    from torch import nn",
    }
    for name, source in sources.items():
        path = tmp_path / "rrpolicy" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    modules = read_modules(tmp_path / "rrpolicy")
    assert upward_imports(modules) == ["rrpolicy.common.low (layer 0) imports rrpolicy.agents.high (layer 3)"]
    assert relative_imports(modules) == ["rrpolicy.agents, line 1"]
    assert inner_imports(modules) == ["rrpolicy.agents.high, line 4: torch.nn"]
    assert set(cycle(modules)) == {"rrpolicy.common.low", "rrpolicy.agents.high"}


def test_a_module_without_a_layer_is_refused() -> None:
    with pytest.raises(KeyError, match=r"rrpolicy\.misc\.tools has no layer"):
        layer_of("rrpolicy.misc.tools")
