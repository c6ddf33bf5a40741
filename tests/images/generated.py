"""Trees and archives that hypothesis makes up: everything that an archive may say, in the forms that tools write."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass, field

from hypothesis import strategies as st

from isolate.images.archive import entry as kinds
from isolate.images.archive.entry import Entry
from isolate.images.pack.pack import pack_entries

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}

_letters = st.sampled_from([*"abcxyz", "é", "日", " ", ".", "-", "+", "'", '"', "\\", "\t", "n" * 60])
_component = (
    st.lists(_letters, min_size=1, max_size=4).map("".join).filter(lambda s: s not in (".", "..")).map(str.encode)
)
_raw = st.sampled_from([b"\xff\xfe", b"a\x80b", b"new\nline", b"x" * 255])
names = st.one_of(_component, _component, _component, _raw).filter(lambda name: not name.startswith(b".wh."))
modes = st.one_of(st.sampled_from([0o644, 0o755, 0o600, 0o4755, 0o2755, 0o1777, 0, 0o7777]), st.integers(0, 0o7777))
ids = st.sampled_from([0, 0, 0, 1, 1000, 65534, 65535, 2097151, 2097152, 3_000_000_000])
times = st.one_of(
    st.integers(0, 2_000_000_000).map(lambda s: s * 10**9),
    st.integers(0, 2_000_000_000 * 10**9),
    st.just(0),
    st.just(8_589_934_592 * 10**9),
)
contents = st.one_of(
    st.binary(max_size=40), st.sampled_from([b"x" * 511, b"x" * 512, b"x" * 513, bytes(5000), b"line\n" * 9000])
)
xattrs = st.dictionaries(
    st.sampled_from([b"user.a", b"user.note", "user.é".encode(), b"security.capability"]),
    st.binary(max_size=30),
    max_size=2,
).map(
    lambda found: {
        key: b"\1\0\0\2" + b"\0\4\0\0" + bytes(12) if key == b"security.capability" else value
        for key, value in found.items()
    }
)


@dataclass
class Case:
    """Entries in an order that an archive may have, with the bytes of files; and the form to write them in."""

    rows: list[tuple[Entry, bytes]] = field(default_factory=list)
    form: str = "ours"

    def archive(self) -> bytes:
        """The bytes."""
        if self.form == "ours":
            parts: list[bytes] = []
            pack_entries(self.rows, parts.append)
            return b"".join(parts)
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=FORMATS[self.form], errors="surrogateescape") as archive:
            for entry, data in self.rows:
                archive.addfile(_info(entry, self.form), io.BytesIO(data))
        return out.getvalue()


def _info(entry: Entry, form: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(entry.path.decode("utf-8", "surrogateescape"))
    info.type = entry.kind.encode()
    info.mode, info.uid, info.gid, info.size = entry.mode, entry.uid, entry.gid, entry.size
    info.mtime = entry.mtime // 10**9
    info.linkname = entry.link.decode("utf-8", "surrogateescape")
    info.devmajor, info.devminor = entry.device
    if form == "pax":
        headers = {}
        if entry.mtime % 10**9:
            headers["mtime"] = f"{entry.mtime // 10**9}.{entry.mtime % 10**9:09}"
        for key, value in entry.xattrs.items():
            headers["SCHILY.xattr." + key.decode()] = value.decode("utf-8", "surrogateescape")
        info.pax_headers = headers
    return info


@st.composite
def cases(
    draw: st.DrawFn, *, devices: bool, most: int = 12, forms: tuple[str, ...] = ("ours", "ustar", "gnu", "pax")
) -> Case:
    """A case. Names that ustar cannot have, numbers that a form has no room for, are left out of that form."""
    form = draw(st.sampled_from(forms))
    directories: list[bytes] = [b""]
    files: list[bytes] = []
    taken: set[bytes] = set()
    rows: list[tuple[Entry, bytes]] = []
    for _ in range(draw(st.integers(1, most))):
        parent = draw(st.sampled_from(directories))
        name = draw(names)
        path = parent + b"/" + name if parent else name
        if path in taken or len(path) > 900:
            continue
        every = [kinds.FILE, kinds.FILE, kinds.DIRECTORY, kinds.SYMLINK, kinds.FIFO]
        every += [kinds.HARD_LINK] * bool(files)
        every += [kinds.CHARACTER_DEVICE, kinds.BLOCK_DEVICE] * devices
        kind = draw(st.sampled_from(every))
        entry = Entry(path, kind, mode=draw(modes), uid=draw(ids), gid=draw(ids), mtime=draw(times))
        data = b""
        if kind == kinds.FILE:
            data = draw(contents)
            entry.size = len(data)
            entry.xattrs = draw(xattrs)
        elif kind == kinds.DIRECTORY:
            entry.xattrs = {key: value for key, value in draw(xattrs).items() if key.startswith(b"user.")}
        elif kind == kinds.SYMLINK:
            entry.link = draw(st.one_of(names, st.just(b"../../etc/passwd"), st.just(b"/tmp"), st.just(b"t" * 300)))
            entry.mode = 0o777
        elif kind == kinds.HARD_LINK:
            entry.link = draw(st.sampled_from(files))
            first = next(row for row, _ in rows if row.path == entry.link)
            entry.mode, entry.uid, entry.gid, entry.mtime = first.mode, first.uid, first.gid, first.mtime
        elif kind in "34":
            entry.device = draw(st.sampled_from([(1, 3), (1, 5), (8, 0), (0, 7), (511, 1048575)]))
        _fit(entry, form)
        if form == "ustar" and not _ustar(entry):
            continue
        taken.add(path)
        rows.append((entry, data))
        if kind == kinds.DIRECTORY:
            directories.append(path)
        elif kind == kinds.FILE:
            files.append(path)
    return Case(rows, form)


def _fit(entry: Entry, form: str) -> None:
    """Only what the form can say."""
    if form in ("ustar", "gnu"):
        entry.mtime -= entry.mtime % 10**9
        entry.xattrs = {}
    if form == "pax":  # tarfile knows text only
        entry.xattrs = {k: v for k, v in entry.xattrs.items() if _is_text(v) and v}
    if form == "ustar":
        entry.uid, entry.gid = min(entry.uid, 2097151), min(entry.gid, 2097151)
        entry.mtime = min(entry.mtime, 8_589_934_591 * 10**9)


def _is_text(data: bytes) -> bool:
    try:
        return b"\0" not in data and bool(data.decode())
    except UnicodeDecodeError:
        return False


def _ustar(entry: Entry) -> bool:
    return len(entry.path) < 100 and len(entry.link) <= 100
