"""Capabilities: as a value, against capsh and getpcaps, and in the kernel."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isolate import Cap, Capabilities, Credentials, IdMap, NoNewPrivs, Sandbox, SecureBits, SetupError, UserNamespace
from isolate.capabilities.caps import mask, unmask
from isolate.capabilities.files import FileCapabilities
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator

CAPSH = shutil.which("capsh", path="/usr/sbin:/sbin:/usr/bin:/bin")
GETPCAPS = shutil.which("getpcaps", path="/usr/sbin:/sbin:/usr/bin:/bin")
needs_capsh = pytest.mark.skipif(CAPSH is None or GETPCAPS is None, reason="capsh and getpcaps (package libcap2-bin)")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

caps = st.frozensets(st.sampled_from(list(Cap)), max_size=12)


@st.composite
def capability_sets(draw: st.DrawFn) -> Capabilities:
    bounding = draw(st.frozensets(st.sampled_from(list(Cap))))
    within = st.sets(st.sampled_from(sorted(bounding))) if bounding else st.just(set())
    permitted, inheritable = draw(within), draw(within)
    both = sorted(permitted & inheritable)
    effective = draw(st.sets(st.sampled_from(sorted(permitted)))) if permitted else set()
    ambient = draw(st.sets(st.sampled_from(both))) if both else set()
    securebits = draw(st.sampled_from([None, 0, SecureBits.NOROOT]))
    return Capabilities(effective, permitted, inheritable, ambient, bounding, securebits)


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="isolate-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def sets_of(status: str) -> Capabilities:
    """The five sets in what /proc/self/status says."""
    rows = dict(line.split(":") for line in status.splitlines())
    names = ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd")
    return Capabilities(*(unmask(int(rows[name], 16)) for name in names))


def inside(*parts: object) -> Capabilities:
    """The sets of a program in a sandbox."""
    result = Sandbox(*parts).run(["grep", "^Cap", "/proc/self/status"], text=True)  # type: ignore[arg-type]
    assert result.returncode == 0, result.stderr
    return sets_of(result.stdout)


# ---- names ---------------------------------------------------------------------------------------------------------


@needs_capsh
@pytest.mark.parametrize("cap", [*Cap, Cap(41), Cap(63)], ids=str)
def test_names_are_those_of_libcap(cap: Cap) -> None:
    line = subprocess.run([str(CAPSH), f"--decode={mask([cap]):x}"], capture_output=True, text=True, check=True).stdout
    name = line.strip().partition("=")[2]
    assert name == (str(int(cap)) if cap > 40 else str(cap).lower())
    assert Cap.parse(name) is cap


def test_all_that_this_kernel_has_are_known() -> None:
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    assert set(range(last + 1)) <= {*map(int, Cap)}
    assert all("\n" not in cap.allows and len(cap.allows) > 10 for cap in Cap)
    assert len({cap.allows for cap in Cap}) == len(Cap) == 41


def test_the_documentation_has_each() -> None:
    page = (Path(__file__).parents[2] / "docs" / "capabilities.rst").read_text()
    missing = [cap for cap in Cap if f"   * - {int(cap)}\n     - ``{cap}``\n     - {cap.allows}\n" not in page]
    assert missing == []


@pytest.mark.parametrize("text", ["NET_ADMIN", "CAP_NET_ADMIN", "cap_net_admin", "net_admin", " Net_Admin ", "12"])
def test_spellings(text: str) -> None:
    assert Cap.parse(text) is Cap.NET_ADMIN
    assert Cap(text) is Cap.NET_ADMIN


@given(st.integers(0, 63))
def test_numbers(number: int) -> None:
    cap = Cap(number)
    assert cap is Cap(number) is Cap.parse(str(cap)) is pickle.loads(pickle.dumps(cap))
    assert int(cap) == number
    assert eval(repr(cap)) is cap
    assert len(list(Cap)) == 41


@pytest.mark.parametrize("wrong", ["NET_ADMN", "CAP_", "", "64", "-1", "CAP_NET_ADMIN\0", "²"])
def test_names_that_there_are_not(wrong: str) -> None:
    with pytest.raises(ValueError, match="no capability"):
        Cap.parse(wrong)


def test_the_nearest_name_is_told() -> None:
    with pytest.raises(ValueError, match="did you mean 'CAP_NET_ADMIN'"):
        Capabilities({"CAP_NET_ADMN"})


@pytest.mark.parametrize("wrong", [64, -1, 1.5, None])
def test_numbers_that_there_are_not(wrong: object) -> None:
    with pytest.raises(ValueError):
        Cap(wrong)
    with pytest.raises(TypeError):
        Capabilities({True})


# ---- arithmetic ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**64 - 1))
def test_masks(bits: int) -> None:
    assert mask(unmask(bits)) == bits


@given(capability_sets(), capability_sets())
def test_set_arithmetic(a: Capabilities, b: Capabilities) -> None:
    names = ("effective", "permitted", "inheritable", "ambient", "bounding")
    for name in names:
        assert getattr(a | b, name) == getattr(a, name) | getattr(b, name)
        assert getattr(a & b, name) == getattr(a, name) & getattr(b, name)
        assert getattr(a - b, name) <= getattr(a, name) - getattr(b, name)
    assert (a & b) <= a <= (a | b)
    assert not (a - a)
    assert (a - b) <= a
    assert (a | a) == (a & a) == (a - Capabilities.none()) == a


@given(capability_sets())
def test_values(a: Capabilities) -> None:
    assert eval(repr(a)) == a == pickle.loads(pickle.dumps(a))
    assert hash(eval(repr(a))) == hash(a)
    assert a.after_exec(root=True) <= a.after_exec(root=True, no_new_privs=False)
    assert len(str(a).splitlines()) == 6


def test_what_follows_from_effective_alone() -> None:
    wanted = frozenset({Cap.CHOWN})
    value = Capabilities({"chown"})
    assert value.permitted == value.inheritable == value.ambient == value.bounding == wanted
    without = Capabilities({"chown"}, ambient=())
    assert without == Capabilities({"chown"}, inheritable=(), ambient=(), bounding={"chown"})
    assert "CAP_CHOWN" in str(value)
    assert "all" in str(Capabilities.all())


def test_docker() -> None:
    # CapEff of a container started by Docker without options.
    assert mask(Capabilities.docker().effective) == 0xA80425FB
    assert not Capabilities.docker().ambient
    assert not Capabilities.docker().inheritable
    assert (Capabilities.docker() - {"MKNOD"}).bounding == Capabilities.docker().bounding - {Cap.MKNOD}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"effective": {"CHOWN"}, "permitted": ()}, "CAP_CHOWN: in effective but not in permitted"),
        ({"effective": {"CHOWN"}, "inheritable": (), "ambient": {"CHOWN"}}, "in ambient but not in inheritable"),
        ({"ambient": {"CHOWN"}}, "in ambient but not in permitted"),
        ({"effective": {"CHOWN"}, "bounding": ()}, "in permitted but not in bounding"),
        ({"inheritable": {"KILL"}, "bounding": ()}, "in inheritable but not in bounding"),
        ({"securebits": 0x100}, "securebits"),
    ],
)
def test_contradictions(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Capabilities(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [{"effective": "CHOWN"}, {"bounding": 3}, {"securebits": "NOROOT"}])
def test_wrong_types(arguments: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        Capabilities(**arguments)  # type: ignore[arg-type]


# ---- in the kernel ---------------------------------------------------------------------------------------------------


def test_none_by_default() -> None:
    assert not inside(UserNamespace())
    assert not inside(UserNamespace(uid=1000, gid=1000))


@as_root
def test_none_by_default_for_real_root() -> None:
    assert not inside()
    assert not inside(Credentials(uid=1000, gid=1000))


@as_root
def test_root_gets_nothing_back_from_exec() -> None:
    """Without no_new_privs too: bounding set and securebits see to it. The control: leave them, and root has all."""
    open_box = (NoNewPrivs(enabled=False), UserNamespace(nested=True))
    assert not inside(*open_box)
    control = inside(*open_box, Capabilities(bounding=tuple(Cap), securebits=0))
    assert control.effective == frozenset(Cap)


@pytest.mark.parametrize("uid", [0, 1000])
@pytest.mark.parametrize(
    "wanted",
    [Capabilities({"NET_ADMIN"}), Capabilities.all(), Capabilities.docker(), Capabilities((), inheritable={"KILL"})],
    ids=["one", "all", "docker", "inheritable"],
)
def test_presets_hold(wanted: Capabilities, uid: int) -> None:
    found = inside(UserNamespace(uid=uid, gid=uid), wanted)
    expected = wanted.after_exec(root=uid == 0)
    assert found == Capabilities(*(getattr(expected, n) for n in found.__dataclass_fields__ if n != "securebits"))


@settings(max_examples=30, deadline=None)
@given(capability_sets(), st.booleans())
def test_any_sets_hold_as_the_rule_says(wanted: Capabilities, root: bool) -> None:
    uid = 0 if root else 1000
    found = inside(UserNamespace(uid=uid, gid=uid), wanted)
    expected = wanted.after_exec(root=root)
    for name in ("effective", "permitted", "inheritable", "ambient", "bounding"):
        assert getattr(found, name) == getattr(expected, name), name


@needs_capsh
def test_capsh_and_getpcaps_see_the_same() -> None:
    wanted = Capabilities({"NET_ADMIN", "CHOWN"}, bounding={"NET_ADMIN", "CHOWN", "KILL"})
    box = Sandbox(UserNamespace(), wanted)
    shown = box.run([str(CAPSH), "--print"], text=True).stdout
    assert "Current: cap_chown,cap_net_admin=eip\n" in shown
    assert "Bounding set =cap_chown,cap_kill,cap_net_admin\n" in shown
    assert "Ambient set =cap_chown,cap_net_admin\n" in shown
    assert "secure-noroot: yes (locked)" in shown
    with box.spawn(["cat"], stdin=-1) as process:
        found = subprocess.run([str(GETPCAPS), str(process.pid)], capture_output=True, text=True, check=True)
        text = (found.stdout + found.stderr).split(":", 1)[1].strip()
        assert FileCapabilities.parse(text) == FileCapabilities(wanted.permitted, wanted.inheritable)
        live = Capabilities.of(process.pid)
        assert (live.effective, live.bounding) == (wanted.effective, wanted.bounding)


@needs_capsh
def test_securebits_are_locked() -> None:
    shown = Sandbox(UserNamespace()).run([str(CAPSH), "--print"], text=True).stdout
    for line in ("noroot: yes", "no-suid-fixup: yes", "keep-caps: no", "no-ambient-raise: yes"):
        assert f"secure-{line} (locked)" in shown
    control = Sandbox(UserNamespace(), Capabilities(securebits=0)).run([str(CAPSH), "--print"], text=True).stdout
    assert "secure-noroot: no (unlocked)" in control


@as_root
def test_denied_and_allowed(tmp_path: Path) -> None:
    """A capability that is not there does not work; the same attempt with it does."""
    file = tmp_path / "file"
    file.touch()
    denied = Sandbox().run(["chown", "12345", str(file)], text=True)
    assert denied.returncode != 0
    assert "Operation not permitted" in denied.stderr
    allowed = Sandbox(Capabilities({"CHOWN"})).run(["chown", "12345", str(file)], text=True)
    assert allowed.returncode == 0, allowed.stderr
    assert file.stat().st_uid == 12345


@as_root
def test_kept_over_a_change_of_uid(public: Path) -> None:
    file = public / "file"
    file.touch()
    parts = (Credentials(uid=1000, gid=1000), Capabilities({"CHOWN"}))
    assert Sandbox(parts[0]).run(["chown", "1000", str(file)]).returncode != 0
    assert inside(*parts).effective == {Cap.CHOWN}
    assert Sandbox(*parts).run(["chown", "1000", str(file)]).returncode == 0


@as_root
def test_what_the_caller_has_not_is_an_error() -> None:
    mine = Capabilities.of()
    lacking = sorted(set(Cap) - mine.permitted)
    if not lacking:
        pytest.skip("this root has every capability")
    with pytest.raises(SetupError, match="not all of what is wanted") as caught:
        Sandbox(Capabilities({lacking[0]})).run(["true"])
    assert caught.value.errno == errno.EPERM
    assert caught.value.part == "Capabilities"
    assert caught.value.syscall == "capset"


def test_a_capability_that_the_kernel_does_not_know() -> None:
    if int(Path("/proc/sys/kernel/cap_last_cap").read_text()) >= 63:
        pytest.skip("this kernel knows 64")
    with pytest.raises(SetupError, match="does not know") as caught:
        Sandbox(UserNamespace(), Capabilities({63})).run(["true"])
    assert caught.value.errno == errno.EINVAL


def test_an_ordinary_user() -> None:
    """Without a user namespace the bounding set stays, harmless by no_new_privs; without that too, it is an error."""
    out = as_ordinary_user(
        "from isolate import Capabilities, Credentials, NoNewPrivs, Sandbox, SetupError\n"
        "box = Sandbox(Credentials(groups=None))\n"
        "print(box.run(['grep', '-E', '^(Cap|NoNew)', '/proc/self/status'], text=True).stdout, end='')\n"
        "try:\n"
        "    Sandbox(Capabilities({'KILL'}), Credentials(groups=None)).run(['true'])\n"
        "except SetupError as error:\n"
        "    print('error', error.errno, error.part)\n"
    )
    lines = out.splitlines()
    assert "NoNewPrivs:\t1" in lines
    assert f"error {errno.EPERM} Capabilities" in lines
    found = sets_of("\n".join(line for line in lines if line.startswith("Cap")))
    assert not found.permitted | found.effective | found.ambient | found.inheritable


def test_an_ordinary_user_without_no_new_privs() -> None:
    denied = as_ordinary_user(
        "from isolate import Capabilities, Credentials, NoNewPrivs, Sandbox, SetupError\n"
        "try:\n"
        "    Sandbox(NoNewPrivs(enabled=False), Credentials(groups=None)).run(['true'])\n"
        "except SetupError as error:\n"
        "    print('error', error.errno, error.part, error.cause)\n"
    )
    assert denied.startswith(f"error {errno.EIO} Capabilities the bounding set is not as wanted")


# ---- files -----------------------------------------------------------------------------------------------------------

file_capabilities = st.builds(
    FileCapabilities, caps, caps, st.booleans(), st.one_of(st.none(), st.integers(0, 2**32 - 2))
)


@given(file_capabilities)
def test_file_capabilities_as_bytes_and_text(value: FileCapabilities) -> None:
    data = value.to_bytes()
    assert len(data) == (20 if value.root_id is None else 24)
    assert FileCapabilities.from_bytes(data) == value
    assert FileCapabilities.parse(str(value).partition(" [")[0]) == FileCapabilities(
        value.permitted, value.inheritable, value.effective
    )


@given(st.binary(max_size=30))
def test_other_bytes_are_refused_or_read(data: bytes) -> None:
    try:
        value = FileCapabilities.from_bytes(data)
    except ValueError:
        return
    assert len(data) in (12, 20, 24)
    assert isinstance(value, FileCapabilities)


def test_file_capabilities_of_version_1() -> None:
    data = (0x01000001).to_bytes(4, "little") + (1 << Cap.NET_RAW).to_bytes(4, "little") + bytes(4)
    assert FileCapabilities.from_bytes(data) == FileCapabilities({"NET_RAW"})


@pytest.mark.parametrize("text", ["cap_net_raw", "cap_net_rw+ep", "cap_net_raw+x", "+ep", "cap_net_raw=ep cap_kill=p"])
def test_texts_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):
        FileCapabilities.parse(text)


@as_root
@needs_capsh
@pytest.mark.parametrize("text", ["cap_net_raw=ep", "cap_chown,cap_kill=eip", "cap_setuid=p", "cap_sys_admin=i"])
def test_files_against_setcap_and_getcap(tmp_path: Path, text: str) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.touch()
    ours.touch()
    subprocess.run(["setcap", text, str(theirs)], check=True, env={"PATH": "/usr/sbin:/sbin"})
    value = FileCapabilities.read(theirs)
    assert value == FileCapabilities.parse(text)
    value.write(ours)
    assert os.getxattr(ours, "security.capability") == os.getxattr(theirs, "security.capability")
    with ours.open("rb") as file:
        assert FileCapabilities.read(file.fileno()) == value
    FileCapabilities().write(ours)
    assert FileCapabilities.read(ours) == FileCapabilities()
    FileCapabilities().write(ours)


@as_root
def test_a_root_id_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    value = FileCapabilities({"CHOWN"}, root_id=100000)
    value.write(tmp_path / "file")
    assert FileCapabilities.read(tmp_path / "file") == value


@as_root
def test_file_capabilities_give_nothing_inside(public: Path) -> None:
    """The control: the same file gives CAP_KILL where no_new_privs is off and the bounding set allows it."""
    program = public / "grep"
    shutil.copy("/bin/grep", program)
    program.chmod(0o755)
    FileCapabilities({"KILL"}, effective=False).write(program)
    look = [str(program), "^Cap", "/proc/self/status"]
    user = Credentials(uid=1000, gid=1000)
    denied = sets_of(Sandbox(user).run(look, text=True).stdout)
    assert not denied
    everyone = UserNamespace(nested=True, map=IdMap([(0, 0, 65536)], [(0, 0, 65536)]))
    bounded = Capabilities((), bounding={"KILL"}, securebits=0)
    open_box = Sandbox(user, NoNewPrivs(enabled=False), bounded, everyone)
    allowed = sets_of(open_box.run(look, text=True).stdout)
    assert allowed.permitted == {Cap.KILL}
    # With the effective flag the kernel rather refuses exec than that a program runs with less than it counts on.
    FileCapabilities({"KILL"}, effective=True).write(program)
    assert sets_of(open_box.run(look, text=True).stdout).effective == {Cap.KILL}
    with pytest.raises(SetupError, match="the file has capabilities") as caught:
        Sandbox(user).run(look)
    assert (caught.value.errno, caught.value.syscall) == (errno.EPERM, "execve")
