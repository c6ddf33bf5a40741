"""The steps of one stage: each takes the image so far to the next, from the cache where it can."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import posixpath
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from isolate.build import instructions as i
from isolate.build.context import Files
from isolate.build.copying import Plan, copy_into, copy_with_parents, expand, is_archive, target_of
from isolate.build.errors import BuildError
from isolate.build.ignore import Ignore
from isolate.build.mount_words import read_mount
from isolate.build.mounting import content
from isolate.build.running import Command, run, seed
from isolate.build.syntax import here_document
from isolate.build.words import process_word, process_words
from isolate.errors import IsolateError
from isolate.images.accounts import account
from isolate.images.config import Config, Health
from isolate.images.confined.maps import map_for
from isolate.images.disk import new_directory, subdirectory
from isolate.images.image import History, Image
from isolate.images.unpack.start import extract

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from isolate.build.stages import Program, Stage
    from isolate.engine.plan import Part
    from isolate.images.layer import Layer
    from isolate.images.store import Store

__all__ = ["CACHE", "PREDEFINED", "State", "describe"]

#: The name under which the images of cached steps stand in a store.
CACHE: Final = "localhost/isolate-build-cache"
#: Arguments that need no ARG, and are in no key (BuildKit's list).
PREDEFINED: Final = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
_VERSION: Final = 2
_EPOCH: Final = "1970-01-01T00:00:00Z"
_SHELL: Final = ("/bin/sh", "-c")
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def describe(step: i.Instruction) -> str:
    """An instruction in a line."""
    if isinstance(step, i.Run):
        return "RUN " + (step.command[0] if step.shell else json.dumps(list(step.command)))
    if isinstance(step, i.Copy):
        origin = f"--from={step.origin} " if step.origin else ""
        return f"{'ADD' if step.add else 'COPY'} {origin}{' '.join(step.sources)} {step.target}"
    if isinstance(step, i.Volume):
        return f"VOLUME {json.dumps(list(step.paths))}"
    if isinstance(step, i.Expose):
        return "EXPOSE " + " ".join(step.ports)
    if isinstance(step, (i.Cmd, i.Entrypoint, i.Shell)):
        exec_form = not getattr(step, "shell", False)
        return f"{type(step).__name__.upper()} {json.dumps(list(step.command)) if exec_form else step.command[0]}"
    pairs = getattr(step, "values", None)
    if pairs is not None:
        return f"{type(step).__name__.upper()} " + " ".join(f"{k}={v}" if v is not None else k for k, v in pairs)
    shown = [str(v) for k, v in vars(step).items() if k not in ("line", "shell") and v not in (None, (), False)]
    return f"{type(step).__name__.upper()} {' '.join(shown)}"


class Work(Protocol):
    """The build that a stage is of."""

    recipe: Program
    store: Store
    args: dict[str, str]
    globals: dict[str, str]
    secrets: dict[str, bytes]
    asked: set[str]
    network: bool
    parts: tuple[Part, ...]
    timeout: float | None
    cache: bool
    output: Callable[[bytes], object] | None

    def platforms(self) -> dict[str, str]:
        """The variables that name the machine that is built for, and this one."""
        ...

    def files_of(self, origin: str | None, number: int) -> Files:
        """The files of a source, to be closed."""
        ...

    def image_files(self, image: Image, *, source: bool = False) -> Files:
        """The merged tree of an image, to be closed."""
        ...


class State:
    """A stage while it is being built."""

    def __init__(self, work: Work, stage: Stage, number: int, image: Image) -> None:
        self.work: Work = work
        self.stage: Stage = stage
        self.number: int = number
        self.image: Image = image
        self.args: dict[str, str] = {}

    @property
    def env(self) -> dict[str, str]:
        """The image's variables."""
        return self.image.config.environment

    def word(self, text: str) -> str:
        """A text with its variables expanded, where it may have any."""
        if not self.stage.expand:
            return text
        return process_word(text, {**self.args, **self.env}, escape=self.work.recipe.escape).text

    def words(self, texts: Iterable[str]) -> list[str]:
        """Texts that may become several words each."""
        if not self.stage.expand:
            return list(texts)
        env = {**self.args, **self.env}
        return [word for text in texts for word in process_words(text, env, escape=self.work.recipe.escape)]

    def carry(self, step: i.Instruction) -> bool:
        """Do it; whether it was found in the cache."""
        if isinstance(step, i.Run):
            return self._run(step)
        if isinstance(step, i.Copy):
            self._copy(step)
        elif isinstance(step, i.Workdir):
            self._workdir(step)
        elif isinstance(step, i.Arg):
            self._arg(step)
        else:
            config = self._config(step)
            self.image = self.image.with_(config, history=_history(describe(step), empty=True))
        return False

    def _config(self, step: i.Instruction) -> Config:
        own = self.image.config
        if isinstance(step, i.Env):
            found: dict[str, str] = {}
            for name, value in step.values:
                found[self.word(name)] = self.word(value)
            return Config(env=found)
        if isinstance(step, i.Label):
            return Config(labels={self.word(name): self.word(value) for name, value in step.values})
        if isinstance(step, i.User):
            return Config(user=self.word(step.user))
        if isinstance(step, i.Cmd):
            return Config(cmd=self._shelled(step.command, step.shell))
        if isinstance(step, i.Entrypoint):
            # A command of the base is for its entry point, not for another.
            config = Config(entrypoint=self._shelled(step.command, step.shell))
            return config if any(isinstance(s, i.Cmd) for s in self.stage.instructions) else replace(config, cmd=())
        if isinstance(step, i.Shell):
            return Config(shell=step.command)
        if isinstance(step, i.Expose):
            ports = [each for port in self.words(step.ports) for each in _ports(port)]
            return Config(ports=tuple(dict.fromkeys([*(own.ports or ()), *ports])))
        if isinstance(step, i.Volume):
            paths = [posixpath.normpath(posixpath.join("/", path)) for path in self.words(step.paths)]
            return Config(volumes=tuple(dict.fromkeys([*(own.volumes or ()), *paths])))
        if isinstance(step, i.StopSignal):
            return Config(stop_signal=self.word(step.signal))
        if isinstance(step, i.HealthCheck):
            test = (
                ("NONE",) if step.disabled else ("CMD-SHELL", *step.command) if step.shell else ("CMD", *step.command)
            )
            return Config(
                health=Health(test, step.interval, step.timeout, step.start_period, step.start_interval, step.retries)
            )
        assert isinstance(step, i.OnBuild)
        return Config(on_build=(*(own.on_build or ()), step.text))

    def _shelled(self, command: tuple[str, ...], shell: bool) -> tuple[str, ...]:
        return (*(self.image.config.shell or _SHELL), command[0]) if shell and command else command

    def _arg(self, step: i.Arg) -> None:
        work = self.work
        for name, default in step.values:
            name = self.word(name)
            work.asked.add(name)
            if name in work.args:
                self.args[name] = work.args[name]
            elif default is not None:
                self.args[name] = self.word(default)
            elif name in work.globals:
                self.args[name] = work.globals[name]
            elif name in (known := work.platforms()):
                self.args[name] = known[name]
        self.image = self.image.with_(Config(), history=_history(describe(step), empty=True))

    def _add(self, layer: Layer, text: str) -> None:
        self.image = self.image.add(layer, _history(text))

    def _workdir(self, step: i.Workdir) -> None:
        path = posixpath.normpath(posixpath.join("/", self.image.config.workdir or "/", self.word(step.path)))
        with self.work.image_files(self.image, source=True) as base:
            raw, _ = target_of(base, "/", path)
            new = bool(raw) and base.look(raw) is None
            user = self.image.config.user
            plan = Plan(base, self._ids(self.work.store.add(self.image), user) if new and user else (0, 0))
            plan.directory(raw)
        if plan.rows:
            self._add(plan.layer(), describe(step))
            self.image = self.image.with_(Config(workdir=path))
        else:
            self.image = self.image.with_(Config(workdir=path), history=_history(describe(step), empty=True))

    # ---- COPY and ADD ------------------------------------------------------------------------------------------

    def _copy(self, step: i.Copy) -> None:
        mode: int | None = None
        if step.mode is not None:
            text = self.word(step.mode)
            if not re.fullmatch(r"[0-7]{1,5}", text):
                raise BuildError(f"--chmod={text}: it must be an octal number")
            mode = int(text, 8)
        kept = self.work.store.add(self.image)
        # Files from a stage or an image keep their owners. Owners in the context belong to another machine.
        owner = (0, 0) if step.origin is None else None
        given: tuple[int, int] | None = None
        if step.owner is not None:
            owner = given = self._ids(kept, self.word(step.owner))
        exclude = Ignore([self.word(pattern) for pattern in step.exclude])
        heres = {d.name: d for d in step.documents}
        unpacked: list[tuple[bytes, bytes]] = []
        with self.work.image_files(kept, source=True) as base, _closing(self._source(step)) as files:
            target, directory = target_of(base, self.image.config.workdir or "/", self.word(step.target))
            plan = Plan(base, owner, mode)
            paths: list[bytes] = []
            matched = False
            for written in step.sources:
                document = heres.get(here.name) if (here := here_document(written)) is not None else None
                if document is not None:
                    data = self.word_inside(document.text) if document.expand else document.text
                    name = os.fsencode(document.file_name)
                    plan.data(b"/".join(filter(None, [target, name])) if directory else target, data.encode())
                    continue
                if files is None:
                    raise BuildError("here-documents and files are copied by two instructions")
                for source in self.words([written]):
                    if step.parents:
                        matched |= copy_with_parents(plan, files, source, target, exclude)
                    else:
                        paths += expand(files, source)

            def unpack(source_files: Files, source: bytes, into: bytes) -> bool:
                wanted = step.unpack if step.unpack is not None else step.add
                if not wanted or not is_archive(source_files, source):
                    return False
                unpacked.append((source, into))
                return True

            if not (paths or plan.rows or matched):
                raise BuildError(f"{' '.join(step.sources)}: nothing matches")
            if paths and files is not None:
                copy_into(plan, files, paths, target, directory, exclude=exclude, unpack=unpack)
            if plan.rows:
                self._add(plan.layer(), describe(step))
            for archive, into in unpacked:
                assert files is not None
                self._unpack(files, archive, into, step, given)

    def _ids(self, image: Image, word: str) -> tuple[int, int]:
        """The owner of files that are made for a user. As in BuildKit, a number alone is also the group's."""
        who = account(image, self.work.store, f"{word}:{word}" if word.isdecimal() else word)
        return who.uid, who.gid

    def _source(self, step: i.Copy) -> Files | None:
        if step.documents and all(here_document(source) is not None for source in step.sources):
            return None
        return self.work.files_of(step.origin, self.number)

    def word_inside(self, text: str) -> str:
        """The content of a here-document: variables are expanded, quotes mean nothing."""
        env = {**self.args, **self.env}
        return process_word(text, env, escape=self.work.recipe.escape, quotes=False).text

    def _unpack(self, files: Files, source: bytes, into: bytes, step: i.Copy, owner: tuple[int, int] | None) -> None:
        """ADD of an archive: a confined child unpacks it beside, and its tree is copied."""
        trees, layers = self.work.store.trees, self.work.store.opened.layers_fd
        name, place = new_directory(layers, ".new-")  # where a collection finds what a build that was killed has left
        try:
            top = subdirectory(place, "tree")
            fd = files.read(source)
            try:
                with open(fd, "rb", closefd=False) as archive:
                    done = extract(archive, top, layer=False)
            finally:
                os.close(fd)
            with (
                self.work.image_files(self.image, source=True) as base,
                Files([top], facts=[done.facts], ids=map_for(None)) as tree,
            ):
                plan = Plan(base, owner)
                plan.tree(tree, b"", into, Ignore(), frozenset(done.implied))
                self._add(plan.layer(), describe(step))
        finally:
            trees.throw_away(name, place)

    # ---- RUN ---------------------------------------------------------------------------------------------------

    def _run(self, step: i.Run) -> bool:
        work = self.work
        kept = work.store.add(self.image)
        command, script = self._command(step)
        mounts = tuple(self._mount(mount) for mount in step.mounts)
        secret = _variables(mounts, work.secrets)
        proxies = {name: work.args[name] for p in PREDEFINED for name in (p, p.lower()) if name in work.args}
        env = {"PATH": _PATH, **self.args, **self.env}
        if step.network == "host" and not work.network:
            raise BuildError("it asks for this host's network: allow it by network=True (isolate build --network)")
        network = step.network == "caller" or (step.network != "none" and work.network)
        opened: list[Files | None] = []
        try:
            for mount in mounts:
                shows = mount.kind == "bind" or mount.origin is not None
                opened.append(work.files_of(mount.origin, self.number) if shows else None)
            inputs = [[*_seen(mount), content(mount, files)] for mount, files in zip(mounts, opened, strict=True)]
            script_key = [script[0], script[1].decode("latin-1")] if script else None
            key = _key(
                seed(work.store).hex(),
                kept.id,
                list(command),
                sorted(env.items()),
                inputs,
                script_key,
                network,
                step.shell,
                [repr(part) for part in work.parts],
            )
            found = self._found(key)
            if found is not None:
                self.image = found
                return True
            doing = Command(
                command,
                {**env, **proxies, **secret},
                network=network,
                mounts=tuple(zip(mounts, opened, strict=True)),
                script=script,
                secrets=work.secrets,
                parts=work.parts,
                timeout=work.timeout,
            )
            layer = run(doing, kept, work.store, work.output)
        finally:
            for files in opened:
                if files is not None:
                    files.close()
        self._add(layer, describe(step))
        self.image = work.store.add(self.image, f"{CACHE}:{key}")
        return False

    def _found(self, key: str) -> Image | None:
        if not self.work.cache:
            return None
        try:
            return self.work.store.open(f"{CACHE}:{key}")
        except (IsolateError, ValueError):
            return None

    def _command(self, step: i.Run) -> tuple[tuple[str, ...], tuple[str, bytes] | None]:
        """The words to execute, and a script of a here-document that they execute."""
        if not step.documents:
            return self._shelled(step.command, step.shell), None
        line = step.command[0]
        alone = here_document(line.strip())
        first = step.documents[0]
        if alone is not None and len(step.documents) == 1:
            if first.text.startswith("#!"):
                return (f"/dev/pipes/{first.name}",), (first.name, first.text.encode())
            return self._shelled((first.text,), True), None
        whole = line + "".join(f"\n{document.content}{document.name}" for document in step.documents)
        return self._shelled((whole,), True), None

    def _mount(self, mount: i.Mount) -> i.Mount:
        """The same with its variables expanded, and its target where it is."""
        if mount.written is not None and self.stage.expand:
            mount = read_mount(mount.written, BuildError, self.word)
        if mount.target is None:
            return mount
        target = posixpath.normpath(posixpath.join("/", self.image.config.workdir or "/", mount.target))
        if target.strip("/") == "":
            raise BuildError(f"--mount: {mount.target} is the root, which nothing can be mounted on")
        return replace(mount, target=target, written=None)


def _ports(text: str) -> list[str]:
    """``8000-8002/udp`` as an image says it: port by port. Docker refuses an image with anything else."""
    found = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(tcp|udp|sctp))?", text, re.IGNORECASE | re.ASCII)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if found is None or not first <= last <= 65535:
        raise BuildError(f"{text!r} is no port: write 80, 80/udp or 8000-8010/tcp")
    return [f"{port}/{(found[3] or 'tcp').lower()}" for port in range(first, last + 1)]


def _seen(mount: i.Mount) -> list[Any]:
    """The properties of a mount that a command sees beside its content, for the key."""
    return [
        mount.kind,
        mount.target,
        mount.id,
        mount.read_only,
        mount.mode,
        mount.uid or 0,
        mount.gid or 0,
        mount.size,
        mount.env,
    ]


def _variables(mounts: Iterable[i.Mount], secrets: Mapping[str, bytes]) -> dict[str, str]:
    """The secrets that are variables."""
    found: dict[str, str] = {}
    for mount in mounts:
        data = secrets.get(mount.id or "") if mount.env else None
        if mount.env and data is not None:
            if b"\0" in data:
                raise BuildError(f"the secret {mount.id!r} has a NUL, so it can be a file and no variable (env)")
            found[mount.env] = os.fsdecode(data)
    return found


def _key(*fields: Any) -> str:
    text = json.dumps([_VERSION, *fields], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _history(text: str, *, empty: bool = False) -> History:
    return History(created=_EPOCH, created_by=text[:2000], comment="isolate", empty=empty)


@contextlib.contextmanager
def _closing(files: Files | None) -> Iterator[Files | None]:
    try:
        yield files
    finally:
        if files is not None:
            files.close()
