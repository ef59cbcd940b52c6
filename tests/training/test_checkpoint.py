"""Checkpoints: the checksum finds every changed byte and every cut, two generations, a disk that is full."""

import os
import resource

import pytest
import torch

from runner.files.atomic import CannotWrite
from runner.training.checkpoint import PREVIOUS, checksum_fault, load_checkpoint, load_latest, save_checkpoint

CONTENT = {"weight": torch.arange(300.0), "nested": {"count": torch.tensor(3), "name": "abc"}}


@pytest.fixture
def sealed(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, CONTENT)
    return path


def test_what_was_written_is_read_and_torch_alone_reads_it_too(sealed):
    for found in (load_checkpoint(sealed), torch.load(sealed, weights_only=True), torch.load(sealed, mmap=True)):
        assert torch.equal(found["weight"], CONTENT["weight"])
        assert found["nested"]["name"] == "abc"


def test_every_changed_byte_is_found(sealed):
    whole = sealed.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x55
        sealed.write_bytes(changed)
        assert checksum_fault(sealed) is not None, place


def test_every_cut_is_found(sealed):
    whole = sealed.read_bytes()
    for length in range(len(whole)):
        sealed.write_bytes(whole[:length])
        assert checksum_fault(sealed) is not None, length


def test_torch_alone_would_take_a_changed_byte(sealed):
    """Why there is a checksum: the weights differ, and torch.load says nothing."""
    whole = bytearray(sealed.read_bytes())
    place = whole.index(CONTENT["weight"].numpy().tobytes()[:400]) + 401
    whole[place] ^= 0x55
    sealed.write_bytes(whole)
    assert not torch.equal(torch.load(sealed, weights_only=True)["weight"], CONTENT["weight"])
    with pytest.raises(ValueError, match="its checksum does not match"):
        load_checkpoint(sealed)


def test_a_file_that_torch_wrote_is_held_to_its_own_checksums(tmp_path):
    path = tmp_path / "other.pt"
    torch.save(CONTENT, path)
    assert torch.equal(load_checkpoint(path)["weight"], CONTENT["weight"])
    whole = bytearray(path.read_bytes())
    whole[whole.index(CONTENT["weight"].numpy().tobytes()[:400]) + 401] ^= 0x55
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="its checksum does not match"):
        load_checkpoint(path)


def generations(folder, number):
    last = folder / "last.pt"
    for step in range(number):
        save_checkpoint(last, {"step": step}, previous=last.with_name(PREVIOUS))
    return last


def test_two_generations(tmp_path):
    last = generations(tmp_path, 3)
    assert [load_checkpoint(tmp_path / name)["step"] for name in ("last.pt", PREVIOUS)] == [2, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", PREVIOUS]
    assert load_latest(last).checkpoint["step"] == 2
    assert load_latest(last).damaged is None


def test_a_damaged_last_one_is_named_and_the_one_before_is_used(tmp_path):
    last = generations(tmp_path, 3)
    last.write_bytes(last.read_bytes()[:-1])
    latest = load_latest(last)
    assert latest.checkpoint["step"] == 1
    assert f"{last}: this checkpoint cannot be used" in latest.damaged


def test_without_a_last_one_the_one_before_is_used(tmp_path):
    """As a process leaves it that dies between two renames on a file system without hard links."""
    last = generations(tmp_path, 3)
    last.unlink()
    assert load_latest(last).checkpoint["step"] == 1
    assert load_latest(last).damaged is None


def test_both_damaged_are_both_named(tmp_path):
    last = generations(tmp_path, 3)
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"last\.pt: .*{PREVIOUS}: "):
        load_latest(last)
    assert load_latest(tmp_path / "none" / "last.pt") is None


def test_without_hard_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError

    monkeypatch.setattr("os.link", no_links)
    generations(tmp_path, 3)
    assert [load_checkpoint(tmp_path / name)["step"] for name in ("last.pt", PREVIOUS)] == [2, 1]


@pytest.fixture
def full_disk():
    """Files may grow to 64 KiB; the kernel's signal at the limit is not for Python, which gets an OSError."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_costs_nothing(tmp_path, full_disk):
    last = generations(tmp_path, 2)
    with pytest.raises(CannotWrite, match=r"last\.pt cannot be written \(File too large\)"):
        save_checkpoint(last, {"weight": torch.zeros(10**6)}, previous=last.with_name(PREVIOUS))
    assert [load_checkpoint(tmp_path / name)["step"] for name in ("last.pt", PREVIOUS)] == [1, 0]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_kill_before_the_rename_leaves_nothing_behind(tmp_path, monkeypatch):
    """last.pt and previous.pt are one file then, and renaming a file to itself does nothing."""
    last, replace = generations(tmp_path, 2), os.replace

    def killed(source, target):
        if target == last:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(last, {"step": 2}, previous=last.with_name(PREVIOUS))
    assert last.samefile(last.with_name(PREVIOUS))

    def watched(source, target):
        assert last.is_file()  # at any moment
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    for step in (3, 4):
        save_checkpoint(last, {"step": step}, previous=last.with_name(PREVIOUS))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", PREVIOUS]
    assert [load_checkpoint(tmp_path / name)["step"] for name in ("last.pt", PREVIOUS)] == [4, 3]


def test_what_a_killed_process_of_the_same_number_left_is_no_obstacle(tmp_path):
    last = generations(tmp_path, 2)
    (tmp_path / f".{PREVIOUS}.{os.getpid()}.tmp").write_bytes(b"half")
    (tmp_path / f".last.pt.{os.getpid()}.tmp").symlink_to("elsewhere")
    save_checkpoint(last, {"step": 2}, previous=last.with_name(PREVIOUS))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", PREVIOUS]
    assert [load_checkpoint(tmp_path / name)["step"] for name in ("last.pt", PREVIOUS)] == [2, 1]
