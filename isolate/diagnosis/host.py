"""Facts about the host that explain an error. Read only when an error is being made, never on the good path."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from isolate.engine.finding import Finding as Finding
from isolate.kernel import namespaces, proc

if TYPE_CHECKING:
    from isolate.engine.ops import Op
    from isolate.engine.plan import Step

CAP_SYS_ADMIN = 21
_START = 3  # processes of a start: the launcher, init, the program

# Machines by ELF's e_machine (elf.h), under the names that uname -m has for them.
MACHINES = {
    2: "sparc", 3: "i386", 4: "m68k", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "arm", 42: "sh",
    43: "sparc64", 50: "ia64", 62: "x86_64", 94: "xtensa", 183: "aarch64", 243: "riscv64", 258: "loongarch64",
}  # fmt: skip  # a table: number and name


class Host:
    """The facts in this host's files. ``root`` is another directory only where recorded facts are looked at."""

    def __init__(self, root: str = "/", *, euid: int | None = None) -> None:
        self.root: str = root
        self.euid: int = os.geteuid() if euid is None else euid

    def read(self, path: str) -> str | None:
        """The text of a file, None where it cannot be read."""
        try:
            with open(os.path.join(self.root, path.lstrip("/")), "rb") as file:
                return os.fsdecode(file.read())
        except OSError:
            return None

    def lines(self, path: str) -> list[str]:
        """The lines of a file, none where it cannot be read."""
        return proc.lines(os.fsencode(self.read(path) or ""))

    def number(self, path: str) -> int | None:
        """The number that a file holds."""
        text = self.read(path)
        try:
            return None if text is None else int(text)
        except ValueError:
            return None

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return os.path.lexists(os.path.join(self.root, path.lstrip("/")))

    def status(self, field: str) -> str | None:
        """A field of /proc/self/status."""
        return proc.fields(os.fsencode(self.read("/proc/self/status") or "")).get(field)

    def capable(self, capability: int = CAP_SYS_ADMIN) -> bool:
        """Whether the capability is effective in this program."""
        return bool(int(self.status("CapEff") or "0", 16) >> capability & 1)

    def filtered(self) -> bool:
        """Whether a seccomp filter is in force on this program."""
        return self.status("Seccomp") == "2"

    def apparmor_restricts(self) -> bool:
        """Whether AppArmor restricts unprivileged user namespaces (Ubuntu 23.10 and later)."""
        return self.number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == 1 and not self.capable()

    def label(self) -> str | None:
        """The confinement that AppArmor or SELinux has this program in; None for none."""
        text = (self.read("/proc/self/attr/current") or "").strip("\0\n ")
        return (
            None if not text or text.startswith("unconfined") or ":unconfined_t:" in text or text == "kernel" else text
        )

    def container(self) -> str | None:
        """The kind of container that this program seems to run in."""
        if os.environ.get("KUBERNETES_SERVICE_HOST") or self.exists("/var/run/secrets/kubernetes.io"):
            return "Kubernetes"
        if self.exists("/.dockerenv"):
            return "Docker"
        return "Podman" if self.exists("/run/.containerenv") else None

    def mounts(self) -> list[tuple[str, str, str]]:
        """(mount point, file system, options) of each mount, from /proc/self/mountinfo (proc(5))."""
        rows = proc.mount_rows(os.fsencode(self.read("/proc/self/mountinfo") or ""))
        return [(row.target, row.kind, ",".join(row.options)) for row in rows]

    def over_proc(self) -> list[str]:
        """The mounts over parts of /proc: a container's masks. The kernel's own (binfmt_misc) hide nothing."""
        return sorted(
            {p for p, kind, _ in self.mounts() if p.startswith("/proc/") and kind not in ("binfmt_misc", "autofs")}
        )

    def mount_of(self, path: str) -> tuple[str, str, str] | None:
        """The mount that a path lies on."""
        best: tuple[str, str, str] | None = None
        real = os.path.realpath(path)
        for mount in self.mounts():
            under = mount[0] == "/" or real == mount[0] or real.startswith(mount[0] + "/")
            if under and (best is None or len(mount[0]) >= len(best[0])):
                best = mount  # of two on one point the later one covers the earlier
        return best

    def chrooted(self) -> bool:
        """Whether this program's root seems to be no mount's root: it runs in a chroot."""
        mounts = self.mounts()
        return bool(mounts) and all(point != "/" for point, _, _ in mounts)

    def in_user_namespace(self) -> bool:
        """Whether the caller is in another user namespace than the system's first."""
        rows = [line.split() for line in self.lines("/proc/self/uid_map")]
        return bool(rows) and rows != [["0", "0", "4294967295"]]

    def children_elsewhere(self) -> bool:
        """Whether the children of this thread get another pid namespace than its own."""
        return namespaces.children_elsewhere(os.path.join(self.root, "proc"))

    def unmapped(self) -> bool:
        """Whether the caller's own uid has no place in its user namespace."""
        for line in self.lines("/proc/self/uid_map") if self.exists("/proc/self/uid_map") else ["0 0 4294967295"]:
            first, _, count = map(int, line.split())
            if first <= self.euid < first + count:
                return False
        return True

    def limit_reached(self) -> Finding | None:
        """Which limit of processes is used up, as far as it can be seen: a cgroup's or the user's.

        What the failed start had made is gone by now: a limit counts as reached if there is no room for a start.
        """
        for name, directory in self._pids_groups():
            limit, used = self.number(f"{directory}/pids.max"), self.number(f"{directory}/pids.current")
            if limit is not None and used is not None and used + _START >= limit:
                return Finding(
                    f"the cgroup {name} has {used} processes and threads and may have {limit} (pids.max); "
                    f"a start takes {_START}",
                    f"raise {directory}/pids.max (Docker: --pids-limit; systemd: TasksMax=), or run fewer at once",
                )
        for line in self.lines("/proc/self/limits"):
            soft = line[26:].split()[0] if line.startswith("Max processes") else "unlimited"
            if soft.isdigit() and not self.capable(24) and self._tasks() + _START >= int(soft):  # CAP_SYS_RESOURCE
                return Finding(
                    f"this user may have {soft} processes and threads (RLIMIT_NPROC), those outside of this program "
                    "included",
                    "raise it: ulimit -u, /etc/security/limits.conf, systemd's LimitNPROC=",
                )
        return None

    def _tasks(self) -> int:
        """Processes and threads of this user, as far as /proc shows them."""
        found = 0
        top = os.path.join(self.root, "proc")
        try:
            for entry in os.scandir(top):
                try:
                    if entry.name.isdigit() and entry.stat().st_uid == self.euid:
                        found += os.stat(f"{top}/{entry.name}/task").st_nlink - 2
                except OSError:
                    continue  # it has ended
        except OSError:
            pass
        return found

    def _pids_groups(self) -> list[tuple[str, str]]:
        """(name, directory) of the own group and its parents, in the hierarchy that counts processes."""
        mount = ""
        own = ""
        for line in self.lines("/proc/self/cgroup"):
            _, controllers, path = [*line.split(":", 2), "", ""][:3]
            if "pids" in controllers.split(",") or (not controllers and not own):
                own = path
        for point, kind, _ in self.mounts():
            if (kind == "cgroup" and point.endswith("/pids")) or (kind == "cgroup2" and not mount):
                mount = point
        found: list[tuple[str, str]] = []
        while mount and own:
            found.append((own, f"{mount}{own.rstrip('/')}"))
            own = own.rpartition("/")[0]
        return found


class Failure(NamedTuple):
    """The argument of a :class:`~isolate.engine.finding.Finding` that asks the host."""

    host: Host
    error: int
    step: Step
    op: Op
    #: The flags of clone with which the sandbox was made.
    flags: int
