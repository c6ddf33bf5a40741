"""The examples of the page about layers run as they stand, one after the other."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from isolate.images.pack.start import remove

PAGE = Path(__file__).resolve().parents[2] / "docs/layers.rst"
BUSYBOX = shutil.which("busybox")


@pytest.mark.skipif(BUSYBOX is None, reason="the image of the page is made of a static busybox")
def test_examples_of_the_page(tmp_path: Path) -> None:
    assert BUSYBOX is not None
    blocks = re.findall(r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", PAGE.read_text(), re.M)
    assert len(blocks) >= 6
    code = "\n".join(re.sub(r"^    ", "", block, flags=re.M) for block in blocks)
    names: dict[str, object] = {"place": str(tmp_path), "busybox": Path(BUSYBOX).read_bytes()}
    exec(compile(code, str(PAGE), "exec"), names)
    store = names["store"]
    store.close()  # type: ignore[attr-defined]
    import os

    top = os.open(tmp_path, os.O_RDONLY)
    remove(top, "store")
    os.close(top)
