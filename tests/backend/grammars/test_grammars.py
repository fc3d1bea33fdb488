"""Admission of grammars, over a compiler process that the test controls."""

import asyncio
import signal
from typing import Any

import pytest
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

from tests.backend.compiler import FakeCompiler
from tritonlive.backend.grammars import grammars as module
from tritonlive.backend.grammars.compiler_client import CompilerLost
from tritonlive.backend.grammars.grammars import QUICK_CPU_S, Grammars
from tritonlive.backend.grammars.limits import GrammarLimits
from tritonlive.backend.grammars.messages import Compiled, Ended, Rejected
from tritonlive.backend.tensors import BadTensor, RequestError, Unavailable
from tritonlive.wire.error_codes import ErrorCode


def wants(regex: str = "a") -> Any:
    return SamplingParams(structured_outputs=StructuredOutputsParams(regex=regex))


@pytest.fixture
def compiler() -> FakeCompiler:
    return FakeCompiler()


@pytest.fixture
def grammars(compiler: FakeCompiler) -> Grammars:
    return Grammars(compiler, GrammarLimits(), lambda: None)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_grammar_is_compiled_once(grammars: Grammars, compiler: FakeCompiler) -> None:
    compiler.result = Ended(0, Compiled("guidance"))
    params = wants()
    assert not grammars.admit_known(params)
    await grammars.admit(params)
    assert params.structured_outputs._backend == "guidance"
    again = wants()
    assert grammars.admit_known(again)
    assert again.structured_outputs._backend == "guidance"
    await grammars.admit(again)
    assert compiler.jobs == [("a", QUICK_CPU_S)]


async def test_a_request_without_a_grammar_passes_at_once(grammars: Grammars, compiler: FakeCompiler) -> None:
    assert grammars.admit_known(SamplingParams())
    await grammars.admit(SamplingParams())
    assert compiler.jobs == []


async def test_options_make_another_grammar(grammars: Grammars, compiler: FakeCompiler) -> None:
    params = wants()
    params.structured_outputs.disable_any_whitespace = True
    await grammars.admit(wants())
    await grammars.admit(params)
    assert len(compiler.jobs) == 2


async def test_requests_with_the_same_grammar_share_a_compilation(grammars: Grammars, compiler: FakeCompiler) -> None:
    compiler.gate = asyncio.Event()
    waiting = [asyncio.create_task(grammars.admit(wants())) for _ in range(3)]
    await settle()
    waiting[0].cancel()
    await settle()
    assert compiler.num_cancelled == 0, "two still wait"
    compiler.gate.set()
    assert await asyncio.gather(*waiting[1:]) == [None, None]
    assert len(compiler.jobs) == 1


async def test_the_last_client_that_leaves_ends_the_compilation(grammars: Grammars, compiler: FakeCompiler) -> None:
    compiler.gate = asyncio.Event()
    waiting = [asyncio.create_task(grammars.admit(wants())) for _ in range(2)]
    await settle()
    for each in waiting:
        each.cancel()
    await settle()
    assert compiler.num_cancelled == 1
    compiler.gate.set()
    await grammars.admit(wants())
    assert len(compiler.jobs) == 2, "the next request begins anew"


async def test_what_cannot_be_compiled_is_refused_each_time(grammars: Grammars, compiler: FakeCompiler) -> None:
    compiler.result = Ended(0, Rejected("there is no such rule"))
    with pytest.raises(BadTensor, match="structured_outputs: the grammar cannot be compiled: there is no such rule"):
        await grammars.admit(wants())
    with pytest.raises(BadTensor, match="no such rule"):
        grammars.admit_known(wants())
    assert len(compiler.jobs) == 1


async def test_a_slow_grammar_gets_a_second_run_without_the_short_limit(
    grammars: Grammars, compiler: FakeCompiler
) -> None:
    compiler.result = Ended(0, None, signal.SIGPROF)
    with pytest.raises(BadTensor):
        await grammars.admit(wants())
    assert compiler.jobs == [("a", QUICK_CPU_S), ("a", 0.0)]


async def test_the_deadline_is_named_and_kept_for_a_while(
    grammars: Grammars, compiler: FakeCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler.result = Ended(0, None, signal.SIGALRM)
    with pytest.raises(BadTensor, match=r"did not compile within 5 s \(--grammar-timeout\)"):
        await grammars.admit(wants())
    with pytest.raises(BadTensor):
        grammars.admit_known(wants())
    monkeypatch.setattr(module, "KEPT_TIMEOUT_S", -1.0)
    with pytest.raises(BadTensor):
        await grammars.admit(wants("b"))
    assert not grammars.admit_known(wants("b")), "the machine may have been busy"


async def test_a_death_names_the_limit_of_memory(grammars: Grammars, compiler: FakeCompiler) -> None:
    compiler.result = Ended(0, None, signal.SIGABRT)
    with pytest.raises(BadTensor, match=r"1024 MiB of memory \(--grammar-memory; SIGABRT\)"):
        await grammars.admit(wants())


async def test_a_slow_grammar_keeps_no_quick_one_waiting(grammars: Grammars, compiler: FakeCompiler) -> None:
    blocked = asyncio.Event()

    async def run(fields: dict[str, Any], memory_bytes: int, wall_s: float, cpu_s: float = 0.0) -> Ended:
        if fields["regex"].startswith("slow"):
            if cpu_s:
                return Ended(0, None, signal.SIGPROF)
            await blocked.wait()
            return Ended(0, None, signal.SIGALRM)
        return Ended(0, Compiled("xgrammar"))

    compiler.run = run
    slow = [asyncio.create_task(grammars.admit(wants(f"slow {i}"))) for i in range(100)]
    await settle()
    async with asyncio.timeout(5):
        await grammars.admit(wants("quick"))
        blocked.set()
        results = await asyncio.gather(*slow, return_exceptions=True)
    codes = [result.code for result in results if isinstance(result, RequestError)]
    assert len(codes) == 100
    assert codes.count(ErrorCode.INVALID) == module.MAX_WAITING_SLOW + 1
    assert codes.count(ErrorCode.BUSY) == 99 - module.MAX_WAITING_SLOW


async def test_a_lost_compiler_is_a_passing_trouble(grammars: Grammars, compiler: FakeCompiler) -> None:
    compiler.results["a"] = CompilerLost()
    with pytest.raises(RequestError, match="try again") as caught:
        await grammars.admit(wants())
    assert caught.value.code is ErrorCode.BUSY
    compiler.results.clear()
    await grammars.admit(wants())


async def test_a_replica_that_may_no_longer_generate_refuses_after_the_wait(compiler: FakeCompiler) -> None:
    def refuse() -> None:
        raise Unavailable("replica: dirty")

    with pytest.raises(Unavailable):
        await Grammars(compiler, GrammarLimits(), refuse).admit(wants())


async def test_verdicts_do_not_grow_without_limit(
    grammars: Grammars, compiler: FakeCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT_VERDICTS", 2)
    for regex in ("a", "b", "a", "c"):
        await grammars.admit(wants(regex))
    assert grammars.admit_known(wants("a"))
    assert not grammars.admit_known(wants("b")), "the one not asked for the longest"
