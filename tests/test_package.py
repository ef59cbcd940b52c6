"""What a user installs: the wheel with its settings, pinned versions, the targets of make."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from runner import __version__
from runner.commands import SUBCOMMANDS

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins():
    return [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.strip()]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The wheel's files in a folder outside the tree; it is built from a copy, so that the tree stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    skip = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("runner", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", folder, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_the_wheel_has_every_module_and_every_setting(unpacked):
    for path in (ROOT / "conf").rglob("*.yaml"):
        copy = unpacked / "runner/conf" / path.relative_to(ROOT / "conf")
        assert copy.read_bytes() == path.read_bytes()
    for path in (ROOT / "runner").rglob("*.py"):
        assert (unpacked / path.relative_to(ROOT)).is_file()
    assert {entry.name for entry in unpacked.iterdir() if not entry.name.endswith(".dist-info")} == {"runner"}


def test_the_installed_package_works_outside_the_tree(unpacked, tmp_path):
    # -P: the working directory is not searched; the tree's own installation stands behind PYTHONPATH
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}

    def python(*arguments):
        command = [sys.executable, "-P", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    where = python("-c", "import runner.config.validation; print(runner.config.validation.CONF)")
    assert where.stdout.strip() == str(unpacked / "runner/conf"), where.stderr
    marked = unpacked / "runner/conf/norm/agc.yaml"
    before = marked.read_text()
    marked.write_text(before.replace("clip: 0.01", "clip: 0.0625"))  # the answer can come from nowhere else
    try:
        done = python("-m", "runner", "--cfg", "job", "norm=agc")
    finally:
        marked.write_text(before)
    assert done.returncode == 0, done.stderr
    assert "clip: 0.0625" in done.stdout
    for name in SUBCOMMANDS:
        done = python("-m", "runner", name, "--help")
        assert done.stdout.startswith(f"usage: runner {name} "), done.stderr
    assert python("-m", "runner", "--version").stdout == f"runner {__version__}\n"
    assert list(tmp_path.iterdir()) == []


def test_the_wheel_names_the_console_script_and_the_version(unpacked):
    [entry_points] = unpacked.glob("*.dist-info/entry_points.txt")
    assert "runner = runner.__main__:main" in entry_points.read_text()
    assert entry_points.parent.name == f"runner-{__version__}.dist-info"


def test_constraints_are_names_and_versions_only():
    names = [line.partition("==")[0] for line in pins()]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line) for line in pins())  # nor a local version (+cpu)
    assert len({canonicalize_name(name) for name in names}) == len(names)


def test_every_requirement_is_pinned_within_its_bounds():
    pinned = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in pins())}
    extras = PROJECT["optional-dependencies"]
    optional = [line for name, lines in extras.items() if name != "ray" for line in lines]  # which lives on other pins
    for requirement in map(Requirement, [*PROJECT["dependencies"], *optional]):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, requirement
        assert version in requirement.specifier, requirement


def test_every_package_that_is_imported_is_a_requirement():
    names = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml", "hydra": "hydra-core"}
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    extras = {"wandb_workspaces", "hydra_plugins", "datasets", "timm"}
    extras |= {"triton", "huggingface_hub", "safetensors"}  # which come with torch for CUDA, and with timm
    imported = set()
    for path in (ROOT / "runner").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported |= {module.partition(".")[0] for module in modules}
    imported -= {*sys.stdlib_module_names, *extras, "runner", ""}
    assert {names.get(name, name) for name in imported} <= declared


@pytest.mark.parametrize(("name", "version"), [("torch", "2.11.0"), ("torchvision", "0.26.0")])
def test_older_versions_are_admitted(name, version):
    [requirement] = [r for r in map(Requirement, PROJECT["dependencies"]) if r.name == name]
    assert version in requirement.specifier
    assert {f"3.{minor}" for minor in (11, 12)} <= set(
        Requirement(f"python{PROJECT['requires-python']}").specifier.filter(["3.10", "3.11", "3.12"])
    )


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE).group(1).split()
    done = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = re.findall(r"^  ([a-z-]+)  +\S", done.stdout, re.MULTILINE)
    assert sorted(listed) == sorted(phony)
    assert {"help", "setup", "run", "test", "test-gpu", "lint"} <= set(listed)
