"""The import order of the rooms, read from the syntax trees.

A room may import rooms of lower floors, and earlier rooms of its own. Imports inside functions and imports for typing
only count as well: a dependency is one wherever it is written. A new room must be given its place in the table below.
"""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "distpool"
COMPAT = ROOT / "compat"

# From the ground up; inside a floor, earlier rooms may be imported by later ones.
FLOORS = (
    ("light", "blending", "errors", "messages", "desk", "channel"),
    (
        "copies",
        "cookie",
        "credentials",
        "wire",
        "handshake",
        "pickling",
        "bundles",
        "interrupts",
        "waiting",
        "polling",
        "transport",
        "vanishing",
        "watchdog",
        "login_watch",
        "tls",
        "authority",
        "tcp",
        "door",
        "streams",
        "segments",
        "threads",
        "turns",
        "claims",
        "shelf",
        "inbox",
        "cores",
        "output",
    ),
    ("peer", "entries", "store", "forkserver", "managers"),
    (
        "cluster",
        "callbacks",
        "bookkeeping",
        "introductions",
        "guiding",
        "relays",
        "shortcuts",
        "serving",
        "visits",
        "roll",
        "member",
    ),
    (
        "refs",
        "remote_channel",
        "verbs",
        "calls",
        "errands",
        "logs",
        "lifecycle",
        "joining",
        "leaving",
        "membership",
        "envelopes",
        "tasks",
        "worker",
        "connections",
        "listening",
        "hosting",
        "dialling",
    ),
    (
        "futures",
        "tallies",
        "jobs",
        "dispatch",
        "pools",
        "fanout",
        "spawning",
        "loops",
        "parallel_for",
        "programs",
        "broadcast",
        "main_names",
    ),
    ("__init__", "status", "__main__", "testing"),
)
ORDER = {room: place for place, room in enumerate(room for floor in FLOORS for room in floor)}

# The one room with several files, likewise in order; its __init__ comes last.
MANAGERS = (
    *(
        "startup",
        "interface",
        "interpreter",
        "forks",
        "local",
        "machines",
        "commandline",
        "reports",
        "logins",
        "ssh",
        "verbs",
    ),
    *("launcher", "launches", "dialback", "slurm", "mpi", "hosted", "placed", "ray", "dask", "__init__"),
)


class Import(NamedTuple):
    """One import, as an absolute dotted path, and where it stands."""

    target: str
    line: int


def imports(source: str, module: str, *, is_package: bool) -> Iterator[Import]:
    """Everything `source` imports: statements at any depth, and import_module("...") with a literal name."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _from_imports(node, package)
        elif isinstance(node, ast.Call) and _is_import_call(node):
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield Import(name.value, node.lineno)


def _from_imports(node: ast.ImportFrom, package: str) -> Iterator[Import]:
    """`from a import b` counts as a.b: only the caller knows whether b is a module."""
    base = node.module or ""
    if node.level:
        parts = package.split(".")
        above = parts[: len(parts) - node.level + 1]
        base = ".".join([*above, base] if base else above)
    yield from (Import(f"{base}.{alias.name}", node.lineno) for alias in node.names)


def _is_import_call(node: ast.Call) -> bool:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in {"import_module", "__import__"} and bool(node.args)


def room_of(target: str) -> str | None:
    """The room a dotted path leads to; None outside the package. A name that is no room belongs to the front door."""
    parts = target.split(".")
    if parts[0] != "distpool":
        return None
    name = parts[1] if len(parts) > 1 else "__init__"
    return name if name in ORDER or name == "compat" else "__init__"


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def violations(source: str, module: str, *, is_package: bool) -> list[str]:
    """The imports of one file of the package that point up, sideways to a later room, or into compat."""
    own = "__init__" if module == "distpool" else module.split(".")[1]
    if own not in ORDER:
        return [f"{module} has no floor: add {own} to FLOORS"]
    found = []
    for target, line in imports(source, module, is_package=is_package):
        room = room_of(target)
        if room is None or room == own:
            continue
        # The command line stands above the drop-ins, too.
        if own != "__main__" if room == "compat" else ORDER[room] > ORDER[own]:
            found.append(f"{module}:{line} imports {target}, but {own} stands below {room}")
    return found


@pytest.mark.parametrize("path", files(), ids=module_of)
def test_imports_go_down(path: Path) -> None:
    """No file imports a room above its own, or a later one of its floor."""
    assert violations(path.read_text(), module_of(path), is_package=path.stem == "__init__") == []


def test_every_room_has_a_place() -> None:
    """A file that the table does not know is a room without a floor."""
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in files()}
    assert rooms <= ORDER.keys(), f"no floor for {sorted(rooms - ORDER.keys())}: add it to FLOORS"


def test_the_drawing_of_the_house_is_true() -> None:
    """docs/design.md shows the floors; whoever reads the page first must not look for a room in vain."""
    drawing = (ROOT / "docs" / "design.md").read_text().partition("## The house")[2].partition("\n| to find")[0]
    rows = re.findall(r"^    (?:(\d)  .{14} | {18})(\w.*)$", drawing, re.MULTILINE)
    drawn: list[list[str]] = []
    for floor, rooms in rows:
        if floor:
            drawn.append([])
        drawn[-1] += rooms.split()
    assert drawn == [list(floor) for floor in reversed(FLOORS)]


def test_every_folder_is_installed() -> None:
    """setup.cfg names the packages one by one; a folder that it forgets works here and is missing in the wheel."""
    config = configparser.RawConfigParser()
    config.read(ROOT / "setup.cfg")
    named = set(config["options"]["packages"].split())
    assert {module_of(path.parent / "__init__.py") for path in files()} <= named
    assert {"distpool." + module_of(path.parent / "__init__.py") for path in COMPAT.rglob("*.py")} <= named


def test_every_manager_has_a_place() -> None:
    """Likewise inside the room of managers."""
    names = {path.stem for path in (PACKAGE / "managers").glob("*.py")}
    assert names <= set(MANAGERS), f"no place for managers/{sorted(names - set(MANAGERS))}: add it to MANAGERS"


def test_managers_keep_their_order() -> None:
    """Inside the room, too, a file imports only earlier ones."""
    found = []
    for path in sorted((PACKAGE / "managers").glob("*.py")):
        for target, line in imports(path.read_text(), module_of(path), is_package=path.stem == "__init__"):
            name = target.removeprefix("distpool.managers.").split(".")[0]
            inside = target.startswith("distpool.managers.") and name in MANAGERS
            if inside and MANAGERS.index(name) > MANAGERS.index(path.stem):
                found.append(f"managers/{path.name}:{line} imports {name}")
    assert found == []


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))
def test_no_circles_inside_a_room(folder: str) -> None:
    """Files of one folder can be read one after the other: none imports, on whatever way, a file that imports it."""
    inside = {path.stem: path for path in (PACKAGE / folder).glob("*.py") if path.stem != "__init__"}
    graph = {}
    for name, path in inside.items():
        targets = [target.split(".") for target, _ in imports(path.read_text(), module_of(path), is_package=False)]
        graph[name] = {
            part for parts in targets if parts[:2] == ["distpool", folder] for part in parts[2:3] if part in inside
        }
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the files


def test_compat_sees_only_the_front_door() -> None:
    """The drop-ins use public names only, so that anybody could have written them; and their own neighbours."""
    found = []
    for path in sorted(COMPAT.rglob("*.py")):
        module = "distpool." + module_of(path)
        for target, line in imports(path.read_text(), module, is_package=path.stem == "__init__"):
            if room_of(target) not in {None, "__init__", "compat"}:
                found.append(f"{path.relative_to(ROOT)}:{line} imports {target}")
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "from distpool import pools",
        "from . import pools",
        "from .pools import WorkerPool",
        "from .. import distpool\nimport distpool.pools",
        "def late():\n    from .pools import WorkerPool",
        "if TYPE_CHECKING:\n    from .pools import WorkerPool",
        "import importlib\nimportlib.import_module('distpool.pools')",
        "import distpool",
        "from . import __version__",
        "from .compat import futures",
    ],
)
def test_upward_imports_are_found(source: str) -> None:
    """The check itself: each way to write an upward import from the store is seen."""
    assert violations(source, "distpool.store", is_package=False) != []


@pytest.mark.parametrize("source", ["from . import wire", "from .peer import Peer", "import os", "from os import path"])
def test_downward_imports_are_allowed(source: str) -> None:
    """The check itself: rooms below, earlier neighbours and other packages are nobody's business."""
    assert violations(source, "distpool.store", is_package=False) == []


def test_relative_imports_in_packages_are_resolved() -> None:
    """The check itself: dots count from the package, and a package's __init__ is inside it."""
    assert list(imports("from ..wire import x", "distpool.managers.local", is_package=False)) == [
        Import("distpool.wire.x", 1)
    ]
    assert list(imports("from .local import x", "distpool.managers", is_package=True)) == [
        Import("distpool.managers.local.x", 1)
    ]
