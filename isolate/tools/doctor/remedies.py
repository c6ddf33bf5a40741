"""One remedy for each no, as text to paste, for the place that this program runs in."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import sys
from typing import TYPE_CHECKING

from isolate.diagnosis.host import Host
from isolate.errors import SetupError
from isolate.kernel.extras import install
from isolate.namespaces.ranges import free_range

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Remedies"]

_CAP_SETGID, _CAP_SETUID, _CAP_SETFCAP = 6, 7, 31
_RANGE = 65536
_PROCESSES = 4096
_SWITCHED_OFF = re.compile(r"user\.max_(\w+)_namespaces = 0")
_AROUND = (
    "# isolate:    UserNamespace(nested=True), and a Seccomp that allows clone, unshare and mount\n"
    "# bubblewrap: bwrap without --disable-userns"
)
_MASKS = 3  # containers hide more of /proc than this
_CONTROLLERS = ("memory", "pids", "cpu", "cpuset")


class Remedies:
    """The facts in this host's files, and the remedies that follow."""

    def __init__(self, host: Host | None = None) -> None:
        self.host: Host = Host() if host is None else host
        confined = self.host.filtered() or len(self.host.over_proc()) >= _MASKS
        #: The kind of container that this program is in; a mark in the file system alone does not make one.
        self.container: str | None = self.host.container() if confined else None

    def of(self, group: str, error: Exception) -> tuple[str, str]:
        """(in words, as text to paste) for an attempt of a group that failed."""
        words = (error.remedy or "") if isinstance(error, SetupError) else ""
        switch = _SWITCHED_OFF.search(_cause(error))
        if switch is not None:
            return words, self._more_namespaces(switch[1])
        if self.container is not None and "is masked" in _cause(error):
            return self._container(filtered=False)
        if self.host.in_user_namespace() and "a limit of namespaces is reached" in _cause(error):
            return "the sandbox around this program has to allow user namespaces inside of it", _AROUND
        for concerns, remedy in self._rules():
            if concerns(group, error):
                told, paste = remedy()
                return (told or words), paste
        return words, ""

    def _rules(
        self,
    ) -> list[tuple[Callable[[str, Exception], bool], Callable[[], tuple[str, str]]]]:
        """The first whose condition holds; facts that stand in the way of everything come first."""
        host = self.host
        return [
            (lambda group, error: "/proc" in _cause(error) and not host.exists("/proc/self"), self._no_proc),
            (lambda group, error: "RLIMIT_NPROC" in _cause(error), self._processes),
            (lambda group, error: "data-only layer" in _cause(error), lambda: ("", "")),  # what the error says
            (lambda group, error: group == "limits" and not _namespaces(error), self._cgroup),
            (lambda group, error: _mentions(error, "subuid", "subgid", "newuidmap", "newgidmap"), self._ids),
            (lambda group, error: self._rootless_root(), self._capabilities),
            (lambda group, error: self._switched_off(), self._switch_on),
            (lambda group, error: host.apparmor_restricts(), self._apparmor),
            (lambda group, error: group != "filters" and self.container is not None, self._container),
            (lambda group, error: _mentions(error, "pasta"), lambda: ("install it", "sudo apt install passt")),
            (lambda group, error: _mentions(error, "zstd"), lambda: ("install it", install("images"))),
            (lambda group, error: bool(host.over_proc()) and "/proc" in _cause(error), self._masked),
        ]

    def shared_ranges(self) -> bool:
        """Whether /etc/subuid or /etc/subgid gives the caller's ranges, or some of them, to somebody else as well."""
        names = {_user(self.host.euid), str(self.host.euid)}
        for file in ("/etc/subuid", "/etc/subgid"):
            rows = [row.strip().split(":") for row in self.host.lines(file)]
            ranges = [
                (row[0], int(row[1]), int(row[2]))
                for row in rows
                if len(row) == 3 and row[1].isdigit() and row[2].isdigit()
            ]
            own = [(first, first + count) for name, first, count in ranges if name in names]
            others = [(first, first + count) for name, first, count in ranges if name not in names]
            if any(start < end2 and start2 < end for start, end in own for start2, end2 in others):
                return True
        return False

    # ---- conditions ----------------------------------------------------------------------------------------------

    def _rootless_root(self) -> bool:
        wanted = (_CAP_SETGID, _CAP_SETUID, _CAP_SETFCAP)
        return self.host.euid == 0 and not all(map(self.host.capable, wanted))

    def _switched_off(self) -> bool:
        return self.host.number("/proc/sys/kernel/unprivileged_userns_clone") == 0 and not self.host.capable()

    # ---- remedies ------------------------------------------------------------------------------------------------

    def _no_proc(self) -> tuple[str, str]:
        return "mount /proc", "sudo mount -t proc proc /proc"

    def _processes(self) -> tuple[str, str]:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        if hard < 0 or hard >= _PROCESSES:
            # No other program can be started here, but a shell can lift its own limit.
            return "raise the limit of processes in this shell", f"ulimit -S -u {_PROCESSES}"
        return (
            "raise the limit of processes, from a shell of root's",
            f"prlimit --pid {os.getppid()} --nproc={_PROCESSES}:{_PROCESSES}",
        )

    def _switch_on(self) -> tuple[str, str]:
        switch = "kernel.unprivileged_userns_clone=1"
        return "allow unprivileged user namespaces", _sysctl(switch)

    def _more_namespaces(self, kind: str) -> str:
        """The remedy if a sandbox around this program, or the administrator, allows no namespaces of a kind."""
        if not self.host.in_user_namespace():
            return _sysctl(f"user.max_{kind}_namespaces=10000")
        switch = f"user.max_{kind}_namespaces=10000"
        return f"{_AROUND}\n# otherwise, as root in the user namespace around this: sysctl -w {switch}"

    def _apparmor(self) -> tuple[str, str]:
        program = os.path.realpath(sys.executable)
        name = "isolate-" + os.path.basename(program)
        return (
            "give this Python an AppArmor profile with the rule 'userns,'",
            f"sudo tee /etc/apparmor.d/{name} <<'END'\nabi <abi/4.0>,\ninclude <tunables/global>\n"
            f"profile {name} {program} flags=(unconfined) {{\n  userns,\n}}\nEND\n"
            f"sudo apparmor_parser -r /etc/apparmor.d/{name}",
        )

    def _container(self, *, filtered: bool = True) -> tuple[str, str]:
        host = self.host
        kind = self.container
        if kind == "Kubernetes":
            return (
                "give the pod a user namespace, an unmasked /proc and no filter, in its manifest",
                "spec:\n  hostUsers: false\n  containers:\n    - securityContext:\n"
                "        seccompProfile: {type: Unconfined}\n        procMount: Unmasked",
            )
        options = []
        if filtered and host.filtered():
            options.append("--security-opt seccomp=unconfined")
        if host.over_proc():
            unmask = "--security-opt unmask=ALL" if kind == "Podman" else "--security-opt systempaths=unconfined"
            options.append(unmask)
        if host.label():
            options.append("--security-opt apparmor=unconfined")
        program = "podman" if kind == "Podman" else "docker"
        return "start the container with these options", f"{program} run {' '.join(options)} IMAGE"

    def _masked(self) -> tuple[str, str]:
        points = " ".join(shlex.quote(point) for point in self.host.over_proc())
        return "take the mounts over /proc away, or leave Proc out", f"sudo umount {points}"

    def _capabilities(self) -> tuple[str, str]:
        if self.container in ("Docker", "Podman"):
            name = str(self.container).lower()
            return "run the container's program as an ordinary user", f"{name} run --user 65534:65534 IMAGE"
        return (
            "become an ordinary user before the capabilities are dropped",
            "setpriv --reuid=65534 --regid=65534 --clear-groups --bounding-set=-all -- "
            + shlex.join([sys.executable, "-m", "isolate", "doctor"]),
        )

    def _ids(self) -> tuple[str, str]:
        host = self.host
        if host.status("NoNewPrivs") == "1":
            if self.container in ("Docker", "Podman"):
                name = str(self.container).lower()
                return "", f"{name} run --security-opt no-new-privileges=false IMAGE"
            return "", "# systemd, in the unit:\n[Service]\nNoNewPrivileges=no"
        if not (host.exists("/usr/bin/newuidmap") or host.exists("/bin/newuidmap")):
            return "", "sudo apt install uidmap"
        rows = [*host.lines("/etc/subuid"), *host.lines("/etc/subgid")]
        first = free_range(rows, _RANGE)
        last = first + _RANGE - 1
        user = _user(host.euid)
        if user.isdigit():
            return (
                "give this uid a range that nobody holds",
                f"echo {user}:{first}:{_RANGE} | sudo tee -a /etc/subuid /etc/subgid",
            )
        return (
            f"give {user} a range of ids that nobody else holds",
            f"sudo usermod --add-subuids {first}-{last} --add-subgids {first}-{last} {user}",
        )

    def _cgroup(self) -> tuple[str, str]:
        host = self.host
        mounts = [(point, kind, options) for point, kind, options in host.mounts() if kind.startswith("cgroup")]
        container = self.container
        if not mounts:
            if container:
                return "show the container its cgroups", "docker run -v /sys/fs/cgroup:/sys/fs/cgroup:rw IMAGE"
            return "mount the cgroup file system", self._mount_cgroups()
        read_only = [point for point, _, options in mounts if "ro" in options.split(",")]
        if read_only:
            if container:
                return (
                    "let the container write to its cgroups",
                    "docker run --cap-add SYS_ADMIN --security-opt apparmor=unconfined "
                    "--cgroupns=private -v /sys/fs/cgroup:/sys/fs/cgroup:rw IMAGE",
                )
            lines = [f"sudo mount -o remount,rw,bind {shlex.quote(point)}" for point in read_only]
            return "make the cgroup file system writable", "\n".join(lines)
        if host.exists("/run/systemd/system") and host.euid != 0:
            python = shlex.join([sys.executable, "-m", "isolate", "doctor"])
            return "start the program in a scope of its own", f"systemd-run --user --scope -p Delegate=yes -- {python}"
        return "delegate a group to this user, and enter it", self._delegate(mounts)

    def _mount_cgroups(self) -> str:
        """Version 2, or where controllers are bound to hierarchies of version 1, those."""
        bound: dict[str, list[str]] = {}
        for line in self.host.lines("/proc/cgroups"):
            words = line.split()
            if len(words) == 4 and words[1].isdigit() and words[1] != "0":
                bound.setdefault(words[1], []).append(words[0])
        if not bound:
            return "sudo mount -t cgroup2 cgroup2 /sys/fs/cgroup"
        lines = ["sudo mount -t tmpfs -o size=1M,mode=755 cgroup /sys/fs/cgroup"]
        for controllers in bound.values():
            point = f"/sys/fs/cgroup/{','.join(controllers)}"
            lines.append(f"sudo mkdir {point} && sudo mount -t cgroup -o {','.join(controllers)} cgroup {point}")
        return "\n".join(lines)

    def _delegate(self, mounts: list[tuple[str, str, str]]) -> str:
        """Commands for a shell that leave it, and what it starts, in a group that this user may divide."""
        user = _user(self.host.euid)
        name = f"isolate-{user}"
        v1 = {
            c: point
            for point, kind, options in mounts
            if kind == "cgroup"
            for c in _CONTROLLERS
            if point.endswith("/" + c) or c in os.path.basename(point).split(",")
        }
        lines = []
        for controller, point in v1.items():
            group = f"{point}/{name}"
            lines.append(f"sudo mkdir -p {group}")
            if controller == "cpuset":
                lines += [f"cat {point}/cpuset.{f} | sudo tee {group}/cpuset.{f} >/dev/null" for f in ("cpus", "mems")]
            lines.append(f"sudo chown -R {user} {group}")
            lines.append(f"echo $$ | sudo tee {group}/cgroup.procs >/dev/null")
        unified = next((point for point, kind, _ in mounts if kind == "cgroup2"), None)
        rest = [c for c in _CONTROLLERS if c not in v1]
        if unified and rest:
            group = f"{unified}/{name}"
            wanted = " ".join(f"+{controller}" for controller in rest)
            lines += [
                f"echo '{wanted}' | sudo tee {unified}/cgroup.subtree_control >/dev/null",
                f"sudo mkdir -p {group}/shell",
                f"sudo chown -R {user} {group}",
                f"echo $$ | sudo tee {group}/shell/cgroup.procs >/dev/null",
            ]
        return "\n".join(lines)


def _cause(error: Exception) -> str:
    return (error.cause or str(error)) if isinstance(error, SetupError) else str(error)


def _mentions(error: Exception, *words: str) -> bool:
    return any(word in _cause(error) for word in words)


def _namespaces(error: Exception) -> bool:
    """Whether a limit failed for want of the namespace in which its files are covered."""
    return "new namespaces" in _cause(error) or "user namespace" in _cause(error)


def _sysctl(setting: str) -> str:
    return f"sudo sysctl -w {setting}\necho '{setting}' | sudo tee /etc/sysctl.d/60-isolate.conf"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
