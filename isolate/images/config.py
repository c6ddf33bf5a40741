"""An image's settings for the program that runs in it: the ``config`` object of image-spec's ``config.md``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from isolate.kernel.checks import is_int, is_number, keywords, nearest

__all__ = ["Config", "Health"]

Words: TypeAlias = "tuple[str, ...]"
Pairs: TypeAlias = "tuple[tuple[str, str], ...]"

_SECOND = 1_000_000_000  # Go's durations are nanoseconds


@keywords
@dataclass(frozen=True)
class Health:
    """How to find out whether the program does well.

    ``test`` is a program and its arguments behind ``"CMD"``, or a line for the shell behind ``"CMD-SHELL"``, or
    ``("NONE",)``. Times are seconds below 10^9; if one is None, the tool that runs the image chooses it.

    :raises ValueError: a time that is no number of seconds, or negative ``retries``.

    >>> from isolate.images import Health
    >>> Health(("CMD", "pg_isready"), interval=5).timeout is None
    True
    """

    test: Words
    interval: float | None = None
    timeout: float | None = None
    start_period: float | None = None
    start_interval: float | None = None
    retries: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "test", _words(self.test, "Health: test"))
        for name in ("interval", "timeout", "start_period", "start_interval"):
            value = getattr(self, name)
            if value is not None and (not is_number(value) or not 0 <= value < 1e9):
                raise ValueError(f"Health: {name} must be seconds, not {value!r}")
        if self.retries is not None and (not is_int(self.retries) or self.retries < 0):
            raise ValueError(f"Health: retries must be a number of times, not {self.retries!r}")

    def document(self) -> dict[str, Any]:
        """As it stands in a config."""
        found: dict[str, Any] = {"Test": list(self.test)}
        for name, key in _HEALTH_TIMES.items():
            value = getattr(self, name)
            if value is not None:
                found[key] = round(value * _SECOND)
        if self.retries is not None:
            found["Retries"] = self.retries
        return found

    @staticmethod
    def read(document: Mapping[str, Any]) -> Health:
        """From a config."""
        times = {name: document[key] / _SECOND for name, key in _HEALTH_TIMES.items() if document.get(key)}
        return Health(tuple(document.get("Test") or ()), retries=document.get("Retries") or None, **times)


_HEALTH_TIMES = {
    "interval": "Interval",
    "timeout": "Timeout",
    "start_period": "StartPeriod",
    "start_interval": "StartInterval",
}


@dataclass(frozen=True, init=False)
class Config:
    """The settings for the program of an image. None is "not given": :meth:`over` then keeps the other's value.

    ``user`` is ``"name"``, ``"1000"``, ``"1000:1000"`` or ``"name:group"``; ``env`` a mapping (a value of None takes a
    variable away when put :meth:`over` another); ``entrypoint`` and ``cmd`` the words of the program; ``workdir`` an
    absolute path; ``volumes`` absolute paths; ``ports`` such as ``"80/tcp"``; ``stop_signal`` such as ``"SIGTERM"``;
    ``shell`` what Dockerfiles run lines with; ``on_build`` lines of a Dockerfile.

    :raises TypeError: a value of another type. :raises ValueError: one that cannot be meant.
    """

    user: str | None
    env: tuple[tuple[str, str | None], ...] | None
    entrypoint: Words | None
    cmd: Words | None
    workdir: str | None
    volumes: Words | None
    ports: Words | None
    labels: tuple[tuple[str, str | None], ...] | None
    stop_signal: str | None
    health: Health | None
    shell: Words | None
    on_build: Words | None

    def __init__(
        self,
        *,
        user: str | int | None = None,
        env: Mapping[str, str | None] | Iterable[tuple[str, str | None]] | None = None,
        entrypoint: Iterable[str] | None = None,
        cmd: Iterable[str] | None = None,
        workdir: str | None = None,
        volumes: Iterable[str] | None = None,
        ports: Iterable[str] | None = None,
        labels: Mapping[str, str | None] | Iterable[tuple[str, str | None]] | None = None,
        stop_signal: str | None = None,
        health: Health | None = None,
        shell: Iterable[str] | None = None,
        on_build: Iterable[str] | None = None,
        **unknown: object,
    ) -> None:
        if unknown:
            name = next(iter(unknown))
            raise TypeError(f"Config has no {name!r}{nearest(name, [field.name for field in fields(Config)])}")
        if is_int(user):
            user = str(user)
        if health is not None and not isinstance(health, Health):
            raise TypeError(f"Config: health must be a Health, not {health!r}")
        values: dict[str, object] = {
            "user": _text(user, "Config: user"),
            "env": _pairs(env, "Config: env", names=True),
            "labels": _pairs(labels, "Config: labels"),
            "workdir": _path(workdir, "Config: workdir") if workdir else _text(workdir, "Config: workdir"),
            "volumes": None
            if volumes is None
            else tuple(_path(v, "Config: volumes") for v in _words(volumes, "Config: volumes")),
            "stop_signal": _text(stop_signal, "Config: stop_signal"),
            "health": health,
        }
        for name, words in (
            ("entrypoint", entrypoint),
            ("cmd", cmd),
            ("ports", ports),
            ("shell", shell),
            ("on_build", on_build),
        ):
            values[name] = None if words is None else _words(words, f"Config: {name}")
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        said = [
            f"{f.name}={dict(v) if f.name in ('env', 'labels') else v!r}"
            for f in fields(self)
            if (v := getattr(self, f.name)) is not None
        ]
        return f"Config({', '.join(said)})"

    def over(self, base: Config) -> Config:
        """This on top of another: what is said here holds, variables and labels by name, the rest stays."""
        said: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            if field.name in ("env", "labels"):
                merged = {**dict(getattr(base, field.name) or ()), **dict(value)}
                value = tuple((name, text) for name, text in merged.items() if text is not None)
            said[field.name] = value
        return _replaced(base, **said)

    @property
    def environment(self) -> dict[str, str]:
        """The variables."""
        return {name: value for name, value in self.env or () if value is not None}

    @property
    def program(self) -> Words:
        """Entry point and command: what is started when nothing else is said."""
        return (*(self.entrypoint or ()), *(self.cmd or ()))

    def arguments(self, given: Iterable[str] = ()) -> Words:
        """The command line that is started: the entry point, then the words given or else the image's command.

        :raises ValueError: there is nothing to start.
        """
        words = tuple(given)
        found = (*(self.entrypoint or ()), *(words or self.cmd or ()))
        if not found:
            raise ValueError("the image names no program (neither an entry point nor a command): say which")
        return found

    def document(self) -> dict[str, Any]:
        """As it stands in an image's configuration, under the names that Go has for them."""
        found: dict[str, Any] = {}
        for name, key in _TEXTS.items():
            if getattr(self, name) is not None:
                found[key] = getattr(self, name)
        for name, key in _LISTS.items():
            if getattr(self, name) is not None:
                found[key] = list(getattr(self, name))
        for name, key in _SETS.items():
            if getattr(self, name):
                found[key] = {word: {} for word in getattr(self, name)}
        if self.env is not None:
            found["Env"] = [f"{name}={value}" for name, value in self.environment.items()]
        if self.labels:
            found["Labels"] = {name: value for name, value in self.labels if value is not None}
        if self.health is not None:
            found["Healthcheck"] = self.health.document()
        return found

    @staticmethod
    def read(document: Mapping[str, Any]) -> Config:
        """From the ``config`` object of an image's configuration. Keys that are not known are left out.

        :raises ValueError, TypeError: a value of another kind than the specification's.
        """
        said: dict[str, Any] = {}
        for name, key in {**_TEXTS, **_LISTS}.items():
            value = document.get(key)
            # Go writes "" and null for what was never said.
            if value not in (None, "") and (value or name in ("entrypoint", "cmd")):
                said[name] = value
        for name, key in _SETS.items():
            value = document.get(key)
            if value:
                if not isinstance(value, Mapping):
                    raise TypeError(f"{key} must be an object, not {type(value).__name__}")
                said[name] = tuple(value)
        if document.get("Env") is not None:
            pairs = [word.partition("=") for word in _words(document["Env"], "Env")]
            said["env"] = tuple({name: value for name, _, value in pairs if name}.items())
        labels = document.get("Labels")
        if labels:
            if not isinstance(labels, Mapping):
                raise TypeError(f"Labels must be an object, not {type(labels).__name__}")
            said["labels"] = labels
        health = document.get("Healthcheck")
        if health:
            if not isinstance(health, Mapping):
                raise TypeError(f"Healthcheck must be an object, not {type(health).__name__}")
            said["health"] = Health.read(health)
        if "workdir" in said and not str(said["workdir"]).startswith("/"):
            said["workdir"] = f"/{said['workdir']}"  # as docker understands it
        if "volumes" in said:
            said["volumes"] = tuple(v if v.startswith("/") else f"/{v}" for v in said["volumes"])
        return Config(**said)


def _replaced(config: Config, **said: Any) -> Config:
    """``dataclasses.replace``, by the constructor's own names."""
    return Config(**{**{field.name: getattr(config, field.name) for field in fields(config)}, **said})


_TEXTS = {"user": "User", "workdir": "WorkingDir", "stop_signal": "StopSignal"}
_LISTS = {"entrypoint": "Entrypoint", "cmd": "Cmd", "shell": "Shell", "on_build": "OnBuild"}
_SETS = {"volumes": "Volumes", "ports": "ExposedPorts"}


def _text(value: object, what: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, not {value!r}")
    if "\0" in value:
        raise ValueError(f"{what} must not contain a NUL: {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} must be text that JSON can carry, not {value!r}") from None
    return value


def _words(values: object, what: str) -> Words:
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise TypeError(f"{what} must be several str, such as ('python3', '-m', 'app'), not {values!r}")
    found = []
    for value in values:
        text = _text(value, what)
        if text is None:
            raise TypeError(f"{what} must be several str, and has a None")
        found.append(text)
    return tuple(found)


def _pairs(values: object, what: str, *, names: bool = False) -> tuple[tuple[str, str | None], ...] | None:
    if values is None:
        return None
    if isinstance(values, Mapping):
        values = values.items()
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{what} must be a mapping of str to str, not {values!r}")
    found: dict[str, str | None] = {}
    for pair in values:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(f"{what} must be a mapping of str to str, and has {pair!r}")
        name = _text(pair[0], what)
        if name is None or (names and (not name or "=" in name)):
            raise ValueError(f"{what}: a name is not empty and has no '=', not {pair[0]!r}")
        found[name] = _text(pair[1], f"{what}[{name!r}]")
    return tuple(found.items())


def _paths(values: object, what: str) -> Words:
    return tuple(_path(value, what) for value in _words(values, what))


def _path(value: object, what: str) -> str:
    text = _text(value, what)
    if not text or not text.startswith("/"):
        raise ValueError(f"{what} must be an absolute path, not {value!r}")
    return text
