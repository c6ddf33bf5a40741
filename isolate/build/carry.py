"""Carrying a recipe out: stages in the order of their needs, steps from the cache or done, the image into the store."""

from __future__ import annotations

import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from isolate.build import instructions as i
from isolate.build.context import Context, Files
from isolate.build.errors import BuildError
from isolate.build.forms import read
from isolate.build.ignore import IgnoreError
from isolate.build.stages import SCRATCH, Program, Stage
from isolate.build.steps import CACHE, PREDEFINED, State, describe
from isolate.build.syntax import DockerfileError, parse_syntax
from isolate.build.words import WordError, process_word
from isolate.errors import printable
from isolate.images.confined.maps import map_for
from isolate.images.errors import AmbiguousError, ImageError, LayerError, StoreError
from isolate.images.holding import tagged
from isolate.images.image import Image
from isolate.images.platform import Platform
from isolate.images.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from isolate.engine.plan import Part
    from isolate.images.store import Store
    from isolate.kernel.paths import StrOrBytesPath

__all__ = ["Built", "Step", "Work", "build", "explain", "forget"]


@dataclass(frozen=True)
class Step:
    """One step of a build, for ``progress``."""

    stage: str
    number: int
    count: int
    #: The instruction in words.
    text: str
    #: ``begun``, ``cached`` or ``done``.
    state: str


@dataclass(frozen=True)
class Built:
    """The result of a build: the image, and how many of its steps were done or found in the store."""

    image: Image
    #: The steps that were done, and those that were found.
    done: int
    cached: int


def build(
    recipe: Program,
    store: Store,
    context: Context | StrOrBytesPath | None = None,
    *,
    name: str | Reference | None = None,
    target: str | None = None,
    args: Mapping[str, str] | None = None,
    secrets: Mapping[str, bytes] | None = None,
    contexts: Mapping[str, Context | Image | StrOrBytesPath] | None = None,
    network: bool = False,
    parts: Iterable[Part] = (),
    timeout: float | None = None,
    platform: Platform | str | None = None,
    cache: bool = True,
    pull: bool = False,
    jobs: int = 2,
    progress: Callable[[Step], object] | None = None,
    output: Callable[[bytes], object] | None = None,
) -> Built:
    """See :meth:`isolate.build.Recipe.built`."""
    if store.read_only:
        raise BuildError(f"the store {printable(store.path)} is read-only; build in one that can be written")
    if name is not None:
        name = tagged(Reference.parse(name))  # refused before the first step
    given = dict(args or {})
    named: dict[str, Context | Image] = dict(recipe.contexts)
    for key, value in (contexts or {}).items():
        named[key] = value if isinstance(value, (Context, Image)) else Context(value)
    whole = context if context is None or isinstance(context, Context) else Context(context)
    work = Work(
        recipe,
        store,
        whole,
        named,
        given,
        dict(secrets or {}),
        network,
        tuple(parts),
        timeout,
        Platform.parse(platform) if platform is not None else Platform.host(),
        cache,
        pull,
        progress,
        output,
    )
    wanted = work.find(target) if target is not None else len(recipe.stages) - 1
    image = work.all(wanted, max(1, jobs))
    unknown = sorted(set(given) - work.asked - {n for p in PREDEFINED for n in (p, p.lower())})
    if unknown:
        raise BuildError(f"no ARG asks for {', '.join(unknown)}")
    kept = store.add(image, name)
    return Built(kept, work.done, work.cached)


def explain(recipe: Program, store: Store | None = None, **options: Any) -> str:
    """The stages and steps in words; with a store, which bases are in it."""
    lines = []
    for number, stage in enumerate(recipe.stages):
        base = stage.base if isinstance(stage.base, str) else f"the image {stage.base.digest[:19]}"
        known = ""
        before = _numbered(recipe.stages[:number], stage.base) if isinstance(stage.base, str) else None
        if before is not None:
            known = f" (stage {before})"
        elif store is not None and isinstance(stage.base, str) and stage.base != SCRATCH and "$" not in stage.base:
            try:
                known = f" ({store.open(stage.base).id[:19]})"
            except (StoreError, ImageError, ValueError):
                known = " (not in the store)"
        lines.append(f"stage {number}{f' {stage.name}' if stage.name else ''}: on {base}{known}")
        shell = False
        for step in stage.instructions:
            lines.append(f"  {describe(step)}")
            if isinstance(step, i.Run):
                shell = True
                net = (
                    "the caller's network"
                    if step.network == "caller" or (step.network != "none" and options.get("network"))
                    else "no network"
                )
                lines.append(
                    f"    in a sandbox over the image so far: Docker's capabilities, the default filter, {net}"
                )
                lines += [f"    with {mount.kind} at {mount.target or mount.id}, in no layer" for mount in step.mounts]
                lines.append(
                    "    key: digest of the image so far, the command, variables, mounts' contents; no secrets"
                )
            elif isinstance(step, i.Copy):
                lines.append("    a layer of the files, their modes and owners; no times")
        if not shell:
            lines.append("  nothing is run")
    return "\n".join(lines)


def _numbered(stages: Sequence[Stage], name: str) -> int | None:
    """Which of the stages a name, or a number, stands for: the last of that name."""
    for number in range(len(stages) - 1, -1, -1):
        if stages[number].name == name.lower() or stages[number].name == name:
            return number
    return int(name) if re.fullmatch(r"[0-9]{1,6}", name) and int(name) < len(stages) else None


def forget(store: Store) -> int:
    """Take the names of cached steps away; :meth:`Store.collect <isolate.images.Store.collect>` then frees them."""
    found = [reference for reference in store.tags() if str(reference).startswith(CACHE + ":")]
    return sum(store.untag(reference) for reference in found)


class Work:
    """One build."""

    def __init__(
        self,
        recipe: Program,
        store: Store,
        context: Context | None,
        contexts: dict[str, Context | Image],
        args: dict[str, str],
        secrets: dict[str, bytes],
        network: bool,
        parts: tuple[Part, ...],
        timeout: float | None,
        platform: Platform,
        cache: bool,
        pull: bool,
        progress: Callable[[Step], object] | None,
        output: Callable[[bytes], object] | None,
    ) -> None:
        self.recipe: Program = recipe
        self.store: Store = store
        self.context: Context | None = context
        self.contexts: dict[str, Context | Image] = contexts
        self.args: dict[str, str] = args
        self.secrets: dict[str, bytes] = secrets
        self.network: bool = network
        self.parts: tuple[Part, ...] = parts
        self.timeout: float | None = timeout
        self.platform: Platform = platform
        self.cache: bool = cache
        self.pull: bool = pull
        self.progress: Callable[[Step], object] | None = progress
        self.output: Callable[[bytes], object] | None = output
        self.asked: set[str] = set()
        self.done: int = 0
        self.cached: int = 0
        self.lock: threading.Lock = threading.Lock()
        self.images: dict[int, Image] = {}
        self.globals: dict[str, str] = {}
        for name, default in recipe.arguments:
            self.asked.add(name)
            value = args.get(name, default)
            if value is not None:
                self.globals[name] = value if name in args else self._word(value, {**self.platforms(), **self.globals})

    # ---- stages ------------------------------------------------------------------------------------------------

    def find(self, name: str) -> int:
        """The number of a stage.

        :raises BuildError: there is none of that name.
        """
        found = self._stage(name, len(self.recipe.stages))
        if found is None:
            names = ", ".join(stage.name or str(n) for n, stage in enumerate(self.recipe.stages))
            raise BuildError(f"there is no stage {name!r}; there are {names}")
        return found

    def _stage(self, name: str, before: int) -> int | None:
        return _numbered(self.recipe.stages[:before], name)

    def _base(self, number: int) -> str | Image:
        stage = self.recipe.stages[number]
        if isinstance(stage.base, Image) or not stage.expand:
            return stage.base
        return self._word(stage.base, {**self.platforms(), **self.globals})

    def _needs(self, number: int) -> set[int]:
        stage = self.recipe.stages[number]
        base = self._base(number)
        found = {self._stage(base, number)} if isinstance(base, str) else set()
        for step in stage.instructions:
            origins = [step.origin] if isinstance(step, i.Copy) else []
            origins += [mount.origin for mount in step.mounts] if isinstance(step, i.Run) else []
            found |= {self._stage(each, number) for each in origins if each is not None and each not in self.contexts}
        return {each for each in found if each is not None}

    def all(self, wanted: int, jobs: int) -> Image:
        """The stages that the wanted one needs, side by side where they do not need one another."""
        needed: dict[int, set[int]] = {}
        left = [wanted]
        while left:
            number = left.pop()
            if number not in needed:
                needed[number] = self._needs(number)
                left += needed[number]
        with ThreadPoolExecutor(jobs, thread_name_prefix="isolate-build") as pool:
            while wanted not in self.images:
                ready = [n for n in sorted(needed) if n not in self.images and needed[n] <= self.images.keys()]
                for number, image in zip(ready, pool.map(self._one, ready), strict=True):
                    self.images[number] = image
        return self.images[wanted]

    def _one(self, number: int) -> Image:
        stage = self.recipe.stages[number]
        base = self._base(number)
        image = self._start(base, number, stage)
        state = State(self, stage, number, image)
        steps = list(stage.instructions)
        if not isinstance(base, str) or self._stage(base, number) is None:
            steps = self._triggers(image) + steps
            if image.config.on_build:
                state.image = image = image.with_(replace(image.config, on_build=()))
        for count, step in enumerate(steps, 1):
            text = describe(step)
            self.tell(Step(stage.name or str(number), count, len(steps), text, "begun"))
            try:
                cached = state.carry(step)
            except (DockerfileError, IgnoreError, ImageError, LayerError, WordError) as error:
                raise BuildError(str(error), line=getattr(step, "line", 0), step=text) from error
            except BuildError as error:
                raise error.at(getattr(step, "line", 0), text) from None
            with self.lock:
                self.cached += cached
                self.done += not cached
            self.tell(Step(stage.name or str(number), count, len(steps), text, "cached" if cached else "done"))
        return state.image

    def _triggers(self, image: Image) -> list[i.Instruction]:
        """The instructions of the base's ONBUILD."""
        found: list[i.Instruction] = []
        for text in image.config.on_build or ():
            for written in parse_syntax(text).instructions:
                if written.name in ("FROM", "ONBUILD", "MAINTAINER"):
                    raise BuildError(f"ONBUILD {written.name} of the base is not allowed")
                found.append(read(written))
        return found

    def _start(self, base: str | Image, number: int, stage: Stage) -> Image:
        if isinstance(base, Image):
            return base
        if base == SCRATCH:
            return Image.empty(self.platform)
        before = self._stage(base, number)
        if before is not None:
            return self.images[before]
        if not base:
            raise BuildError("FROM names nothing: a variable in it has no value", line=stage.line, step="FROM")
        platform = self.platform
        if stage.platform is not None:
            platform = Platform.parse(self._word(stage.platform, {**self.platforms(), **self.globals}))
        try:
            return self.store.open(base, platform=platform)
        except AmbiguousError as error:
            raise BuildError(str(error), line=stage.line, step="FROM") from error
        except (StoreError, ImageError) as error:
            if not self.pull:
                raise BuildError(
                    f"the store has no image {base}: pull it first, or say pull=True", line=stage.line, step="FROM"
                ) from error
        return self.store.pull(base, platform=platform)

    # ---- for a stage -------------------------------------------------------------------------------------------

    def tell(self, step: Step) -> None:
        """Progress, one call at a time."""
        if self.progress is not None:
            with self.lock:
                self.progress(step)

    def platforms(self) -> dict[str, str]:
        """The variables that name the machine that is built for, and this one."""
        words = str(self.platform).split("/")
        own = str(Platform.host()).split("/")
        return {
            "TARGETPLATFORM": "/".join(words),
            "TARGETOS": words[0],
            "TARGETARCH": words[1],
            "TARGETVARIANT": words[2] if len(words) > 2 else "",
            "BUILDPLATFORM": "/".join(own),
            "BUILDOS": own[0],
            "BUILDARCH": own[1],
        }

    def _word(self, text: str, env: Mapping[str, str]) -> str:
        return process_word(text, env, escape=self.recipe.escape).text

    def files_of(self, origin: str | None, number: int) -> Files:
        """The files of a source, to be closed: the context, another one, a stage, or an image of the store."""
        if origin is None:
            if self.context is None:
                raise BuildError("files are copied, and there is no context: build(store, Context('.'))")
            return self.context.open()
        given = self.contexts.get(origin)
        if isinstance(given, Context):
            return given.open()
        image = given
        if image is None:
            stage = self._stage(origin, number)
            image = self.images[stage] if stage is not None else self._start(origin, number, self.recipe.stages[number])
        return self.image_files(image, source=True)

    def image_files(self, image: Image, *, source: bool = False) -> Files:
        """The merged tree of an image. ``source``: attributes are read, too, also those that a tree cannot hold."""
        kept = self.store.add(image)
        lease, trees = self.store.lease(kept)
        with lease:
            trees.reverse()
            facts = self.store.trees.facts_of(trees) if source else ()
            ids = map_for(self.store.trees.reading_map()) if source else None
            contents = self.store.opened.contents()
            return Files([os.dup(fd) for fd in trees], facts=facts, contents=contents, ids=ids)
