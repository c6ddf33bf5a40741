"""Filters beside libseccomp's: size, time to make and to attach, cost per call. `python benchmarks/seccomp.py`

Needs cc, libseccomp-dev and seccomp's kernel support; no privileges. Times are in microseconds, calls in nanoseconds.
Docker's profile is taken with i386 and x32, as Docker does; `default()` covers the native ABI alone, as it does for
both. Where libseccomp cannot say a rule of `default()` (several conditions on one argument; "not" under a mask), it is
given the nearest that it can.
"""

from __future__ import annotations

import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from seccomp import docker, tools  # noqa: E402

from isolate import syscalls  # noqa: E402
from isolate.seccomp import Seccomp, allow, arg, bpf, compiler, decide, deny  # noqa: E402
from isolate.seccomp.conditions import All, Compare  # noqa: E402

ABIS = {"x86_64": "c000003e", "i386": "40000003", "x32": "4000003e", "aarch64": "c00000b7", "arm": "40000028"}


def rules_text(policy: Seccomp) -> str:
    """The policy for the C half. Only rules that libseccomp can say."""
    native = syscalls.native_arch()
    lines = [" ".join([f"{policy.otherwise.value:x}", *(ABIS[abi] for abi in (native, *policy.compat))])]
    for rule in policy.rules:
        text = ""
        for part in () if rule.when is None else rule.when.conditions if isinstance(rule.when, All) else (rule.when,):
            assert isinstance(part, Compare)
            masked = part.mask != 2**64 - 1
            op = tools.MASKED_EQ if masked else tools.OPS[part.op]
            text += f" {part.index:x} {op:x} {part.mask if masked else part.value:x} {part.value if masked else 0:x}"
        lines += [f"{rule.action.value:x} {name}{text}" for name in sorted(rule.calls)]
    return "\n".join(lines) + "\n"


def nearest_default() -> Seccomp:
    """`default()` as far as libseccomp can say it."""
    base = Seccomp.default() - ("clone", "clone3", "ioctl", "socket", "socketpair")
    return (
        base
        + deny("clone3", errno="ENOSYS")
        + allow("clone", when=(arg(0) & 0x7E020000) == 0)
        + allow("ioctl", when=arg(1) != 0x5412)
        + allow("socketpair", when=arg(0) == 1)
        + allow("socket", when=arg(0) == 1)
        + allow("socket", when=arg(0) == 2)
        + allow("socket", when=arg(0) == 10)
        + allow("socket", when=(arg(0) == 16) & (arg(2) == 0))
    )


def flattened(policy: Seccomp) -> Seccomp:
    """Alternatives as rules of their own, as libseccomp has them."""
    found = []
    for rule in policy.rules:
        parts = getattr(rule.when, "conditions", ()) if not isinstance(rule.when, (All, Compare)) else ()
        found += [type(rule)(rule.action, rule.names, part) for part in parts] if parts else [rule]
    return policy._with(tuple(found))


def length(program: bytes, number: int, args: list[int]) -> int:
    """BPF instructions run for a call; 0 where the kernel's bitmap of allowed calls answers (Linux 5.11)."""
    instructions = list(bpf.decode(program))
    data = struct.pack("<IIQ6Q", number, bpf.AUDIT_ARCH[syscalls.native_arch()], 0, *(a & 2**64 - 1 for a in args))
    words = struct.unpack("<16I", data)
    pc = count = accumulator = 0
    constant = True
    while True:
        code, jt, jf, k = instructions[pc]
        pc, count = pc + 1, count + 1
        if code == bpf.RET:
            return 0 if constant and k == 0x7FFF0000 else count
        if code == bpf.LD_W_ABS:
            accumulator = words[k // 4]
            constant = constant and k < 8
        elif code == bpf.AND:
            accumulator &= k
        elif code == bpf.JA:
            pc += k
        else:
            jump = {bpf.JEQ: accumulator == k, bpf.JGE: accumulator >= k, bpf.JGT: accumulator > k}
            pc += jt if jump.get(code, bool(accumulator & k)) else jf


def main() -> None:
    quick = "--quick" in sys.argv
    times, loops, outer = (5, 500, 20) if quick else (40, 2_000, 400)
    docker_policy = Seccomp.from_oci(docker.profile())
    cases = {"Docker's profile": (docker_policy, docker_policy), "default()": (Seccomp.default(), nearest_default())}
    with tempfile.TemporaryDirectory() as directory:
        helper = os.path.join(directory, "native")
        source = str(ROOT / "benchmarks" / "seccomp_native.c")
        subprocess.run(["cc", "-O2", "-o", helper, source, "-lseccomp"], check=True)

        def run(*words: object) -> list[float]:
            done = subprocess.run([helper, *map(str, words)], check=True, capture_output=True, text=True)
            if done.stderr:
                print(f"  libseccomp: {done.stderr.splitlines()[0]} ({len(done.stderr.splitlines())} such)")
            return [float(line) for line in done.stdout.split()]

        for title, (ours, theirs) in cases.items():
            print(f"\n{title}")
            path = {name: os.path.join(directory, name) for name in ("rules", "isolate", "level 1", "level 2")}
            Path(path["rules"]).write_text(rules_text(flattened(theirs)))
            Path(path["isolate"]).write_bytes(ours.program())
            for level in (1, 2):
                done = subprocess.run([helper, "export", path["rules"], str(level)], check=True, capture_output=True)
                Path(path[f"level {level}"]).write_bytes(done.stdout)
            names = ("isolate", "level 1", "level 2")
            print("  instructions        ", {name: os.path.getsize(path[name]) // 8 for name in names})

            cold = []
            for _ in range(7):
                start = time.perf_counter()
                arch, kernel = syscalls.native_arch(), decide.running_kernel()
                compiler.build(decide.decisions(ours, arch, kernel), ours.foreign.value)
                cold.append((time.perf_counter() - start) * 1e6)
            start = time.perf_counter()
            for _ in range(1000):
                ours.program()
            print(f"  compile, cold        {min(cold):.0f} us; cached {(time.perf_counter() - start) * 1000:.2f} us")

            attach = statistics.median(run("attach", path["isolate"], times)) / 1000
            for level in (1, 2):
                build = statistics.median(run("build", path["rules"], level, times)) / 1000
                print(
                    f"  attach (cached)      {attach:.1f} us; libseccomp level {level} build and load {build:.0f} us: "
                    f"1/{build / attach:.1f}"
                )

            calls = {
                "allowed, early (read)": ("read", -1, 0, 0),
                "allowed, late (getrandom)": ("getrandom", 0, 0, 0),
                "argument (personality)": ("personality", 0xFFFFFFFF, 0, 0),
                "argument (clone, refused)": ("clone", 0x10010000, 0, 0),
                # (CLONE_NEWUSER with CLONE_THREAD: the kernel refuses that with EINVAL where no filter does; flags that
                # succeed would fork a process at every round of the loop.)
                "argument (socket, refused)": ("socket", 40, -1, 0),  # no such type, where no filter refuses it
                "refused (mount)": ("mount", 0, 0, 0),
            }
            # Short batches, the filters in turn, the least of all: other work on the machine only adds.
            words = [",".join([str(syscalls.number(n)), *map(str, a)]) for n, *a in calls.values()]
            files = ["-", *(path[n] for n in names)]
            flat = run("calls", loops, outer, len(files), *files, *words)
            columns = ("none", *names)
            found = {what: flat[at * len(files) : (at + 1) * len(files)] for at, what in enumerate(calls)}
            print(f"  {'BPF instructions run':<28}" + " " * 10 + "".join(f"{name:>10}" for name in names))
            for what, (name, *args) in calls.items():
                counts = [length(Path(path[n]).read_bytes(), syscalls.number(name), [*args, 0, 0, 0]) for n in names]
                print(f"  {what:<38}" + "".join(f"{count:>10}" for count in counts))
            print(f"  {'ns a call':<28}" + "".join(f"{name:>10}" for name in columns) + f"{'/ level 2':>12}")
            for what, row in found.items():
                print(f"  {what:<28}" + "".join(f"{each:>10.1f}" for each in row) + f"{row[1] / row[3]:>12.2f}")


if __name__ == "__main__":
    main()
