"""Profiles that name networks and images: objects of one process, found again by a name, a path and a digest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from isolate import (
    Device,
    FileSystem,
    HostProgram,
    IdMap,
    IpcNamespace,
    NetNamespace,
    Root,
    Sandbox,
    Sysctl,
    UserNamespace,
    presets,
)
from isolate.images import Image, ImageRoot, Layer, Store, Upper
from isolate.network import Connect, Domains, Egress, Ingress, Interface, Network, Userspace
from isolate.tools import profiles
from isolate.tools.profiles import ProfileError

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

SCHEMA = jsonschema.Draft202012Validator(profiles.schema())  # made once: that takes longer than what it is asked
VALUES = {
    "domains": lambda: [
        Domains("a.example", "*.b.example", port=[443, 8443], methods=["GET"], private=["10.0.0.0/8"], tls=False)
    ],
    "connect": lambda: [Connect("[2001:db8::1]:5432", listen=5)],
    "userspace": lambda: [Userspace(publish={8080: 80, "127.0.0.1:5353/udp": "53"}, helper="slirp4netns", mtu=1400)],
    "host program": lambda: [HostProgram(["/bin/true", b"\xff"])],
    "settings": lambda: [
        NetNamespace(),
        IpcNamespace(),
        Sysctl({"net.ipv4.ip_forward": 1, "kernel.msgmax": "65536"}),
    ],
    "entries": lambda: [
        Root(Device("/dev/x", (7, 3), block=True), FileSystem("ext4", "/d", source="/x", options={"a": 1, "b": True}))
    ],
}


def both(box: Sandbox) -> Iterator[Sandbox]:
    """What is read from TOML and from JSON, each valid by the schema."""
    SCHEMA.validate(profiles.to_data(box))
    for format in ("toml", "json"):
        yield profiles.loads(profiles.dumps(box, format), format)


@pytest.mark.parametrize("name", VALUES)
def test_values(name: str) -> None:
    box = Sandbox(*VALUES[name]())
    assert list(both(box)) == [box, box]


def test_several_of_one_kind() -> None:
    box = Sandbox(Connect("db:5432"), NetNamespace(), Connect("cache:6379"))
    assert list(both(box)) == [box, box]


def test_an_interface_of_a_network_with_a_name() -> None:
    with Network(name="of-a-profile", ipv6=True) as lan:
        address, via = str(lan.subnet[5]), str(lan.subnet[7])
        part = Interface(
            lan,
            name="web",
            aliases=["w"],
            address=address,
            publish={"8000-8001": "9000-9001"},
            rate="20M",
            burst="64K",
            egress=Egress(["db:5432"]),
            ingress=Ingress(["*:80", "db"]),
            mac="02:00:00:00:00:01",
            mtu=1400,
            device="e0",
            routes={"192.0.2.0/24": via, "198.51.100.0/24": None},
        )
        text = profiles.dumps(Sandbox(part))
        for again in both(Sandbox(part)):
            (found,) = (each for each in again.parts if isinstance(each, Interface))
            assert found.network.subnet == lan.subnet
            assert found.wish() == part.wish()
        assert profiles.dumps(profiles.loads(text)) == text
    with pytest.raises(ProfileError, match="isolate net create of-a-profile") as told:
        profiles.loads(text)
    assert told.value.path == "Interface.network"


def test_a_program_joins_the_network_of_its_profile() -> None:
    with Network(name="of-a-profile-too") as lan:
        address = str(lan.subnet[9])
        data = {"version": 1, "UserNamespace": {}, "Interface": {"network": "of-a-profile-too", "address": address}}
        box = profiles.from_data(data)
        assert address in box.run(["cat", "/proc/net/fib_trie"], text=True, check=True).stdout
        alone = Sandbox(UserNamespace(), NetNamespace()).run(["cat", "/proc/net/fib_trie"], text=True, check=True)
        assert address not in alone.stdout


@pytest.fixture
def store(tmp_path: pathlib.Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as made:
        made.add(Image.empty() + Layer.files({"bin/x": b"x", "etc/y": b"y"}), name="of/a-profile:1")
        yield made


def root_of(box: Sandbox) -> ImageRoot:
    (root,) = (part for part in box.parts if isinstance(part, Root))
    (found,) = (entry for entry in root.entries if isinstance(entry, ImageRoot))
    return found


def test_an_image(store: Store) -> None:
    image = store.open("of/a-profile:1")
    box = presets.container(image, store=store)
    text = profiles.dumps(box)
    for again in both(box):
        found = root_of(again)
        assert (found.image, found.store.path) == (image, store.path)
        assert [type(part) for part in again.parts] == [type(part) for part in box.parts]
    assert profiles.dumps(profiles.loads(text)) == text
    assert root_of(profiles.loads(text)).store.opened.fd >= 0


def test_an_image_by_its_name_from_where_the_profile_stands(store: Store, tmp_path: pathlib.Path) -> None:
    (tmp_path / "p.toml").write_text(
        "version = 1\n[Root]\nentries = [{kind = 'ImageRoot', image = 'of/a-profile:1', store = './store'}]\n"
    )
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "q.toml").write_text("version = 1\nextends = '../p.toml'\n[Limits]\npids = 3\n")
    for name in ("p.toml", "below/q.toml"):
        found = root_of(profiles.load(tmp_path / name))
        assert (found.image, found.store.path) == (store.open("of/a-profile:1"), store.path)


def test_the_store_keeps_how_it_was_opened(store: Store) -> None:
    ids = IdMap([(0, 1000, 5)], [(0, 1000, 5)])
    image = store.open("of/a-profile:1")
    for given in ({"map": ids, "share": True}, {"share": "contents"}, {"read_only": True}):
        with Store(store.path, **given) as other:  # type: ignore[arg-type]
            box = Sandbox(Root(ImageRoot(image, store=other)))
            for again in both(box):
                found = root_of(again).store
                assert (found.path, found.trees.map, found.trees.share, found.read_only) == (
                    store.path,
                    given.get("map"),
                    given.get("share", False),
                    given.get("read_only", False),
                )


def test_the_store_of_the_command_line(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOLATE_STORE", store.path)
    data = {"version": 1, "Root": {"entries": [{"kind": "ImageRoot", "image": "of/a-profile:1"}]}}
    SCHEMA.validate(data)
    assert root_of(profiles.from_data(data)).store.path == store.path


def refused(box_or_data: Any) -> str:
    with pytest.raises(ProfileError) as told:
        profiles.to_data(box_or_data) if isinstance(box_or_data, Sandbox) else profiles.from_data(box_or_data)
    return told.value.path


def test_what_belongs_to_one_process_is_refused(store: Store) -> None:
    assert refused(Sandbox(Domains("a.example", log=print))) == "Domains.log"
    assert refused(Sandbox(Domains("a.example", resolve=lambda name, port: []))) == "Domains.resolve"
    assert refused(Sandbox(Connect("a.example:1", log=print))) == "Connect.log"
    with Network() as lan:
        assert refused(Sandbox(Interface(lan))) == "Interface.network"
    with Upper(store) as upper:
        root = Root(ImageRoot(store.open("of/a-profile:1"), store=store, writable=upper))
        assert refused(Sandbox(root)) == "Root.entries[0].writable"


@pytest.mark.parametrize(
    ("part", "table", "path"),
    [
        ("Domains", {"names": ["a.example"], "log": "x"}, "Domains.log"),
        ("Domains", {"names": "a.example"}, "Domains.names"),
        ("Domains", {"names": ["10.0.0.1"]}, "Domains.names"),
        ("Domains", {"names": ["a.example"], "prot": 1}, "Domains.prot"),
        ("Domains", {"names": ["a.example"], "port": 70000}, "Domains.port"),
        ("Connect", {}, "Connect.target"),
        ("Connect", {"target": "db"}, "Connect.target"),
        ("Userspace", {"publish": {"80": "x"}}, "Userspace.publish"),
        ("Userspace", {"publish": [{"host": 1, "port": 2}, {"host": 3}]}, "Userspace.publish[1]"),
        ("Userspace", {"publish": [{"host": 1, "prot": 2}]}, "Userspace.publish[0].prot"),
        ("Interface", {"network": 3}, "Interface.network"),
        ("Interface", {"network": "no network has this name"}, "Interface.network"),
        ("Interface", {"network": "none-of-this-name"}, "Interface.network"),
        ("Root", {"entries": [{"kind": "ImageRoot", "image": "x", "store": "/nowhere"}]}, "Root.entries[0].store"),
        (
            "Root",
            {"entries": [{"kind": "ImageRoot", "image": "x", "store": {"pth": "/"}}]},
            "Root.entries[0].store.pth",
        ),
        ("Root", {"entries": [{"kind": "ImageRoot", "store": "STORE"}]}, "Root.entries[0].image"),
        ("Root", {"entries": [{"kind": "ImageRoot", "image": "of/b", "store": "STORE"}]}, "Root.entries[0].image"),
        ("Root", {"entries": [{"kind": "ImageRoot", "image": 3, "store": "STORE"}]}, "Root.entries[0].image"),
        (
            "Root",
            {"entries": [{"kind": "ImageRoot", "image": "of/a-profile:1", "store": "STORE", "writable": "x"}]},
            "Root.entries[0].writable",
        ),
    ],
)
def test_what_cannot_be_honoured_is_told_with_its_path(
    part: str, table: dict[str, Any], path: str, store: Store
) -> None:
    for entry in table.get("entries", ()):
        if entry.get("store") == "STORE":
            entry["store"] = store.path
    assert refused({"version": 1, part: table}) == path
