"""`runner compare`, on runs of the runner itself."""

import pytest

from runner.commands.compare import main


@pytest.fixture
def compare(capsys):
    def call(*folders):
        main([*map(str, folders)])
        return capsys.readouterr().out

    return call


def test_a_run_and_its_repetition_are_identical_and_another_seed_is_not(small, tmp_path, compare):
    for name, words in (("a", ()), ("b", ()), ("c", ("seed=1", "norm=agc"))):
        assert small("train.epochs=2", f"name={name}", *words).code == 0
    runs = tmp_path / "outputs/runs"
    same = compare(runs / "a", runs / "b")
    assert "settings: identical" in same
    assert "code: identical" in same
    assert "B: as A's in every epoch, to the last bit." in same
    assert "identical, as far as the folders tell" in same
    other = compare(runs / "a", runs / "c")
    rows = [line.split() for line in other.splitlines()]
    assert ["seed", "0", "1"] in rows
    assert ["methods", "batchnorm", "agc"] in rows
    assert ["agc.clip", "-", "0.01"] in rows
    assert "B: from epoch 1 on; train loss: A " in other
    assert "standard error" in other
    assert "identical, as far" not in other


def test_wrong_folders_end_in_exit_code_2(small, tmp_path, compare, capsys):
    assert small("train.max_steps=1", "name=a").code == 0
    folder = tmp_path / "outputs/runs/a"
    for folders, message in (
        ([folder], "2 to 26 runs can be compared, not 1."),
        ([folder, tmp_path], f"{tmp_path}: no run lies there (config.yaml is missing)."),
        ([folder, folder.parent], "Name a run's folder."),
    ):
        with pytest.raises(SystemExit) as end:
            compare(*folders)
        assert end.value.code == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.out == ""
