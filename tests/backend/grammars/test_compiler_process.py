"""The real compiler process, with the tiny model's tokenizer."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from tritonlive.backend.grammars.compiler_client import CompilerClient, CompilerLost
from tritonlive.backend.grammars.limits import MIB
from tritonlive.backend.grammars.messages import Compiled, Ended, Rejected

MEMORY = 1024 * MIB
SLOW: dict[str, Any] = {"json": {"type": "string", "maxLength": 10**6}}
# The process takes ten seconds of processor time to start.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def compiler(tiny_model_dir: Path) -> AsyncIterator[CompilerClient]:
    client = CompilerClient(["--model", str(tiny_model_dir)])
    yield client
    client.stop()
    assert client._reading is not None
    await client._reading
    await asyncio.sleep(0)  # its transport closes


async def until(is_over: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_over():  # noqa: ASYNC110 - processes tell nobody
            await asyncio.sleep(0.05)


async def compiled(compiler: CompilerClient, cpu_s: float = 0.0, wall_s: float = 60.0, **fields: Any) -> Ended:
    return await compiler.run(fields, MEMORY, wall_s, cpu_s)


@pytest.mark.parametrize(
    ("fields", "backend"),
    [
        ({"regex": "(Paris|London)"}, "xgrammar"),
        ({"regex": "(?i)paris"}, "guidance"),
        ({"regex": r"\p{L}+"}, "guidance"),
        ({"grammar": 'root ::= "a"\nroot ::= "b"'}, "guidance"),
        ({"json": {"type": "integer", "multipleOf": 5}}, "guidance"),
        ({"choice": ["yes", "no"]}, "xgrammar"),
        ({"json_object": True}, "xgrammar"),
    ],
)
async def test_a_grammar_gets_the_compiler_that_vllm_chooses(
    compiler: CompilerClient, fields: dict[str, Any], backend: str
) -> None:
    assert (await compiled(compiler, **fields)).result == Compiled(backend)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"grammar": "root ::= undefined_rule"}, "undefined_rule"),
        ({"grammar": "root ::= root"}, "no token at all"),
        ({"json": {"$ref": "#"}}, "no token at all"),
        ({"regex": "\\"}, "within an escape"),
        ({"regex": r"[\p{L}]+"}, "does not know"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"json": "{"}, "JSON"),
        ({"json": {"type": "array", "uniqueItems": True, "items": {}}}, "uniqueItems"),
    ],
)
async def test_one_that_cannot_be_compiled_is_rejected_with_the_reason(
    compiler: CompilerClient, fields: dict[str, Any], reason: str
) -> None:
    result = (await compiled(compiler, **fields)).result
    assert isinstance(result, Rejected)
    assert reason in result.reason


async def test_the_kernel_ends_a_compilation_at_its_limits_of_time(compiler: CompilerClient) -> None:
    assert (await compiled(compiler, cpu_s=0.3, **SLOW)).signal == signal.SIGPROF
    began = time.monotonic()
    assert (await compiled(compiler, wall_s=1.0, **SLOW)).signal == signal.SIGALRM
    assert time.monotonic() - began < 10
    assert psutil.Process(compiler.pid).children() == []


async def test_a_compilation_for_which_nobody_waits_is_killed(compiler: CompilerClient) -> None:
    task = asyncio.create_task(compiled(compiler, **SLOW))
    await until(lambda: bool(psutil.Process(compiler.pid).children()))
    task.cancel()
    await until(lambda: not psutil.Process(compiler.pid).children())


async def test_a_compilation_cannot_take_more_memory_than_its_limit(compiler: CompilerClient) -> None:
    schema = {"enum": [f"a string number {number}" for number in range(30_000)]}
    ended = await compiler.run({"json": schema}, 4 * MIB, 60.0)
    assert not isinstance(ended.result, Compiled)


async def test_compilations_run_at_the_same_time(compiler: CompilerClient) -> None:
    slow = asyncio.create_task(compiled(compiler, **SLOW))
    assert (await compiled(compiler, regex="quick")).result == Compiled("xgrammar")
    assert not slow.done()
    slow.cancel()


async def test_another_process_takes_over_when_it_is_killed(compiler: CompilerClient) -> None:
    waiting = asyncio.create_task(compiled(compiler, **SLOW))
    await asyncio.sleep(0.5)
    assert compiler.pid is not None
    os.kill(compiler.pid, signal.SIGKILL)
    with pytest.raises(CompilerLost):
        await waiting
    assert (await compiled(compiler, regex="a")).result == Compiled("xgrammar")


async def test_it_ends_with_the_process_that_started_it(compiler: CompilerClient) -> None:
    process = psutil.Process(compiler.pid)
    assert compiler._writer is not None
    compiler._writer.close()  # as the kernel does when the model's process ends
    assert await asyncio.to_thread(process.wait, 20) in (0, None)
