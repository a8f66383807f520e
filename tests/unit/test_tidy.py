"""What a reader would otherwise have to police: imports, sizes, docstrings, and that the README names what there is."""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from api.app import create_app
from api.rules import rules_router
from api.status import status_router
from pipeline.__main__ import _parser
from pipeline.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
LINES_MAX = 520
PACKAGES = ("pipeline", "api", "simulator")
FOLDERS = (*PACKAGES, "tests", "benchmarks", "notebooks", "monitoring", "data")
# Who may import what of ours. The two modules that start everything may know everything.
MAY_IMPORT = {
    "pipeline.errors": (),
    "pipeline.core": ("pipeline.core", "pipeline.errors"),
    "pipeline.settings": ("pipeline.core.semantics", "pipeline.errors"),
    "pipeline.stores": ("pipeline.stores", "pipeline.core", "pipeline.settings", "pipeline.errors"),
    "pipeline.supervisor": PACKAGES,
    "pipeline.__main__": PACKAGES,
    "pipeline": ("pipeline",),
    "api": ("api", "pipeline"),
    "simulator": ("simulator",),
}
# What a function of the core may be made of: nothing that reads a clock, a file, the environment or a random number.
PURE = {"__future__", "collections", "dataclasses", "fnmatch", "functools", "hashlib", "hmac", "itertools", "json", "math", "re", "typing"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(module: str) -> Iterator[str]:
    """Every module that this one imports, at its top or in a function."""
    for node in ast.walk(tree_of(MODULES[module])):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from [name for name in inside if name in MODULES] or [node.module]


def within(name: str, packages) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def allowed(module: str) -> tuple[str, ...]:
    """The rule for the closest of its parents."""
    parts = module.split(".")
    return next(MAY_IMPORT[name] for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in MAY_IMPORT)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    """core <- stores <- what runs; api -> pipeline; the simulator knows the pipeline by its HTTP door alone."""
    ours = [name for name in imports(module) if within(name, PACKAGES)]
    assert [name for name in ours if not within(name, allowed(module))] == []


def test_no_modules_import_each_other():
    """Not even by way of others, but where a function imports late what is above it."""
    graph = {module: {name for name in imports(module) if name in MODULES and name != module} for module in MODULES}
    for module in ("pipeline.supervisor", "pipeline.__main__"):
        graph.pop(module)
    while leaves := [module for module, others in graph.items() if not others & graph.keys()]:
        for module in leaves:
            del graph[module]
    assert graph == {}


@pytest.mark.parametrize("module", [name for name in MODULES if within(name, ["pipeline.core"])])
def test_the_core_is_pure(module):
    """It imports Polars, numpy, a few pure parts of the standard library and itself; it opens nothing, prints nothing and draws no lots."""
    others = {name.split(".")[0] for name in imports(module)} - {"polars", "numpy", "pipeline"}
    assert others <= PURE and others <= sys.stdlib_module_names | {"__future__"}
    called = {node.func.id for node in ast.walk(tree_of(MODULES[module])) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"open", "print", "input", "exec", "eval", "__import__"}
    names = {node.attr for node in ast.walk(tree_of(MODULES[module])) if isinstance(node, ast.Attribute)}
    assert not names & {"read_parquet", "scan_parquet", "write_parquet", "read_csv", "sample", "shuffle"}
    assert not names & {"random", "load", "loadtxt", "fromfile", "tofile", "genfromtxt", "memmap", "save", "savez", "savetxt", "datetime64"}


def test_a_command_loads_what_it_needs():
    """`telemetry rules` is asked for an answer, not for Polars and DuckDB: those take most of a second."""
    loaded = "sys.exit({'polars', 'duckdb', 'pyarrow'} & {*sys.modules} != set())"
    program = f"import sys; from pipeline.__main__ import _parser; _parser('rules'); {loaded}"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=30, check=False).returncode == 0


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_what_lives_in_it(module):
    """In its docstring; and it is short enough to be read at once."""
    assert ast.get_docstring(tree_of(MODULES[module])), module
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= LINES_MAX


def public(node: ast.AST, inside: str = "") -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not child.name.startswith("_"):
            yield f"{inside}{child.name}", child
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{child.name}.")


@pytest.mark.parametrize("module", [name for name in MODULES if within(name, ["pipeline.core"])])
def test_what_the_core_offers_is_documented(module):
    """Every public function and class."""
    assert [name for name, node in public(tree_of(MODULES[module])) if not ast.get_docstring(node)] == []


def texts() -> Iterator[Path]:
    """Every file that belongs to the project."""
    kinds = {".py", ".md", ".toml", ".yaml", ".yml", ".lua", ".ipynb", ".csv", ".cfg", ".txt", ""}
    for path in (*ROOT.iterdir(), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))):
        generated = "data" in path.relative_to(ROOT).parts[:1] and path.name != "README.md"
        if path.is_file() and path.suffix in kinds and not path.name.startswith(".") and not generated and path.name != "uv.lock":
            yield path


def test_no_file_knows_the_machine_it_was_written_on():
    """Nothing absolute that another machine does not have: the folders of people and of checkouts."""
    homes = re.compile(r"(?<![\w.}])/(?:work|root|Users|home/(?!telemetry|app)\w+)/")
    found = [f"{path.relative_to(ROOT)}: {text}" for path in texts() for text in homes.findall(path.read_text(encoding="utf-8"))]
    assert found == []


def readme() -> str:
    return README.read_text(encoding="utf-8")


def default_of(name: str) -> str:
    field = Settings.model_fields[name]
    default = field.get_default(call_default_factory=True)
    if default is None:
        return "none"
    return f"{default:g}" if isinstance(default, float) and default == int(default) else str(default)


def table() -> dict[str, str]:
    """The README's table of settings: variable -> default as it stands there."""
    found = {}
    for row in re.findall(rf"^\| (`{PREFIX}.*?) \| (.*?) \| ", readme(), re.MULTILINE):
        names = re.findall(rf"`({PREFIX}[A-Z_]+)`", row[0])
        found |= dict(zip(names, row[1].split(", ") if len(names) > 1 else [row[1]], strict=True))
    return found


def test_every_setting_is_in_the_readme_and_the_reverse():
    """With its default, where that is a value."""
    ours = {f"{PREFIX}{name.upper()}": default_of(name) for name in Settings.model_fields}
    told = table()
    assert sorted(told) == sorted(ours)
    described = {f"{PREFIX}LAKE_URL"}  # another folder by the data folder
    assert {name: default for name, default in told.items() if name not in described} == {
        name: default for name, default in ours.items() if name not in described
    }
    mentioned = set(re.findall(rf"{PREFIX}[A-Z_]*[A-Z]", readme()))
    assert mentioned <= set(ours)


def commands(parser: argparse.ArgumentParser, before: str = "") -> Iterator[str]:
    """Every command that does something: `up`, `rules show`, ..."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                nested = list(commands(sub, f"{before}{name} "))
                yield from nested or [f"{before}{name}"]


def test_every_command_is_in_the_readme_and_the_reverse():
    ours = set(commands(_parser()))
    first = {command.split()[0] for command in ours}
    text = readme()
    assert sorted(command for command in ours if f"telemetry {command}" not in text) == []
    told = set(re.findall(r"(?:^|`|\| )telemetry ([a-z]+)", text, re.MULTILINE))
    assert told - first == set()


def test_every_endpoint_is_in_the_readme_and_the_reverse():
    routers = [rules_router(None, None, 4), status_router(dict)]
    paths = create_app(Settings(), None, routers).openapi()["paths"]
    ours = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    told = set(re.findall(r"^\| `((?:GET|PUT|POST|DELETE) /\S*)` \|", readme(), re.MULTILINE))
    assert told == ours | {"GET /docs", "GET /openapi.json"}
    mentioned = set(re.findall(r"127\.0\.0\.1:8000(/[a-z0-9/]+)", readme()))
    assert mentioned <= {endpoint.split()[1] for endpoint in told}


def test_every_target_that_the_readme_names_is_in_the_makefile():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", readme(), re.MULTILINE)) <= targets
