"""The house rules: imports point one way, and files stay small."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("medha_actors", "deployments", "clients", "loadgen")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

CORE_STDLIB = {
    "__future__", "abc", "array", "bisect", "collections", "dataclasses", "enum", "functools",
    "heapq", "itertools", "math", "operator", "random", "statistics", "types", "typing",
}  # fmt: skip
CONTRACT = (
    "medha_actors.config",
    "medha_actors.errors",
    "medha_actors.messages",
    "medha_actors.model_spec",
)
# Package: the prefixes of this repository it may import, and third-party roots it must not.
RULES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "medha_actors.core": (("medha_actors.core", *CONTRACT), ("ray", "torch", "numpy")),
    "medha_actors.model_spec": (CONTRACT, ("ray", "torch", "numpy")),
    "medha_actors.model": (("medha_actors.model", *CONTRACT), ("ray",)),
    "medha_actors.actors": (("medha_actors",), ()),
    "deployments": (("deployments", "medha_actors"), ()),
    "clients": (("clients",), ("ray", "torch", "transformers", "numpy")),
    "loadgen": (
        ("loadgen", "clients", "medha_actors.core", *CONTRACT),
        ("ray", "torch", "transformers"),
    ),
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def lies_in(module: str, package: str) -> bool:
    """Whether a module is the package or below it."""
    return module == package or module.startswith(package + ".")


def imports_of(path: Path) -> set[str]:
    """Every module that a file names, `from package import module` included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_one_way(path: Path):
    module = module_of(path)
    rules = [rule for package, rule in RULES.items() if lies_in(module, package)]
    if not rules:
        return
    allowed, forbidden = rules[0]
    for name in imports_of(path):
        root = name.split(".")[0]
        assert root not in forbidden, f"{module} imports {name}"
        if root in PACKAGES:
            assert any(lies_in(name, package) for package in allowed), f"{module} imports {name}"
        if lies_in(module, "medha_actors.core"):
            assert root in CORE_STDLIB | {"msgspec", "medha_actors"}, f"{module} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_stay_small(path: Path):
    assert len(path.read_text().splitlines()) <= 350
