"""Measurements on disk."""

import numpy as np
import pytest

from runner.results.measurement import Measurement


def test_a_measurement_is_read_as_it_was_written(tmp_path):
    measurement = Measurement(
        {"mean": np.array([[1.5, np.nan]], dtype=np.float32), "is_last": np.array([True, False])},
        {"slope": -0.25, "ratio/layer1.conv1": np.inf, "spread": float("nan")},
        {"layers": "layer1.conv1\né", "empty": ""},
    )
    measurement.save(tmp_path / "probe.npz")
    read = Measurement.load(tmp_path / "probe.npz")
    assert read.arrays.keys() == measurement.arrays.keys()
    for name, array in measurement.arrays.items():
        np.testing.assert_array_equal(read.arrays[name], array, strict=True)
    np.testing.assert_equal(read.numbers, measurement.numbers)
    assert read.texts == measurement.texts


@pytest.mark.filterwarnings("ignore:.*ZipFile.*:pytest.PytestUnraisableExceptionWarning")  # numpy 1.26 leaves it open
def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "probe.npz"
    Measurement({}, {"loss": 1.0}).save(path)

    class Broken:
        def __array__(self, *_args, **_kwargs):
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        Measurement({"a": Broken()}, {"loss": 2.0}).save(path)
    assert Measurement.load(path).numbers == {"loss": 1.0}
    assert [entry.name for entry in tmp_path.iterdir()] == ["probe.npz"]
