from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess

import pytest
import torch

from runner.tracking import provenance as module
from runner.tracking.provenance import provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout with a package in it."""
    for key in [key for key in os.environ if key.startswith("GIT_")]:
        monkeypatch.delenv(key)
    package = tmp_path / "checkout" / "runner"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git(package.parent, "init", "-q")
    git(package.parent, "add", "runner/__init__.py")
    git(package.parent, "commit", "-qm", "first")
    return package


def git(folder, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_a_record_that_json_can_hold():
    command = ["python", "-m", "runner", "norm=[agc,ghost_batchnorm]", "name=two words"]
    record = json.loads(json.dumps(provenance(command), allow_nan=False))
    assert shlex.split(record["command"]) == command
    assert record.keys() == {"command", "git", "versions", "hardware", "time"}
    assert record["versions"]["torch"] == torch.__version__
    assert record["versions"]["python"] == platform.python_version()
    assert {"torchvision", "numpy", "hydra-core", "omegaconf", "wandb"} <= record["versions"].keys()
    assert record["hardware"]["threads"] == torch.get_num_threads()
    assert record["hardware"]["cores"] >= 1
    assert record["hardware"]["memory_gib"] > 0.5
    assert (record["hardware"]["gpu"] is None) == (not torch.cuda.is_available())


def test_nothing_from_the_environment_and_no_host_name(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-of-mine")
    text = json.dumps(provenance(["runner"]))
    assert "a-secret-of-mine" not in text
    assert f'"{platform.node()}"' not in text


def test_commit_and_dirty_of_the_checkout(checkout):
    commit = git(checkout, "rev-parse", "HEAD")
    assert module._git_state(checkout) == {"commit": commit, "dirty": False}
    (checkout.parent / "new_method.py").write_text("")  # a file outside the package counts too
    assert module._git_state(checkout) == {"commit": commit, "dirty": True}


def test_the_working_directorys_repository_is_not_asked(checkout, tmp_path, monkeypatch):
    installed = tmp_path / "site-packages" / "runner"
    shutil.copytree(checkout, installed)
    monkeypatch.chdir(checkout)
    assert module._git_state(installed) is None


def test_the_repository_that_git_dir_names_is_not_asked(checkout, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    (other / "__init__.py").write_text("")
    git(other, "init", "-q")
    git(other, "add", "__init__.py")
    git(other, "commit", "-qm", "another project's")
    commit = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert module._git_state(checkout) == {"commit": commit, "dirty": False}


def test_a_package_installed_inside_another_projects_checkout_is_not_part_of_it(checkout):
    installed = checkout.parent / ".venv" / "runner"
    shutil.copytree(checkout, installed)
    assert module._git_state(installed) is None


def test_no_commit_yet_and_no_git_are_no_error(checkout, monkeypatch):
    shutil.rmtree(checkout.parent / ".git")
    git(checkout.parent, "init", "-q")
    git(checkout.parent, "add", ".")
    assert module._git_state(checkout) is None
    monkeypatch.setenv("PATH", "")
    assert module._git_state(checkout) is None


def test_a_git_that_hangs_is_given_up(checkout, monkeypatch):
    def hang(*_: object, timeout: float, **__: object) -> None:
        raise subprocess.TimeoutExpired("git", timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    assert module._git_state(checkout) is None
