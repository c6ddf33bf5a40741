"""Profiles in JSON: what is read, what is written, what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isolate.kernel import syscalls
from isolate.seccomp import Seccomp, allow, arg, arg32, deny
from isolate.seccomp.actions import Action
from isolate.seccomp.conditions import MASK64
from tests.seccomp import docker
from tests.seccomp.test_compiler import plain_policies

PODMAN = Path("/usr/share/containers/seccomp.json")


def test_docker_profile_by_capability_architecture_and_kernel() -> None:
    text = json.dumps(docker.profile())
    plain = Seccomp.from_oci(text, arch="x86_64", kernel=(6, 1))
    assert plain.compat == ("i386", "x32")
    answer = plain.answer
    assert answer("mount").action == Action.EPERM
    assert answer("clone3").action == Action.ENOSYS
    assert answer("clone", 0x11).action == Action.ALLOW
    assert answer("clone", 0x10000011).action == Action.EPERM
    assert answer("ptrace").action == Action.ALLOW
    assert answer("socket", 40).action == Action.EPERM
    assert answer("modify_ldt").action == Action.ALLOW
    admin = Seccomp.from_oci(text, capabilities=["sys_admin", "CAP_SYS_CHROOT"], arch="x86_64", kernel=(6, 1))
    assert admin.answer("mount").action == Action.ALLOW
    assert admin.answer("clone3").action == Action.ALLOW
    assert admin.answer("clone", 0x10000011).action == Action.ALLOW
    assert admin.answer("chroot").action == Action.ALLOW
    assert Seccomp.from_oci(text, arch="x86_64", kernel=(4, 7)).answer("ptrace").action == Action.EPERM
    arm = Seccomp.from_oci(text, arch="aarch64", kernel=(6, 1))
    assert arm.compat == ("arm",)
    assert arm.answer("openat", arch="aarch64").action == Action.ALLOW


@pytest.mark.skipif(not PODMAN.exists(), reason="no profile of Podman's is installed (golang-github-containers-common)")
def test_podman_profile() -> None:
    policy = Seccomp.from_oci(PODMAN.read_bytes(), capabilities=["CAP_AUDIT_WRITE"])
    assert policy.simulate("read") == Action.ALLOW
    assert policy.simulate("kexec_load") == Action.EPERM
    assert policy.simulate("bpf") == Action.EPERM
    assert Seccomp.from_oci(PODMAN.read_bytes(), capabilities=["CAP_SYS_ADMIN"]).simulate("bpf") == Action.ALLOW


@settings(max_examples=60, deadline=None)
@given(policy=plain_policies())
def test_there_and_back(policy: Seccomp) -> None:
    again = Seccomp.from_oci(json.loads(json.dumps(policy.to_oci())))
    chooser = random.Random(5)
    values = [0, 1, 2, 0x5412, 2**31, 2**32, 2**63, MASK64]
    for name in ("read", "write", "close", "ioctl", "openat", "clone", "clone3", "futex", "mount", "openat2"):
        for _ in range(20):
            args = chooser.choices(values, k=6)
            assert again.answer(name, *args).action == policy.answer(name, *args).action, (name, args)


def test_order_is_kept_by_conditions() -> None:
    policy = Seccomp(
        allow("kill"),
        deny("kill", when=arg(0) == 1),
        allow("openat", when=(arg(2) & 3) == 0),
        otherwise="EACCES",
    )
    again = Seccomp.from_oci(policy.to_oci())
    for name, args in (("kill", (1,)), ("kill", (2,)), ("openat", (0, 0, 4)), ("openat", (0, 0, 5)), ("mount", ())):
        assert again.answer(name, *args).action == policy.answer(name, *args).action


def test_what_oci_cannot_say() -> None:
    with pytest.raises(ValueError, match="under a mask it has only =="):
        Seccomp(allow("ioctl", when=arg32(1) != 0x5412)).to_oci()
    with pytest.raises(ValueError, match="two conditions on one argument"):
        Seccomp(allow("ioctl", when=(arg(1) != 1) & (arg(1) != 3))).to_oci()
    with pytest.raises(ValueError, match="foreign"):
        Seccomp(foreign="allow").to_oci()
    with pytest.raises(ValueError, match="ready program"):
        Seccomp.from_bpf(Seccomp().program()).to_oci()


def entry(**more: Any) -> dict[str, Any]:
    return {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", **more}]}


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("{", "not JSON"),
        ({}, "unknown action None"),
        ({"defaultAction": "SCMP_ACT_ALOW"}, "unknown action"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "syscals": []}, "did you mean 'syscalls'"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": {}}, "not a list"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_X"]}, "unknown flag"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_Z80"]}, "unknown architecture"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}, "listenerPath"),
        (entry(nmaes=[]), "did you mean 'names'"),
        (entry(names=[]), "no names"),
        (entry(names=["re ad"]), "no names"),
        (entry(errnoRet=9999, action="SCMP_ACT_ERRNO"), "out of range"),
        (entry(errnoRet="1", action="SCMP_ACT_ERRNO"), "not an unsigned"),
        (entry(args=[{"index": 6, "op": "SCMP_CMP_EQ"}]), "arguments 0 to 5"),
        (entry(args=[{"index": 0, "op": "SCMP_CMP_XX"}]), "unknown operator"),
        (entry(args=[{"index": 0, "op": "SCMP_CMP_EQ", "value": -1}]), "not an unsigned"),
        (entry(args=[{"index": 0, "op": "SCMP_CMP_EQ", "valeu": 1}]), "did you mean 'value'"),
        (entry(args=[{"index": 0, "op": "SCMP_CMP_LT", "value": 0}]), "never holds"),
        (entry(includes={"capz": []}), "unknown field"),
        (entry(includes={"minKernel": "new"}), "minKernel"),
    ],
)
def test_refused(profile: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Seccomp.from_oci(profile)


def test_calls_of_other_architectures_and_kernels_to_come_are_passed_over() -> None:
    policy = Seccomp.from_oci(entry(names=["read", "s390_pci_mmio_read", "call_of_2040"]))
    assert policy.rules == (allow("read"),)


def test_default_is_as_strict_as_dockers() -> None:
    """Whatever default() allows, Docker's default allows. Docker's is that of Linux 5.16; later calls are left out."""
    for arch in ("x86_64", "aarch64", "riscv64"):
        theirs = Seccomp.from_oci(docker.profile(), arch=arch, kernel=(5, 16))
        ours = Seccomp.default()
        chooser = random.Random(3)
        values = [0, 1, 2, 8, 10, 16, 17, 38, 40, 0x11, 0x5412, 0x20000, 0x20008, 0x10000000, 2**32 - 1, 2**32, MASK64]
        strictly = 0
        for name in syscalls.names(arch):
            if (syscalls.since(name) or (9, 0)) > (5, 16) or name.endswith(("uprobe", "uretprobe", "riscv_hwprobe")):
                continue
            for _ in range(40):
                args = chooser.choices(values, k=6)
                allowed = ours.answer(name, *args, arch=arch, kernel=(6, 18)).action.makes_call
                allowed_there = theirs.answer(name, *args, arch=arch, kernel=(6, 18)).action.makes_call
                assert allowed_there or not allowed, (arch, name, args)
                strictly += allowed_there and not allowed
        assert strictly > 100, "and it is stricter"


# ---- JSON of somebody who means harm -------------------------------------------------------------------------------

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(
        ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_CMP_EQ", "SCMP_ARCH_X86_64", "read", "CAP_SYS_ADMIN", "4.8", "EPERM"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "names",
                    "name",
                    "action",
                    "errnoRet",
                    "errno",
                    "args",
                    "includes",
                    "excludes",
                    "caps",
                    "arches",
                    "minKernel",
                    "index",
                    "value",
                    "valueTwo",
                    "op",
                    "architecture",
                    "subArchitectures",
                    "comment",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
_FIELDS = ["defaultErrnoRet", "defaultErrno", "architectures", "archMap", "flags", "syscalls", "listenerPath"]


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(_FIELDS), _JSON | st.lists(_JSON, max_size=2), max_size=4))
def test_41_any_json_is_a_policy_or_a_value_error(fields: dict[str, Any]) -> None:
    text = json.dumps({"defaultAction": "SCMP_ACT_LOG", **fields})
    for profile in ({"defaultAction": "SCMP_ACT_ERRNO", **fields}, text):
        try:
            assert isinstance(Seccomp.from_oci(profile), Seccomp)
        except ValueError:
            pass


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "[]",
        "5",
        "null",
        b"\xff\xfe{",
        '{"defaultAction": []}',
        "1" * 5000,
        "",
        '{"defaultAction":"SCMP_ACT_ALLOW","flags":[[]]}',
        '{"defaultAction":"SCMP_ACT_ALLOW","architectures":[{}]}',
        '{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":5}]}',
    ],
    ids=range(12),
)
def test_41_text_that_is_no_profile(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        Seccomp.from_oci(text)
