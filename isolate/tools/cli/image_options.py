"""The options of ``isolate image``."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_image_commands", "add_store"]

_WHAT = """\
Images in a store: a directory, without a daemon. Names are as docker has them: debian, registry.example/me/app:1.

The store is --store, else $ISOLATE_STORE, else ~/.local/share/isolate."""


def add_store(parser: Any) -> None:
    """``--store``."""
    parser.add_argument("--store", metavar="DIR", help="the store (default: $ISOLATE_STORE, ~/.local/share/isolate)")


def add_image_commands(commands: Any, common: dict[str, Any]) -> None:
    """``isolate image`` and the commands below it."""
    image = commands.add_parser("image", help="pull, push, load, save and look at images", description=_WHAT, **common)
    below = image.add_subparsers(dest="image_command", metavar="COMMAND", required=True)
    shared = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_store(shared)
    shared.add_argument("--json", action="store_true", help="print what was done, or found, as JSON")
    own: dict[str, Any] = {**common, "parents": [shared]}

    moving = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    moving.add_argument("--quiet", action="store_true", help="no progress")
    net = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    net.add_argument("--plain-http", action="store_true", help="without TLS (on this machine that is the default)")
    net.add_argument("--ca", metavar="FILE", help="certificates to trust")
    net.add_argument("--mirror", action="append", default=[], metavar="HOST", help="ask this one first")
    net.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="of an answer (default: 30)")
    longer: dict[str, Any] = {**common, "parents": [shared, moving]}
    remote: dict[str, Any] = {**common, "parents": [shared, moving, net]}

    add = below.add_parser("pull", help="fetch images from their registries", **remote)
    add.add_argument("--platform", metavar="OS/ARCH", help="such as linux/arm64 (default: this machine's)")
    add.add_argument("--no-unpack", action="store_true", help="keep the layers as they come")
    add.add_argument("names", nargs="+", metavar="NAME")

    add = below.add_parser("push", help="send an image to a registry: only what that lacks", **remote)
    add.add_argument("--compression", choices=("gzip", "zstd", "none"), default="gzip", help="of new layers")
    add.add_argument("name", metavar="NAME")
    add.add_argument("target", nargs="?", metavar="TARGET", help="where to (default: NAME)")

    add = below.add_parser("load", help="take images from a file, a directory or stdin (-)", **longer)
    add.add_argument("--name", metavar="NAME", help="name the image, if it is the only one")
    add.add_argument("--no-unpack", action="store_true", help="keep the layers as they come")
    add.add_argument("source", metavar="FILE")

    add = below.add_parser("save", help="write images to a file or a directory", **longer)
    add.add_argument(
        "--format",
        choices=("oci", "oci-archive", "docker-archive"),
        default="oci-archive",
        help="oci is a directory (default: oci-archive)",
    )
    add.add_argument("-o", "--output", required=True, metavar="FILE", help="- is stdout")
    add.add_argument("names", nargs="+", metavar="NAME")

    below.add_parser("ls", help="what there is", **own)

    add = below.add_parser("tag", help="give an image one more name", **own)
    add.add_argument("name", metavar="NAME")
    add.add_argument("new", metavar="NEW")

    add = below.add_parser("rm", help="take names away, and what no name needs then", **own)
    add.add_argument("--keep-data", action="store_true", help="the names alone")
    add.add_argument("names", nargs="+", metavar="NAME")

    add = below.add_parser("inspect", help="manifest and configuration", **own)
    add.add_argument("name", metavar="NAME")

    add = below.add_parser("history", help="how the layers came to be", **own)
    add.add_argument("name", metavar="NAME")

    add = below.add_parser("tree", help="which layers images share, and what that saves", **own)
    add.add_argument("names", nargs="*", metavar="NAME", help="(default: all)")

    add = below.add_parser("diff", help="what is other in an image than in another", **own)
    add.add_argument("old", metavar="OLD")
    add.add_argument("new", nargs="?", metavar="NEW", help="without: what the uppermost layer of OLD changes")

    below.add_parser("collect", help="remove what no name needs", **longer)

    add = below.add_parser("check", help="whether the store is what it says (exit status 1: no)", **longer)
    add.add_argument("--deep", action="store_true", help="read every byte")
