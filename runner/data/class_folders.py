"""Folders of images with one folder a class: which classes there are, and which files are of each."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from runner.data.file_finder import FileFinder, Identity, check_apart, first

TRAIN, TEST = "train", "val"  # the folders


class ClassFolders:
    """`root`/train and `root`/val with one folder a class, the same classes in both.

    Raises FileNotFoundError, with `remedy`, where a folder is missing or a class is in one of the two alone, ValueError
    where there is one class only.
    """

    def __init__(self, root: str, remedy: str) -> None:
        self.root, self.remedy = Path(root), remedy
        self.place = f"dataset.root={root}: in {self.root.resolve()}"
        self.finder = FileFinder()
        self.classes = self._classes()

    def samples(self) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """(path, class) of each image in train and of each in val, sorted by class, then by folder and name.

        Raises FileNotFoundError where a class has no images, ValueError where a file has two classes or is in both.
        """
        train, test = (self._files(folder) for folder in (TRAIN, TEST))
        paths = ({identity: path for identity, (path, _) in files.items()} for files in (train, test))
        check_apart(*paths, place=self.place, what=f"{TRAIN} and {TEST} must have no image in common")
        return list(train.values()), list(test.values())

    def _classes(self) -> list[str]:
        found = {}
        for folder in (TRAIN, TEST):
            is_folder = (self.root / folder).is_dir()
            found[folder] = self.finder.folders(self.root / folder, IMG_EXTENSIONS) if is_folder else []
            if not found[folder]:
                what = "no folder of a class is in" if is_folder else "there is no folder"
                raise FileNotFoundError(f"{self.place}: {what} {folder}. {self.remedy}")
        for here, there in ((TRAIN, TEST), (TEST, TRAIN)):
            if missing := sorted(set(found[there]) - set(found[here])):
                what = f"{first(missing)} of {there} is missing in {here}"
                raise FileNotFoundError(f"{self.place}: {what}. {self.remedy}")
        if len(found[TRAIN]) == 1:
            raise ValueError(
                f"{self.place}: there is one class, {found[TRAIN][0]}, and nothing to tell it from. {self.remedy}"
            )
        return found[TRAIN]

    def _files(self, folder: str) -> dict[Identity, tuple[str, int]]:
        """(path, class) of each image of a folder."""
        files: dict[Identity, tuple[str, int]] = {}
        empty = []
        for number, name in enumerate(self.classes):
            found = self.finder.below(self.root / folder / name, IMG_EXTENSIONS)
            if not found:
                empty.append(f"{folder}/{name}")
            of_others = {identity: files[identity][0] for identity in found if identity in files}
            check_apart(of_others, found, place=self.place, what="an image has one class")
            files |= {identity: (path, number) for identity, path in found.items()}
        if empty:
            raise FileNotFoundError(
                f"{self.place}: no image is in {first(empty)}; looked for {', '.join(IMG_EXTENSIONS)}. {self.remedy}"
            )
        return files
