"""``Recipe``: what is to be built, as a value; and ``Dockerfile``, which reads one."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from isolate.build import instructions as i
from isolate.build.context import Context
from isolate.build.forms import read
from isolate.build.stages import SCRATCH, Program, Stage
from isolate.build.syntax import DockerfileError, parse_syntax
from isolate.images.image import Image
from isolate.kernel.checks import keywords

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from isolate.build.carry import Built
    from isolate.images.store import Store
    from isolate.kernel.paths import StrOrBytesPath

__all__ = ["Dockerfile", "Recipe", "Stage"]


@keywords
@dataclass(frozen=True)
class Recipe:
    """A recipe for an image: a base and the steps on it. It is a value: every method returns another one.

    >>> from isolate.build import Recipe
    >>> recipe = Recipe("scratch").env(LANG="C.UTF-8").cmd("/bin/app")

    :param base: a name in the store, ``"scratch"``, an :class:`~isolate.images.Image`, or another recipe to go on from.
    """

    stages: tuple[Stage, ...]
    #: Variables before the first FROM, with their defaults.
    arguments: tuple[tuple[str, str | None], ...] = ()
    #: Sources beside the context, by name.
    contexts: tuple[tuple[str, Context | Image], ...] = ()
    escape: str = "\\"

    def __init__(
        self,
        base: str | Image | Recipe = SCRATCH,
        *,
        stages: tuple[Stage, ...] | None = None,
        arguments: tuple[tuple[str, str | None], ...] = (),
        contexts: tuple[tuple[str, Context | Image], ...] = (),
        escape: str = "\\",
    ) -> None:
        for name, given in (("stages", stages), ("arguments", arguments), ("contexts", contexts)):
            if not isinstance(given, tuple) and not (name == "stages" and given is None):
                raise TypeError(f"Recipe: {name} must be a tuple, not {given!r}")
        if escape not in ("\\", "`"):
            raise ValueError(f"Recipe: escape must be a backslash or a backtick, not {escape!r}")
        if stages is None:
            if isinstance(base, Recipe):
                stages, arguments, contexts, escape = base.stages, base.arguments, base.contexts, base.escape
                last = stages[-1]
                own = last.name or f"stage {len(stages) - 1}"
                stages = (*stages[:-1], replace(last, name=own), Stage(own))
            elif isinstance(base, (str, Image)):
                stages = (Stage(base),)
            else:
                raise TypeError(f"Recipe: base must be a name, an Image or a Recipe, not {base!r}")
        for name, value in (("stages", stages), ("arguments", arguments), ("contexts", contexts), ("escape", escape)):
            object.__setattr__(self, name, value)

    def _with(self, *more: i.Instruction, contexts: tuple[tuple[str, Context | Image], ...] = ()) -> Recipe:
        last = self.stages[-1]
        stages = (*self.stages[:-1], replace(last, instructions=(*last.instructions, *more)))
        return Recipe(stages=stages, arguments=self.arguments, contexts=(*self.contexts, *contexts), escape=self.escape)

    # ---- steps -------------------------------------------------------------------------------------------------

    def copy(
        self,
        origin: Context | Image | str | None,
        *sources: str,
        target: str,
        owner: str | None = None,
        mode: int | None = None,
        exclude: Iterable[str] = (),
    ) -> Recipe:
        """Copy files: of a :class:`Context`, of an image, of a stage by its name, or (None) of the build's context.

        A directory as a source stands for what is in it. Several sources, or a target that ends with a slash, go into a
        directory. ``owner`` is ``"user:group"`` as names or numbers, root unless said otherwise.
        """
        if not sources:
            raise ValueError("Recipe.copy: there must be at least one source; '.' is everything")
        more: tuple[tuple[str, Context | Image], ...] = ()
        if isinstance(origin, (Context, Image)):
            name = f"given {len(self.contexts)}"
            more = ((name, origin),)
            origin = name
        written = f"{mode:04o}" if mode is not None else None
        step = i.Copy(tuple(sources), target, origin=origin, owner=owner, mode=written, exclude=tuple(exclude))
        return self._with(step, contexts=more)

    def run(
        self, command: Sequence[str] | str, *, network: bool | None = None, mounts: Iterable[i.Mount] = ()
    ) -> Recipe:
        """Run a command; what it changes becomes a layer. A str is for the shell. No network unless it is asked for."""
        words = (command,) if isinstance(command, str) else tuple(command)
        if not words:
            raise ValueError("Recipe.run: there must be a command")
        name = None if network is None else "caller" if network else "none"
        return self._with(i.Run(words, isinstance(command, str), tuple(mounts), name))

    def env(self, values: Mapping[str, str] | None = None, /, **more: str) -> Recipe:
        """Variables of the commands that follow and of the image."""
        return self._with(i.Env(tuple({**(values or {}), **more}.items())))

    def label(self, values: Mapping[str, str] | None = None, /, **more: str) -> Recipe:
        """Labels of the image."""
        return self._with(i.Label(tuple({**(values or {}), **more}.items())))

    def workdir(self, path: str) -> Recipe:
        """The working directory, made where it is not there."""
        return self._with(i.Workdir(path))

    def user(self, user: str | int) -> Recipe:
        """The user of the commands that follow and of the image's program."""
        return self._with(i.User(str(user)))

    def cmd(self, *words: str) -> Recipe:
        """The command that the image runs, or the arguments of its entry point."""
        return self._with(i.Cmd(words))

    def entrypoint(self, *words: str) -> Recipe:
        """The command that the image runs, whatever its arguments."""
        return self._with(i.Entrypoint(words))

    def expose(self, *ports: str | int) -> Recipe:
        """Ports that the image's program listens at."""
        return self._with(i.Expose(tuple(map(str, ports))))

    def volume(self, *paths: str) -> Recipe:
        """Directories whose content belongs to no layer when the image runs."""
        return self._with(i.Volume(paths))

    def stop_signal(self, signal: str) -> Recipe:
        """The signal that asks the image's program to end."""
        return self._with(i.StopSignal(signal))

    def shell(self, *words: str) -> Recipe:
        """The shell that runs a command that is one string."""
        return self._with(i.Shell(words))

    @property
    def program(self) -> Program:
        """The steps that are carried out."""
        return Program(self.stages, self.arguments, self.contexts, self.escape)

    # ---- verbs -------------------------------------------------------------------------------------------------

    def explain(self, store: Store | None = None, **options: Any) -> str:
        """The stages and their steps in words, what each would run in, and, with a store, whether it is cached."""
        from isolate.build.carry import explain  # loaded late: the sandbox comes with it

        return explain(self.program, store, **options)

    def build(self, store: Store, context: Context | StrOrBytesPath | None = None, **options: Any) -> Image:
        """Carry it out, and keep the image in the store. The options are those of
        :meth:`built`."""
        return self.built(store, context, **options).image

    def built(self, store: Store, context: Context | StrOrBytesPath | None = None, **options: Any) -> Built:
        """As :meth:`build`; the answer also says how many steps were done, and how many found in the cache.

        The same recipe, files and arguments give the same digest, on any machine, as any user, at any time. Commands
        run in sandboxes over the image so far: user, pid, mount, IPC, UTS and cgroup namespaces, Docker's capabilities
        inside, the default filter, and no network.

        :param context: a :class:`Context` or a directory; None where nothing is copied from one.
        :param options: ``name``, the image's name in the store; ``target``, the stage that is wanted, by name or number
            (the last one); ``args``, a mapping of values for ARG; ``secrets``, a mapping of contents (bytes) for
            ``--mount=type=secret``, which are in no layer and no key; ``contexts``, a mapping of further sources for
            ``COPY --from=``; ``network``, whether a RUN that does not say has the caller's network (False;
            a Dockerfile's ``--network=host`` needs it); ``parts``,
            parts for each RUN such as ``Limits(memory="2G")``; ``timeout``, seconds for each RUN; ``platform``;
            ``cache=False``, which does every step anew; ``pull=True``, which pulls a base that the store does not have;
            ``jobs``, how many stages are built at once (2); ``progress``, called with each :class:`Step`; ``output``,
            called with what commands write.
        :raises BuildError: a step cannot be done, or a command failed.
        """
        from isolate.build.carry import build  # loaded late: as above

        return build(self.program, store, context, **options)


class Dockerfile:
    """Reads Dockerfiles, with the grammar of BuildKit 1.7."""

    @staticmethod
    def parse(text: str | bytes) -> Recipe:
        """The recipe that a Dockerfile's text is.

        :raises DockerfileError: it breaks a rule of the grammar, or an instruction's form; the error names the line.
        """
        syntax = parse_syntax(text)
        stages: list[Stage] = []
        arguments: list[tuple[str, str | None]] = []
        for written in syntax.instructions:
            step = read(written)
            if isinstance(step, i.From):
                if step.name is not None and any(stage.name == step.name for stage in stages):
                    raise DockerfileError(f"there are two stages named {step.name}", written.line, "FROM")
                stages.append(Stage(step.base, (), step.name, step.platform, True, step.line))
            elif not stages:
                if not isinstance(step, i.Arg):
                    raise DockerfileError("before FROM only ARG may stand", written.line, written.name)
                arguments += step.values
            else:
                stages[-1] = replace(stages[-1], instructions=(*stages[-1].instructions, step))
        if not stages:
            raise DockerfileError("there is no FROM")
        for number, stage in enumerate(stages):
            _known_stages(stages[:number], stage)
        return Recipe(stages=tuple(stages), arguments=tuple(arguments), escape=syntax.escape)


def _known_stages(before: list[Stage], stage: Stage) -> None:
    """``--from=3`` of a stage that is not there yet."""
    for step in stage.instructions:
        origin = getattr(step, "origin", None)
        if isinstance(origin, str) and re.fullmatch(r"[0-9]+", origin) and int(origin) >= len(before):
            line = getattr(step, "line", 0)
            raise DockerfileError(f"--from={origin}: only stages before this one can be copied from", line, "COPY")
