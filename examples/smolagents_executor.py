"""smolagents: the code of a ``CodeAgent`` runs in a container of this library's.

    pip install isolate-linux smolagents numpy
    python examples/smolagents_executor.py

``IsolateExecutor`` is a ``PythonExecutor``: pass it as ``CodeAgent(executor=IsolateExecutor())``. The container is open
as long as the agent, with a Python in it that keeps the variables from one piece of code to the next. What comes back
is text and JSON: nothing that the code writes is unpickled. Works as root and as an ordinary user.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from typing import Any

from smolagents import ChatMessage, CodeAgent, Model
from smolagents.local_python_executor import CodeOutput
from smolagents.monitoring import AgentLogger, LogLevel
from smolagents.remote_executors import RemotePythonExecutor
from smolagents.utils import AgentError

import isolate

#: Runs in the container: one line of JSON for each piece of code, one for its answer, by descriptors that code does not
#: write to by accident. If it writes there on purpose, it answers for itself.
LOOP = """
import ast, contextlib, io, json, os, sys, traceback
requests, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.dup2(2, 1)
names = {"__name__": "__main__"}
for line in requests:
    code, printed, answer = json.loads(line), io.StringIO(), {"value": None, "error": None, "final": None}
    with contextlib.redirect_stdout(printed):
        try:
            tree = ast.parse(code)
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, "<code>", "exec"), names)
            if last is not None:
                value = eval(compile(ast.Expression(last.value), "<code>", "eval"), names)
                answer["value"] = None if value is None else str(value)
        except BaseException as error:
            if type(error).__name__ == "FinalAnswerException":
                answer["final"] = error.value
            else:
                answer["error"] = traceback.format_exc(limit=-3)
    answer["logs"] = printed.getvalue()
    print(json.dumps(answer), file=answers, flush=True)
"""
LONGEST = 1 << 20  # bytes of an answer


def default_box() -> isolate.Sandbox:
    """The preset, with this Python's packages, which the definitions of tools import: read-only."""
    places = sorted({sys.prefix, sys.base_prefix})
    return isolate.presets.untrusted(*(isolate.Bind(place) for place in places if not place.startswith("/usr")))


class IsolateExecutor(RemotePythonExecutor):
    """Executes code in a container of its own; ``timeout`` is for each piece of it."""

    def __init__(
        self, box: isolate.Sandbox | None = None, *, timeout: float = 30.0, logger: AgentLogger | None = None
    ) -> None:
        super().__init__([], logger or AgentLogger(LogLevel.OFF))
        self.timeout = timeout
        self._container = (box or default_box()).open()
        self._process: isolate.Process | None = None

    def run_code_raise_errors(self, code: str) -> CodeOutput:
        """What smolagents asks for: a piece of code, its value, what it printed."""
        answer = self._ask(code)
        logs = str(answer.get("logs", ""))
        if answer.get("final") is not None:
            return CodeOutput(self._deserialize_final_answer(str(answer["final"])), logs, True)
        if answer.get("error"):
            raise AgentError(f"{logs}\n{answer['error']}", self.logger)
        return CodeOutput(answer.get("value"), logs, False)

    def install_packages(self, additional_imports: list[str]) -> list[str]:
        """There is no network inside: what is imported is what the sandbox has."""
        return additional_imports

    def _ask(self, code: str) -> dict[str, Any]:
        if self._process is None:
            command, pipe = [sys.executable, "-c", LOOP], isolate.PIPE
            self._process = self._container.spawn(command, stdin=pipe, stdout=pipe, stderr=isolate.DEVNULL, cwd="/tmp")
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            deadline = time.monotonic() + self.timeout
            _write(process, json.dumps(code).encode() + b"\n", deadline)
            answer = json.loads(_line(process, deadline))
        except TimeoutError:
            self._end()
            raise AgentError(f"the code was ended: it took more than {self.timeout:g} s", self.logger) from None
        except (OSError, ValueError) as error:
            self._end()
            raise AgentError(f"the code was ended: {error}", self.logger) from None
        return answer if isinstance(answer, dict) else {}

    def _end(self) -> None:
        """The Python inside ends, and its variables are gone with it; the files are there."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def cleanup(self) -> None:
        """Everything inside ends."""
        self._end()
        self._container.close()


def _write(process: isolate.Process, data: bytes, deadline: float) -> None:
    """Give the program all of it, or an error: it reads no more, or not in time. A pipe holds 64 KiB on its own."""
    assert process.stdin is not None
    fd = process.stdin.fileno()
    os.set_blocking(fd, False)
    while data:
        if not select.select([], [fd], [], max(0.0, deadline - time.monotonic()))[1]:
            raise TimeoutError
        data = data[os.write(fd, data) :]


def _line(process: isolate.Process, deadline: float) -> bytes:
    """A line of the program's, or an error: it ended, took too long, or wrote too much."""
    assert process.stdout is not None
    found = b""
    while not found.endswith(b"\n"):
        if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        data = os.read(process.stdout.fileno(), 65536)
        found += data
        if not data or len(found) > LONGEST:
            raise ConnectionError("it ended" if not data else "it wrote too much")
    return found


class Scripted(Model):
    """In the place of a model: says what it was told to say."""

    def __init__(self, *codes: str) -> None:
        super().__init__(model_id="scripted")
        self._codes = list(codes)

    def generate(self, messages: list[Any], **options: Any) -> ChatMessage:
        """The next piece of code."""
        return ChatMessage(role="assistant", content=f"Thought: go on.\n<code>\n{self._codes.pop(0)}\n</code>")


def main() -> int:
    """An agent with two steps."""
    executor = IsolateExecutor()
    model = Scripted("total = sum(range(10))\nprint(total)", "final_answer(total * 2)")
    with CodeAgent(tools=[], model=model, executor=executor, verbosity_level=LogLevel.OFF) as agent:
        print("answer:", agent.run("Double the sum of 0 to 9."))
    return 0


if __name__ == "__main__":
    sys.exit(main())
