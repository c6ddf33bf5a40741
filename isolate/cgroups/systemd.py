"""A transient scope from systemd: the way to a delegated group where systemd manages the hierarchy.

Needs the extra ``isolate-linux[systemd]`` (jeepney, pure Python). Root asks the system's manager, an ordinary user the
user's own (``user@UID.service``). org.freedesktop.systemd1(5), "StartTransientUnit"; Control Group APIs and Delegation.
"""

from __future__ import annotations

import errno
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from isolate.cgroups import naming
from isolate.errors import SetupError, UnsupportedError

if TYPE_CHECKING:
    from isolate.cgroups.hierarchy import Hierarchy

_STEP = "ask systemd for a scope with Delegate=yes"


def _bus() -> str:
    if os.geteuid() == 0:
        return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/dbus/system_bus_socket")
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")
    return os.environ.get("DBUS_SESSION_BUS_ADDRESS", f"unix:path={runtime}/bus")


def _fail(number: int, cause: str, remedy: str | None = None) -> SetupError:
    return UnsupportedError(number, _STEP, part="Cgroup", cause=cause, remedy=remedy)


def enter_scope(hierarchy: Hierarchy, timeout: float = 30.0) -> str:
    """Have systemd make a scope with Delegate=yes and move this process into it; the scope's directory.

    :raises UnsupportedError: no jeepney, no bus, or systemd refuses; with systemd's words.
    """
    try:
        # Optional, and without type information.
        jeepney: Any = import_module("jeepney")
        message_bus: Any = import_module("jeepney.bus_messages").message_bus
        blocking: Any = import_module("jeepney.io.blocking")
    except ImportError:
        raise _fail(
            errno.ENOPKG,
            "the jeepney package, which speaks D-Bus, is not installed",
            "pip install 'isolate-linux[systemd]', or run under: systemd-run "
            f"{'' if os.geteuid() == 0 else '--user '}--scope -p Delegate=yes PROGRAM",
        ) from None
    # Not one of the names that are swept: what this program starts may stay in the scope after its end.
    name = f"run-{naming.prefix()}own.scope"
    manager = jeepney.DBusAddress(
        "/org/freedesktop/systemd1", bus_name="org.freedesktop.systemd1", interface="org.freedesktop.systemd1.Manager"
    )
    ended = jeepney.MatchRule(type="signal", interface=manager.interface, member="JobRemoved", path=manager.object_path)
    properties: list[tuple[str, tuple[str, Any]]] = [
        ("Description", ("s", "cgroups of a program that uses isolate")),
        ("PIDs", ("au", [os.getpid()])),
        ("Delegate", ("b", True)),
        ("CollectMode", ("s", "inactive-or-failed")),
    ]
    start = jeepney.new_method_call(manager, "StartTransientUnit", "ssa(sv)a(sa(sv))", (name, "fail", properties, []))
    try:
        connection = blocking.open_dbus_connection(_bus(), auth_timeout=timeout)
    except (OSError, ValueError, KeyError) as error:
        raise _fail(
            getattr(error, "errno", None) or errno.ECONNREFUSED, f"no D-Bus at {_bus()}: {error}",
            "loginctl enable-linger, or export XDG_RUNTIME_DIR and DBUS_SESSION_BUS_ADDRESS",
        ) from None  # fmt: skip
    try:
        with connection, connection.filter(ended) as queue:
            connection.send_and_get_reply(message_bus.AddMatch(ended), timeout=timeout)
            connection.send_and_get_reply(jeepney.new_method_call(manager, "Subscribe"), timeout=timeout)
            reply = connection.send_and_get_reply(start, timeout=timeout)
            if reply.header.message_type is jeepney.MessageType.error:
                raise _fail(errno.EACCES, f"systemd answers: {' '.join(map(str, reply.body))}")
            while True:
                _, job, _, result = connection.recv_until_filtered(queue, timeout=timeout).body
                if job == reply.body[0]:
                    break
    except TimeoutError:
        raise _fail(errno.ETIMEDOUT, f"systemd has not answered within {timeout} s") from None
    if result != "done":
        raise _fail(errno.ECANCELED, f"systemd's job for {name} ended with {result!r}")
    from isolate.cgroups.hierarchy import discover

    v2 = discover().v2
    if v2 is None or not v2.own.endswith(f"/{name}"):
        raise _fail(errno.EPROTO, f"this process is not in {name} although systemd says so ({hierarchy.mount})")
    return v2.own
