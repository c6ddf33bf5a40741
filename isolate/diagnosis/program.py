"""Why a program could not be executed: apart from exit codes, and saying which of the many reasons it is."""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import NamedTuple

from isolate.diagnosis.host import MACHINES, Finding
from isolate.engine.run_block import RUN
from isolate.errors import printable

_ELF = b"\x7fELF"
_ST_RDONLY, _ST_NOEXEC = 1, 8
_MAX_STRING = 128 * 1024  # MAX_ARG_STRLEN: 32 pages


class Start(NamedTuple):
    """The arguments of a run: program, arguments, environment, PATH and working directory."""

    args: tuple[bytes, ...]
    env: tuple[bytes, ...]
    path: bytes
    cwd: bytes

    @classmethod
    def read(cls, run: bytes) -> Start:
        """From the block that was handed to the launcher."""
        _, _, _, argc, argv, envc, envp, _, path, cwd, *_ = RUN.unpack_from(run)

        def text(at: int) -> bytes:
            return run[at : run.index(b"\0", at)]

        def table(at: int, count: int) -> tuple[bytes, ...]:
            return tuple(map(text, struct.unpack_from(f"<{count}Q", run, at)))

        return cls(table(argv, argc), table(envp, envc), text(path), text(cwd))


def show(data: bytes) -> str:
    """A path as text for a message: whoever made the file may have chosen anything."""
    return printable(os.fsdecode(data))


def not_found(error: int, start: Start | None, args: tuple[bytes, ...], facts: bytes) -> tuple[str, Finding]:
    """Path and finding for a program that the search did not find, or found and may not execute."""
    name = args[0] if args else b""
    path = show(name)
    if error == errno.EACCES and facts[:4] > bytes(4):  # a mode: whoever may not even look at it has none
        return _refused(facts)
    if error == errno.EACCES:
        return path, Finding(
            f"the payload may not search a directory on the way to {path}", "look at the directories' modes"
        )
    if error in (errno.ENOENT, errno.ENOTDIR):
        if b"/" not in name:
            searched = show(start.path) if start else None
            where = f"; searched inside: {', '.join(_directories(searched))}" if searched is not None else ""
            if len(args) == 1 and any(blank in name for blank in b" \t"):
                return path, Finding(
                    f"there is no program {path} inside the sandbox: a single string is a program's name, not a command"
                    " line",
                    'give a list, ["program", "argument", …] (shlex.split makes it), or ["sh", "-c", …] for a shell',
                )
            return path, Finding(
                f"there is no program {path} inside the sandbox{where}",
                "install it into the sandbox's root, name it by its path inside, or give env a PATH that has it",
            )
        relative = "" if name.startswith(b"/") or start is None else f" (relative to {show(start.cwd)})"
        kind = "is below something that is no directory" if error == errno.ENOTDIR else "does not exist"
        led = _link(start, name)
        if led:
            return path, Finding(f"{path}{relative} {kind} inside the sandbox{led.words}", led.remedy)
        return path, Finding(
            f"{path}{relative} {kind} inside the sandbox", "paths are those inside: bring it in, for example with Bind"
        )
    if error == errno.ELOOP:
        return path, Finding(
            f"too many symbolic links on the way to {path}, or they go round", "look at the links inside"
        )
    if error == errno.ENAMETOOLONG:
        return path, Finding(
            "the program's path is longer than the kernel takes (4095 bytes, 255 a component)",
            "enter its directory by cwd=, and name it by a relative path",
        )
    return path, Finding("the kernel refused to look it up")


class _Link(NamedTuple):
    """A symbolic link of the host, in words, and what brings it in."""

    words: str
    remedy: str


def _link(start: Start | None, path: bytes) -> _Link | None:
    """Whether a path is a symbolic link on the host: inside, the link may be there and its end may not, or neither."""
    if not path.startswith(b"/") and start is not None and start.cwd.startswith(b"/"):
        path = os.path.join(start.cwd, path)
    try:
        if not os.path.islink(path):
            return None
        end = os.path.realpath(path)
    except OSError:
        return None
    words = f" (on the host it is a symbolic link, which leads to {show(end)}"
    if not os.path.exists(end):
        return _Link(f"{words}, which is not there either)", "have the link lead to a program, and bring in both")
    return _Link(f"{words})", f"{_with_its_place(path)} and {show(end)}, each at its place inside")


def _with_its_place(path: bytes) -> str:
    """A link, or the virtual environment whose interpreter it is (a link alone would find none of the packages)."""
    directory = os.path.dirname(os.path.dirname(path))
    if os.path.isfile(os.path.join(directory, b"pyvenv.cfg")):
        return f"bring in both, the virtual environment {show(directory)}"
    return f"bring in both, {show(path)}"


def _directories(path: str) -> list[str]:
    return [d for d in path.split(":") if d] or ["nowhere, PATH is empty"]


def _refused(facts: bytes) -> tuple[str, Finding]:
    """A file that is there and may not be executed; the launcher noted its mode and its mount's flags."""
    mode, flags = struct.unpack_from("<II", facts)
    path = show(facts[8:])
    if stat.S_ISDIR(mode):
        return path, Finding(f"{path} is a directory", "name a program in it")
    if mode and not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
        return path, Finding(
            f"{path} is {kinds.get(stat.S_IFMT(mode), 'no regular file')}, not a program", "name a program"
        )
    if flags & _ST_NOEXEC:
        return path, Finding(
            f"{path} lies on a mount with noexec", "mount it without: Bind(..., exec=True), Tmpfs(..., exec=True)"
        )
    if not mode & 0o111:
        return path, Finding(
            f"{path} is not executable (mode {stat.S_IMODE(mode):04o})",
            f"chmod +x {path}, or run its interpreter with it",
        )
    return path, Finding(
        f"{path} has mode {stat.S_IMODE(mode):04o}, which does not let the payload's user or groups execute it",
        "chmod a+x, or other Credentials",
    )


def not_executed(error: int, start: Start | None, args: tuple[bytes, ...], head: bytes) -> tuple[str, Finding]:
    """Path and finding for a program that execve refused; it exists and its mode allows it."""
    path = show(args[0]) if args else ""
    interpreter = interpreter_of(head)
    if error == errno.ENOEXEC:
        return path, _format(path, head)
    if error in (errno.ENOENT, errno.ENOTDIR):
        if interpreter and head.startswith(b"#!"):
            led = _link(start, interpreter)
            shown = show(interpreter)
            extra = "; the line ends in a carriage return (DOS line ends)" if interpreter.endswith(b"\r") else ""
            return path, Finding(
                f"{path} is a script whose interpreter {shown} does not exist inside{extra}{led.words if led else ''}",
                f"{led.remedy}, or run another interpreter with it"
                if led
                else f"bring {shown} in, or run another interpreter with it",
            )
        if interpreter:
            text = show(interpreter)
            return path, Finding(
                f"{path} needs the dynamic loader {text}, which does not exist inside",
                "bind the directories of its libraries too (/lib, /lib64, /usr/lib), or link it statically",
            )
        return path, Finding(
            f"the interpreter or dynamic loader that {path} needs does not exist inside",
            "bring it in with Bind: the first line of a script names it, and file(1) shows it for an ELF program",
        )
    if error == errno.EACCES:
        if interpreter:
            return path, Finding(
                f"the interpreter {show(interpreter)} of {path} may not be executed (its mode, a noexec mount, a "
                "directory)",
                "look at its mode and mount inside",
            )
        return path, Finding(
            f"{path} may not be executed: a security module (Landlock included), or its mount",
            "allow it to be executed",
        )
    if error == errno.E2BIG:
        return path, _too_long(start)
    if error == errno.ETXTBSY:
        return path, Finding(f"{path} is open for writing in some process", "close it before it is run")
    if error == errno.ELOOP:
        return path, Finding(
            f"{path} is a script, and so is its interpreter, more than four deep", "name the last interpreter"
        )
    if error == errno.ELIBBAD:
        return path, Finding(f"the dynamic loader of {path} is no ELF file", None)
    if error == errno.EISDIR:
        return path, Finding(f"the dynamic loader of {path} is a directory", None)
    if error == errno.EAGAIN:
        return path, Finding(
            "the payload's user has more processes than RLIMIT_NPROC allows",
            "raise Rlimits(nproc=), or run fewer at once",
        )
    if error == errno.ENOMEM:
        return path, Finding(
            "the kernel has no memory to execute it: the sandbox's limit, or the machine's", "raise Limits(memory=)"
        )
    if error in (errno.EPERM, errno.ENOSYS):
        # The kernel's own EPERM: with the effective flag, a file's capabilities are had all or not at all.
        files = (
            ", or the file has capabilities (getcap shows them) that the bounding set does not hold",
            ", or give them (Capabilities) or strip the file of them",
        )
        cause, remedy = files if error == errno.EPERM else ("", "")
        return path, Finding(
            f"the sandbox's own seccomp filter, or one that is in force on this program, refuses execve{cause}",
            f"allow execve in the policy{remedy}",
        )
    return path, Finding(f"execve refused {path}")


def interpreter_of(head: bytes) -> bytes | None:
    """The interpreter of a script, or the loader of an ELF program (the launcher put it behind the header)."""
    if head.startswith(b"#!"):
        words = head[2:].split(b"\n", 1)[0].strip(b" \t").split(b" ", 1)[0].split(b"\t", 1)[0]
        return words or None
    if head.startswith(_ELF) and len(head) > 64 and head[4] == 2:
        return head[64:].split(b"\0", 1)[0] or None
    return None


def machine_of(head: bytes) -> str | None:
    """The architecture that an ELF file is for."""
    if not head.startswith(_ELF) or len(head) < 20:
        return None
    number = int.from_bytes(head[18:20], "big" if head[5] == 2 else "little")
    name = MACHINES.get(number, f"machine {number}")
    if number == 62 and head[4] == 1:
        return "x32"
    return {("ppc64", 1): "ppc64le", ("aarch64", 2): "aarch64_be", ("arm", 2): "armeb"}.get((name, head[5]), name)


def _format(path: str, head: bytes) -> Finding:
    machine = machine_of(head)
    own = os.uname().machine
    if machine is not None and machine != own:
        return Finding(
            f"{path} is a program for {machine}, and this machine is {own}",
            f"build it for {own}, or register an emulator (qemu-user-static, binfmt_misc)",
        )
    if machine is not None:
        return Finding(
            f"{path} is an ELF file for {own} that the kernel does not take: truncated, damaged, or no executable",
            "build or copy it again; file(1) says what it is",
        )
    if not head:
        return Finding(f"{path} is empty, or cannot be read", "copy it again, or let the program's user read it")
    if head.startswith(_ELF):
        return Finding(f"{path} is an ELF file that ends in its header", "build or copy it again")
    if head.startswith(b"#!"):
        return Finding(
            f"{path} is a script whose #! line names no interpreter, or is longer than the kernel reads (255 bytes)",
            "shorten it, or run the interpreter with it",
        )
    if b"\0" not in head:
        return Finding(
            f"{path} is a text without a #! line: no shell is asked to guess",
            "put #!/bin/sh (or what it is) on its first line, or run the interpreter with it",
        )
    return Finding(f"{path} is neither an ELF program nor a script with #!", "file(1) says what it is")


def _too_long(start: Start | None) -> Finding:
    if start is None:
        return Finding(
            "arguments and environment are longer than the kernel takes", "hand them over by stdin or in a file"
        )
    longest = max(map(len, (*start.args, *start.env)), default=0) + 1
    if longest > _MAX_STRING:
        return Finding(
            f"an argument or variable of {longest} bytes: the kernel takes {_MAX_STRING} for one (execve(2))",
            "hand it over by stdin or in a file",
        )
    total = sum(len(s) + 1 + 8 for s in (*start.args, *start.env))
    return Finding(
        f"arguments and environment take {total} bytes, more than a quarter of the limit of the stack (at most 6 "
        "MiB, execve(2))",
        "hand them over by stdin or in a file, or raise Rlimits(stack=)",
    )
