"""The layout of the package: which way imports point, how large a module is, what needs no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import runner

PACKAGE = Path(runner.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
READ_CONFIGURATIONS = ("runner.__main__", "runner.config", "runner.sweeps", "runner.commands.evaluate")
LIGHT = ("__main__", "config.validation", "config.extensions", "config.diagnose", "sweeps.sweep")
LIGHT += ("commands.help", "commands.evaluate", "experiment.earlier_overrides")
LONGEST_MODULE = 310


def imports(module, *, at_module_level=False):
    """The full names that a module imports, `from a import b` as `a` and `a.b`; TYPE_CHECKING blocks are left out."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = set()

    def visit(node):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (above, node.module)))
            names.update({source, *(f"{source}.{alias.name}" for alias in node.names)})
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        elif not (at_module_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            for child in ast.iter_child_nodes(node):
                visit(child)

    visit(ast.parse(path.read_text()))
    return names


def reached(module):
    """Every name that importing a module imports, here and in the modules of the package that it brings in."""
    names, waiting = set(), [module]
    while waiting:
        found = imports(waiting.pop(), at_module_level=True)
        found |= {name.rpartition(".")[0] for name in found if name in MODULES} - {""}  # a package before its module
        waiting += [name for name in found - names if name in MODULES]
        names |= found
    return names


def part(name, *packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def members(*packages):
    return [name for name in MODULES if part(name, *packages)]


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("models", "methods training tracking results report data experiment config.validation sweeps"),
        ("layers", "models methods training tracking results report data experiment config.validation sweeps"),
        ("methods", "models training tracking results report data experiment config.validation sweeps"),
        ("data", "models methods training tracking results report experiment config.validation sweeps"),
        ("optim", "models methods training tracking results report data experiment config.validation sweeps"),
        ("training", "models results report experiment config.validation sweeps"),
        ("probes", "models methods training tracking report data experiment config.validation figures sweeps"),
        ("config", "models methods training tracking report claims data experiment distributed.launch sweeps"),
        ("experiment", "__main__ report claims sweeps"),
    ],
)
def test_imports_point_one_way(package, forbidden):
    forbidden = [f"runner.{name}" for name in forbidden.split()]
    assert members(f"runner.{package}")
    wrong = {
        module: sorted(name for name in imports(module) if part(name, *forbidden))
        for module in members(f"runner.{package}")
    }
    assert not {module: names for module, names in wrong.items() if names}


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("files", ""),
        ("results", "config files"),
        ("claims", "config files results"),
        ("tracking", "config files results"),
        ("figures", "results.measurement results.metrics"),
        ("report", "config files results claims figures tracking.console tracking.terminal"),
    ],
)
def test_rooms_that_read_files_import_nothing_else(package, allowed):
    allowed = [f"runner.{name}" for name in (package, *allowed.split())]
    wrong = {
        module: sorted(name for name in imports(module) if part(name, "runner") and not part(name, *allowed))
        for module in members(f"runner.{package}")
    }
    rooms = {"runner", *(name.rpartition(".")[0] for name in allowed)}  # `from runner.tracking.console import ...`
    assert not {module: names for module, names in wrong.items() if {*names} - rooms}


def test_training_tracks():
    assert any(part(name, "runner.tracking") for module in members("runner.training") for name in imports(module))


def test_hydra_and_omegaconf_stay_at_the_boundary():
    readers = {module for module in MODULES if any(part(name, "hydra", "omegaconf") for name in imports(module))}
    assert readers
    assert not [module for module in readers if not part(module, *READ_CONFIGURATIONS)]


@pytest.mark.parametrize("module", LIGHT)
def test_the_command_line_imports_no_torch(module):
    names = reached(f"runner.{module}")
    assert not [name for name in names if part(name, "torch", "torchvision", "wandb", "sklearn", "numpy")]
    assert part("runner.config.limits", *names)
    assert part("runner.config.compatibility", *names)


@pytest.mark.parametrize("package", ["claims", "report", "results", "tracking"])
def test_tables_and_tracking_import_no_torch(package):
    for module in members(f"runner.{package}"):
        names = reached(module)
        assert not [name for name in names if part(name, "torch", "torchvision", "wandb")], module


def test_reports_need_no_torch_at_all():
    rooms = members("runner.claims", "runner.report", "runner.results")
    assert not [m for m in rooms if any(part(name, "torch", "torchvision") for name in imports(m))]


def test_figures_are_made_of_measurements_alone():
    allowed = ("numpy", "matplotlib", "runner", *sys.stdlib_module_names)
    wrong = {m: sorted(name for name in imports(m) if not part(name, *allowed)) for m in members("runner.figures")}
    assert not {module: names for module, names in wrong.items() if names}


def test_what_needs_no_torch_runs_without_it():
    """What the lines above read, Python itself confirms."""
    light = [
        m for m in MODULES if part(m, *(f"runner.{p}" for p in ("claims", "figures", "report", "results", "tracking")))
    ]
    light += [f"runner.{name}" for name in LIGHT]
    code = f"import sys, importlib; sys.modules['torch'] = None; [importlib.import_module(m) for m in {light}]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_of_a_size_to_read_and_named_after_a_thing(module):
    path = MODULES[module]
    assert len(path.read_text().splitlines()) <= LONGEST_MODULE
    assert path.stem not in ("utils", "util", "helpers", "helper", "misc", "common")
