"""Netlink: batches, their answers, and what the kernel says of what it refuses. pyroute2 and ip are the oracles."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolate import NetNamespace
from isolate.errors import SetupError, UnsupportedError
from isolate.network import address, link, nft
from isolate.network.netlink import FINDINGS, NETFILTER, Message, Socket, attribute, attributes, nested, packed, text
from tests.network.hosts import HERE, ruleset, told
from tests.ordinary import as_ordinary_user

pytestmark = pytest.mark.root


@given(st.binary(max_size=200))
def test_any_bytes_are_attributes(data: bytes) -> None:
    for value in attributes(data).values():
        assert len(value) <= len(data)


@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=40), max_size=8))
def test_attributes_come_back(values: dict[int, bytes]) -> None:
    assert attributes(b"".join(attribute(kind, value) for kind, value in values.items())) == values


def test_what_ip_and_pyroute2_tell() -> None:
    with Socket() as sock:
        sock.batch([link.bridge("b0", index=7, mac="02:00:00:00:00:09"), link.veth("v0", "v1", index=8, master=7)])
        sock.batch(
            [
                address.add(7, ipaddress.ip_interface("10.1.0.1/24")),
                address.add(7, ipaddress.ip_interface("fd00:1::1/64")),
                address.route(ipaddress.ip_network("192.0.2.0/24"), index=7, via=ipaddress.ip_address("10.1.0.2")),
                address.route(None, index=7, via=ipaddress.ip_address("fd00:1::2")),
                address.neighbour(7, ipaddress.ip_address("10.1.0.9"), bytes(range(6))),
                link.forwarding(7),
            ]
        )
        rows = {row["ifname"]: row for row in told(HERE, "ip", "-j", "-d", "addr")}
        assert rows["b0"]["address"] == "02:00:00:00:00:09"
        assert rows["b0"]["linkinfo"]["info_data"]["forward_delay"] == 0
        assert rows["v0"]["master"] == "b0"
        assert {a["local"] for a in rows["b0"]["addr_info"]} >= {"10.1.0.1", "fd00:1::1"}
        found = link.named(sock, "v0")
        assert (found.index, found.master, found.kind, found.up, found.mac) == (
            8,
            7,
            "veth",
            True,
            rows["v0"]["address"],
        )
        assert link.forwards(sock, "b0")
        assert {(str(r.to), str(r.via)) for r in address.routes(sock)} >= {
            ("192.0.2.0/24", "10.1.0.2"),
            ("None", "fd00:1::2"),
            ("10.1.0.0/24", "None"),
        }
        pyroute2 = pytest.importorskip("pyroute2")
        with pyroute2.IPRoute() as other:
            assert {each.get_attr("IFLA_IFNAME"): each["index"] for each in other.get_links()} == {
                each.name: each.index for each in link.links(sock)
            }
            assert {(a["index"], a.get_attr("IFA_ADDRESS"), a["prefixlen"]) for a in other.get_addr()} == {
                (a.index, str(a.interface.ip), a.interface.network.prefixlen) for a in address.addresses(sock)
            }
            (neighbour,) = other.get_neighbours(dst="10.1.0.9")
            assert neighbour.get_attr("NDA_LLADDR") == "00:01:02:03:04:05"


def words_for_ip(*command: str) -> str | None:
    """The kernel's words for what it refuses, as ip shows them; None where this kernel has none for it."""
    run = subprocess.run(["ip", *command], capture_output=True, text=True)
    assert run.returncode != 0
    found = re.match(r"Error: (.*?)\.?$", run.stderr, re.MULTILINE)
    assert found or run.stderr.startswith("RTNETLINK answers: "), run.stderr
    return found[1] if found else None


def test_the_kernels_words_are_the_cause() -> None:
    """Newer kernels have words for more of what they refuse: ip, asked for the same, shows which this one has."""
    with Socket() as sock:
        sock.batch([link.bridge("b0", index=7), address.add(7, ipaddress.ip_interface("10.1.0.1/24"))])
        lost = address.route(None, index=7, via=ipaddress.ip_address("10.9.0.1"))
        cases = (
            (address.add(7, ipaddress.ip_interface("10.1.0.1/24")), errno.EEXIST, "address add 10.1.0.1/24 dev b0"),
            (lost, errno.ENETUNREACH, "route add default via 10.9.0.1 dev b0"),
            (link.change(99, up=True), errno.ENODEV, "link set dev if99 up"),
            (link.remove(99), errno.ENODEV, "link delete dev if99"),
        )
        told_words = set()
        for message, number, command in cases:
            words = words_for_ip(*command.split())
            told_words.add(words)
            with pytest.raises(SetupError) as caught:
                sock.batch([message])
            assert (caught.value.errno, caught.value.step) == (number, str(message.step))
            usual = FINDINGS.get(number, (None,))[0]
            said = (caught.value.cause or "").removesuffix(".")
            assert said == (f"the kernel says: {words}" if words else usual), command
        assert "Nexthop has invalid gateway" in told_words  # in every version that we can run on
        # A kind of device that this kernel does not have, as a bridge is where it was left out.
        info = nested(18, text(1, "nosuch"))
        unknown = Message(16, 0x600, bytes(16) + text(3, "x0") + info, "make a device")
        with pytest.raises(UnsupportedError, match="kernel"):
            sock.batch([unknown])


def test_of_a_batch_every_failure_is_told() -> None:
    with Socket() as sock:
        messages = [link.remove("none"), link.bridge("b0"), link.bridge("b0"), link.remove("b0"), link.remove("none")]
        assert [(f.index, f.errno) for f in sock.tried(messages)] == [
            (0, errno.ENODEV),
            (2, errno.EEXIST),
            (4, errno.ENODEV),
        ]
        assert sock.tried([]) == []
        many = [link.change("lo", up=True)] * 150
        assert sock.tried(many) == []
        assert [each.name for each in link.links(sock)] == ["lo"]


def test_what_cannot_be_sent_or_taken_says_so() -> None:
    with Socket() as sock:
        large = Message(16, 0, bytes(1 << 24), "make a device")
        with pytest.raises(SetupError, match="send a batch to the kernel") as caught:
            sock.tried([large])
        assert (caught.value.errno, caught.value.syscall) == (errno.EMSGSIZE, "sendto")
        sock._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", 0, 20000))
        up = packed([link.change("lo", up=True)])
        with pytest.raises(SetupError, match="take the kernel's answer") as caught:
            sock.exchange(up[:6] + b"\1\0" + up[8:], 1)  # without NLM_F_ACK
        assert (caught.value.errno, caught.value.syscall) == (errno.ETIMEDOUT, "recvfrom")
        assert [(f.index, f.errno) for f in sock.tried([link.remove("none")])] == [(0, errno.ENODEV)]
        assert sock.tried([link.change("lo", up=True)]) == []
    with pytest.raises(SetupError, match="Bad file descriptor"):
        sock.tried([link.remove("none")])


def test_nobody_but_the_kernel_answers() -> None:
    with Socket() as sock, Socket() as other:
        sock.batch([link.change("lo", up=True)])
        port, _ = sock._socket.getsockname()
        refusal = struct.pack("=IHHIIi16x", 36, 2, 0, sock._sequence + 1, 0, -errno.EPERM)
        other._socket.sendto(refusal, (port, 0))
        sock.batch([link.change("lo", up=True)])


def test_a_batch_of_any_size() -> None:
    with Socket() as sock:
        for size in (1, 2, 30, 63, 64, 65, 130):  # some are put into room of the extension's own, others are not
            messages = [link.remove("none" if i % 2 else "lo") for i in range(size)]
            assert [f.index for f in sock.tried(messages)] == list(range(size))


def test_a_transaction_holds_whole_or_not_at_all() -> None:
    table = nft.Table("t")
    with Socket(NETFILTER) as sock:
        chain = table.chain(nft.Chain("c", nft.FORWARD))
        for bad in ([table.create(), table.rule("none")], [table.rule("none"), table.create()]):
            with pytest.raises(SetupError, match="rule of the chain none"):
                sock.transaction(nft.SUBSYSTEM, bad)
        assert ruleset(HERE) == ""
        sock.transaction(
            nft.SUBSYSTEM, [table.create(), chain, table.rule("c", nft.counter(), nft.verdict(nft.ACCEPT))]
        )
        rows = told(HERE, "nft", "-j", "list", "chain", "inet", "t", "c")["nftables"]
        (seen,) = (row["rule"] for row in rows if "rule" in row)
        assert seen["expr"] == [{"counter": {"packets": 0, "bytes": 0}}, {"accept": None}]
        with Socket(NETFILTER) as other, pytest.raises(SetupError) as caught:
            other.transaction(nft.SUBSYSTEM, [table.remove()])
        assert caught.value.errno == errno.EPERM
    assert ruleset(HERE) == ""


def test_without_the_right_it_says_which() -> None:
    code = f"""
import sys; sys.path.insert(0, {os.path.dirname(os.path.dirname(os.path.dirname(__file__)))!r})
from isolate.network import link
from isolate.network.netlink import Socket
try:
    Socket().batch([link.bridge("b0")])
except OSError as error:
    print(error)
"""
    said = as_ordinary_user(code)
    assert "CAP_NET_ADMIN" in said
    assert "remedy" in said


def test_a_socket_acts_where_it_was_made() -> None:
    with NetNamespace(), Socket() as sock:
        there = sock
        with NetNamespace():
            there.batch([link.bridge("b0")])
            assert [row["ifname"] for row in told(HERE, "ip", "-j", "link")] == ["lo"]
        assert [row["ifname"] for row in told(HERE, "ip", "-j", "link")] == ["lo", "b0"]
    assert sock.closed
    assert struct.calcsize("=IHHII") == 16
    assert sys.byteorder == "little"
