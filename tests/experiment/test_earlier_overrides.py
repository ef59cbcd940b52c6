"""The overrides that a resumed run starts from."""

import pytest
import yaml

from runner.config.text import SettingError
from runner.experiment.earlier_overrides import earlier_overrides
from runner.results.run_folder import RunFolder


def test_a_resumed_run_starts_from_its_folders_overrides(tmp_path):
    folder = RunFolder(tmp_path)
    folder.overrides.write_text(yaml.safe_dump(["norm=agc", "agc.clip=0.1", "train.epochs=3"]))
    resume = f"resume={tmp_path}"
    quoted = f"resume='{tmp_path}'"  # a job's folder has commas in its name, which make a sweep elsewhere
    assert earlier_overrides([resume]) == ["norm=agc", "agc.clip=0.1", "train.epochs=3", quoted]
    assert earlier_overrides([resume, "train.epochs=9"]) == ["norm=agc", "agc.clip=0.1", quoted, "train.epochs=9"]
    assert earlier_overrides([resume, "norm=batchnorm", "agc=x"]) == [
        "train.epochs=3",
        quoted,
        "norm=batchnorm",
        "agc=x",
    ]
    assert earlier_overrides(["norm=agc"]) == ["norm=agc"]
    folder.overrides.write_text(yaml.safe_dump(["norm=[agc]", "agc.clip=0.1", "regularization=mixup", "mixup.alpha=1"]))
    assert earlier_overrides([resume, "regularization=[]"]) == [
        "norm=[agc]",
        "agc.clip=0.1",
        quoted,
        "regularization=[]",
    ]
    added = [resume, "regularization=[mixup,cutmix]"]
    assert "mixup.alpha=1" in earlier_overrides(added)
    with pytest.raises(SettingError, match="one run goes on, not a sweep"):
        earlier_overrides([resume, "-m"])


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path):
    with pytest.raises(SettingError, match=r"resume=.*nowhere: no run lies there"):
        earlier_overrides([f"resume={tmp_path / 'nowhere'}"])


@pytest.mark.parametrize(("name", "is_pils"), [("image_folder", True), ("imagenet", True), ("mask_folder", False)])
def test_photos_of_an_earlier_version_stay_pils(tmp_path, name, is_pils):
    """Before dataset.decode was a setting; what PIL reads of scenes is what torchvision reads."""
    folder, resume = RunFolder(tmp_path), f"resume={tmp_path}"
    folder.overrides.write_text(yaml.safe_dump([f"dataset={name}", "dataset.flip=false"]))
    folder.config.write_text(yaml.safe_dump({"dataset": {"name": name, "flip": False}}))
    assert ("dataset.decode=pil" in earlier_overrides([resume])) == is_pils
    assert "dataset.decode=pil" not in earlier_overrides([resume, "dataset=digits"])
    folder.config.write_text(yaml.safe_dump({"dataset": {"name": name, "decode": "torchvision"}}))
    assert "dataset.decode=pil" not in earlier_overrides([resume])
