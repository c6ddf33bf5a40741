"""The form of each instruction of a Dockerfile: its flags, how many arguments it takes, and the value it becomes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar, Final

from isolate.build.instructions import (
    Arg,
    Cmd,
    Copy,
    Entrypoint,
    Env,
    Expose,
    From,
    HealthCheck,
    Label,
    OnBuild,
    Run,
    Shell,
    StopSignal,
    User,
    Volume,
    Workdir,
)
from isolate.build.mount_words import nearest_word, read_mount
from isolate.build.syntax import DockerfileError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from isolate.build.instructions import Instruction
    from isolate.build.syntax import Instruction as Written

__all__ = ["read"]


def read(written: Written) -> Instruction:
    """The value of an instruction of a Dockerfile.

    :raises DockerfileError: unknown instruction or flag, too few or too many arguments, a value that cannot be.
    """
    reader = _READERS.get(written.name)
    if reader is None:
        raise DockerfileError(f"unknown instruction{nearest_word(written.name, _READERS)}", written.line, written.name)
    return reader(_Reading(written))


class _Reading:
    """An instruction being read: its flags are taken one by one, its errors name it."""

    _BOOLEANS: ClassVar[dict[str, bool]] = {"": True, "true": True, "1": True, "false": False, "0": False}

    def __init__(self, written: Written) -> None:
        self.written = written
        self.line = written.line
        self.arguments = written.arguments

    def error(self, message: str) -> DockerfileError:
        return DockerfileError(message, self.written.line, self.written.name)

    def flags(self, *known: str) -> dict[str, list[str]]:
        """The flags by name; one that is not known is refused."""
        found: dict[str, list[str]] = {}
        for flag in self.written.flags:
            name, _, value = flag[2:].partition("=")
            if name not in known:
                raise self.error(f"unknown flag --{name}{nearest_word(name, frozenset(known)) if known else ''}")
            if name in found and name not in ("mount", "exclude"):
                raise self.error(f"the flag --{name} is given twice")
            found.setdefault(name, []).append(value)
        return found

    def boolean(self, flags: Mapping[str, list[str]], name: str) -> bool | None:
        if name not in flags:
            return None
        try:
            return self._BOOLEANS[flags[name][0].lower()]
        except KeyError:
            raise self.error(f"--{name}={flags[name][0]}: it must be true or false") from None

    def at_least(self, count: int, what: str) -> None:
        if len(self.arguments) < count:
            raise self.error(f"it takes at least {count} argument{'s' * (count > 1)}: {what}")

    def one(self, what: str) -> str:
        self.flags()
        if len(self.arguments) != 1:
            raise self.error(f"it takes exactly one argument: {what}")
        return self.arguments[0]

    def pairs(self) -> tuple[tuple[str, str], ...]:
        self.flags()
        self.at_least(1, "name=value")
        triples = self.arguments
        if any(not name for name in triples[::3]):
            raise self.error("a name may not be empty")
        return tuple(zip(triples[::3], triples[1::3], strict=True))


def _from(r: _Reading) -> From:
    flags = r.flags("platform")
    words = r.arguments
    if len(words) == 3 and words[1].upper() == "AS":
        name: str | None = words[2].lower()
        if not re.fullmatch(r"[a-z][a-z0-9-_.]*", name or ""):
            raise r.error(f"{words[2]!r} is no name for a stage: a letter, then letters, digits, '-', '_' and '.'")
    elif len(words) == 1:
        name = None
    else:
        raise r.error("it takes a base, and after it at most AS and a name")
    return From(words[0], name, flags.get("platform", [None])[0], r.line)


def _run(r: _Reading) -> Run:
    flags = r.flags("mount", "network", "security")
    r.at_least(1, "a command")
    network = flags.get("network", [None])[0]
    if network not in (None, "none", "host", "default"):
        raise r.error(f"--network={network}: it must be none, host or default")
    if flags.get("security", ["sandbox"])[0] != "sandbox":
        raise r.error("--security=insecure is not offered: a step of a build has no more rights than another")
    # Only the form is judged here: variables in the values are expanded later.
    mounts = tuple(read_mount(text, r.error) for text in flags.get("mount", []))
    return Run(r.arguments, not r.written.is_json, mounts, network, r.written.documents, r.line)


def _copy(r: _Reading) -> Copy:
    add = r.written.name == "ADD"
    both = ("chown", "chmod", "link", "exclude")
    flags = r.flags(*both, *(("checksum", "unpack", "keep-git-dir") if add else ("from", "parents")))
    r.at_least(2, "sources, then a target")
    if add and any(re.match(r"(https?|ftp)://|git@|git://", source) for source in r.arguments[:-1]):
        raise r.error(
            "a source on the network is not fetched: a build has no network of its own; fetch it first and COPY it,"
            " or RUN a client with network"
        )
    for document in r.written.documents:
        if not document.file_name:
            raise r.error(
                f"the here-document {document.name!r} would be a file of that name: a directory belongs into the target"
                " (COPY <<NAME /directory/)"
            )
    origin = flags.get("from", [None])[0]
    if origin is not None and "$" in origin:
        raise r.error(f"--from={origin}: it takes no variable: name a stage (FROM {origin} AS name), and that")
    if "checksum" in flags:
        raise r.error("--checksum is for a source on the network, and none is fetched")
    return Copy(
        r.arguments[:-1],
        r.arguments[-1],
        add,
        origin,
        flags.get("chown", [None])[0],
        flags.get("chmod", [None])[0],
        bool(r.boolean(flags, "link")),
        bool(r.boolean(flags, "parents")),
        tuple(flags.get("exclude", [])),
        flags.get("checksum", [None])[0],
        r.boolean(flags, "unpack"),
        r.written.documents,
        r.line,
    )


def _arg(r: _Reading) -> Arg:
    r.flags()
    r.at_least(1, "a name, or name=value")
    found: list[tuple[str, str | None]] = []
    for word in r.arguments:
        name, equals, value = word.partition("=")
        if not name:
            raise r.error("a name may not be empty")
        found.append((name, value if equals else None))
    return Arg(tuple(found), r.line)


def _command(kind: type[Cmd | Entrypoint]) -> Callable[[_Reading], Cmd | Entrypoint]:
    def reader(r: _Reading) -> Cmd | Entrypoint:
        r.flags()
        return kind(r.arguments, not r.written.is_json and bool(r.arguments), r.line)

    return reader


def _shell(r: _Reading) -> Shell:
    r.flags()
    if not r.written.is_json or not r.arguments:
        raise r.error('it takes an array in brackets: SHELL ["/bin/sh", "-c"]')
    return Shell(r.arguments, r.line)


def _list(r: _Reading, what: str) -> tuple[str, ...]:
    r.flags()
    r.at_least(1, what)
    if any(not each for each in r.arguments):
        raise r.error(f"it takes {what}, and none may be empty")
    return r.arguments


_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def _health(r: _Reading) -> HealthCheck:
    times = ("interval", "timeout", "start-period", "start-interval")
    flags = r.flags(*times, "retries")
    r.at_least(1, "NONE, or CMD and a command")
    kind = r.arguments[0].upper()
    if kind == "NONE":
        if len(r.arguments) > 1 or flags:
            raise r.error("NONE takes neither arguments nor flags")
        return HealthCheck((), disabled=True, line=r.line)
    if kind != "CMD":
        raise r.error(f"{r.arguments[0]!r} is neither NONE nor CMD")
    if len(r.arguments) < 2:
        raise r.error("CMD needs a command")
    values = {name: _duration(r, name, flags[name][0]) for name in times if name in flags}
    retries: int | None = None
    if "retries" in flags:
        if not re.fullmatch(r"[0-9]{1,9}", flags["retries"][0]):
            raise r.error(f"--retries={flags['retries'][0]}: it must be a number, at least 0")
        retries = int(flags["retries"][0]) or None
    return HealthCheck(
        r.arguments[1:],
        not r.written.is_json,
        False,
        values.get("interval"),
        values.get("timeout"),
        values.get("start-period"),
        values.get("start-interval"),
        retries,
        r.line,
    )


def _duration(r: _Reading, name: str, text: str) -> float | None:
    """Go's form of a duration: ``1m30s``. Zero means the default."""
    if len(text) > 64:
        raise r.error(f"--{name}={text[:64]}…: not a duration such as 30s or 1m30s")
    parts = re.findall(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)", text)
    if text != "0" and (not parts or "".join(number + unit for number, unit in parts) != text):
        raise r.error(f"--{name}={text}: not a duration such as 30s or 1m30s")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if 0 < seconds < 1e-3:
        raise r.error(f"--{name}={text}: at least 1ms")
    return seconds or None


def _onbuild(r: _Reading) -> OnBuild:
    r.flags()
    child = r.written.child
    if child is None:
        raise r.error("it takes an instruction")
    if child.name in ("ONBUILD", "FROM", "MAINTAINER"):
        raise r.error(f"{child.name} may not stand behind ONBUILD")
    text = re.sub(r"(?i)^\s*onbuild\s+", "", r.written.text)
    documents = "".join(f"\n{d.content}{d.name}" for d in child.documents)
    return OnBuild(text + documents, read(child), r.line)


def _maintainer(r: _Reading) -> Label:
    return Label((("maintainer", r.one("a name")),), r.line)


_READERS: Final[dict[str, Callable[[_Reading], Instruction]]] = {
    "FROM": _from,
    "RUN": _run,
    "COPY": _copy,
    "ADD": _copy,
    "ARG": _arg,
    "ENV": lambda r: Env(r.pairs(), r.line),
    "LABEL": lambda r: Label(r.pairs(), r.line),
    "MAINTAINER": _maintainer,
    "WORKDIR": lambda r: Workdir(r.one("a directory"), r.line),
    "USER": lambda r: User(r.one("a user, or user:group"), r.line),
    "CMD": _command(Cmd),
    "ENTRYPOINT": _command(Entrypoint),
    "SHELL": _shell,
    "EXPOSE": lambda r: Expose(_list(r, "ports"), r.line),
    "VOLUME": lambda r: Volume(_list(r, "directories"), r.line),
    "STOPSIGNAL": lambda r: StopSignal(r.one("a signal"), r.line),
    "HEALTHCHECK": _health,
    "ONBUILD": _onbuild,
}
