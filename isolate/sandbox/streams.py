"""The connections of a program's standard streams, and the arguments of a start as bytes."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import stat
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from isolate.engine.native import lib
from isolate.engine.run_block import run_block
from isolate.kernel.checks import is_int
from isolate.kernel.paths import PATH_MAX, encoded
from isolate.sandbox.defaults import DEFAULT_PATH
from isolate.sandbox.surroundings import Surroundings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from isolate.engine.session import Session
    from isolate.engine.tape import Tape
    from isolate.sandbox.capture import Text

PIPE, STDOUT, DEVNULL = -1, -2, -3  # as in subprocess
MAX_FD = 2**31 - 1  # an int of C
_PATH = DEFAULT_PATH.encode()


def argument(value: object, what: str) -> bytes:
    """A program's argument, a variable or a path as bytes; any bytes but NUL."""
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise TypeError(f"{what} must be str, bytes or a path, not {type(value).__name__}")
    data = encoded(value, what)
    if b"\0" in data:
        raise ValueError(f"{what} holds a NUL byte: {value!r}")
    return data


def arguments(args: object) -> list[bytes]:
    """The argument vector; a single string is a program's name, never a shell's command line."""
    if isinstance(args, (str, bytes, os.PathLike)):
        args = [args]
    try:
        vector = [argument(a, "an argument") for a in args]  # type: ignore[attr-defined]
    except TypeError as error:
        if "must be" in str(error):
            raise
        raise TypeError(f"args must be a sequence of str, bytes or paths, not {args!r}") from None
    if not vector or not vector[0]:
        raise ValueError("args needs at least the name of a program")
    return vector


def environment(env: Mapping[Any, Any] | None) -> tuple[list[bytes], bytes]:
    """The environment as ``name=value``, and the PATH to look the program up in."""
    if env is None:
        return [b"PATH=" + _PATH], _PATH
    if not isinstance(env, Mapping):
        raise TypeError(f"env must be a mapping of names to values, not {env!r}")
    block: list[bytes] = []
    path = _PATH
    for key, value in env.items():
        name, data = argument(key, "a variable's name"), argument(value, "a variable's value")
        if not name or b"=" in name:
            raise ValueError(f"not a variable's name: {key!r}")
        if name == b"PATH":
            path = data
        block.append(name + b"=" + data)
    return block, path


def descriptors(pass_fds: Iterable[int] | Mapping[int, int]) -> list[tuple[int, int]]:
    """(number inside, descriptor), ascending by number."""
    pairs = dict(pass_fds.items()) if isinstance(pass_fds, Mapping) else {fd: fd for fd in pass_fds}
    for inside, fd in pairs.items():
        for number in (inside, fd):
            if not is_int(number) or not 0 <= number <= MAX_FD:
                raise ValueError(f"pass_fds: not a descriptor: {number!r}")
        if inside < 3:
            raise ValueError(f"pass_fds: {inside} is a standard stream; use stdin, stdout or stderr")
        if inside >= 65536:
            raise ValueError(f"pass_fds: {inside} is absurdly high")
        try:
            _reopenable(fd)  # as for a stream: later the number would be a descriptor of ours
        except OSError as error:
            from isolate.diagnosis.setup import start_error

            raise start_error(lib.ISO_SPAWN_FILES, error.errno or 0) from None
    return sorted(pairs.items())


Block: TypeAlias = "tuple[bytes, list[int], tuple[bytes, ...]]"
_KEPT = 64  # blocks of a tape, none of them long
_LONG = 4096


def block(
    tape: Tape,
    args: object,
    *,
    env: Mapping[Any, Any] | None,
    cwd: object,
    pass_fds: Iterable[int] | Mapping[int, int],
    started: bool,
    tty: bool,
    timeout: float | None = None,
    cpu_time: float | None = None,
    terminal: tuple[int, int] = (0, -1),
    executable: object = None,
    early: bool = False,
) -> Block:
    """The run block, the descriptors to hand over after 0, 1 and 2, and the argument vector.

    The same program is often started again and again: what was made of plain arguments is kept.
    """
    limits = (timeout, cpu_time, terminal, early)
    plain = env is None and cwd is None and executable is None and not pass_fds
    if not plain or not isinstance(args, (list, tuple)):
        return _block(tape, args, env, cwd, pass_fds, started, tty, limits, executable)
    # Other types may be equal to a string and stand for something else; and bytes have the same hash as a string of the
    # same letters, but python -bb refuses to compare the two.
    kind = type(args[0]) if args else None
    if kind not in (str, bytes) or not all(type(argument) is kind for argument in args):
        return _block(tape, args, env, cwd, pass_fds, started, tty, limits)
    key = (started, tty, kind, limits, *args)
    found: Block | None = tape.blocks.get(key)  # type: ignore[assignment]
    if found is None:
        found = _block(tape, args, env, cwd, pass_fds, started, tty, limits)
        if len(found[0]) < _LONG:
            if len(tape.blocks) >= _KEPT:
                tape.blocks.clear()
            tape.blocks[key] = found
    return found


def _block(
    tape: Tape,
    args: object,
    env: Mapping[Any, Any] | None,
    cwd: object,
    pass_fds: Iterable[int] | Mapping[int, int],
    started: bool,
    tty: bool,
    limits: tuple[float | None, float | None, tuple[int, int], bool],
    executable: object = None,
) -> Block:
    given = tape.plan.context.find(Surroundings)
    if given is not None:
        args = args if isinstance(args, (str, bytes, os.PathLike)) else list(args) or given.cmd  # type: ignore[call-overload]
        args = [*given.entrypoint, *([args] if isinstance(args, (str, bytes, os.PathLike)) else args)]
        cwd = given.cwd if cwd is None else cwd
    if env is None:
        # The variables of an image, and those that parts set for their programs, such as the address of a proxy.
        told = dict(given.env) if given is not None and given.env is not None else {}
        for part in tape.plan.parts:
            told.update(getattr(part, "variables", dict)())
        env = {"PATH": DEFAULT_PATH, **told} if told or (given is not None and given.env is not None) else None
    argv = arguments(args)
    program = argv[0] if executable is None else argument(executable, "executable")
    if not program:
        raise ValueError("executable is empty")
    variables, path = environment(env)
    directory = argument("." if cwd is None else cwd, "cwd")
    if not directory:
        raise ValueError("cwd is empty")
    if len(directory) >= PATH_MAX:
        raise ValueError(f"cwd must be shorter than {PATH_MAX} bytes, and has {len(directory)}")
    passed = descriptors(pass_fds)
    slots = list(tape.plan.context.slots)
    room = lib.ISO_MAX_SLOTS - lib.ISO_SLOT_FREE - len(slots) - 1
    if len(passed) > room:
        raise ValueError(f"pass_fds: at most {room} descriptors can be handed over here, not {len(passed)}")
    first = 6 + len(slots)
    fds = [(0, 0), (1, 1), (2, 2), *((first + i, inside) for i, (inside, _) in enumerate(passed))]
    slots += [fd for _, fd in passed]
    run = run_block(
        argv,
        variables,
        program=program,
        path=path,
        cwd=directory,
        fds=fds,
        slots=6 + len(slots),
        started=started,
        tty=tty,
        timeout=limits[0],
        cpu_time=limits[1],
        terminal=limits[2],
        early=limits[3],
    )
    return run, slots, tuple(argv)


def stream(number: int, wanted: Any) -> int:
    """The connection of a stream: a descriptor, or PIPE, STDOUT, DEVNULL."""
    if wanted is None:
        try:
            _reopenable(number)
        except OSError:
            # It was closed before this program began (``<&-``). Nothing is inherited then, and nothing is what the null
            # device is: the number would be the next file's that is opened.
            return DEVNULL
        return number
    if is_int(wanted):
        if wanted == STDOUT and number != 2:
            raise ValueError("STDOUT can only be said of stderr")
        if not DEVNULL <= wanted <= MAX_FD:
            raise ValueError(f"not a descriptor: {wanted}")
        if wanted >= 0:
            _reopenable(wanted)
        return int(wanted)
    fileno = getattr(wanted, "fileno", None)
    if fileno is None:
        raise TypeError(f"a stream must be None, PIPE, DEVNULL, STDOUT, a descriptor or a file, not {wanted!r}")
    found = fileno()
    if not is_int(found) or not 0 <= found <= MAX_FD:
        # A socket that was closed says -1, which is not to be taken for PIPE.
        raise ValueError(f"a stream has no descriptor: {wanted!r} says {found!r}")
    _reopenable(found)
    return found


_PIPES: list[int] = []  # the device of the kernel's pipe file system, once it is known


def _reopenable(fd: int) -> None:
    """Let the program open a pipe by name (``/dev/stdin``, ``/dev/fd/5``), whoever it is inside.

    A pipe without a name in a file system has mode 0600 and belongs to whoever made it. Only a process that holds it
    offers a path to it, in its /proc, and only to those who may trace that process; so it may be open to all. Files,
    FIFOs with a name and terminals are left as they are.

    :raises OSError: EBADF: it is not open.
    """
    status = os.fstat(fd)
    if not stat.S_ISFIFO(status.st_mode) or status.st_mode & 0o666 == 0o666:
        return
    if not _PIPES:
        ends = os.pipe()
        _PIPES.append(os.fstat(ends[0]).st_dev)
        for end in ends:
            os.close(end)
    if status.st_dev == _PIPES[0]:
        with contextlib.suppress(PermissionError):  # another user's: that user's to open to others
            os.fchmod(fd, 0o666)


class Stream(io.FileIO):
    """Our end of a pipe. The session owns the descriptor; this keeps the session alive."""

    def __init__(self, session: Session, number: int) -> None:
        super().__init__(session.stdio[number], "rb" if number else "wb", closefd=False)
        self._session, self._number = session, number
        self._left: int | None = None
        self._exceeded: Callable[[], object] | None = None

    def bound(self, limit: int, exceeded: Callable[[], object]) -> None:
        """Read no more than so many bytes: what comes then is not told, and ``exceeded`` is called."""
        self._left, self._exceeded = limit, exceeded

    def readinto(self, buffer: Any, /) -> int | None:
        """As :meth:`io.RawIOBase.readinto`."""
        count = super().readinto(buffer)
        return count if count is None or self._left is None else self._within(count)

    def read(self, size: int | None = -1, /) -> bytes | None:  # type: ignore[override]
        """As :meth:`io.RawIOBase.read`."""
        if size is None or size < 0:
            return self.readall()
        data = super().read(size)
        return data if data is None or self._left is None else data[: self._within(len(data))]

    def readall(self) -> bytes:
        """Everything up to the end of file."""
        if self._left is None:
            return super().readall()
        whole = bytearray()
        while chunk := self.read(65536):
            whole += chunk
        return bytes(whole)

    def _within(self, count: int) -> int:
        assert self._left is not None
        assert self._exceeded is not None
        if count > self._left:
            count, self._left = self._left, 0
            self._exceeded()
        else:
            self._left -= count
        return count

    def close(self) -> None:
        """Close the pipe."""
        if not self.closed:
            super().close()
            self._session.close_stream(self._number)


def write(fd: int, data: memoryview) -> int:
    """Write to a pipe. Whoever closes its other end must not end a program that has SIGPIPE at its default."""
    if signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN:  # as Python starts
        return os.write(fd, data)
    pipe = {signal.SIGPIPE}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, pipe)
    pending = signal.SIGPIPE in signal.sigpending()
    try:
        return os.write(fd, data)
    except BrokenPipeError:
        # It goes to the thread that writes, so here it is; one that was there before is the program's own.
        if not pending:
            signal.sigtimedwait(pipe, 0)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def check_bufsize(bufsize: object, settled: Mapping[str, Any]) -> None:
    """Refuse a buffer that cannot be, before anything starts."""
    if not is_int(bufsize):
        raise TypeError(f"bufsize must be an int, not {bufsize!r}")
    text = settled["text"] or settled["encoding"] is not None or settled["errors"] is not None
    if bufsize == 0 and text:
        raise ValueError("text cannot be unbuffered: bufsize=1 is by lines")


def file(raw: Stream, writes: bool, bufsize: int, text: Text | None) -> IO[Any]:
    """A pipe as :class:`subprocess.Popen` shows it."""
    if bufsize == 0:
        return raw
    size = io.DEFAULT_BUFFER_SIZE if bufsize < 2 else bufsize
    if writes:
        buffered: Any = io.BufferedWriter(raw, size)
    else:
        buffered = io.BufferedReader(raw, size)  # pyright: ignore[reportArgumentType]  # None is never read: it blocks
    if text is None:
        return buffered  # type: ignore[no-any-return]
    encoding, errors = text.encoding, text.errors
    return io.TextIOWrapper(buffered, encoding, errors, line_buffering=writes and bufsize == 1, write_through=writes)
