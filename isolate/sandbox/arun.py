"""``arun``: the same run, driven by an event loop. No signal handler, no child watcher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from isolate.sandbox.aio import Waiter, gone, in_worker
from isolate.sandbox.run import OWN, Run
from isolate.sandbox.starting import settle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolate.sandbox.result import Result
    from isolate.sandbox.words import Box


async def arun(box: Box, args: Any, options: Mapping[str, Any]) -> Result[str] | Result[bytes]:
    """See :meth:`isolate.Sandbox.arun`. Cancelling the task takes the sandbox down before the task ends."""
    settled = settle("arun", options, OWN)
    check = settled.pop("check")
    run = await in_worker(lambda: Run(box, args, **settled), Run.close)
    try:
        waiter = Waiter()
        try:
            while not run.done:
                for fd in await waiter.wait(run.waits(), run.until()):
                    run.ready(fd)
                run.tick()
            await gone(waiter, run.session.pidfd)
        finally:
            waiter.close()
        run.session.wait_gone(0)
        # Read the program's changes in a thread, because there may be many.
        result = await in_worker(run.result, lambda _: None) if run.session.held else run.result()
    finally:
        # On cancellation too: what is left ends by itself once the launcher has been let go.
        run.close()
    return result.check() if check else result
