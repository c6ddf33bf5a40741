"""Run a program as Docker would: its capabilities, its masks of /proc and /sys, and a seccomp profile in its format.

    python examples/docker_profile.py [PROFILE.json]

PROFILE.json is any profile for ``docker run --security-opt seccomp=``, such as Docker's own default.json from moby's
repository. Without one a small profile is used that forbids to change modes of files. Works as root and as an ordinary
user: the program is root inside, with the fourteen capabilities that Docker leaves.
"""

from __future__ import annotations

import json
import os
import sys

import isolate

SMALL = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [
        {"names": ["chmod", "fchmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
        {
            "names": ["personality"],
            "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 0, "value": 0x0040000, "op": "SCMP_CMP_EQ"}],
        },
    ],
}


def main(path: str | None) -> int:
    """The sandbox, and what holds in it."""
    profile = SMALL
    if path is not None:
        with open(path, encoding="utf-8") as file:
            profile = json.load(file)
    capabilities = isolate.Capabilities.docker()
    names = [cap.name for cap in capabilities.bounding or ()]
    box = isolate.presets.untrusted(
        extra=[
            isolate.UserNamespace(map=isolate.IdMap.unprivileged() if os.geteuid() == 0 else None),
            isolate.UtsNamespace(hostname="docker"),
            capabilities,
            isolate.Seccomp.from_oci(profile, capabilities=names),
        ]
    )
    tries = (
        ("who", ["id", "-u"]),
        ("chown", ["sh", "-c", "touch /tmp/f && chown 0:0 /tmp/f && echo done"]),
        ("chmod", ["sh", "-c", "touch /tmp/f && chmod 600 /tmp/f && echo done"]),
        ("mount", ["sh", "-c", "mount -t tmpfs none /mnt && echo done"]),
        ("capabilities", ["grep", "CapEff", "/proc/self/status"]),
        ("/proc/keys", ["sh", "-c", "wc -c < /proc/keys"]),
    )
    for name, command in tries:
        result = box.run(command, text=True, timeout=10)
        said = (result.stdout or result.stderr or "").strip().splitlines()
        print(f"{name:12} {said[-1] if said else result.verdict}")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("LC_ALL", "C")
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else None))
