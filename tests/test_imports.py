"""What the package's modules import: each other downwards only, and of others what is public."""

from __future__ import annotations

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import spptransfer

ROOT = Path(spptransfer.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def statements(path: Path) -> list[ast.stmt]:
    """Import statements anywhere in a file, but for what a package looks up on demand."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found, left = [], list(tree.body)
    lazy = path.name == "__init__.py" and any(
        isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in tree.body
    )
    while left:
        node = left.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append(node)
        on_demand = isinstance(node, ast.FunctionDef) and node.name == "__getattr__"
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if not (lazy and (on_demand or for_types)):
            left += list(ast.iter_child_nodes(node))
    return found


def names_in(statement: ast.stmt) -> list[str]:
    """Full names that a statement imports."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    return [f"{statement.module}.{alias.name}" for alias in statement.names]


def arrows(path: Path) -> set[str]:
    """Modules of the package that a file imports, those for types alone included."""
    found = set()
    for statement in statements(path):
        for name in names_in(statement):
            # `from package import name`: a module, or something that is defined in the package.
            module = name if name in MODULES else name.rpartition(".")[0]
            if module in MODULES:
                found.add(module)
    return found - {module_of(path)}


def circle(graph: dict[str, set[str]]) -> str:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " <- ".join(error.args[1])
    return ""


def test_no_module_imports_itself_by_way_of_others():
    assert circle({module: arrows(path) for module, path in MODULES.items()}) == ""


def is_private(name: str) -> bool:
    """Whether a full name has a part that its distribution keeps for itself."""
    ours_or_language = name.partition(".")[0] in {"spptransfer", *sys.stdlib_module_names}
    parts = name.split(".")
    return not ours_or_language and any(
        part.startswith("_") and not part.endswith("__") for part in parts
    )


def dotted_names(path: Path) -> set[str]:
    """Full names from other modules that a file imports or looks up by dots."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found, local = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias, name in zip(node.names, names_in(node), strict=True):
                found.add(name)
                if alias.asname or isinstance(node, ast.ImportFrom):
                    local[alias.asname or alias.name] = name
                else:
                    local[name.partition(".")[0]] = name.partition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.fullmatch(r"[\w.]+", ast.unparse(node)):
            start, _, rest = ast.unparse(node).partition(".")
            if start in local:
                found.add(f"{local[start]}.{rest}")
    return found


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_of_other_distributions_only_public_names_are_used(path):
    names = dotted_names(path)
    assert not {name for name in names if is_private(name)}
    assert not {name for name in names if name.startswith(("torch._C", "torch.ops.mkldnn"))}
