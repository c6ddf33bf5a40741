"""systemd's manager, over D-Bus: the way to a delegated group where systemd manages the hierarchy.

Needs the extra ``isolate-linux[systemd]`` (jeepney, pure Python). Root asks the system's manager, an ordinary user the
user's own (``user@UID.service``). org.freedesktop.systemd1(5), "StartTransientUnit" and "AttachProcessesToUnit";
systemd's "Control Group APIs and Delegation".
"""

from __future__ import annotations

import errno
import os
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from isolate.cgroups import naming
from isolate.errors import SetupError, UnsupportedError
from isolate.kernel.closing import Closing
from isolate.kernel.extras import install

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolate.cgroups.hierarchy import Hierarchy

_ASK = "ask systemd for a scope with Delegate=yes"
_INSTALL = install("systemd")
_NO_JEEPNEY = "the jeepney package, which speaks D-Bus, is not installed"
_REACH = "loginctl enable-linger, or export XDG_RUNTIME_DIR and DBUS_SESSION_BUS_ADDRESS"


def _bus() -> str:
    if os.geteuid() == 0:
        return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/dbus/system_bus_socket")
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")
    return os.environ.get("DBUS_SESSION_BUS_ADDRESS", f"unix:path={runtime}/bus")


def obstacle() -> tuple[str, str] | None:
    """Why systemd cannot be asked, and the remedy; None where it seems that it can. Asks nobody."""
    if not os.path.isdir("/run/systemd/system"):  # sd_booted(3)
        return "systemd is not the init of this host", "see the documentation on cgroups"
    if find_spec("jeepney") is None:
        return _NO_JEEPNEY, _INSTALL
    address = _bus()
    path = address.removeprefix("unix:path=").partition(",")[0]
    if path != address.partition(",")[0] and not os.access(path, os.W_OK, effective_ids=True):
        return f"no D-Bus at {address}", _REACH
    return None


def _fail(number: int, cause: str, remedy: str | None = None, *, step: str = _ASK) -> SetupError:
    return UnsupportedError(number, step, part="Cgroup", cause=cause, remedy=remedy)


class Manager(Closing):
    """A connection to systemd's manager: the system's for root, the user's own for others. One thread at a time.

    :raises UnsupportedError: no jeepney, no bus, or a bus of another pid namespace. The methods: systemd refuses, with
        its words, or does not answer within ``timeout`` seconds.
    """

    def __init__(self, timeout: float = 30.0) -> None:
        try:
            # Optional, and without type information.
            self._jeepney: Any = import_module("jeepney")
            self._bus: Any = import_module("jeepney.bus_messages").message_bus
            blocking: Any = import_module("jeepney.io.blocking")
        except ImportError:
            user = "" if os.geteuid() == 0 else "--user "
            raise _fail(
                errno.ENOPKG,
                _NO_JEEPNEY,
                f"{_INSTALL}, or run under: systemd-run {user}--scope -p Delegate=yes PROGRAM",
            ) from None
        self._timeout = timeout
        self._address: Any = self._jeepney.DBusAddress(
            "/org/freedesktop/systemd1",
            bus_name="org.freedesktop.systemd1",
            interface="org.freedesktop.systemd1.Manager",
        )
        try:
            self._connection: Any = blocking.open_dbus_connection(_bus(), auth_timeout=timeout)
        except (OSError, ValueError, KeyError) as error:
            number = getattr(error, "errno", None) or errno.ECONNREFUSED
            raise _fail(number, f"no D-Bus at {_bus()}: {error}", _REACH) from None
        try:
            # Pids are told: they must mean the same there, which they do not on a bus bound into a container.
            (pid,) = self._send(self._bus.GetConnectionUnixProcessID(self._connection.unique_name), _ASK)
            if pid != os.getpid():
                raise _fail(errno.EXDEV, f"the bus at {_bus()} is another pid namespace's: it takes this for pid {pid}")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def _send(self, message: Any, step: str) -> Any:
        try:
            reply = self._connection.send_and_get_reply(message, timeout=self._timeout)
        except TimeoutError:
            raise _fail(errno.ETIMEDOUT, f"no answer within {self._timeout} s", step=step) from None
        if reply.header.message_type is self._jeepney.MessageType.error:
            raise _fail(errno.EACCES, f"systemd answers: {' '.join(map(str, reply.body))}", step=step)
        return reply.body

    def _method(self, name: str, signature: str | None = None, body: tuple[Any, ...] = ()) -> Any:
        return self._jeepney.new_method_call(self._address, name, signature, body)

    def start_scope(self, name: str, pids: Sequence[int], slice_: str = "") -> None:
        """Start a scope with Delegate=yes and these processes in it, and wait until it has started."""
        properties: list[tuple[str, tuple[str, Any]]] = [
            ("Description", ("s", "cgroups of a program that uses isolate")),
            ("PIDs", ("au", list(pids))),
            ("Delegate", ("b", True)),
            ("CollectMode", ("s", "inactive-or-failed")),
        ]
        if slice_:
            properties.append(("Slice", ("s", slice_)))
        ended = self._jeepney.MatchRule(
            type="signal", interface=self._address.interface, member="JobRemoved", path=self._address.object_path
        )
        start = self._method("StartTransientUnit", "ssa(sv)a(sa(sv))", (name, "fail", properties, []))
        with self._connection.filter(ended) as queue:
            self._send(self._bus.AddMatch(ended), _ASK)
            self._send(self._method("Subscribe"), _ASK)
            started = self._send(start, _ASK)
            while True:
                try:
                    signal = self._connection.recv_until_filtered(queue, timeout=self._timeout)
                except TimeoutError:
                    raise _fail(errno.ETIMEDOUT, f"{name} has not started within {self._timeout} s") from None
                _, job, _, result = signal.body
                if job == started[0]:
                    break
        if result != "done":
            raise _fail(errno.ECANCELED, f"systemd's job for {name} ended with {result!r}")

    def attach(self, unit: str, below: str, pid: int) -> None:
        """Move a process into a group below a unit's own that was delegated: ``below`` starts with "/".

        It must be a process of the uid that asks. Where this user's manager may not (the process comes from a login's
        scope), that asks the system's manager to (systemd 238).
        """
        step = f"have systemd move process {pid} into {unit}"
        self._send(self._method("AttachProcessesToUnit", "ssau", (unit, below, [pid])), step)


def enter_scope(hierarchy: Hierarchy, timeout: float = 30.0) -> str:
    """Have systemd make a scope with Delegate=yes and move this process into it; the scope's directory.

    :raises UnsupportedError: no jeepney, no bus, or systemd refuses; with systemd's words.
    """
    # Not one of the names that are swept: what this program starts may stay in the scope after its end.
    name = f"run-{naming.prefix()}own.scope"
    with Manager(timeout) as manager:
        manager.start_scope(name, [os.getpid()])
    from isolate.cgroups.hierarchy import discover

    v2 = discover().v2
    if v2 is None or not v2.own.endswith(f"/{name}"):
        raise _fail(errno.EPROTO, f"this process is not in {name} although systemd says so ({hierarchy.mount})")
    return v2.own
