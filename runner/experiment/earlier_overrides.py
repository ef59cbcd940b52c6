"""The overrides of the run that `resume=` names, put before those of the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from runner.config.diagnose import chosen_options
from runner.config.grammar import all_parsed, quoted
from runner.config.text import SettingError, override_key
from runner.config.trust import as_words, check_words, with_present_names, without_places
from runner.config.validation import METHOD_GROUPS
from runner.files.readers import Unreadable, is_there, read_yaml, read_yaml_mapping
from runner.results.record import read_record, record_in
from runner.results.run_folder import CHECKPOINTS, RunFolder

READ_BY_PIL = ("image_folder", "imagenet", "huggingface", "torchvision")  # before dataset.decode


def earlier_overrides(arguments: Sequence[str]) -> list[str]:
    """The command line's arguments, with those of the folder that `resume=` names put before them.

    An earlier override gives way to a new one of the same key, and to another option of its group: a new
    `schedule=constant` takes the place of `schedule=cosine` and of `schedule.final_lr_share=0.1`. So do the settings
    of a method that a new `norm=...` or `regularization=...` no longer names.
    """
    resume = [override.value() for override in all_parsed(arguments) if override.key_or_group == "resume"]
    if not resume or resume[-1] is None:
        return list(arguments)
    if not isinstance(resume[-1], str):
        raise SettingError(f"resume={resume[-1]}: it must be the folder of a run, as in resume=outputs/runs/NAME.")
    folder = RunFolder(Path(resume[-1]))
    if any(word in ("-m", "--multirun") for word in arguments):
        raise SettingError(f"resume={resume[-1]}: one run goes on, not a sweep; leave out -m.")
    # a job's folder has commas and equals signs in its name, which Hydra takes for its own unless quoted
    arguments = [f"resume={quoted(resume[-1])}" if override_key(word) == "resume" else word for word in arguments]
    new = {override_key(word) for word in arguments}
    earlier, settings, file = _recorded(folder, f"resume={resume[-1]}")
    source, earlier = f"resume={resume[-1]}: {file.name}", _former(settings) + with_present_names(earlier)
    before, now = chosen_options(earlier), chosen_options(arguments)
    new |= {method for group in new.intersection(METHOD_GROUPS) for method in {*before[group]} - {*now[group]}}
    kept = [word for word in earlier if new.isdisjoint((override_key(word), override_key(word).partition(".")[0]))]
    check_words(kept, source)
    return [*without_places(kept), *arguments]


def _former(settings: Mapping) -> list[str]:
    """Overrides for what a run of an earlier version did without a setting for it: photos were PIL's."""
    dataset = settings.get("dataset")
    if isinstance(dataset, Mapping) and dataset.get("name") in READ_BY_PIL and "decode" not in dataset:
        return ["dataset.decode=pil"]
    return []


def _recorded(folder: RunFolder, source: str) -> tuple[list[str], Mapping, Path]:
    """The overrides that a resumed run starts from, the settings that it had, and the file that holds them.

    A checkpoint stands in for a record that cannot be read. Raises SettingError, with `source` before the message, if
    there is no such checkpoint either.
    """
    reason = f"{folder.record.name} is missing"
    if is_there(folder.record):
        try:
            record = read_record(folder.record)
            return list(record.overrides), record.settings, folder.record
        except Unreadable as error:
            reason = str(error)
    for path in (folder.checkpoint(name) for name in CHECKPOINTS):
        if path.is_file():
            from runner.training.checkpoint import load_checkpoint
            from runner.training.checkpoint_content import check_weights

            try:
                record = record_in(load_checkpoint(path, check=check_weights), path)
            except ValueError:  # told when the run goes on
                continue
            if record is not None:
                return list(record.overrides), record.settings, path
    if not is_there(folder.overrides):
        raise SettingError(f"{source}: no run lies there ({reason}).")
    try:
        words = as_words(read_yaml(folder.overrides), f"{source}: {folder.overrides.name}")
    except Unreadable as error:
        raise SettingError(f"{source}: {error}.") from None
    settings: Mapping = {}
    with suppress(Unreadable):  # told when the run goes on
        settings = read_yaml_mapping(folder.config)
    return words, settings, folder.overrides
