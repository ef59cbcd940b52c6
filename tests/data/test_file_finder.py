"""What lies in folders and is no image of the set, and files that lie there twice: real folders, made here."""

import os
import shutil

import pytest
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from runner.data import file_finder
from runner.data.file_finder import FileFinder
from runner.data.image_folder import ClassFolders
from runner.data.scene_files import scene_splits

CLASSES = ("ant", "bee")
LEFT_FOLDERS = (".ipynb_checkpoints", "__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", ".Trash-1000", "#recycle")
LEFT_FILES = ("._0.png", ".0.png", "0.png~", "Thumbs.db", "desktop.ini", ".DS_Store", "~$0.png")


def picture(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), colour).save(path)


@pytest.fixture
def root(tmp_path):
    """Two classes with 4 images each in train and 2 each in val."""
    root = tmp_path / "set"
    for number, (split, name, i) in enumerate(
        (split, name, i) for split, size in (("train", 4), ("val", 2)) for name in CLASSES for i in range(size)
    ):
        picture(root / split / name / f"{i}.png", (number, 0, 0))
    return root


@pytest.fixture
def scenes(tmp_path):
    """Four scenes to train on, two to test on."""
    root = tmp_path / "scenes"
    for split, size in (("training", 4), ("validation", 2)):
        for i in range(size):
            picture(root / "images" / split / f"{i}.png", (i, size, 0))
            picture(root / "annotations" / split / f"{i}.png", (i, 0, size))
    return root


def listed(root):
    folders = ClassFolders(str(root), "Do this.")
    return folders, [[os.path.relpath(path, root) for path, _ in split] for split in folders.samples()]


def listed_scenes(root):
    finder = FileFinder()
    return finder, scene_splits(root, finder=finder, place="dataset.root=x", remedy="Do this.")


TRAIN = [f"train/{name}/{i}.png" for name in CLASSES for i in range(4)]
VAL = [f"val/{name}/{i}.png" for name in CLASSES for i in range(2)]


def test_files_come_in_the_order_of_torchvision(root):
    for path in ("train/bee/z/1.png", "train/bee/a/2.png", "train/bee/a-b/3.JPG", "train/bee/a/y/4.jpeg"):
        picture(root / path, (9, 9, 9))
    expected = make_dataset(root / "train", {"ant": 0, "bee": 1}, extensions=IMG_EXTENSIONS)
    assert ClassFolders(str(root), "").samples()[0] == expected
    assert len(expected) == 12


@pytest.mark.parametrize("name", LEFT_FOLDERS)
def test_folders_that_other_programs_leave_are_no_classes_and_hold_no_images(root, name):
    for folder in ("train", "train/ant", "val"):
        picture(root / folder / name / "0-checkpoint.png", (0, 0, 0))
    folders, found = listed(root)
    assert folders.classes == list(CLASSES)
    assert found == [TRAIN, VAL]
    findings = folders.finder.findings()
    assert findings.entries["left_out"]["leftovers"] == 3
    assert findings.notes == [
        (
            "note",
            "3 files or folders left out, which file managers, notebooks or archives leave behind: "
            f"train/{name}, val/{name}, ant/{name}",
        )
    ]


@pytest.mark.parametrize("name", LEFT_FILES)
def test_files_that_other_programs_leave_are_no_images(root, scenes, name):
    for folder in (root / "train" / "ant", scenes / "images" / "training", scenes / "annotations" / "training"):
        (folder / name).write_bytes(b"\0\5\26\7")
    folders, found = listed(root)
    assert found == [TRAIN, VAL]
    assert folders.finder.findings().entries["left_out"]["leftovers"] == 1
    finder, (training, validation) = listed_scenes(scenes)
    assert (len(training), len(validation)) == (4, 2)
    assert finder.findings().entries["left_out"]["leftovers"] == 2


def test_what_has_an_images_name_and_is_no_file_cannot_be_read(root, scenes):
    for folder in (root / "train" / "ant", scenes / "images" / "training"):
        picture(folder / "folder.png" / "0.png", (0, 0, 0))
        os.mkfifo(folder / "pipe.png")
        (folder / "other").mkdir()
    folders, found = listed(root)
    finder, (training, _) = listed_scenes(scenes)
    assert (found[0], len(training)) == (TRAIN, 4)
    for each in (folders.finder, finder):
        assert {os.path.basename(path): reason for path, reason in each.unreadable.items()} == {
            "folder.png": "it is no file but a folder",
            "pipe.png": "it is no file but a pipe or device",
        }
    assert finder.others == {"folders": 1}


def test_what_is_read_by_nobody_is_counted(root):
    (root / "train" / "ant" / "notes.txt").write_text("")
    (root / "train" / "bee" / "0.gif").write_text("")
    (root / "train" / "bee" / "1.GIF").write_text("")
    picture(root / "train" / "lost.png", (1, 2, 3))
    folders, _ = listed(root)
    findings = folders.finder.findings()
    assert findings.entries == {"left_out": {"leftovers": 0, "repeated": 0, "beside": 1, "others": 3}}
    assert [text for _, text in findings.notes] == [
        "1 file or folder left out, which lie beside the folders of the classes: train/lost.png",
        "left out, since they end on nothing that is read: 2 .gif, 1 .txt",
    ]


def make_loop(root):
    (root / "train" / "ant" / "up").symlink_to("..")
    (root / "train" / "bee" / "top").symlink_to(root.parent)
    (root / "train" / "bee" / "self").symlink_to(".")
    (root / "train" / "bee" / "round").symlink_to("round")


def link_file(root):
    (root / "train" / "ant" / "again.png").symlink_to("0.png")


def hard_link(root):
    os.link(root / "train" / "ant" / "0.png", root / "train" / "ant" / "0 (2).png")


def link_folder(root):
    (root / "train" / "ant" / "a").mkdir()
    picture(root / "train" / "ant" / "a" / "deep.png", (9, 9, 9))
    (root / "train" / "ant" / "b").symlink_to("a")


def class_that_is_a_loop(root):
    (root / "train" / "cat").symlink_to(".")
    (root / "val" / "cat").symlink_to("..")


@pytest.mark.parametrize(
    ("change", "number"), [(make_loop, 3), (link_file, 1), (hard_link, 1), (link_folder, 1), (class_that_is_a_loop, 2)]
)
def test_the_same_file_counts_once(root, change, number):
    change(root)
    folders, (train, val) = listed(root)
    inodes = {path.stat().st_ino for path in (root / "train").rglob("*.png") if not path.is_symlink()}
    assert sorted((root / path).stat().st_ino for path in train) == sorted(inodes)
    assert val == VAL
    assert folders.finder.findings().entries["left_out"]["repeated"] == number


def test_links_to_files_and_folders_work_as_what_they_lead_to(root, tmp_path):
    linked = tmp_path / "linked"
    for split in ("train", "val"):
        (linked / split / "bee").mkdir(parents=True)
        (linked / split / "ant").symlink_to(root / split / "ant")
        for file in (root / split / "bee").iterdir():
            (linked / split / "bee" / file.name).symlink_to(file)
    _, found = listed(linked)
    assert found == [TRAIN, VAL]


def test_a_link_that_leads_nowhere_is_a_file_that_cannot_be_read(root):
    (root / "train" / "ant" / "gone.png").symlink_to("/nowhere/x.png")
    assert listed(root)[1][0] == [*TRAIN[:4], "train/ant/gone.png", *TRAIN[4:]]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_file_of_two_classes_is_refused(root, link):
    link(root / "train" / "ant" / "0.png", root / "train" / "bee" / "ant.png")
    with pytest.raises(
        ValueError,
        match=r"one class, and links lead to 1 from both; .*/ant/0\.png, which is \S+/bee/ant\.png too",
    ):
        listed(root)


def val_is_train(root):
    shutil.rmtree(root / "val")
    (root / "val").symlink_to("train")
    return 8


def class_of_val_is_of_train(root):
    shutil.rmtree(root / "val" / "bee")
    (root / "val" / "bee").symlink_to("../train/bee")
    return 4


def one_hard_link(root):
    os.link(root / "train" / "ant" / "0.png", root / "val" / "ant" / "7.png")
    return 1


@pytest.mark.parametrize("change", [val_is_train, class_of_val_is_of_train, one_hard_link])
def test_an_image_of_both_splits_is_refused(root, change):
    number = change(root)
    with pytest.raises(
        ValueError, match=rf"train and val must have no image in common, and links lead to {number} from both"
    ):
        listed(root)


def test_a_scene_of_both_splits_is_refused(scenes):
    (scenes / "images" / "validation" / "7.png").symlink_to(scenes / "images" / "training" / "1.png")
    shutil.copy(scenes / "annotations" / "training" / "1.png", scenes / "annotations" / "validation" / "7.png")
    with pytest.raises(
        ValueError, match=r"training and validation must have no image in common, and links lead to 1 from"
    ):
        listed_scenes(scenes)


def test_a_scene_that_links_give_two_names_counts_once(scenes):
    for kind in ("images", "annotations"):
        (scenes / kind / "training" / "again.png").symlink_to("0.png")
    (scenes / "images" / "training" / "without mask.png").symlink_to("1.png")
    (scenes / "annotations" / "training" / "without image.png").symlink_to("1.png")
    finder, (training, _) = listed_scenes(scenes)
    assert [os.path.basename(scene.image) for scene in training] == [f"{i}.png" for i in range(4)]
    assert finder.findings().entries["left_out"]["repeated"] == 3


def test_a_mask_may_belong_to_several_images(scenes):
    """As where a program that saves space has made one file of masks without any object."""
    (scenes / "annotations" / "training" / "1.png").unlink()
    os.link(scenes / "annotations" / "training" / "0.png", scenes / "annotations" / "training" / "1.png")
    assert len(listed_scenes(scenes)[1][0]) == 4


def test_an_image_with_two_masks_is_refused(scenes):
    (scenes / "images" / "training" / "again.png").symlink_to("0.png")
    picture(scenes / "annotations" / "training" / "again.png", (7, 7, 7))
    with pytest.raises(
        ValueError, match=r"again\.png is \S+0\.png too, through a link, and has another mask, \S+again\.png"
    ):
        listed_scenes(scenes)


@pytest.mark.parametrize(("kind", "name"), [("images", "1.jpg"), ("annotations", "1.PNG")])
def test_two_files_of_one_name_are_refused(scenes, kind, name):
    picture(scenes / kind / "training" / name, (7, 7, 7))
    with pytest.raises(ValueError, match=rf"{kind}/training/1\S+ and 1\S+ have the same name but for the ending"):
        listed_scenes(scenes)


def test_two_folders_of_one_split_are_refused(scenes):
    picture(scenes / "images" / "train" / "7.png", (7, 7, 7))
    with pytest.raises(ValueError, match=r"images/training and \S+images/train are both there, of which one is read"):
        listed_scenes(scenes)


def test_a_file_system_without_inodes_loses_no_file(root, monkeypatch):
    """Some file systems give every file the same number."""
    whole = file_finder._entry
    monkeypatch.setattr(file_finder, "_entry", lambda entry, device: whole(entry, device)._replace(identity=(1, 1)))
    assert listed(root)[1] == [TRAIN, VAL]


def test_a_folder_that_may_not_be_read_is_named(root, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(file_finder.os, "scandir", refuse)
    with pytest.raises(
        ValueError, match=r"^dataset\.root: the folder \S+train cannot be read \(Permission denied\)\.$"
    ):
        listed(root)
