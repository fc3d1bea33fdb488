"""Our client and TRL's get the same answers from the same server, over HTTP and as arrays."""

import math
from collections.abc import Iterator
from typing import Any

import pytest

from sync.trl.client import TRLClient, VLLMClient

CHAT = [[{"role": "user", "content": content}] for content in ("What is the capital of France?", "Hello!")]
PROMPTS = ["Once upon a time", "The sea"]
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8}
SEEDED: dict[str, Any] = {"max_tokens": 8, "generation_kwargs": {"seed": 7}}
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "generate": ("generate", {"prompts": PROMPTS, **GREEDY}),
    "without logprobs": ("generate", {"prompts": PROMPTS, "logprobs": None, **GREEDY}),
    "five logprobs": ("generate", {"prompts": PROMPTS, "logprobs": 5, **GREEDY}),
    "token ids, four each": ("generate", {"prompts": [[504, 3575], [282]], "n": 4, **SEEDED}),
    "token ids, five logprobs": ("generate", {"prompts": [[504, 3575], [282]], "n": 2, "logprobs": 5, **SEEDED}),
    "token ids and a regex": ("generate", {"prompts": [[504]], "structured_outputs_regex": "[ab]{4}", **GREEDY}),
    "token ids and a stop string": (
        "generate",
        {"prompts": [[504]], **GREEDY, "generation_kwargs": {"stop": ["e"], "min_tokens": 1}},
    ),
    "chat": ("chat", {"messages": CHAT, "n": 2, "logprobs": 2, **SEEDED}),
    "chat with tools": ("chat", {"messages": CHAT, "tools": [TOOL], **GREEDY}),
    "sequence logprobs": (
        "get_sequence_logprobs",
        {"sequences": [[504, 3575, 282, 4649], [504, 282, 314]], "prompt_lengths": [2, 1], "top_logprobs": 4},
    ),
}


@pytest.fixture(scope="module")
def ours(trainer_url) -> Iterator[VLLMClient]:
    with VLLMClient(trainer_url) as client:
        yield client


@pytest.fixture(scope="module")
def by_arrays(trl_stack, trainer_url) -> Iterator[VLLMClient]:
    with VLLMClient(trainer_url, rollouts=f"grpc://{trl_stack.grpc_url}") as client:
        yield client


@pytest.fixture(scope="module")
def theirs(trainer_url) -> Iterator[TRLClient]:
    client = TRLClient(base_url=trainer_url, connection_timeout=10)
    yield client
    client.session.close()


def alike(ours: Any, theirs: Any) -> bool:
    """Whether two trees are equal. The order of a batch may change the last bits of floats."""
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(alike(a, b) for a, b in zip(ours, theirs, strict=True))
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, abs_tol=1e-4)
    return ours == theirs


@pytest.mark.filterwarnings("ignore:TRL currently supports vLLM")
@pytest.mark.parametrize("client", ["ours", "by_arrays"])
@pytest.mark.parametrize("name", CALLS)
def test_as_trls_own(request, theirs, client, name):
    method, arguments = CALLS[name]
    client = request.getfixturevalue(client)
    answer, expected = getattr(client, method)(**arguments), getattr(theirs, method)(**arguments)
    assert answer.keys() == expected.keys()
    for key in expected:
        assert alike(answer[key], expected[key]), key


@pytest.mark.filterwarnings("ignore:TRL currently supports vLLM")
def test_what_it_asks_of_control_routes(ours, theirs):
    assert ours.get_world_size() == theirs.get_world_size() == 1
    assert ours.get_server_info() == theirs.get_server_info()
    ours.reset_prefix_cache()
    assert ours.model == theirs.model == "tiny"
