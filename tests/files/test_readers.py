"""Files that may be damaged: what is read is what was written, or a word says why not."""

from io import BytesIO

import pytest
from matplotlib.figure import Figure

from runner.files.readers import Unreadable, read_png


@pytest.fixture(scope="module")
def png():
    file = BytesIO()
    Figure(figsize=(1, 1)).savefig(file, format="png")
    return file.getvalue()


def test_a_png_file_is_read(tmp_path, png):
    (tmp_path / "a.png").write_bytes(png)
    assert read_png(tmp_path / "a.png") == png


@pytest.mark.parametrize("damage", [lambda png: b"", lambda png: b"not yours\n" * 9, lambda png: png[:20]])
def test_another_file_in_its_place_is_unreadable(tmp_path, png, damage):
    (tmp_path / "a.png").write_bytes(damage(png))
    with pytest.raises(Unreadable, match=r"a\.png.*it is no PNG file"):
        read_png(tmp_path / "a.png")
