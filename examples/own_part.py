"""A part of one's own: the program inside gets no transparent huge pages.

It has the same means as the library's parts: a frozen dataclass that refuses bad arguments and yields steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import isolate
from isolate.engine.plan import Context, Phase, Step, call
from isolate.kernel.constants import Constant

if TYPE_CHECKING:
    from collections.abc import Iterator

PR_SET_THP_DISABLE = Constant(41, "PR_SET_THP_DISABLE")  # prctl(2), Linux 3.15; kept by fork and exec


@dataclass(frozen=True)
class NoHugePages:
    """No transparent huge pages: memory is then counted in the pages that the program touched."""

    #: Whether an error stops the start. With False the step is skipped, and ``Result.applied`` tells.
    required: bool = True

    def steps(self, context: Context) -> Iterator[Step]:
        """One step of the payload, which exec then keeps."""
        yield Step(
            Phase.SCHEDULING,
            "no transparent huge pages",
            (call("prctl", PR_SET_THP_DISABLE, 1, 0, 0, 0),),
            hints={22: "this kernel does not know PR_SET_THP_DISABLE (Linux 3.15)"},
        )


def main() -> None:
    """Show it with and without."""
    command = ["grep", "THP_enabled", "/proc/self/status"]
    for box in (isolate.Sandbox(), isolate.Sandbox(NoHugePages())):
        print(box, "->", box.run(command, text=True, check=True).stdout, end="")


if __name__ == "__main__":
    main()
