"""Grammars that explode end by their limits, and keep nobody waiting."""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import httpx
import psutil
import pytest

from tritonlive.launch import Stack

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 8}
# The deadline is 5 s; the machine is busy.
WITHIN_S = 30.0
MIB = 2**20

logger = logging.getLogger(__name__)


def doubling_references(levels: int) -> dict[str, Any]:
    defs: dict[str, Any] = {"d0": {"type": "string"}}
    for level in range(1, levels):
        below = {"$ref": f"#/$defs/d{level - 1}"}
        defs[f"d{level}"] = {"type": "object", "properties": {"a": below, "b": below}}
    return {"$defs": defs, "$ref": f"#/$defs/d{levels - 1}"}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def properties(number: int, name: str = "p") -> dict[str, Any]:
    return {"type": "object", "properties": {f"{name}{index}": {"type": "string"} for index in range(number)}}


def tool(number: int, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": properties(number), **fields}}


NAMED = {"type": "function", "function": {"name": "f"}}
STRICT = tool(10_000, strict=True)

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "100,000 strings": (
        {"structured_outputs": {"json": {"enum": [f"string {index}" for index in range(100_000)]}}},
        "--grammar-max-bytes",
    ),
    "20,000 choices": ({"structured_outputs": {"choice": [str(i) for i in range(20_000)]}}, "--grammar-max-values"),
    "500 KB literal": ({"structured_outputs": {"regex": "a" * 500_000}}, "--grammar-max-bytes"),
    "2,000 optional properties": ({"structured_outputs": {"json": properties(2000)}}, "--grammar-timeout"),
    "no text at all": ({"structured_outputs": {"grammar": "root ::= root"}}, "no token at all"),
    # With `strict` the schemas of tools are grammars, too.
    "strict tool, required": ({"tools": [STRICT], "tool_choice": "required"}, "--grammar-max-"),
    "strict tool, named": ({"tools": [STRICT], "tool_choice": NAMED}, "--grammar-max-"),
    "strict tool, auto": ({"tools": [STRICT], "tool_choice": "auto"}, "--grammar-max-"),
    "nested": ({"structured_outputs": {"json": nested(45)}}, "nested too deeply"),
}
ANSWERED: dict[str, dict[str, Any]] = {
    "doubling references": {"structured_outputs": {"json": doubling_references(40)}},
    "minItems": {"structured_outputs": {"json": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9}}},
    "a million characters": {"structured_outputs": {"json": {"type": "string", "maxLength": 10**6}}},
    "a repetition": {"structured_outputs": {"regex": "a{1,100000}"}},
    # Without `strict` only the form of the call is a grammar, not its arguments.
    "tool, required": {"tools": [tool(10_000)], "tool_choice": "required"},
    "tool, named": {"tools": [tool(10_000)], "tool_choice": NAMED},
    "letters": {"structured_outputs": {"regex": r"\p{L}{1000}"}},
}


def memory(processes: Iterable[psutil.Process]) -> int:
    """Resident bytes."""
    return sum(process.memory_info().rss for process in processes)


@pytest.fixture
def client(stack: Stack) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    with httpx.Client(base_url=stack.frontend_url, headers=headers, timeout=120) as client:
        yield client
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200


@pytest.mark.row(9)
@pytest.mark.row(35)
@pytest.mark.parametrize("name", REFUSED)
def test_a_grammar_beyond_a_limit_is_refused_with_the_limits_name(client: httpx.Client, name: str) -> None:
    fields, reason = REFUSED[name]
    began = time.monotonic()
    answer = client.post("/v1/chat/completions", json=CHAT | fields)
    assert answer.status_code == 400, answer.text
    assert reason in answer.json()["error"]["message"]
    assert time.monotonic() - began < WITHIN_S


@pytest.mark.row(35)
@pytest.mark.parametrize("name", ANSWERED)
def test_a_grammar_that_only_looks_dangerous_is_answered_in_time(client: httpx.Client, name: str) -> None:
    began = time.monotonic()
    answer = client.post("/v1/chat/completions", json=CHAT | ANSWERED[name])
    assert answer.status_code in (200, 400), answer.text
    assert time.monotonic() - began < WITHIN_S


@pytest.mark.row(35)
@pytest.mark.parametrize("is_strict", [False, True])
def test_the_schema_of_a_tool_of_the_messages_route_is_limited(client: httpx.Client, is_strict: bool) -> None:
    tools = [{"name": "f", "input_schema": properties(10_000), "strict": is_strict}]
    began = time.monotonic()
    answer = client.post("/v1/messages", json=CHAT | {"tools": tools, "tool_choice": {"type": "any"}})
    assert time.monotonic() - began < WITHIN_S
    if is_strict:
        assert answer.status_code == 400, answer.text
        assert answer.json()["type"] == "error"
        assert "--grammar-max-" in answer.json()["error"]["message"]
    else:
        assert answer.status_code == 200, answer.text


@pytest.mark.row(35)
async def test_a_hundred_slow_grammars_at_once_keep_nobody_waiting(stack: Stack, client: httpx.Client) -> None:
    engine = [psutil.Process(pid) for pid in stack.engine_core_pids]
    before = [memory(engine), memory(stack.frontend.members())]
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=stack.frontend_url, headers=headers, timeout=200, limits=limits) as crowd:

        async def ask(**fields: Any) -> int:
            return (await crowd.post("/v1/chat/completions", json=CHAT | fields)).status_code

        async def timed(**fields: Any) -> float:
            began = time.monotonic()
            assert await ask(**fields) == 200
            return time.monotonic() - began

        await ask(structured_outputs={"regex": "(known|grammar)"})
        schemas = [properties(2000, f"of{number}_") for number in range(100)]
        slow = [asyncio.create_task(ask(structured_outputs={"json": schema})) for schema in schemas]
        await asyncio.sleep(1)
        known = [await timed(structured_outputs={"regex": "(known|grammar)"}) for _ in range(5)]
        new = [await timed(structured_outputs={"regex": f"(new|grammar){number}"}) for number in range(3)]
        plain = [await timed() for _ in range(5)]
        num_running = sum(not task.done() for task in slow)
        statuses = Counter(await asyncio.gather(*slow))
    grown = [memory(engine) - before[0], memory(stack.frontend.members()) - before[1]]
    logger.info("statuses %s; seconds: known %s, new %s, plain %s", statuses, known, new, plain)
    logger.info("%d still ran; the engine core and the front end grew by %s bytes", num_running, grown)
    assert num_running > 0, "nothing was measured beside them"
    assert set(statuses) == {400, 429}, statuses
    assert max(known + plain) < 10, (known, new, plain)
    assert max(new) < WITHIN_S
    assert grown[0] < 64 * MIB, "the engine never sees them"
    assert grown[1] < 256 * MIB


@pytest.mark.row(35)
def test_a_client_that_goes_ends_its_compilation(stack: Stack, client: httpx.Client) -> None:
    (compiler,) = [each for each in stack.triton.members() if "compiler_process" in " ".join(each.cmdline())]
    body = json.dumps(CHAT | {"structured_outputs": {"json": properties(2000, "gone")}})
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}, timeout=1.0)
    deadline = time.monotonic() + 3
    while compiler.children():
        assert time.monotonic() < deadline, "its compilation goes on"
        time.sleep(0.05)
