"""The small filter that every sandbox has by default: it refuses user namespaces inside, and nothing else."""

from __future__ import annotations

import errno
from functools import lru_cache

from isolate.kernel import syscalls

from . import bpf

__all__ = ["deny_user_namespaces"]

CLONE_NEWUSER = 0x10000000  # sched.h
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # linux/seccomp.h

#: clone, unshare, clone3. A test compares them with the tables, which take longer to read than the filter to write.
_NUMBERS = {
    "x86_64": (56, 272, 435),
    "i386": (120, 310, 435),
    "x32": tuple(syscalls.X32_BIT | number for number in (56, 272, 435)),
    "aarch64": (220, 97, 435),
    "arm": (120, 337, 435),
    "riscv64": (220, 97, 435),
}


@lru_cache(maxsize=1)
def deny_user_namespaces() -> bytes:
    """A small ready program: EPERM for ``clone`` and ``unshare`` with CLONE_NEWUSER, ENOSYS for ``clone3``, all else
    allowed.

    The kernel's other ABIs are covered by the same rules, so nothing but nested user namespaces changes.

    It is written as instructions, since every first start waits for it: the policy that says the same
    (``deny("clone", "unshare", when=(arg(0) & CLONE_NEWUSER) != 0)``) would load the compiler of policies.
    """
    native = syscalls.native_arch()
    program = bpf.Assembler()
    allow, eperm, enosys = (program.ret(k) for k in (_ALLOW, _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS))
    flag = program.jump(bpf.JSET, CLONE_NEWUSER, eperm, allow)
    asks = program.load(bpf.argument_offset(0, high=False), flag)
    calls: dict[int, int] = {}
    for abi in (native, *bpf.FAMILIES[native]):
        arch = bpf.AUDIT_ARCH[abi]  # of x32 and x86-64 one and the same
        for number, answer in zip(_NUMBERS[abi], (asks, asks, enosys), strict=True):
            calls[arch] = program.jump(bpf.JEQ, number, answer, calls.get(arch, allow))
    root = allow
    for arch, node in calls.items():
        root = program.jump(bpf.JEQ, arch, program.load(bpf.NR_OFFSET, node), root)
    return program.assemble(program.load(bpf.ARCH_OFFSET, root))
