"""Tmpfs, File, Dir, Symlink, Mask, ReadOnly: what they do inside, and that what lies below is not changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from isolate import Bind, Dev, Dir, File, Mask, Overlay, Proc, ReadOnly, Root, SetupError, Symlink, Tmpfs
from tests.mounts.conftest import Shell, mounts

FILL = "dd if=/dev/zero of=/t/file bs=4096 count={0} 2>&1 | tail -1; stat -c %s /t/file"
ZERO = Bind("/dev/zero", dev=True)

# ---- Tmpfs ---------------------------------------------------------------------------------------------------------


def test_tmpfs_size(shell: Shell) -> None:
    within = shell(FILL.format(16), ZERO, Tmpfs("/t", size="64K"))
    assert str(within.stdout).split()[-1] == "65536"
    beyond = shell(FILL.format(17), ZERO, Tmpfs("/t", size="64K"))
    assert str(beyond.stdout).split()[-1] == "65536"  # the 17th page is not there
    assert str(shell(FILL.format(17), ZERO, Tmpfs("/t", size="68K")).stdout).split()[-1] == str(17 * 4096)
    odd = shell(FILL.format(17), ZERO, Tmpfs("/t", size=65537))
    assert str(odd.stdout).split()[-1] == str(17 * 4096)  # rounded up to pages, never down to "no limit"


def test_tmpfs_inodes(shell: Shell) -> None:
    script = "i=0; while [ $i -lt 20 ] && : > /t/$i; do i=$((i+1)); done; echo $i"
    assert str(shell(script, Tmpfs("/t", inodes=11)).stdout).strip() == ""  # the shell stops at the failed redirection
    assert "No space left" in str(shell(script, Tmpfs("/t", inodes=11)).stderr)
    assert str(shell(script, Tmpfs("/t", inodes=21)).stdout).strip() == "20"


def test_tmpfs_is_bounded_unless_said_otherwise(shell: Shell) -> None:
    entries = (Proc(), Tmpfs("/t"), Dev(), File("/f", "x"), Overlay("/o", lower=["/usr"]), Mask("/usr/bin/true"))
    table = [line.split() for line in str(shell("cat /proc/self/mounts", *entries).stdout).splitlines()]
    ours = [line for line in table if line[2] == "tmpfs" and line[0] == "none"]
    assert {"/", "/t", "/dev", "/dev/shm", "/f"} <= {line[1] for line in ours}
    for line in ours:
        assert "size=" in line[3], line
        assert "nr_inodes=" in line[3], line


def test_tmpfs_mode(shell: Shell) -> None:
    result = shell("stat -c %a /a /b /c", Tmpfs("/a"), Tmpfs("/b", mode=0o700), Tmpfs("/c", mode=0o2755))
    assert str(result.stdout).split() == ["1777", "700", "2755"]


def test_tmpfs_attributes(shell: Shell) -> None:
    script = "cp /usr/bin/true /t/program && chmod 755 /t/program && /t/program && echo ran"
    assert shell(script, Tmpfs("/t")).stdout == "ran\n"
    assert "Permission denied" in str(shell(script, Tmpfs("/t", exec=False)).stderr)
    assert "Read-only file system" in str(shell(script, Tmpfs("/t", read_only=True)).stderr)
    assert {"nosuid", "nodev", "rw"} <= set(mounts(shell, Tmpfs("/t"))["/t"])


# ---- File ----------------------------------------------------------------------------------------------------------


def test_file(shell: Shell, place: Path) -> None:
    place.joinpath("etc").mkdir()
    below = place / "etc" / "file"
    below.write_text("below")
    result = shell(
        "cat /m/etc/file; echo x > /m/etc/file; stat -c %a /m/etc/file /deep/down/empty; cat /deep/down/empty",
        Bind(place, "/m", read_only=False),
        File("/m/etc/file", "above\n", mode=0o640),
        File("/deep/down/empty", b""),
    )
    assert result.stdout == "above\n640\n644\n"
    assert "Read-only file system" in str(result.stderr)
    assert below.read_text() == "below"


def test_file_writable(shell: Shell) -> None:
    result = shell("echo abc > /f; cat /f", File("/f", "0123456789", read_only=False))
    assert (result.stdout, result.stderr) == ("abc\n", "")


def test_file_any_bytes(shell: Shell) -> None:
    data = bytes(range(256)) * 5000
    result = shell("cksum < /f; cksum < /g", File("/f", data), File("/g", data[:4097]))
    sizes = [line.split()[1] for line in str(result.stdout).splitlines()]
    assert sizes == [str(len(data)), "4097"]
    assert str(shell("od -An -tx1 /f", File("/f", b"\0\xff")).stdout).split() == ["00", "ff"]


# ---- Dir, Symlink --------------------------------------------------------------------------------------------------


def test_dir(shell: Shell, place: Path) -> None:
    place.joinpath("there").mkdir(mode=0o700)
    os.umask(umask := os.umask(0))
    try:
        os.umask(0o077)  # the caller's own is no matter
        result = shell(
            "stat -c %a /a/b/c /a/b /m/there",
            Dir("/a/b/c", mode=0o1777),
            Bind(place, "/m", read_only=False),
            Dir("/m/there", mode=0o755),
        )
    finally:
        os.umask(umask)
    assert str(result.stdout).split() == ["1777", "755", "700"]


def test_symlink(shell: Shell) -> None:
    entries = (File("/f", "text"), Symlink("../f", "/d/link"), Symlink("/nowhere", "/dangling"))
    result = shell("cat /d/link; readlink /d/link /dangling", *entries)
    assert result.stdout == "text../f\n/nowhere\n"
    with pytest.raises(SetupError, match="something is there already"):
        shell("true", *entries, Symlink("x", "/d/link"))


# ---- Mask, ReadOnly --------------------------------------------------------------------------------------------------


def test_mask(shell: Shell, place: Path) -> None:
    place.joinpath("secret").write_text("secret")
    place.joinpath("secrets").mkdir()
    place.joinpath("secrets", "one").write_text("secret")
    script = "cat /m/secret /m/secrets/*; ls /m/secrets; echo x > /m/secret; echo x > /m/secrets/two"
    bind = Bind(place, "/m", read_only=False)
    covered = shell(script, bind, Mask("/m/secret"), Mask("/m/secrets"))
    assert covered.stdout == ""
    assert str(covered.stderr).count("Read-only file system") == 2
    assert place.joinpath("secret").read_text() == "secret"
    open_ = shell(script, bind)
    assert open_.stdout == "secretsecretone\n"


def test_mask_of_what_is_not_there(shell: Shell) -> None:
    with pytest.raises(SetupError, match="optional=True") as caught:
        shell("true", Mask("/usr/bin/no-such-program"))
    assert caught.value.path == "/usr/bin/no-such-program"
    assert shell("true", Mask("/usr/bin/no-such-program", optional=True)).ok


def test_mask_of_a_pipe_is_a_file(shell: Shell, place: Path) -> None:
    """Opening what is covered would hang."""
    os.mkfifo(place / "fifo")
    assert shell("cat /m/fifo", Bind(place, "/m"), Mask("/m/fifo")).stdout == ""


def test_read_only(shell: Shell, place: Path) -> None:
    place.joinpath("sub").mkdir()
    place.joinpath("file").write_text("before")
    script = "echo x > /m/file; echo x > /m/sub/new; echo x > /m/t/new; cat /m/file"
    entries = (Bind(place, "/m", read_only=False), Tmpfs("/m/t"))
    assert shell(script, *entries, ReadOnly("/m/sub")).stdout == "x\n"
    assert not place.joinpath("sub", "new").exists()
    place.joinpath("file").write_text("before")
    everything = shell(script, *entries, ReadOnly("/m"))
    assert everything.stdout == "before"
    assert str(everything.stderr).count("Read-only file system") == 3
    assert shell(script, *entries).stderr == ""


def test_order_is_the_users(shell: Shell, place: Path) -> None:
    """What comes later covers what came before."""
    assert shell("cat /d/f", Dir("/d"), Tmpfs("/d"), File("/d/f", "above")).stdout == "above"
    hidden = shell("ls /d", File("/d/f", "below"), Tmpfs("/d"))
    assert (hidden.stdout, hidden.returncode) == ("", 0)


# ---- refused before anything starts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Tmpfs("t"), ValueError),
        (lambda: Tmpfs("/t/../u"), ValueError),
        (lambda: Tmpfs("/t", size=0), ValueError),
        (lambda: Tmpfs("/t", size=-1), ValueError),
        (lambda: Tmpfs("/t", size="lots"), ValueError),
        (lambda: Tmpfs("/t", size=2**80), ValueError),
        (lambda: Tmpfs("/t", size=True), TypeError),
        (lambda: Tmpfs("/t", size=1.5), TypeError),  # type: ignore[arg-type]
        (lambda: Tmpfs("/t", inodes=0), ValueError),
        (lambda: Tmpfs("/t", inodes=1), ValueError),
        (lambda: Tmpfs("/t", inodes="many"), TypeError),  # type: ignore[arg-type]
        (lambda: Tmpfs("/t", mode=0o10000), ValueError),
        (lambda: Tmpfs("/t", mode=-1), ValueError),
        (lambda: Tmpfs("/t", mode="755"), TypeError),  # type: ignore[arg-type]
        (lambda: File("/f", 5), TypeError),  # type: ignore[arg-type]
        (lambda: File("/f", None), TypeError),  # type: ignore[arg-type]
        (lambda: File("/f\0", b""), ValueError),
        (lambda: File("/f", b"", mode=0o70000), ValueError),
        (lambda: File("f", b""), ValueError),
        (lambda: Dir("/"), ValueError),
        (lambda: Dir(5), TypeError),  # type: ignore[arg-type]
        (lambda: Symlink("", "/l"), ValueError),
        (lambda: Symlink("a\0b", "/l"), ValueError),
        (lambda: Symlink("a" * 5000, "/l"), ValueError),
        (lambda: Symlink(5, "/l"), TypeError),  # type: ignore[arg-type]
        (lambda: Symlink("/a", "/"), ValueError),
        (lambda: Mask("/"), ValueError),
        (lambda: Mask("/a/.."), ValueError),
    ],
)
def test_refused(make: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


def test_are_values() -> None:
    for one, same, other in (
        (Tmpfs("/t"), Tmpfs("/t/"), Tmpfs("/t", size="1M")),
        (File("/f", "x"), File("/f", b"x"), File("/f", "y")),
        (Dir("/d"), Dir("//d/."), Dir("/d", mode=0)),
        (Symlink("x", "/l"), Symlink(b"x", "/l"), Symlink("y", "/l")),
        (Mask("/m"), Mask(b"/m"), Mask("/m", optional=True)),
        (ReadOnly("/r"), ReadOnly(Path("/r")), ReadOnly("/r", recursive=False)),
    ):
        assert one == same != other
        assert hash(one) == hash(same)
        assert hash(Root(one)) == hash(Root(same))


def test_the_data_of_a_file_is_not_printed() -> None:
    assert "secret" not in repr(File("/f", "secret"))
