"""The architecture as tests: imports go down only, frameworks stay at the edges, files stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ncr_worker

PACKAGE = Path(ncr_worker.__file__).parent

LAYERS = {
    "edges": {"api", "cli", "worker", "web", "sandbox", "__main__"},
    "composition": {"app", "checks"},
    "engine": {"run", "runner", "pipelines", "views"},
    "services": {
        *("ledger", "history", "board", "memory", "stores", "databases", "validator", "outage", "archive", "sql"),
        "sqlite",
        *("notify", "metrics", "announcer", "group_commit", "batches", "retention", "stuck"),
    },
    "core": {"job", "picking", "growth", "pipeline", "progress", "errors", "settings", "logs", "__init__"},
}
HEIGHT = {name: height for height, names in enumerate(reversed(LAYERS.values())) for name in names}

FRAMEWORKS = {
    "fastapi": {"api", "sandbox"},  # the sandbox's validator is a service of its own
    "starlette": {"api", "sandbox"},
    "typer": {"cli"},
    "celery": {"worker", "checks"},  # whether broker and result backend answer, only they can tell
    "kombu": {"worker", "checks"},
}
CORE_MAY_IMPORT = {"ncr_worker", "pydantic", "pydantic_settings", "structlog"} | sys.stdlib_module_names

MAX_FILE = 400
MAX_ENGINE = 2000  # 1,800 of them before turns between tenants, reading ahead and learning from what was seen
ENGINE = ("job.py", "pipeline.py", "runner.py", "board.py", "worker/feeder.py", "ledger/*.py")
# The door to the migrations; what people ask for; what the predictor learns from.
NOT_ENGINE = {"ledger.schema", "ledger.idempotency", "ledger.pauses", "ledger.observations"}

FILES = sorted(PACKAGE.rglob("*.py"))
FIRST = """
import importlib, sys
for name in sys.argv[1:]:
    for known in [each for each in sys.modules if each.startswith("ncr_worker")]:
        del sys.modules[known]
    importlib.import_module(name)
"""


def name_of(path: Path) -> str:
    """The module's name inside the package: `ledger.pick`, `job`, or `__init__` for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def top(module: str) -> str:
    return module.partition(".")[0]


def imports(path: Path, *, at_once: bool = False) -> Iterator[str]:
    """Absolute names of everything that a file imports anywhere; `at_once`: only when it is itself imported."""
    package = ("ncr_worker", *path.relative_to(PACKAGE).parent.parts)
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    for node in _at_once(tree) if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            # `from ncr_worker import job` names a module, `from ncr_worker.job import Job` does not.
            yield from (f"{origin}.{alias.name}" if origin == "ncr_worker" else origin for alias in node.names)
            if at_once:  # it may be a module of that package
                yield from (f"{origin}.{alias.name}" for alias in node.names)


def _at_once(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes outside of functions and of `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if not later and not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield node
            yield from _at_once(node)


def neighbours(path: Path) -> Iterator[str]:
    """The parts of ncr_worker that a file imports, by their top-level name."""
    for imported in imports(path):
        package, _, rest = imported.partition(".")
        if package == "ncr_worker":
            yield top(rest) if top(rest) in HEIGHT else "__init__"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_module_is_in_a_layer(path: Path) -> None:
    assert top(name_of(path)) in HEIGHT, "give the new module a layer in LAYERS, or a home in an existing package"


def in_circles() -> list[str]:
    """Modules whose import leads back to themselves: through a package that imports what is in it, mostly."""
    files = {f"ncr_worker.{name_of(path)}": path for path in FILES if name_of(path) not in ("__init__", "__main__")}

    def packages(name: str) -> set[str]:
        parts = name.split(".")
        return {".".join(parts[:size]) for size in range(2, len(parts) + 1)}

    leads_to = {
        name: {each for found in (name, *imports(path, at_once=True)) for each in packages(found) & files.keys()}
        - {name}
        for name, path in files.items()
    }

    def circles(name: str) -> bool:
        seen: set[str] = set()
        ahead = list(leads_to[name])
        while ahead:
            if (each := ahead.pop()) not in seen:
                seen.add(each)
                ahead += leads_to[each]
        return name in seen

    return [name for name in files if circles(name)]


def test_every_module_can_be_the_first_that_is_imported() -> None:
    """No two of them wait for each other. In a process of its own: what it forgets, others hold."""
    names = in_circles()
    assert names, "the ledger's modules are in one with their package"
    done = subprocess.run([sys.executable, "-c", FIRST, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down_only(path: Path) -> None:
    mine = top(name_of(path))
    upward = {theirs for theirs in neighbours(path) if HEIGHT[theirs] > HEIGHT[mine]}
    assert not upward, f"{name_of(path)} imports {sorted(upward)} from a layer above it"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_frameworks_stay_at_their_edge(path: Path) -> None:
    mine = top(name_of(path))
    strays = {top(name) for name in imports(path) if mine not in FRAMEWORKS.get(top(name), {mine})}
    assert not strays, f"{name_of(path)} must not know {sorted(strays)}"


@pytest.mark.parametrize("path", [path for path in FILES if top(name_of(path)) in LAYERS["core"]], ids=name_of)
def test_the_core_is_pure(path: Path) -> None:
    impure = {top(name) for name in imports(path)} - CORE_MAY_IMPORT
    assert not impure, f"{name_of(path)} imports {sorted(impure)}: the core does no I/O and knows no framework"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_fit_on_a_few_screens(path: Path) -> None:
    assert lines(path) <= MAX_FILE


def test_the_engine_core_stays_small() -> None:
    """Blank lines are not counted: the formatter decides how many there are."""
    sizes = {
        name_of(path): sum(1 for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        for pattern in ENGINE
        for path in PACKAGE.glob(pattern)
        if name_of(path) not in NOT_ENGINE
    }
    assert sum(sizes.values()) < MAX_ENGINE, sizes


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())
