"""smolagents and openai-agents run what a model writes in containers; run by ``tests/executors/run``."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("smolagents", reason="a lane of its own: tests/executors/run")
pytest.importorskip("agents", reason="a lane of its own: tests/executors/run")

from agents import Agent, RunConfig, Runner, ShellActionRequest, ShellCallData, ShellCommandRequest
from agents.testing import ScriptedModel, assistant_message
from smolagents import CodeAgent
from smolagents.local_python_executor import PythonExecutor
from smolagents.utils import AgentError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


smol = load("smolagents_executor")
openai = load("openai_agents_executor")


# ---- smolagents ------------------------------------------------------------------------------------------------------


@pytest.fixture
def executor() -> Iterator[Any]:
    made = smol.IsolateExecutor(timeout=3.0)
    assert isinstance(made, PythonExecutor)
    try:
        yield made
    finally:
        made.cleanup()


def test_an_agent(executor: Any) -> None:
    model = smol.Scripted("total = sum(range(10))\nprint('so far', total)", "final_answer({'doubled': total * 2})")
    with CodeAgent(tools=[], model=model, executor=executor, verbosity_level=-1) as agent:
        assert agent.run("Double it.") == {"doubled": 90}
        assert "so far 45" in str(agent.memory.steps[1].observations)


def test_variables_output_and_errors(executor: Any) -> None:
    executor.send_variables({"given": [1, 2, 3]})
    found = executor("print(len(given)); given[0] + 1")
    assert (found.output, found.logs, found.is_final_answer) == ("2", "3\n", False)
    with pytest.raises(AgentError, match="ZeroDivisionError"):
        executor("print('before'); 1 / 0")
    assert executor("given[2]").output == "3"  # an error ends nothing


def test_it_is_inside(executor: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    with pytest.raises(AgentError, match="No such file"):
        executor(f"open({str(secret)!r}).read()")
    with pytest.raises(AgentError, match="unreachable"):
        executor("import socket; socket.create_connection(('192.0.2.1', 80), 2)")
    assert secret.read_text() == "s"  # the control: it is there


def test_nothing_waits_for_ever_and_nothing_is_unpickled(executor: Any) -> None:
    before = time.monotonic()
    with pytest.raises(AgentError, match="more than 3 s"):
        executor("while True: pass")
    assert time.monotonic() - before < 30
    assert executor("1 + 1").output == "2"  # another Python in the same container
    for code in ("import os; os._exit(3)", "import os; os.write(4, b'[' * (2 << 20))"):
        with pytest.raises(AgentError, match="ended"):
            executor(code)
    # The loop inside reads no more, and a pipe holds 64 KiB: to write has the deadline as well.
    long = f"len('{'x' * (1 << 18)}')"
    assert executor(long).output == str(1 << 18)  # the control: it reads
    stall = "import __main__, time; __main__.answers.write('{}\\n'); __main__.answers.flush(); time.sleep(600)"
    executor(stall)
    with pytest.raises(AgentError, match="more than 3 s"):
        executor(long)
    assert executor("1 + 1").output == "2"
    code = "class FinalAnswerException(BaseException):\n    value = 'pickle:gASVCQAAAAAAAACMBXBvc2l4lC4='"
    code += "\nraise FinalAnswerException"
    with pytest.raises(Exception, match="Pickle data rejected"):
        executor(code)


# ---- openai-agents ---------------------------------------------------------------------------------------------------


def call(number: int, *commands: str) -> Any:
    from openai.types.responses import ResponseFunctionShellToolCall

    return ResponseFunctionShellToolCall.model_validate(
        {
            "type": "shell_call",
            "id": f"id{number}",
            "call_id": f"call{number}",
            "status": "completed",
            "action": {"commands": list(commands), "timeout_ms": 2000, "max_output_length": 1000},
        }
    )


def test_an_agent_with_a_shell() -> None:
    async def talk() -> tuple[str, str]:
        async with openai.Shell() as shell:
            model = ScriptedModel(
                [
                    [call(1, "echo 'print(6 * 7)' > job.py", "python3 job.py")],
                    [call(2, "cat job.py; cat /etc/shadow", "sleep 60")],
                    [assistant_message("done")],
                ]
            )
            agent = Agent(name="coder", model=model, tools=[openai.tool(shell)])
            result = await Runner.run(agent, "Compute.", run_config=RunConfig(tracing_disabled=True))
            return str(result.final_output), str(result.to_input_list())

    final, told = asyncio.run(talk())
    assert final == "done"
    assert "42" in told
    assert "No such file" in told
    assert "timeout" in told


def test_the_loop_goes_on_and_outputs_are_bounded() -> None:
    async def talk() -> tuple[int, Any]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        async with openai.Shell() as shell:
            ticking = asyncio.ensure_future(tick())
            action = ShellActionRequest(commands=["yes | head -c 10000000; sleep 0.5; exit 3"], max_output_length=1000)
            context: Any = None
            data = ShellCallData(call_id="1", action=action)
            result = await shell(ShellCommandRequest(ctx_wrapper=context, data=data))
            ticking.cancel()
            return ticks, result.output[0]

    ticks, output = asyncio.run(talk())
    assert ticks > 5
    assert len(output.stdout) < 2000
    assert output.exit_code == 3
