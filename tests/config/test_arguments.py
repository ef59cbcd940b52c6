"""The words of a command line as people type them: flags anywhere, any character in a value, resume= in many ways."""

import pytest

from runner.config.arguments import hydra_words
from runner.config.grammar import parsed
from runner.config.text import SettingError


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["norm=agc", "--cfg", "job", "agc.clip=0.5"], ["--cfg", "job", "norm=agc", "agc.clip=0.5"]),
        (["seed=1", "--config-dir", "a=b", "seed=2"], ["--config-dir", "a=b", "seed=1", "seed=2"]),
        (["seed=1", "--config-dir=a", "-m", "seed=2"], ["--config-dir=a", "-m", "seed=1", "seed=2"]),
        (["seed=1", "--info", "seed=2"], ["--info", "seed=1", "seed=2"]),
        (["seed=1", "--info", "config", "seed=2"], ["--info", "config", "seed=1", "seed=2"]),
    ],
)
def test_flags_may_stand_anywhere(typed, words):
    assert hydra_words(typed) == words


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("name=größe", "größe"),
        ("dataset.root=/données été/日本 & co/d", "/données été/日本 & co/d"),
        ("wandb.tags=[ü,b,c#1]", ["ü", "b", "c#1"]),
        ("name=norm=agc", "norm=agc"),
        ("wandb.project=Jörg's", "Jörg's"),
        ("a={b:ü}", {"b": "ü"}),
        ("name=a~b;c!d", "a~b;c!d"),
    ],
)
def test_a_value_gets_the_quotes_that_the_grammar_wants(word, value):
    [word] = hydra_words([word])
    assert parsed(word).value() == value


def test_a_swept_value_gets_quotes_of_its_own():
    [word] = hydra_words(["name=ü,b"])
    assert list(parsed(word).sweep_string_iterator()) == ["'ü'", "b"]


@pytest.mark.parametrize("word", ["seed=1", "name='ü'", "a=[1", "a=range(1,", "a=${b", "foo", "name=a(b)"])
def test_what_is_right_or_cannot_be_mended_stays(word):
    assert hydra_words([word]) == [word]


def test_a_path_that_exists_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    odd = tmp_path / "Jörg's runs, (old)"
    odd.mkdir()
    [word] = hydra_words([f"dataset.root={odd}"])
    assert parsed(word).value() == str(odd)
    [word] = hydra_words(["dataset.root=~/data"])
    assert parsed(word).value() == str(tmp_path / "data")


@pytest.mark.parametrize("name", ["two", "Jörg's run, (old)", "a=b,c", "[x] {y}", 'q"q', "back\\slash\\", "ends'"])
def test_resume_takes_a_folder_in_many_ways(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    run = tmp_path / "outputs/runs" / name
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/last.pt").write_text("")
    ways = [str(run), f"{run}/", f"{run}/checkpoints/last.pt", f"{run}/checkpoints", f"~/outputs/runs/{name}", name]
    for way in ways:
        [word] = hydra_words([f"resume={way}"])
        assert (tmp_path / parsed(word).value()).samefile(run), way
    other = tmp_path / "elsewhere"
    (tmp_path / "outputs").rename(other)
    word = hydra_words([f"resume={name}", f"paths.outputs={other}"])[0]
    assert (tmp_path / parsed(word).value()).samefile(other / "runs" / name)


def test_resume_that_names_no_run_is_refused_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs/runs/first/checkpoints").mkdir(parents=True)
    (tmp_path / "outputs/runs/first/checkpoints/best.pt").write_text("")
    for word, message in {
        "resume=": "it must name the folder of a run",
        "resume=''": "it must name the folder of a run",
        "resume=frist": "Did you mean first?",
        "resume=" + "x" * 300: "no run lies there",
        "resume=outputs/runs/first/checkpoints/best.pt": "this is a file; give the folder of the run",
    }.items():
        with pytest.raises(SettingError) as refusal:
            hydra_words([word])
        assert message in str(refusal.value)
    assert hydra_words(["resume=null"]) == ["resume=null"]


def test_a_text_that_looks_like_a_number_stays_as_it_was_typed():
    texts = ("name", "dataset.root", "model.pretrained", "sweep.name", "train.max_time", "paths.outputs")
    texts += ("paths.extensions", "wandb.project", "wandb.entity", "wandb.group", "wandb.tags")
    assert hydra_words([f"{key}=1_000" for key in texts]) == [f"{key}='1_000'" for key in texts]
    others = ["dataset.validation=1e-01", "train.ema=.9", "a.b=1_000", "probe_at=[1_0]", "model.width=1_0", "x.y.z=1_0"]
    assert hydra_words(others) == others
    words = ["name=1_000", "paths.outputs=2024_01_31", "dataset.root=1.50,2_0", "wandb.tags=[1e3,a]", "sweep.name=12"]
    values = ["1_000", "2024_01_31", ["1.50", "2_0"], ["1e3", "a"], 12]  # 12 is written in one way alone
    for word, value in zip(hydra_words(words), values, strict=True):
        override = parsed(word)
        found = [each.text for each in override.value().list] if override.is_sweep_override() else override.value()
        assert found == value, word
    assert hydra_words(["seed=1_000", "name=null", "name=true"]) == ["seed=1_000", "name=null", "name=true"]
