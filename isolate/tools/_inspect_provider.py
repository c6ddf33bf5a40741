"""A sandbox provider for Inspect AI (``sandbox="isolate"``): one container for each sample.

The extra ``isolate-linux[inspect]`` brings Inspect, whose entry point finds the provider. Without a configuration a
sample is in ``presets.untrusted()`` with a writable ``/work``; ``sandbox=("isolate", "FILE.toml")`` names a profile,
``sandbox=("isolate", "DIRECTORY")`` a root file system, whose changes are thrown away with the sample.
"""

from __future__ import annotations

import errno
import os
import posixpath
from typing import TYPE_CHECKING, Any, Literal, overload

import anyio.to_thread  # pyright: ignore[reportMissingImports]
from inspect_ai.util import (  # pyright: ignore[reportMissingImports]
    ExecResult,
    OutputLimitExceededError,
    SandboxEnvironment,
    SandboxEnvironmentLimits,
    SandboxUserUnsupportedError,
    sandboxenv,
)

from isolate import presets
from isolate.attributes.credentials import Credentials
from isolate.capabilities.part import Capabilities
from isolate.errors import SetupError
from isolate.mounts import Root, Tmpfs
from isolate.namespaces.ids import mapped
from isolate.namespaces.part import UserNamespace
from isolate.sandbox.defaults import DEFAULT_PATH
from isolate.tools import profiles

if TYPE_CHECKING:
    from isolate.engine.plan import Part
    from isolate.sandbox.box import Sandbox
    from isolate.sandbox.containers.container import Command, Container
    from isolate.sandbox.result import Result

__all__ = ["IsolateSandboxEnvironment"]

_WORK = "/work"
# The exit status of a script stands for the error that a program of the sample's user meets.
_ERRORS = {91: errno.ENOENT, 92: errno.EISDIR, 93: errno.EACCES}
_WRITE = """d=${1%/*}; mkdir -p -- "${d:-/}" || exit 93; [ -d "$1" ] && exit 92
if [ -e "$1" ]; then [ -w "$1" ] || exit 93; else [ -w "${d:-/}" ] || exit 93; fi; exec cat >"$1" """
_READ = '[ -d "$1" ] && exit 92; [ -e "$1" ] || exit 91; [ -r "$1" ] || exit 93; exec head -c "$2" -- "$1"'


def _box(config: object) -> Sandbox:
    """The sandbox of a sample."""
    if config is None:
        return presets.untrusted(Tmpfs(_WORK, size="1G"))
    if not isinstance(config, str):
        raise TypeError(
            f"isolate: the sandbox's config must be a profile's path or a root file system's, not {config!r}"
        )
    if os.path.isdir(config):
        return presets.container(os.path.abspath(config), Tmpfs(_WORK, size="1G"))
    box = profiles.load(config)
    root = next((part for part in box.parts if isinstance(part, Root)), None)
    if root is None:
        raise ValueError(f"isolate: {config} has no [Root]: the sample would be in the host's own files")
    targets = [getattr(entry, "target", None) for entry in root.entries]
    return box if os.fsencode(_WORK) in targets else box + Tmpfs(_WORK, size="1G")


@sandboxenv(name="isolate")
class IsolateSandboxEnvironment(SandboxEnvironment):
    """An open container. A command is killed with all that it has started, at its timeout too."""

    def __init__(self, container: Container) -> None:
        super().__init__()
        self._container = container

    @classmethod
    def config_files(cls) -> list[str]:
        """Profiles that are found beside a task."""
        return ["isolate.toml", "isolate.json"]

    @classmethod
    async def sample_init(cls, task_name: str, config: Any, metadata: dict[str, str]) -> dict[str, SandboxEnvironment]:
        """Open a container."""
        container = await anyio.to_thread.run_sync(lambda: _box(config).open())
        return {"default": cls(container)}

    @classmethod
    async def sample_cleanup(
        cls, task_name: str, config: Any, environments: dict[str, SandboxEnvironment], interrupted: bool
    ) -> None:
        """Close it: everything inside ends. Also where nobody calls this it ends with the program."""
        with anyio.CancelScope(shield=True):
            for environment in environments.values():
                await anyio.to_thread.run_sync(environment.as_type(cls)._container.close)

    async def exec(
        self,
        cmd: list[str],
        input: str | bytes | None = None,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        user: str | None = None,
        timeout: int | None = None,
        timeout_retry: bool = True,
        concurrency: bool = True,
    ) -> ExecResult[str]:
        """Run a command in the container; see the base class."""
        verbs = self._container if user is None else await anyio.to_thread.run_sync(self._as, user)
        limit = SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE
        try:
            result = await _run(verbs, cmd, input, posixpath.join(_WORK, cwd or ""), env, timeout, limit)
        except SetupError as error:
            if error.syscall != "execve":
                raise
            if error.errno == errno.EACCES:
                raise PermissionError(errno.EACCES, "Permission denied", cmd[0]) from error
            return ExecResult(False, 127, "", f"{cmd[0]}: {error.strerror or error}\n")
        out, err = ((stream or b"").decode(errors="replace") for stream in (result.stdout, result.stderr))
        verdict = str(result.verdict)
        if verdict == "TIMEOUT":
            raise TimeoutError(f"the command did not end within {timeout} seconds")
        if verdict == "OUTPUT":
            raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE_STR, out or err)
        code = result.returncode if result.returncode >= 0 else 128 - result.returncode
        return ExecResult(code == 0, code, out, err)

    def _as(self, user: str) -> Container | Command:
        """The container for a user of its /etc/passwd.

        :raises SandboxUserUnsupportedError: it has no such user, or its user namespace does not map the ids.
        """
        uid, gid = self._ids(user)
        space = next((part for part in self._container.box.parts if isinstance(part, UserNamespace)), None)
        if space is None or space.map is None or not (mapped(space.map.uids, uid) and mapped(space.map.gids, gid)):
            raise SandboxUserUnsupportedError(f"this sandbox does not map the ids of {user!r} ({uid}:{gid})")
        parts: list[Part] = [Credentials(uid, gid)]
        if uid == 0:
            parts.append(Capabilities.docker())  # of the sandbox's own user namespace
        return self._container.with_parts(*parts)

    def _ids(self, user: str) -> tuple[int, int]:
        rows = self._container.read("/etc/passwd").decode(errors="surrogateescape").splitlines()
        for row in rows:
            words = row.split(":")
            if len(words) >= 4 and user in words[::2][:2] and words[2].isdecimal() and words[3].isdecimal():
                return int(words[2]), int(words[3])
        raise SandboxUserUnsupportedError(f"this sandbox has no user {user!r}")

    async def write_file(self, file: str, contents: str | bytes) -> None:
        """Write a file as the sample's user; see the base class."""
        data = contents.encode() if isinstance(contents, str) else contents
        await self._script(_WRITE, file, [], data, None)

    @overload
    async def read_file(self, file: str, text: Literal[True] = True) -> str: ...
    @overload
    async def read_file(self, file: str, text: Literal[False]) -> bytes: ...
    async def read_file(self, file: str, text: bool = True) -> str | bytes:
        """Read a file as the sample's user; see the base class."""
        limit = SandboxEnvironmentLimits.MAX_READ_FILE_SIZE
        data = await self._script(_READ, file, [str(limit + 1)], None, limit + 4096)
        if len(data) > limit:
            raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_READ_FILE_SIZE_STR, None)
        return data.decode() if text else data

    async def _script(self, script: str, file: str, more: list[str], data: bytes | None, limit: int | None) -> bytes:
        path = posixpath.join(_WORK, file)
        command = ["/bin/sh", "-c", script, "sh", path, *more]
        result = await _run(self._container, command, data, "/", None, 600, limit)
        if str(result.verdict) == "TIMEOUT":
            raise TimeoutError(f"{file}: not done within 600 seconds")
        if result.returncode in _ERRORS:
            number = _ERRORS[result.returncode]
            raise OSError(number, os.strerror(number), file)
        if result.returncode:
            raise OSError(errno.EIO, (result.stderr or b"").decode(errors="replace").strip() or "failed", file)
        return result.stdout or b""


async def _run(
    verbs: Container | Command,
    command: list[str],
    data: str | bytes | None,
    cwd: str,
    env: dict[str, str] | None,
    timeout: float | None,
    limit: int | None,
) -> Result[bytes]:
    given = data.encode() if isinstance(data, str) else data
    return await verbs.arun(
        command,
        input=given or b"",
        timeout=timeout,
        max_output=limit,
        cwd=cwd,
        env={"PATH": DEFAULT_PATH, "HOME": _WORK, **(env or {})},
    )
