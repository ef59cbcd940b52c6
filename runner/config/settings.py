"""Validated settings: what `runner.config.validation.validate` returns, and all that the rest of the program reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class Settings(Mapping):
    """Settings as an immutable mapping whose keys are attributes too. Lists are tuples; it can be pickled and hashed.

    >>> from runner.config.settings import Settings
    >>> settings = Settings({"train": {"epochs": 3}, "probe_at": [0, 100]})
    >>> settings.train.epochs, settings["probe_at"], settings.changed({"train.epochs": 5}).train.epochs
    (3, (0, 100), 5)
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_values", {key: _frozen(value) for key, value in values.items()})

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __getattr__(self, key: str) -> Any:
        try:
            return self._values[key]
        except KeyError:
            raise AttributeError(f"there is no setting {key}; there are {', '.join(map(str, self._values))}") from None

    def __setattr__(self, key: str, value: object) -> None:
        raise TypeError(f"settings are not changed once they are validated; use changed({{{key!r}: ...}})")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __repr__(self) -> str:
        return f"Settings({self.plain()})"

    def __reduce__(self) -> tuple:
        return Settings, (self._values,)

    def plain(self) -> dict[str, Any]:
        """A copy as dicts and lists, as YAML and JSON write it."""
        return {key: _plain(value) for key, value in self._values.items()}

    def select(self, key: str) -> Any:
        """The value of a key as in `train.epochs`."""
        node, _, rest = key.partition(".")
        return self[node].select(rest) if rest else self[node]

    def changed(self, changes: Mapping[str, Any]) -> Settings:
        """A copy with other values for some keys, as in `{"train.epochs": 5}`. Nothing is validated."""
        values = dict(self._values)
        for key, value in changes.items():
            node, _, rest = key.partition(".")
            values[node] = values[node].changed({rest: value}) if rest else value
        return Settings(values)


def _frozen(value: Any) -> Any:
    if isinstance(value, Settings):
        return value
    if isinstance(value, Mapping):
        return Settings(value)
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.plain()
    return list(map(_plain, value)) if isinstance(value, tuple) else value
