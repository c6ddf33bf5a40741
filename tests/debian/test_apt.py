"""apt and dpkg in a Debian root under ``Seccomp.default()``: a repository, an installation, a removal."""

from __future__ import annotations

import os

import pytest

import isolate
from isolate import Capabilities, IdMap, Sandbox, Seccomp, UserNamespace, presets
from isolate.sandbox.defaults import DEFAULT_PATH
from isolate.seccomp import deny
from tests.debian import test_container
from tests.debian.test_container import ROOT, run

pytestmark = test_container.pytestmark

SCRIPT = r"""
set -e
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
mkdir -p /srv/repo /tmp/p/DEBIAN /tmp/p/usr/bin
printf '#!/bin/sh\necho installed by apt\n' >/tmp/p/usr/bin/isolate-hello
printf '#!/bin/sh\necho configured >/var/lib/isolate-hello\n' >/tmp/p/DEBIAN/postinst
chmod 755 /tmp/p/usr/bin/isolate-hello /tmp/p/DEBIAN/postinst
cat >/tmp/p/DEBIAN/control <<END
Package: isolate-hello
Version: 1.0
Architecture: all
Maintainer: Nobody <nobody@example.org>
Description: a test
END
cd /srv/repo
dpkg-deb --build /tmp/p hello.deb
{
    cat /tmp/p/DEBIAN/control
    echo "Filename: ./hello.deb"
    echo "Size: $(stat -c %s hello.deb)"
    echo "SHA256: $(sha256sum hello.deb | cut -d' ' -f1)"
} >Packages
rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*
echo 'deb [trusted=yes] file:/srv/repo ./' >/etc/apt/sources.list
[ -z "$SANDBOX_USER" ] || echo "APT::Sandbox::User \"$SANDBOX_USER\";" >/etc/apt/apt.conf.d/99test
apt-get update
apt-get install -y isolate-hello
isolate-hello
cat /var/lib/isolate-hello
apt-get remove -y isolate-hello
test ! -e /usr/bin/isolate-hello
dpkg --install hello.deb
dpkg-query --show --showformat '${Package} ${db:Status-Status}\n' isolate-hello
"""


def install(box: Sandbox, user: str) -> isolate.Result[str]:
    return box.run(["sh", "-c", SCRIPT], text=True, timeout=100, env={"PATH": DEFAULT_PATH, "SANDBOX_USER": user})


def test_apt_works() -> None:
    """With one id inside, apt cannot become its user _apt, and is told not to."""
    box = presets.container(ROOT)
    assert Seccomp.default() in box.parts
    assert run(box, "apt-get", "--version").ok
    result = install(box, "root")
    assert result.ok, result
    assert result.stdout is not None
    lines = result.stdout.splitlines()
    assert "installed by apt" in lines
    assert "configured" in lines
    assert lines[-1] == "isolate-hello installed"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may map the host's ids")
def test_apt_works_with_all_ids() -> None:
    """As it comes: apt fetches as _apt. Root's ids are mapped to themselves, with Docker's capabilities."""
    everybody = UserNamespace(map=IdMap(uids=[(0, 0, 65536)], gids=[(0, 0, 65536)]))
    parts = [everybody if isinstance(p, UserNamespace) else p for p in presets.container(ROOT).parts]
    box = Sandbox(*parts, Capabilities.docker())
    result = install(box, "")
    assert result.ok, result
    assert result.stdout is not None
    assert result.stdout.splitlines()[-1] == "isolate-hello installed"


def test_apt_does_not_work_under_a_policy_that_takes_too_much() -> None:
    """The control: what apt needs is asked of the kernel, and refused where the policy says so."""
    parts = [
        p + deny("rename", "renameat", "renameat2") if isinstance(p, Seccomp) else p
        for p in presets.container(ROOT).parts
    ]
    assert not install(Sandbox(*parts), "root").ok
