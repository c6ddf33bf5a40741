"""Profiles: a sandbox as TOML and JSON and back without loss, and what is refused with the path of its key."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import isolate
from isolate import (
    Bind,
    Capabilities,
    CgroupFs,
    Credentials,
    Dev,
    Dir,
    Etc,
    File,
    IdMap,
    Landlock,
    Limits,
    Mask,
    MountNamespace,
    Mqueue,
    NoNewPrivs,
    Overlay,
    Proc,
    ReadOnly,
    Rlimits,
    Root,
    Sandbox,
    Scheduling,
    Seccomp,
    SessionKeyring,
    SetIdFiles,
    Surroundings,
    Symlink,
    Sys,
    TimeNamespace,
    Tmpfs,
    UserNamespace,
    UtsNamespace,
    presets,
)
from isolate.seccomp import allow, arg, arg32, deny
from isolate.tools import profiles
from isolate.tools.profiles import ProfileError
from isolate.tools.profiles.making import make
from isolate.tools.profiles.words import ENTRIES, PARTS, class_of
from isolate.tools.profiles.writing import _part

SCHEMA = jsonschema.Draft202012Validator(profiles.schema())  # made once: that takes longer than what it is asked
ENTRY = (
    Bind(b"/a\xff"),
    Dev(shm=None),
    File("/a", b"\x00\xff\x7f"),
    Etc(),
    Tmpfs("/x", size="1M", inodes=4),
    Overlay("/l", lower=["/a", "/b"]),
    Mask("/q"),
    ReadOnly("/r"),
    Symlink("a\x7f\n", "/c"),
    Bind("/m", idmap=IdMap([(0, 1000, 5)], [(0, 1000, 5)])),
    Proc(hidepid="invisible"),
    Sys(),
    Mqueue(),
    CgroupFs(),
    Dir("/d", mode=0o700),
)
BOXES = {
    "untrusted": lambda: presets.untrusted(),
    "network": lambda: presets.untrusted(network=True),
    "container": lambda: presets.container("/"),
    "process": lambda: Sandbox(
        Capabilities(["net_raw"], securebits=1),
        Rlimits(stack=("1M", "2M"), as_="unlimited", nofile=2**64 - 1),
        Scheduling(affinity={0}, ioprio=("best-effort", 3)),
        Credentials(groups=None),
        NoNewPrivs(True),
        SetIdFiles(),
        SessionKeyring(False),
        Surroundings(env={"A b": "1\n"}, cwd="/tmp", cmd=["x"]),
    ),
    "twice": lambda: Sandbox(
        Landlock(read=["/usr"], scopes=["signal"]), Seccomp.strict(), Landlock(bind_tcp=[80]), template=False
    ),
    "conditions": lambda: Sandbox(
        Seccomp.default() + allow("ptrace", when=(arg(0) == 1) | ((arg32(1) != 2) & (arg(2) > 0x8000000000000001)))
    ),
    "rules": lambda: Sandbox(Seccomp(deny("mount"), otherwise="allow", foreign="ENOSYS", compat="i386", log=True)),
    "no filter": lambda: Sandbox(Seccomp.none()),
    "entries": lambda: Sandbox(MountNamespace(), Root(*ENTRY)),
    "ids": lambda: Sandbox(
        UserNamespace(map=IdMap.single(0, 0, host_uid=5, host_gid=6), quotas={"pid_namespaces": 3}),
        TimeNamespace(monotonic=1.5, boottime=(1, 2)),
        UtsNamespace(path=pathlib.Path("/proc/self/ns/uts")),
    ),
}


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("format", ["toml", "json"])
def test_there_and_back(name: str, format: str) -> None:
    box = BOXES[name]()
    text = profiles.dumps(box, format)
    again = profiles.loads(text, format)
    assert (again.parts, again.template) == (box.parts, box.template)
    SCHEMA.validate(profiles.to_data(box))


def test_limits_that_name_what_this_host_may_not_have() -> None:
    limits = Limits(
        "1G",
        swap=0,
        pids="max",
        cpus="0-2",
        io={"8:0": {"rbps": "1M", "wbps": "max"}},
        hugetlb={"2MB": "4M"},
        devices=["c 1:3 rw", "b 8:* r"],
        rdma={"mlx": {"hca_handle": 2}},
        misc={"a": 3},
        net_prio={"eth0": 2},
        cpu=0.5,
        cpu_burst=0.01,
    )
    table = _part("Limits", limits, "Limits")
    assert make("Limits", json.loads(json.dumps(table)), "Limits", None) == limits
    SCHEMA.validate({"version": 1, "Limits": table})


def test_every_public_part_has_words() -> None:
    """A part that is added to the library is one of a profile too, or is named here as something of one process."""
    processes = {"Cgroup", "CgroupPool", "Workspace"}
    protocols = {"Part", "Change", "Entry", "TreeEntry"}
    packages = [importlib.import_module(f"isolate{name}") for name in ("", ".mounts", ".network", ".images", ".build")]
    public = {name: getattr(package, name) for package in packages for name in package.__all__}
    for name in processes | protocols:
        del public[name]
    assert {name for name, found in public.items() if hasattr(found, "steps")} == set(PARTS)
    assert {name for name, found in public.items() if hasattr(found, "steps_in")} == set(ENTRIES)
    assert all(class_of(name) is public[name] for name in (*PARTS, *ENTRIES))


@settings(deadline=None, max_examples=40)
@given(st.text(), st.binary(min_size=1).filter(lambda data: b"\0" not in data), st.binary())
def test_any_text_and_bytes(word: str, path: bytes, data: bytes) -> None:
    word = word.replace("\0", "").encode("utf-8", "replace").decode() + "x"
    box = Sandbox(Root(Bind(b"/" + path.replace(b"..", b""), "/x"), File("/f", data)), Surroundings(env={"A": word}))
    for format in ("toml", "json"):
        assert profiles.loads(profiles.dumps(box, format), format).parts == box.parts


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ("", "version", "version = 1"),
        ("version = 2", "version", "reads 1"),
        ("version = true", "version", "reads 1"),
        ("[Limit]", "Limit", "did you mean 'Limits'?"),
        ("[Limits]\nmemroy = '1M'", "Limits.memroy", "did you mean 'memory'?"),
        ("[Limits]\nmemory = '1X'\npids = 3", "Limits.memory", "a size such as"),
        ("[Limits]\nparent = 3", "Limits.parent", "a path"),
        ("[Root]\nentries = [{kind = 'Dev'}, {kind = 'Bind', target = '/x'}]", "Root.entries[1].source", "given"),
        ("[Root]\nentries = [{kind = 'Bind', source = 'usr'}]", "Root.entries[0].source", "absolute"),
        ("[Root]\nentries = [{kind = 'Bind', source = './usr'}]", "Root.entries[0].source", "absolute"),
        ("[Root]\nentries = [{kind = 'Bind', source = 3}]", "Root.entries[0].source", "descriptor"),
        ("[Root]\nentries = [{kind = 'Bnid'}]", "Root.entries[0].kind", "did you mean 'Bind'?"),
        ("[UserNamespace]\nfd = 3", "UserNamespace.fd", "descriptor"),
        ("[Seccomp]\nrules = [{action = 'allow', calls = ['raed']}]", "Seccomp.rules[0].calls", "'read'"),
        (
            "[Seccomp]\nrules = [{action = 'allow', calls = ['read'], when = {arg = 9, op = '==', value = 1}}]",
            "Seccomp.rules[0].when",
            "0 to 5",
        ),
        ("[Seccomp]\npolicy = 'none'\nrules = [{action = 'kill', calls = ['read']}]", "Seccomp", "no filter"),
        ("[Seccomp]\nbpf = 'AAAA'", "Seccomp.bpf", ""),
        ("[Capabilities]\neffective = ['net_rw']", "Capabilities.effective", "NET_RAW"),
        ("[Landlock]\nread = ['/usr']\n[PidNamespace]\n[[NoNewPrivs]]\n[[NoNewPrivs]]", "", "NoNewPrivs"),
        ("extends = 'untrused'", "extends", "did you mean 'untrusted'?"),
        ("without = ['Root']", "without[0]", "Root"),
        ("order = ['Limits']", "order", "each part"),
    ],
)
def test_what_is_wrong_is_told_with_its_path(text: str, path: str, words: str) -> None:
    top = text if text.startswith("version") or not text else f"version = 1\n{text}"
    with pytest.raises(ProfileError) as told:
        profiles.loads(top)
    assert told.value.path == path
    assert words in str(told.value)


def test_what_has_no_words_is_refused() -> None:
    class Own:
        required = True

        def steps(self, context: object) -> list[Any]:
            return []

    with pytest.raises(ProfileError, match="Own"):
        profiles.dumps(Sandbox(Own()))
    with pytest.raises(ProfileError, match="handlers"):
        profiles.dumps(Sandbox(Seccomp(notify={"mkdir": lambda call: call.proceed()}, otherwise="allow")))


def test_extends(tmp_path: pathlib.Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "base.toml").write_text(
        "version = 1\nextends = 'untrusted'\nwithout = ['UtsNamespace']\n[Rlimits]\nnofile = 64\n"
        "[Root]\nentries = [{kind = 'Bind', source = './task', target = '/task'}]\n"
    )
    below = tmp_path / "below"
    below.mkdir()
    (below / "judge.json").write_text(
        json.dumps(
            {
                "version": 1,
                "extends": "../base.toml",
                "Seccomp": {"rules": [{"action": "allow", "calls": ["ptrace"]}]},
                "Rlimits": {"fsize": 7},
            }
        )
    )
    box = profiles.load(below / "judge.json")
    parts: dict[Any, Any] = {type(part): part for part in box.parts}
    assert UtsNamespace not in parts
    assert parts[Root].entries[:-1] == presets.untrusted().parts[6].entries
    assert parts[Root].entries[-1] == Bind(tmp_path / "task", "/task")
    assert (parts[Rlimits].nofile, parts[Rlimits].fsize, parts[Rlimits].core) == (64, 7, 0)
    assert parts[Seccomp] == Seccomp.default() + allow("ptrace")


def test_profiles_that_extend_one_another(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.toml").write_text("version = 1\nextends = 'b.toml'\n")
    (tmp_path / "b.toml").write_text("version = 1\nextends = 'a.toml'\n")
    with pytest.raises(ProfileError, match="extends itself"):
        profiles.load(tmp_path / "a.toml")


# ---- from other tools ----------------------------------------------------------------------------------------------

CONFIG: dict[str, Any] = {
    "ociVersion": "1.2.0",
    "root": {"path": "rootfs", "readonly": True},
    "hostname": "runc",
    "process": {
        "terminal": True,
        "user": {"uid": 3, "gid": 4, "additionalGids": [5]},
        "args": ["sh"],
        "cwd": "/",
        "env": ["PATH=/bin", "A=b=c"],
        "noNewPrivileges": True,
        "capabilities": {"bounding": ["CAP_KILL", "CAP_CHOWN"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 512}],
    },
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "options": ["newinstance", "ptmxmode=0666", "gid=5"]},
        {"destination": "/dev/shm", "type": "tmpfs", "options": ["nosuid", "noexec", "size=65536k"]},
        {"destination": "/sys", "type": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/data", "source": "data", "options": ["rbind", "ro", "noexec"]},
    ],
    "linux": {
        "resources": {
            "devices": [{"allow": False, "access": "rwm"}],
            "pids": {"limit": 9},
            "memory": {"limit": 1 << 26, "swap": 1 << 26},
        },
        "namespaces": [{"type": t} for t in ("pid", "network", "ipc", "uts", "mount", "cgroup", "user")],
        "uidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}],
        "gidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}],
        "maskedPaths": ["/proc/kcore", "/proc/other"],
        "readonlyPaths": ["/proc/bus"],
        "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ERRNO"}]},
    },
}


def test_a_configuration_of_a_runtime() -> None:
    box = profiles.from_oci(CONFIG, bundle="/b")
    parts: dict[Any, Any] = {type(part): part for part in box.parts}
    assert parts[Root].entries == (
        Bind("/b/rootfs", "/"),
        Proc(),
        Dev(shm="65536k"),
        Sys(),
        Bind("/b/data", "/data", exec=False),
        Mask("/proc/other", optional=True),
    )
    assert parts[Credentials] == Credentials(3, 4, (5,))
    assert parts[Rlimits].nofile == (512, 1024)
    assert parts[Capabilities].bounding == frozenset({isolate.Cap.KILL, isolate.Cap.CHOWN})
    assert (parts[Limits].memory, parts[Limits].swap, parts[Limits].pids) == (1 << 26, 0, 9)
    assert parts[Surroundings] == Surroundings(env={"PATH": "/bin", "A": "b=c"}, cwd="/", cmd=["sh"])
    assert parts[UserNamespace].map == IdMap([(0, 100000, 65536)], [(0, 100000, 65536)])
    assert profiles.loads(profiles.dumps(box)).parts == box.parts


@pytest.mark.parametrize(
    ("keys", "value", "path"),
    [
        (("hooks",), {"prestart": [{"path": "/x"}]}, "hooks"),
        (("linux", "sysctl"), {"net.ipv4.ip_forward": "1"}, "linux.sysctl"),
        (("linux", "cgroupsPath"), "/x", "linux.cgroupsPath"),
        (("process", "apparmorProfile"), "x", "process.apparmorProfile"),
        (("process", "selinuxLabel"), "x", "process.selinuxLabel"),
        (("linux", "resources", "memory", "kernel"), 5, "linux.resources.memory.kernel"),
        (("linux", "resources", "devices"), [{"allow": True}], "linux.resources.devices[0]"),
        (("linux", "namespaces", 0, "type"), "pids", "linux.namespaces[0].type"),
        (("mounts", 5, "options"), ["rbind", "shared"], "mounts[5].options"),
        (("mounts", 0, "options"), ["ro"], "mounts[0].options"),
        (("mounts", 0, "type"), "nfs", "mounts[0].type"),
        (("root",), {}, "root.path"),
        (("process", "capabilities", "effective"), ["CAP_NONE"], "process.capabilities"),
        (("linux", "seccomp", "listenerPath"), "/x", "linux.seccomp"),
    ],
)
def test_what_cannot_be_honoured_is_an_error(keys: tuple[Any, ...], value: Any, path: str) -> None:
    config = json.loads(json.dumps(CONFIG))
    at = config
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    with pytest.raises(ProfileError) as told:
        profiles.from_oci(config, bundle="/b")
    assert told.value.path == path


def test_what_proc_masks_by_itself_is_masked_where_it_is_the_hosts() -> None:
    config = json.loads(json.dumps(CONFIG))
    config["mounts"][0] = {"destination": "/proc", "source": "/proc", "options": ["rbind"]}
    root: Any = next(part for part in profiles.from_oci(config, bundle="/b").parts if isinstance(part, Root))
    assert Mask("/proc/kcore", optional=True) in root.entries
    assert ReadOnly("/proc/bus") in root.entries


def test_a_seccomp_profile_of_docker_is_decided_by_the_capabilities(tmp_path: pathlib.Path) -> None:
    docker = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            {"names": ["read", "execve", "execveat"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        ],
    }
    (tmp_path / "docker.json").write_text(json.dumps(docker))
    text = "version = 1\n[Seccomp]\nfile = 'docker.json'\n"
    with_caps = "[Capabilities]\neffective = ['sys_admin']\n"
    for profile, allowed in ((text, False), (text + with_caps, True)):
        box = profiles.loads(profile, directory=tmp_path)
        policy: Any = next(part for part in box.parts if isinstance(part, Seccomp))
        assert policy.simulate("mount").makes_call is allowed
        assert policy.simulate("read").makes_call


# ---- the command line ----------------------------------------------------------------------------------------------


def isolate_(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "isolate", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_command_line(tmp_path: pathlib.Path) -> None:
    (tmp_path / "task").mkdir(mode=0o755)
    tmp_path.chmod(0o755)
    profile = tmp_path / "judge.toml"
    profile.write_text(
        "version = 1\nextends = 'untrusted'\n[UtsNamespace]\nhostname = 'judge'\n"
        "[Root]\nentries = [{kind = 'Dir', target = '/task'}]\n"
    )
    done = isolate_("run", "--profile", str(profile), "--dir", "/more", "--", "sh", "-c", "uname -n; ls -d /task /more")
    assert (done.stdout, done.stderr, done.returncode) == ("judge\n/more\n/task\n", "", 0)
    assert isolate_("profile", "check", str(profile)).stdout == f"{profile}: ok\n"
    converted = isolate_("profile", "convert", "--to", "json", str(profile)).stdout
    assert profiles.loads(converted, "json") == profiles.load(profile)
    assert json.loads(isolate_("profile", "schema").stdout) == profiles.schema()
    profile.write_text("version = 1\n[Limits]\nmemroy = 1\n")
    wrong = isolate_("profile", "check", "--json", str(profile))
    assert (wrong.returncode, json.loads(wrong.stdout)["path"]) == (2, "Limits.memroy")
    refused = isolate_("run", "--profile", str(profile), "--", "true")
    assert refused.returncode == 2
    assert "Limits.memroy" in refused.stderr


def test_options_leave_several_parts_of_a_kind(tmp_path: pathlib.Path) -> None:
    profile = tmp_path / "two.toml"
    profile.write_text("version = 1\n[[Landlock]]\nbind_tcp = [1]\n[[Landlock]]\nconnect_tcp = [2]\n")
    assert isolate_("explain", "--code", "--profile", str(profile)).stdout.count("Landlock(") == 2


def files(tmp_path: pathlib.Path) -> dict[str, pathlib.Path]:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "directory.toml").mkdir()
    with open(tmp_path / "large.toml", "wb") as file:
        file.truncate((16 << 20) + 1)
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    (tmp_path / "sound.toml").write_text("version = 1\n")
    return {path.stem: path for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pipe", "must be a regular file, not a pipe"),
        ("directory", "must be a regular file, not a directory"),
        ("zero", "must be a regular file, not a device"),
        ("large", "must have at most 16777216 bytes"),
    ],
)
def test_a_file_that_may_never_end_is_not_waited_for(name: str, words: str, tmp_path: pathlib.Path) -> None:
    path = files(tmp_path)[name]
    for text, key in (('extends = "{}"', "extends"), ('[Seccomp]\nfile = "{}"', "Seccomp.file")):
        with pytest.raises(ProfileError, match=words) as caught:
            profiles.loads("version = 1\n" + text.format(path))
        assert caught.value.path == key
        assert str(caught.value).count(str(path)) == 1
    with pytest.raises(ProfileError, match=f"^{path}: {words}"):
        profiles.load(path)
    assert profiles.load(path.with_name("sound.toml")) == Sandbox()


HALF = "\ud800"


@pytest.mark.parametrize(
    ("table", "path"),
    [
        ({"UtsNamespace": {"hostname": HALF}}, "UtsNamespace.hostname"),
        ({"Surroundings": {"env": {HALF: "x"}}}, "Surroundings.env"),
        ({"Root": {"entries": [{"kind": "Bind", "source": "/" + HALF}]}}, "Root.entries[0].source"),
        ({"extends": HALF + ".toml"}, "extends"),
    ],
)
def test_half_of_a_surrogate_pair_has_no_bytes(table: dict[str, Any], path: str) -> None:
    text = json.dumps({"version": 1, **table})
    with pytest.raises(ProfileError, match="must be text that has bytes") as caught:
        profiles.loads(text, "json")
    assert caught.value.path == path
    assert "codec" not in str(caught.value)
    stray = text.replace("\\ud800", "\\udcff")  # a byte that is not UTF-8, as os.fsdecode has it
    if path.startswith("Root"):
        assert profiles.loads(stray, "json") == Sandbox(isolate.Root(isolate.Bind(b"/\xff")))


@pytest.mark.parametrize("format", ["json", "toml"])
def test_a_key_stands_once(format: str) -> None:
    """Who reads the first one would not see the one that counts."""
    twice = {
        "json": '{"version": 1, "Limits": {"memory": "1M", "memory": "9G"}}',
        "toml": 'version = 1\n[Limits]\nmemory = "1M"\nmemory = "9G"\n',
    }[format]
    with pytest.raises(ProfileError, match=r"twice|overwrite"):
        profiles.loads(twice, format)
    once = twice.replace("memory", "pids", 1).replace('"1M"', "5")
    assert profiles.loads(once, format)
