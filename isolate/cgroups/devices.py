"""Which devices may be used: rules, and the program that answers by them.

cgroup v1 has a controller that takes the rules as text. cgroup v2 has none: there a BPF program of type
``BPF_PROG_TYPE_CGROUP_DEVICE`` is attached to the group and asked at every open and mknod of a device
(Linux 4.15). Attaching asks for CAP_BPF and CAP_NET_ADMIN (or CAP_SYS_ADMIN) in the initial user namespace.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from isolate.kernel import checks

if TYPE_CHECKING:
    from collections.abc import Iterable

_ANY: Final = None


@dataclass(frozen=True, slots=True)
class Device:
    """One allowed device, or with ``major`` or ``minor`` None a family of them.

    ``kind`` is ``"c"``, ``"b"`` or ``"a"`` (both); ``access`` any of ``r``, ``w`` and ``m`` (mknod).
    """

    kind: str = "a"
    major: int | None = None
    minor: int | None = None
    access: str = "rwm"

    def __post_init__(self) -> None:
        if self.kind not in ("a", "b", "c"):
            raise ValueError(f"device: kind must be 'c', 'b' or 'a', not {self.kind!r}")
        for name in ("major", "minor"):
            value = getattr(self, name)
            if value is not None:
                checks.integer(f"device {name}", value, 0, (1 << 20) - 1)
        if not self.access or set(self.access) - set("rwm") or len(set(self.access)) != len(self.access):
            raise ValueError(f"device: access is made of r, w and m, each at most once, not {self.access!r}")
        object.__setattr__(self, "access", "".join(a for a in "rwm" if a in self.access))
        if self.kind == "a" and (self.major, self.minor, self.access) != (None, None, "rwm"):
            # v1 takes "a" for everything, whatever stands behind it: a trap that we do not pass on.
            raise ValueError("device: kind 'a' means every device with every access; say 'c' or 'b'")

    def __str__(self) -> str:
        major = "*" if self.major is None else self.major
        minor = "*" if self.minor is None else self.minor
        return f"{self.kind} {major}:{minor} {self.access}"


def parse(rule: object) -> Device:
    """A rule from ``Device``, ``"c 1:3 rw"``, or a path with an optional access, ``"/dev/fuse rw"``."""
    if isinstance(rule, Device):
        return rule
    if isinstance(rule, os.PathLike):
        rule = os.fspath(rule)
    if not isinstance(rule, str):
        raise TypeError(f"devices: a rule must be a Device, 'c 1:3 rw' or a path, not {rule!r}")
    checks.text("devices", rule)
    if rule.startswith("/"):
        path, _, access = rule.partition(" ")
        try:
            status = os.stat(path)
        except OSError as error:
            raise ValueError(f"devices: {path}: {error.strerror}") from None
        if not (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            raise ValueError(f"devices: {path} is no device")
        kind = "c" if stat.S_ISCHR(status.st_mode) else "b"
        return Device(kind, os.major(status.st_rdev), os.minor(status.st_rdev), access.strip() or "rw")
    fields = rule.split()
    if fields == ["a"]:
        return Device()
    major, colon, minor = fields[1].partition(":") if len(fields) in (2, 3) else ("", "", "")
    if not colon or not all(p == "*" or (p.isascii() and p.isdigit()) for p in (major, minor)):
        raise ValueError(f"devices: {rule!r} is not like 'c 1:3 rw', 'b 8:* r' or '/dev/null'")
    return Device(
        fields[0],
        None if major == "*" else int(major),
        None if minor == "*" else int(minor),
        fields[2] if len(fields) == 3 else "rwm",
    )


def parse_all(rules: Iterable[object]) -> tuple[Device, ...]:
    """Rules in order, without repetitions."""
    if isinstance(rules, (str, bytes)):
        raise TypeError(f"devices must be a sequence of rules, not {rules!r}")
    return tuple(dict.fromkeys(parse(r) for r in rules))


#: Devices that programs expect in ``/dev``: null, zero, full, random, urandom, tty, ptmx and pseudo terminals.
#: Making nodes is allowed, as in Docker's list: it is the opening that is decided on.
DEFAULT: Final[tuple[Device, ...]] = (
    Device("c", _ANY, _ANY, "m"),
    Device("b", _ANY, _ANY, "m"),
    *(Device("c", 1, minor, "rwm") for minor in (3, 5, 7, 8, 9)),
    Device("c", 5, 0, "rwm"),
    Device("c", 5, 2, "rwm"),
    Device("c", 136, _ANY, "rwm"),
)

# ---- v2: the program -----------------------------------------------------------------------------------------------

# linux/bpf_common.h, linux/bpf.h
_LDX_W, _MOV_K, _MOV_X, _AND_K, _RSH_K, _JNE_K, _EXIT = 0x61, 0xB7, 0xBF, 0x57, 0x77, 0x55, 0x95
_ACCESS: Final = {"m": 1, "r": 2, "w": 4}  # BPF_DEVCG_ACC_*
_KIND: Final = {"b": 1, "c": 2}  # BPF_DEVCG_DEV_*


def _instruction(code: int, dst: int = 0, src: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("<BBhi", code, src << 4 | dst, offset, immediate)


def program(rules: Iterable[Device]) -> bytes:
    """eBPF that allows what a rule allows and denies the rest.

    The context is ``struct bpf_cgroup_dev_ctx``: access (upper half) and kind (lower half), major, minor. r2 holds the
    kind, r3 the access asked for, r4 and r5 the number. A rule allows if it covers *every* access that is asked for.
    """
    code = [
        _instruction(_LDX_W, 2, 1, 0),
        _instruction(_MOV_X, 3, 2),
        _instruction(_AND_K, 2, immediate=0xFFFF),
        _instruction(_RSH_K, 3, immediate=16),
        _instruction(_LDX_W, 4, 1, 4),
        _instruction(_LDX_W, 5, 1, 8),
    ]
    for rule in rules:
        if rule.kind == "a":
            return b"".join([_instruction(_MOV_K, 0, immediate=1), _instruction(_EXIT)])
        body: list[tuple[int, int, int]] = [(_JNE_K, 2, _KIND[rule.kind])]
        denied = 7 & ~sum(_ACCESS[a] for a in rule.access)
        if denied:
            body += [(_MOV_X, 6, 3), (_AND_K, 6, denied), (_JNE_K, 6, 0)]
        if rule.major is not None:
            body.append((_JNE_K, 4, rule.major))
        if rule.minor is not None:
            body.append((_JNE_K, 5, rule.minor))
        for at, (op, register, value) in enumerate(body):
            if op == _MOV_X:
                code.append(_instruction(op, register, value))
            elif op == _AND_K:
                code.append(_instruction(op, register, immediate=value))
            else:  # to the next rule: over the rest of the body and the two instructions of the answer
                code.append(_instruction(op, register, offset=len(body) - at + 1, immediate=value))
        code += [_instruction(_MOV_K, 0, immediate=1), _instruction(_EXIT)]
    code += [_instruction(_MOV_K, 0, immediate=0), _instruction(_EXIT)]
    return b"".join(code)


def simulate(rules: Iterable[Device], kind: str, major: int, minor: int, access: str) -> bool:
    """The answer of the rules, without the kernel: the meaning that :func:`program` must have."""
    return any(
        rule.kind in ("a", kind)
        and rule.major in (None, major)
        and rule.minor in (None, minor)
        and not set(access) - set(rule.access)
        for rule in rules
    )


BPF_PROG_LOAD, BPF_PROG_ATTACH = 5, 8
PROG_TYPE_CGROUP_DEVICE, ATTACH_DEVICE, F_ALLOW_MULTI = 15, 6, 2
LICENSE: Final = b"MIT\0"


def load_attributes(instructions: int, code_address: int = 0, license_address: int = 0) -> bytes:
    """``union bpf_attr`` for BPF_PROG_LOAD, without a verifier log. Addresses stand at offsets 8 and 16."""
    return struct.pack("<IIQQ", PROG_TYPE_CGROUP_DEVICE, instructions, code_address, license_address) + bytes(96)


def attach_attributes(group: int = 0, program_fd: int = 0) -> bytes:
    """``union bpf_attr`` for BPF_PROG_ATTACH; the descriptors stand at offsets 0 and 4.

    ALLOW_MULTI: programs of groups above stay in force too, and all must agree.
    """
    return struct.pack("<IIII", group, program_fd, ATTACH_DEVICE, F_ALLOW_MULTI) + bytes(96)
