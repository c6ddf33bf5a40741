"""``subprocess.Popen`` over :meth:`isolate.Sandbox.spawn`: what CPython's tests of subprocess are run against.

The streams, ``communicate``, ``wait`` and the signals are those of :class:`isolate.Process`; here are only the names
and defaults in which the two differ on purpose: the environment is the caller's, leaving a block waits.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import types
import warnings
from typing import TYPE_CHECKING, Any

import isolate

if TYPE_CHECKING:
    from typing_extensions import Self

BOX = isolate.Sandbox()
#: What has no meaning here; each is refused by name, as unittest's skip would hide it.
REFUSED = ("preexec_fn", "startupinfo", "user", "group", "extra_groups", "process_group")


class Popen:
    """See :class:`subprocess.Popen`."""

    def __init__(
        self,
        args: Any,
        bufsize: int = -1,
        executable: Any = None,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        preexec_fn: Any = None,
        close_fds: bool = True,
        shell: bool = False,
        cwd: Any = None,
        env: Any = None,
        universal_newlines: bool | None = None,
        startupinfo: Any = None,
        creationflags: int = 0,
        restore_signals: bool = True,
        start_new_session: bool = False,
        pass_fds: Any = (),
        *,
        user: Any = None,
        group: Any = None,
        extra_groups: Any = None,
        encoding: Any = None,
        errors: Any = None,
        text: bool | None = None,
        umask: int = -1,
        pipesize: int = -1,
        process_group: int | None = None,
    ) -> None:
        self._process: Any = None
        self.returncode: int | None = None
        self.args = args
        values = locals()
        for name in REFUSED:
            if values[name] is not None:
                raise NotImplementedError(name)
        bufsize = -1 if bufsize is None else bufsize
        if not isinstance(bufsize, int):
            raise TypeError("bufsize must be an integer")
        if text is not None and universal_newlines is not None and bool(text) != bool(universal_newlines):
            raise subprocess.SubprocessError("Cannot disambiguate when both text and universal_newlines are supplied")
        if bufsize == 1 and not (text or universal_newlines or encoding or errors):
            warnings.warn("line buffering is for text", RuntimeWarning, stacklevel=2)
        box = BOX if umask == -1 else isolate.Sandbox(isolate.Credentials(umask=umask))
        if pipesize != -1 or not close_fds or not restore_signals:
            raise NotImplementedError("pipesize, close_fds=False, restore_signals=False")
        self.text_mode = bool(text or universal_newlines or encoding or errors)
        if shell:
            args = [executable or "/bin/sh", "-c", *([args] if isinstance(args, (str, bytes)) else args)]
        variables = dict(os.environb if env is None else {os.fsencode(k): os.fsencode(v) for k, v in env.items()})
        try:
            self._process = box.spawn(
                args,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                bufsize=bufsize,
                text=self.text_mode,
                encoding=encoding,
                errors=errors or "strict" if self.text_mode else None,
                pass_fds=pass_fds,
                env=variables,
                cwd=cwd,
                executable=executable,
                max_output=None,
            )
        except isolate.SetupError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), executable or error.path or args[0]) from error

    __class_getitem__ = classmethod(types.GenericAlias)

    def __getattr__(self, name: str) -> Any:
        if name in ("stdin", "stdout", "stderr", "pid"):
            return getattr(self._process, name)
        raise AttributeError(name)

    def poll(self) -> int | None:
        self.returncode = self._process.poll() if self.returncode is None else self.returncode
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.returncode = self._process.wait(timeout)
        return self.returncode

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        found = self._process.communicate(input, timeout)
        self.wait()
        return found  # type: ignore[no-any-return]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            self._process.send_signal(number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __repr__(self) -> str:
        shown = f"<{type(self).__name__}: returncode: {self.returncode} args: {self.args!r}>"
        return shown if len(shown) <= 80 else shown[:76] + "...>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self.stdout, self.stderr):
            if file:
                file.close()
        try:
            if self.stdin:
                self.stdin.close()
        finally:
            self.wait()

    def __del__(self) -> None:
        if getattr(self, "_process", None) is not None and self.returncode is None and not sys.is_finalizing():
            with contextlib.suppress(Exception):
                if self.poll() is None:
                    warnings.warn(
                        f"subprocess {self._process.pid} is still running", ResourceWarning, stacklevel=2, source=self
                    )


def install() -> None:
    """Have :mod:`subprocess` use it."""
    subprocess.Popen = Popen  # type: ignore[misc, assignment]
