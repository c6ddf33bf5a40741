"""Errors about a thread's credentials: each says what helps, and what it says helps."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

import isolate
from tests.ordinary import NOBODY, as_ordinary_user

REFUSED = """
import isolate
for part in (isolate.Credentials(uid=12345), isolate.Credentials(gid=12345), isolate.Credentials(groups=[12345])):
    try:
        with part:
            print("had", flush=True)
    except isolate.SetupError as error:
        print(error.remedy, flush=True)
"""


def test_an_ordinary_user_is_told_what_helps() -> None:
    uid, gid, groups = as_ordinary_user(REFUSED).splitlines()
    assert "with CAP_SETUID; as an ordinary user, Sandbox(UserNamespace(uid=12345))" in uid
    assert "with CAP_SETGID; as an ordinary user, Sandbox(UserNamespace(gid=12345))" in gid
    assert "groups=None" in groups
    # The remedies, one after another: the program sees these ids; the groups are kept.
    helps = (
        "import isolate\n"
        "box = isolate.Sandbox(isolate.UserNamespace(uid=12345, gid=12345))\n"
        "print(box.run(['sh', '-c', 'id -u; id -g']).check().stdout.split())\n"
        "with isolate.Credentials(groups=None, umask=0o77):\n"
        "    print('kept')\n"
    )
    assert as_ordinary_user(helps) == "[b'12345', b'12345']\nkept\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a program capabilities")
def test_with_the_capabilities_it_is_had() -> None:
    as_ordinary_user("")  # skips where this user cannot read the package
    setpriv = shutil.which("setpriv")
    assert setpriv is not None
    given = "+setuid,+setgid"
    command = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    command += [f"--inh-caps={given}", f"--ambient-caps={given}", sys.executable, "-c", REFUSED]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout == "had\nhad\nhad\n"


def test_an_id_without_a_map() -> None:
    code = (
        "import isolate\n"
        "try:\n"
        "    with isolate.Credentials(uid=4000):\n"
        "        pass\n"
        "except isolate.SetupError as error:\n"
        "    print(error.cause, '|', error.remedy)\n"
        "print(open('/proc/self/uid_map').read().split())\n"
    )
    result = isolate.Sandbox(isolate.UserNamespace()).run([sys.executable, "-c", code])
    if not result.ok and os.geteuid() != 0:
        pytest.skip(f"this Python does not run there: {result}")
    cause, ids = (result.check().stdout or b"").decode().splitlines()
    assert cause.startswith("uid 4000 is not mapped in the user namespace | take one that /proc/self/uid_map names")
    assert ids.startswith("['0',")
