"""The house rules: imports point one way, and files stay small."""

import ast
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("medha_actors", "deployments", "clients", "loadgen")
FILES = sorted(chain.from_iterable((ROOT / name).rglob("*.py") for name in PACKAGES))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

CORE_STDLIB = {
    "__future__", "abc", "array", "bisect", "collections", "dataclasses", "enum", "functools",
    "hashlib", "heapq", "itertools", "math", "operator", "random", "statistics", "types", "typing",
}  # fmt: skip
CONTRACT = (
    "medha_actors.config",
    "medha_actors.errors",
    "medha_actors.fleet_config",
    "medha_actors.grid_config",
    "medha_actors.messages",
    "medha_actors.model_shares",
    "medha_actors.model_spec",
    "medha_actors.quantities",
    "medha_actors.record",
    "medha_actors.tuning",
)
# The load generator's rooms, lowest first: each may import those before it.
ROOMS = ("workload", "judge", "send", "show")
FOUNDATION = ("loadgen.errors", "loadgen.flags", "loadgen.records")
HEAVY = ("ray", "torch", "transformers")
TWIN = (
    "loadgen.options",
    "loadgen.twin",
    "medha_actors.config",
    "medha_actors.core",
    "medha_actors.errors",
    "medha_actors.fleet",
    "medha_actors.fleet_config",
    "medha_actors.grid_config",
    "medha_actors.messages",
    "medha_actors.model_shares",
    "medha_actors.model_spec",
    "medha_actors.quantities",
)


def rooms_below(room: str) -> tuple[str, ...]:
    """A room of the load generator and those it stands on."""
    names = ROOMS[: ROOMS.index(room) + 1]
    return tuple(f"loadgen.{name}" for name in names)


# Package: the packages of this repository it may import, and third-party roots it must
# not. The first that fits a module holds.
RULES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "medha_actors.core": (("medha_actors.core", *CONTRACT), ("ray", "torch", "numpy")),
    "medha_actors.fleet": (
        ("medha_actors.fleet", "medha_actors.core", *CONTRACT),
        ("ray", "torch", "numpy"),
    ),
    "medha_actors.fleet_config": (
        ("medha_actors.quantities",),
        ("ray", "torch", "numpy"),
    ),
    "medha_actors.model_spec": (CONTRACT, ("ray", "torch", "numpy")),
    "medha_actors.model_shares": (CONTRACT, ("ray", "torch", "numpy")),
    "medha_actors.telemetry": (
        ("medha_actors.telemetry", "medha_actors.core", *CONTRACT),
        HEAVY,
    ),
    "medha_actors.files": (("medha_actors.files", *CONTRACT), ("ray", "torch")),
    "medha_actors.model": (
        ("medha_actors.model", "medha_actors.files", *CONTRACT),
        ("ray",),
    ),
    "medha_actors.actors": (
        (
            "medha_actors.actors",
            "medha_actors.core",
            "medha_actors.fleet",
            "medha_actors.model",
            "medha_actors.files",
            "medha_actors.telemetry",
            *CONTRACT,
        ),
        (),
    ),
    "medha_actors.bench": (("medha_actors",), ()),
    "deployments": (("deployments", "medha_actors"), ()),
    "clients": (("clients",), (*HEAVY, "numpy")),
    "loadgen.errors": ((), HEAVY),
    "loadgen.records": (FOUNDATION, HEAVY),
    "loadgen.flags": (FOUNDATION, HEAVY),
    "loadgen.workload": ((*FOUNDATION, *rooms_below("workload")), HEAVY),
    "loadgen.judge": ((*FOUNDATION, "loadgen.judge"), HEAVY),
    "loadgen.send": ((*FOUNDATION, *rooms_below("send"), "clients"), HEAVY),
    "loadgen.show": ((*FOUNDATION, *rooms_below("show")), HEAVY),
    "loadgen.twin": ((*FOUNDATION, *rooms_below("show"), *TWIN), HEAVY),
    "loadgen": (("loadgen",), HEAVY),
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
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                if (ROOT / module.replace(".", "/")).with_suffix(".py").exists():
                    names.add(module)
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
            assert any(lies_in(name, package) for package in allowed), (
                f"{module} imports {name}"
            )
        if lies_in(module, "medha_actors.core") or lies_in(
            module, "medha_actors.fleet"
        ):
            assert root in CORE_STDLIB | {"msgspec", "medha_actors"}, (
                f"{module} imports {name}"
            )


def test_there_are_no_circles():
    """Every module can be put after all that it imports."""
    modules = {module_of(path): path for path in FILES}
    waiting = {}
    for module, path in modules.items():
        names = imports_of(path)
        waiting[module] = {name for name in names if name in modules and name != module}
    while waiting:
        ready = [
            module for module, needs in waiting.items() if not needs & waiting.keys()
        ]
        assert ready, f"a circle among {sorted(waiting)}"
        for module in ready:
            del waiting[module]


def test_rooms_have_at_most_twelve_files():
    for folder in {path.parent for path in FILES if "loadgen" in path.parts}:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= 12, folder


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and len(name) > 1


def names_made_in(path: Path) -> set[str]:
    """The private names that a file defines: functions, classes, variables, attributes."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return {name for name in names if is_private(name)}


def is_own(node: ast.expr) -> bool:
    """Whether this is `self`, `cls` or `super()`."""
    if isinstance(node, ast.Call):
        node = node.func
    return isinstance(node, ast.Name) and node.id in ("self", "cls", "super")


def names_read_in(path: Path) -> list[tuple[int, str]]:
    """The private names that a file takes from elsewhere, each with its line."""
    read: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and not is_own(node.value):
            read.append((node.lineno, node.attr))
        elif isinstance(node, ast.ImportFrom):
            read += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.Call) and isinstance(
            node.func, ast.Attribute | ast.Name
        ):
            function = (
                node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            )
            if function in ("setattr", "getattr"):  # monkeypatch's too
                texts = [
                    one.value for one in node.args if isinstance(one, ast.Constant)
                ]
                read += [(node.lineno, str(text).split(".")[-1]) for text in texts]
    return [(line, name) for line, name in read if is_private(name)]


def test_private_names_are_seen(tmp_path: Path):
    path = tmp_path / "example.py"
    path.write_text(
        "from place import _imported\n"
        "thing._read, self._inherited, thing.__dunder__, thing.public\n"
        "monkeypatch.setattr('place._named', 1)\n"
        "monkeypatch.setattr(thing, '_set', 1)\n"
        "def _mine(): pass\n"
    )
    names = [name for _, name in names_read_in(path)]
    assert sorted(names) == ["_imported", "_named", "_read", "_set"]
    assert names_made_in(path) == {"_mine"}


PRIVATE = frozenset().union(*[names_made_in(path) for path in FILES])


@pytest.mark.parametrize("path", TESTS, ids=module_of)
def test_tests_read_no_private_name_of_the_product(path: Path):
    foreign = PRIVATE - names_made_in(path)
    found = [
        f"{path.name}:{line} {name}"
        for line, name in names_read_in(path)
        if name in foreign
    ]
    assert not found


def test_files_of_tests_have_names_of_their_own():
    """Two of one name cannot be collected together."""
    names = Counter(path.name for path in TESTS if path.name.startswith("test_"))
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=module_of)
def test_files_stay_small(path: Path):
    assert len(path.read_text().splitlines()) <= 350
