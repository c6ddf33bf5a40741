"""The examples of the pages about layers and images run as they stand, one after the other."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from isolate.images.pack.start import remove

DOCS = Path(__file__).resolve().parents[2] / "docs"
BUSYBOX = shutil.which("busybox")


def run(page: str, **names: object) -> dict[str, object]:
    blocks = re.findall(r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", (DOCS / page).read_text(), re.M)
    assert len(blocks) >= 6
    code = "\n".join(re.sub(r"^    ", "", block, flags=re.M) for block in blocks)
    exec(compile(code, page, "exec"), names)
    return names


@pytest.mark.skipif(BUSYBOX is None, reason="the image of the page is made of a static busybox")
def test_examples_about_images(tmp_path: Path, registry: str) -> None:
    assert BUSYBOX is not None
    names = run("images.rst", place=str(tmp_path), busybox=Path(BUSYBOX).read_bytes(), registry=registry)
    names["store"].close()  # type: ignore[attr-defined]


@pytest.mark.skipif(BUSYBOX is None, reason="the image of the page is made of a static busybox")
def test_examples_of_the_page(tmp_path: Path) -> None:
    assert BUSYBOX is not None
    names = run("layers.rst", place=str(tmp_path), busybox=Path(BUSYBOX).read_bytes())
    store = names["store"]
    store.close()  # type: ignore[attr-defined]
    import os

    top = os.open(tmp_path, os.O_RDONLY)
    remove(top, "store")
    os.close(top)
