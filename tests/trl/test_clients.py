"""TRL's clients, unmodified, against a running stack: 1.16.0 on vLLM's routes, 1.10.0 on the legacy ones.

Both make the same calls; what the newer one gets is looked at here, and the older one must get the same.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from .conftest import Call

pytestmark = pytest.mark.filterwarnings("ignore:TRL currently supports vLLM:UserWarning")

PROMPTS = ["Once upon a time", "Hello"]
CONVERSATIONS = [[{"role": "user", "content": "What is the capital of France?"}], [{"role": "user", "content": "Hi"}]]
SEQUENCES, PROMPT_LENGTHS = [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10]], [2, 3]
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8}
SAMPLED: dict[str, Any] = {"temperature": 1.0, "max_tokens": 8, "generation_kwargs": {"seed": 7}}
TEACHER: dict[str, Any] = {"sequences": SEQUENCES, "prompt_lengths": PROMPT_LENGTHS}

GENERATIONS: dict[str, Call] = {
    **{f"generate, logprobs {k}": ("generate", {"prompts": PROMPTS, **GREEDY, "logprobs": k}) for k in (None, 0, 5)},
    "generate, token ids": ("generate", {"prompts": [[1, 2, 3], [4, 5]], **GREEDY}),
    "generate, n=4": ("generate", {"prompts": PROMPTS, "n": 4, **SAMPLED}),
    "generate, top_k": ("generate", {"prompts": PROMPTS, "top_k": 2, "logprobs": 5, **SAMPLED}),
    "generate, regex": ("generate", {"prompts": PROMPTS, **GREEDY, "structured_outputs_regex": "(yes|no)"}),
    "generate, stop": ("generate", {"prompts": PROMPTS, **GREEDY, "generation_kwargs": {"stop": ["e"]}}),
    **{f"chat, logprobs {k}": ("chat", {"messages": CONVERSATIONS, **GREEDY, "logprobs": k}) for k in (None, 0, 5)},
    "chat, n=4": ("chat", {"messages": CONVERSATIONS, "n": 4, **SAMPLED}),
    "chat, tools": ("chat", {"messages": CONVERSATIONS, **GREEDY, "tools": [TOOL]}),
}
TEACHER_CALLS: dict[str, Call] = {
    "teacher": ("get_sequence_logprobs", {**TEACHER, "top_logprobs": 5}),
    "teacher, top 100": ("get_sequence_logprobs", {**TEACHER, "top_logprobs": 100}),
    "teacher, in chunks": ("get_sequence_logprobs", {**TEACHER, "top_logprobs": 5, "chunk_size": 1}),
    "teacher, temperature": ("get_sequence_logprobs", {**TEACHER, "top_logprobs": 5, "temperature": 2.0}),
}
COMMON: dict[str, Call] = {**GENERATIONS, **TEACHER_CALLS, "reset": ("reset_prefix_cache", {})}
LEGACY_ONLY: dict[str, Call] = {
    "teacher, json": ("get_sequence_logprobs", {**TEACHER, "top_logprobs": 5, "use_binary": False})
}


@pytest.fixture(scope="module")
def client(trainer_url: str) -> Iterator[Any]:
    """TRL 1.16.0's client, in this process."""
    import trl
    from trl.generation.vllm_client import VLLMClient

    assert trl.__version__ == "1.16.0"
    client = VLLMClient(trainer_url)
    with client.session:
        yield client


@pytest.fixture(scope="module")
def newer(client: Any) -> dict[str, Any]:
    return {name: getattr(client, method)(**arguments) for name, (method, arguments) in COMMON.items()}


@pytest.fixture(scope="module")
def older(legacy_client: Callable[[dict[str, Call]], dict[str, Any]]) -> dict[str, Any]:
    return legacy_client({**COMMON, **LEGACY_ONLY})


def test_the_clients_find_the_server(client: Any) -> None:
    assert client.model == "tiny"
    assert client.get_world_size() == 1
    assert client.get_server_info()["weight_transfer_config"]["backend"] == "gloo"


@pytest.mark.parametrize("name", GENERATIONS)
def test_generations_have_the_shapes_trl_reads(newer: dict[str, Any], name: str) -> None:
    result, (_, arguments) = newer[name], GENERATIONS[name]
    n, num_logprobs = arguments.get("n", 1), arguments.get("logprobs", 0)
    assert len(result["prompt_ids"]) == 2
    assert len(result["completion_ids"]) == 2 * n
    if num_logprobs is None:
        assert (result["logprobs"], result["logprob_token_ids"]) == (None, None)
        return
    for tokens, logprobs, ids in zip(
        result["completion_ids"], result["logprobs"], result["logprob_token_ids"], strict=True
    ):
        assert len(tokens) == len(logprobs) == len(ids) > 0
        for token, values, candidates in zip(tokens, logprobs, ids, strict=True):
            assert token in candidates
            assert len(values) == len(candidates) in {num_logprobs or 1, num_logprobs + 1}
            assert values == sorted(values, reverse=True)


def test_logprobs_are_those_of_the_processed_distribution(newer: dict[str, Any]) -> None:
    for position in (position for sequence in newer["generate, top_k"]["logprobs"] for position in sequence):
        assert math.exp(position[0]) + math.exp(position[1]) == pytest.approx(1, abs=1e-4), "only two are left"


def test_a_regex_binds(newer: dict[str, Any], tiny_model_dir: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model_dir)
    texts = tokenizer.batch_decode(newer["generate, regex"]["completion_ids"], skip_special_tokens=True)
    assert set(texts) <= {"yes", "no"}


def test_tools_are_shown_to_the_model(newer: dict[str, Any]) -> None:
    plain, tools = newer["chat, logprobs 0"]["prompt_ids"], newer["chat, tools"]["prompt_ids"]
    assert all(len(longer) > len(shorter) for longer, shorter in zip(tools, plain, strict=True))


@pytest.mark.parametrize("name", [*GENERATIONS, "reset"])
def test_both_clients_get_the_same(newer: dict[str, Any], older: dict[str, Any], name: str) -> None:
    assert_same(older[name], newer[name])


@pytest.mark.parametrize("name", TEACHER_CALLS)
def test_both_clients_get_the_same_from_a_teacher(newer: dict[str, Any], older: dict[str, Any], name: str) -> None:
    assert [len(sequence) for sequence in newer[name]["logprobs"]] == [4, 1]
    assert_same(older[name], newer[name])


def test_a_teacher_says_as_json_what_it_says_in_binary(older: dict[str, Any]) -> None:
    binary, plain = older["teacher"], older["teacher, json"]
    for index, sequence in enumerate(plain["logprob_token_ids"]):
        for position, ids in enumerate(sequence):
            values = plain["logprobs"][index][position]
            assert ids[:5] == binary["logprob_token_ids"][index][position]
            assert values[:5] == pytest.approx(binary["logprobs"][index][position], abs=1e-5)
            (actual,) = binary["actual_token_ids"][index][position]
            assert actual == SEQUENCES[index][PROMPT_LENGTHS[index] + position]
            (logprob,) = binary["actual_logprobs"][index][position]
            assert values[ids.index(actual)] == pytest.approx(logprob, abs=1e-5)


def test_async_grpo_freezes_and_goes_on(trainer_url: str, client: Any) -> None:
    from accelerate import PartialState

    with pytest.warns(match=r"trl\.experimental"):
        from trl.experimental.async_grpo.vllm_client import VLLMClient

    PartialState()  # its logger insists
    server = VLLMClient(trainer_url)
    server.wait_for_server_ready()
    assert server.get_max_model_len() == 2048
    assert server.get_dtype() == "torch.float32"
    assert server.get_world_size() == 1
    info = server.get_server_info()
    assert info["lora_config"] is None
    assert info["parallel_config"]["data_parallel_size"] == 1
    server.pause()
    try:
        assert client._get(f"{client.base_url}/is_paused") == {"is_paused": True}
    finally:
        server.resume()
    assert client._get(f"{client.base_url}/is_paused") == {"is_paused": False}
    with pytest.raises(Exception, match="409"):
        server.start_weight_update()


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal, floats to 1e-5: the same tokens in another batch may differ in the last bits."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert_same(ours[key], value)
    elif isinstance(theirs, list) and any(isinstance(value, float) for value in theirs):
        assert ours == pytest.approx(theirs, abs=1e-5)
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert ours == theirs
