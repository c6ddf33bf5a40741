"""A plugin for pytest: a network, a file system, a cgroup, a sandbox per test; a network per xdist worker.

Registered by the entry point ``pytest11`` through :mod:`isolate.tools.pytest_plugin`. It does nothing until a fixture,
a marker or an option asks for it, and imports the rest of the library only then. See :doc:`/pytest`.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from isolate.tools.pytest_network import lan as lan
from isolate.tools.pytest_network import pytest_runtest_makereport as pytest_runtest_makereport
from isolate.tools.pytest_refusal import cannot, flag, refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from isolate.cgroups import Cgroup
    from isolate.network.veth import Network
    from isolate.sandbox.box import Sandbox
    from isolate.tools.doctor import Ability

_MARK = "isolate_requires"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options and their settings in the configuration file."""
    group = parser.getgroup("isolate", "namespaces and cgroups per test (isolate)")
    group.addoption(
        "--isolate-user",
        action="store_true",
        default=False,
        help="as an ordinary user: enter a user namespace (and a mount, network, IPC and UTS namespace) at the start,"
        " so that the fixtures work without root",
    )
    group.addoption(
        "--isolate-net",
        choices=("no", "worker", "test"),
        default=None,
        help="give each xdist worker, or each test, a network of its own, with nothing but loopback",
    )
    group.addoption(
        "--isolate-strict",
        action="store_true",
        default=False,
        help="fail, where a fixture or marker of isolate's would skip since this host cannot do it",
    )
    group.addoption(
        "--isolate-capture",
        metavar="DIR",
        default=None,
        help="with the fixture `lan`: keep what the hosts of a test that failed sent and received, as pcapng",
    )
    parser.addini("isolate_user", "as --isolate-user", type="bool", default=False)
    parser.addini("isolate_net", "as --isolate-net", default="no")
    parser.addini("isolate_strict", "as --isolate-strict", type="bool", default=False)


def _net(config: pytest.Config) -> str:
    chosen = config.getoption("isolate_net") or config.getini("isolate_net")
    if chosen not in ("no", "worker", "test"):
        raise pytest.UsageError(f"isolate_net must be no, worker or test, not {chosen!r}")
    return str(chosen)


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """The marker; and what the options ask for, before any test, and before xdist starts its workers."""
    config.addinivalue_line(
        "markers", f"{_MARK}(*abilities): skip unless this host can do it; their names are those of `isolate doctor`"
    )
    net = _net(config)
    # Workers are children: they are inside of what this process has entered.
    if flag(config, "user") and os.geteuid() != 0 and not _is_worker(config):
        _enter_user()
    parallel = bool(getattr(config.option, "numprocesses", None) or getattr(config.option, "tx", None))
    if net == "worker" and (_is_worker(config) or not parallel):
        _enter_net()


def _enter_user() -> None:
    import getpass

    from isolate import errors, namespaces

    # Inside it is root by its number; pytest's own temporary directories go by the name, and those of a user without
    # one would be root's, in which each finds another's.
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"uid-{os.geteuid()}"
    os.environ.setdefault("LOGNAME", name)
    try:
        # One thread so far: this is the moment. The others are owned by it, so that with blocks find their way back.
        namespaces.UserNamespace(nested=True).enter()
        for kind in ("Mount", "Net", "Ipc", "Uts"):
            getattr(namespaces, f"{kind}Namespace")().enter()
    except errors.IsolateError as error:
        raise pytest.UsageError(f"--isolate-user: {error}") from None


def _enter_net() -> None:
    from isolate import errors, namespaces

    try:
        namespaces.NetNamespace().enter()
    except errors.IsolateError as error:
        raise pytest.UsageError(f"--isolate-net: {error}") from None


# Not wrapper=True: pluggy has that since 1.2 only, and pytest 7.2 comes with an older one.
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """With ``--isolate-net=test``, set-up, test and teardown of each are in a network of their own."""
    if _net(item.config) != "test":
        yield
        return
    from isolate import namespaces

    with namespaces.NetNamespace():
        yield


# ---- what this host cannot do ------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """The marker."""
    for mark in item.iter_markers(_MARK):
        if mark.kwargs or not mark.args:
            raise pytest.UsageError(f"{_MARK} takes names, such as 'net' or 'cgroup-memory'")
        for name in mark.args:
            known = _abilities()
            if name not in known:
                from isolate.kernel.checks import nearest

                hint = nearest(name, known) or f"; there are {', '.join(known)}"
                raise pytest.UsageError(f"{_MARK}: no ability is named {name!r}{hint}")
            if not known[name].ok:
                found = known[name]
                cannot(item.config, f"{name}: {found.reason}" + (f" ({found.remedy})" if found.remedy else ""))


_known: dict[str, Ability] = {}


def _abilities() -> dict[str, Ability]:
    if not _known:
        from isolate.tools import doctor as probe

        _known.update({ability.name: ability for ability in probe.abilities()})
    return _known


# ---- fixtures ----------------------------------------------------------------------------------------------------


@pytest.fixture
def netns(request: pytest.FixtureRequest) -> Iterator[Network]:
    """A network of the test's own: for this thread and what it starts, threads included. Loopback is up, no more.

    ``netns.peer()`` makes another one, connected by a veth pair.
    """
    from isolate import errors, namespaces
    from isolate.network import veth

    try:
        handle = namespaces.NetNamespace.create()
        handle.__enter__()
    except errors.SetupError as error:
        refused(request.config, error)
    network = veth.Network(handle)
    try:
        yield network
    finally:
        try:
            handle.__exit__(None, None, None)
        finally:
            network.close()


@pytest.fixture
def isolated_fs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A mount table of the test's own, with an empty tmpfs of 64 MiB as working directory, HOME and TMPDIR.

    What the test mounts, and what it writes there, is gone after it.
    """
    from isolate import errors, mounts, namespaces

    mount, tmpfs = namespaces.MountNamespace(), mounts.Tmpfs(tmp_path, mode=0o700)
    try:
        mount.__enter__()
    except errors.SetupError as error:
        refused(request.config, error)
    try:
        with tmpfs:
            for name in ("HOME", "TMPDIR"):
                monkeypatch.setenv(name, str(tmp_path))
            if "tempfile" in sys.modules:
                monkeypatch.setattr("tempfile.tempdir", None)
            os.chdir(tmp_path)
            yield tmp_path
    finally:
        mount.__exit__(None, None, None)


@pytest.fixture
def cgroup(request: pytest.FixtureRequest) -> Iterator[Cgroup]:
    """A fresh cgroup; what is in it afterwards is killed, and it is removed."""
    from isolate import cgroups, errors

    group = cgroups.Cgroup()
    try:
        group.create()
    except errors.SetupError as error:
        refused(request.config, error)
    try:
        yield group
    finally:
        group.close()


@pytest.fixture
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    """A sandbox with a pid, mount, network, IPC and UTS namespace; ``sandbox + isolate.Root(...)`` adds parts."""
    from isolate import errors, namespaces
    from isolate.diagnosis.host import Host
    from isolate.sandbox.box import Sandbox

    parts = [
        namespaces.PidNamespace(),
        namespaces.MountNamespace(),
        namespaces.NetNamespace(),
        namespaces.IpcNamespace(),
        namespaces.UtsNamespace(hostname="sandbox"),
    ]
    box = Sandbox(*parts, *([] if Host().capable() else [namespaces.UserNamespace()]))
    try:
        box.run(["true"])
    except errors.SetupError as error:
        refused(request.config, error)
    return box
