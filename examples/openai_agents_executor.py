"""openai-agents: the shell tool of an agent runs its commands in a container of this library's.

    pip install isolate-linux openai-agents
    python examples/openai_agents_executor.py

``Shell`` is a ``ShellExecutor``: pass it as ``ShellTool(executor=shell)``. The container is open as long as the block:
commands find what those before them have written. The event loop is never blocked. Works as root and as an ordinary
user.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

from agents import ShellCallOutcome, ShellCommandOutput, ShellCommandRequest, ShellResult, ShellTool

import isolate

if TYPE_CHECKING:
    from typing_extensions import Self

SECONDS = 60.0
MOST = 64 * 1024


class Shell:
    """An executor for ``ShellTool``, and a context manager: the end of the block ends everything inside."""

    def __init__(self, box: isolate.Sandbox | None = None, *, timeout: float = SECONDS) -> None:
        self._box = box or isolate.presets.untrusted()
        self._timeout = timeout
        self._container: isolate.Container | None = None

    async def __aenter__(self) -> Self:
        self._container = await asyncio.to_thread(self._box.open)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._container is not None:
            await asyncio.to_thread(self._container.close)

    async def __call__(self, request: ShellCommandRequest) -> ShellResult:
        """Commands one after another; a limit of the request holds for each, up to the executor's own."""
        assert self._container is not None
        action = request.data.action
        seconds = min(self._timeout, (action.timeout_ms or 1e9) / 1000)
        most = min(MOST, action.max_output_length or MOST)
        outputs = []
        for command in action.commands:
            result = await self._container.arun(
                ["sh", "-c", command], cwd="/tmp", timeout=seconds, max_output=most, keep="both", text=True
            )
            late = result.verdict == "TIMEOUT"
            code = None if late else result.returncode
            outcome = ShellCallOutcome(type="timeout" if late else "exit", exit_code=code)
            outputs.append(
                ShellCommandOutput(
                    command=command, stdout=result.stdout or "", stderr=result.stderr or "", outcome=outcome
                )
            )
            if late:
                break
        return ShellResult(output=outputs, max_output_length=action.max_output_length)


def tool(shell: Shell) -> ShellTool:
    """For ``Agent(tools=[…])``."""
    return ShellTool(executor=shell)


async def main() -> int:
    """The requests that a model would make, without a model."""
    from agents import ShellActionRequest, ShellCallData

    async with Shell() as shell:
        commands = ["echo 'print(6 * 7)' > job.py", "python3 job.py", "cat /etc/shadow", "sleep 60"]
        context: Any = None
        action = ShellActionRequest(commands=commands, timeout_ms=2000)
        request = ShellCommandRequest(ctx_wrapper=context, data=ShellCallData(call_id="1", action=action))
        for output in (await shell(request)).output:
            print(f"{output.status:9} {output.exit_code!s:5} {(output.stdout or output.stderr).strip()}")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
