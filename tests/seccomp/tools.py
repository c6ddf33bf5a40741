"""Helpers of these tests: libseccomp as an oracle, calls made under a filter in the kernel."""

from __future__ import annotations

import select
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolate.kernel import syscalls
from isolate.seccomp import bpf
from isolate.seccomp.actions import Action
from isolate.seccomp.conditions import MASK64, All, Compare

if TYPE_CHECKING:
    from isolate.seccomp.policy import Seccomp
    from isolate.seccomp.rules import Rule

HERE = Path(__file__).parent
OPS = {"!=": 1, "<": 2, "<=": 3, "==": 4, ">=": 5, ">": 6}
MASKED_EQ = 7

_built: dict[str, Path] = {}


def build(name: str, directory: Path, *options: str) -> Path:
    """Compile one of the C helpers; skips where there is no compiler or header."""
    if name not in _built:
        out = directory / name
        source = HERE / f"{name}.c"
        done = subprocess.run(
            ["cc", "-O2", "-Wall", "-Werror", "-o", str(out), str(source), *options], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"{name}.c does not build here: {done.stderr[-300:]}")
        _built[name] = out
    return _built[name]


class Libseccomp:
    """libseccomp in a process of its own, told policies rule by rule."""

    def __init__(self, program: Path) -> None:
        self.path = program
        self._start()

    def _start(self) -> None:
        self.process = subprocess.Popen(
            [str(self.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def ask(self, line: str) -> str:
        """Its answer; "error slow" where it takes more than three seconds: some policies keep it busy without end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        if not select.select([self.process.stdout], [], [], 3)[0]:
            self.close()
            self._start()
            return "error slow"
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=10)

    def program(self, policy: Seccomp, arch: str = "x86_64", *, level: int = 1) -> bytes | None:
        """The policy compiled by libseccomp; None where it cannot say it."""
        abis = [arch, *policy.compat]
        words = " ".join(f"{0x4000003E if abi == 'x32' else bpf.AUDIT_ARCH[abi]:x}" for abi in abis)
        assert self.ask(f"new {policy.otherwise.value:x} {level} {words}") == "ok"
        for rule in policy.rules:
            arguments = ""
            if rule.when is not None:
                parts = rule.when.conditions if isinstance(rule.when, All) else (rule.when,)
                for part in parts:
                    if not isinstance(part, Compare):
                        return None
                    value = part.value & part.mask if part.value < 0 else part.value
                    if part.mask == MASK64:
                        arguments += f" {part.index:x} {OPS[part.op]:x} {value:x} 0"
                    elif part.op == "==":
                        arguments += f" {part.index:x} {MASKED_EQ:x} {part.mask:x} {value:x}"
                    else:
                        return None
            for name in sorted(rule.calls):
                if (said := self.ask(f"rule {rule.action.value:x} {name}{arguments}")) == "error slow":
                    raise TimeoutError("libseccomp takes too long over this policy")
                if said != "ok":
                    return None
        answer = self.ask("export")
        if answer == "error slow":
            raise TimeoutError("libseccomp takes too long over this policy")
        return None if answer.startswith("error") else bytes.fromhex(answer)


def mark(policy: Seccomp | bytes, arch: str | None = None) -> bytes:
    """A filter that says what the policy's would do, and does none of it: every answer becomes an errno.

    Marks are 2,000 + the action's place in ACTIONS; errno answers stay as they are. exit_group with MAGIC passes.
    """
    program = policy if isinstance(policy, bytes) else policy.program(arch)
    code = []
    for op, jt, jf, k in bpf.decode(program):
        if op == bpf.RET:
            k = Action.errno(marked(Action.from_return(k))).value
        code.append((op, jt, jf, k))
    arch = arch or syscalls.native_arch()
    magic = bpf.argument_offset(5, high=False)
    prefix = [
        (bpf.LD_W_ABS, 0, 0, bpf.ARCH_OFFSET),
        (bpf.JEQ, 0, 5, bpf.AUDIT_ARCH[arch]),
        (bpf.LD_W_ABS, 0, 0, bpf.NR_OFFSET),
        (bpf.JEQ, 0, 3, syscalls.number("exit_group", arch)),
        (bpf.LD_W_ABS, 0, 0, magic),
        (bpf.JEQ, 0, 1, 0x5ECC),
        (bpf.RET, 0, 0, Action.ALLOW.value),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in prefix + code)


ACTIONS = ("allow", "log", "kill_process", "kill_thread", "trap", "trace", "notify")


def marked(action: Action) -> int:
    """The errno that `mark` puts for an action."""
    return action.data if action.kind == "errno" else 2000 + ACTIONS.index(action.kind)


RECORD = struct.Struct("=II6Qq")


def probe(helper: Path, directory: Path, filter_: bytes, calls: list[tuple[str, int, tuple[int, ...]]]) -> list[int]:
    """Make the calls, (abi, number, arguments), under a filter; the kernel's results, in order."""
    (directory / "filter").write_bytes(filter_)
    records = directory / "records"
    records.write_bytes(
        b"".join(
            RECORD.pack(abi == "i386", nr & 0xFFFFFFFF, *(args + (0,) * (6 - len(args))), -9999)
            for abi, nr, args in calls
        )
    )
    done = subprocess.run([str(helper), str(directory / "filter"), str(records)], timeout=60, capture_output=True)
    assert done.returncode == 0, done
    return [record[-1] for record in RECORD.iter_unpack(records.read_bytes())]


def boundary_values(policy: Seccomp) -> list[int]:
    """Argument values at and around everything that the policy compares with."""
    found = {0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1}

    def visit(condition: object) -> None:
        if isinstance(condition, Compare):
            for value in (condition.value, condition.mask, ~condition.mask, condition.value | ~condition.mask):
                for other in (value - 1, value, value + 1, value ^ (1 << 32), value & 0xFFFFFFFF, value | 1 << 63):
                    found.add(other & MASK64)
        else:
            for part in getattr(condition, "conditions", ()):
                visit(part)

    for rule in policy.rules:
        visit(rule.when)
    return sorted(found)


def calls_of(rules: tuple[Rule, ...]) -> list[str]:
    """The names that rules speak of, in order."""
    return sorted({name for rule in rules for name in rule.calls})
