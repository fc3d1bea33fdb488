"""Metrics of the front end and of Triton: what requests add to them, and the versions.

`python -m bench.parity metrics` compares the front end's with those of vLLM's own server.
"""

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from vllm.version import __version__ as vllm_version

import tritonlive
from tests.stack.conftest import MODEL, bearer, wait_until
from tritonlive.launch import Stack

NUM_TOKENS = 30
SETTLE_S = 2.0
TIMES = ("e2e_request_latency", "request_queue_time", "request_inference_time", "request_prefill_time")
Counts = dict[str, float]


@pytest.fixture
def grown(stack: Stack) -> Callable[..., tuple[Counts, Counts]]:
    """Run something; returns what it added to the metrics of the front end and of Triton."""

    def run(action: Callable[[], Any]) -> tuple[Counts, Counts]:
        urls = (f"{stack.frontend_url}/metrics", stack.metrics_url)
        time.sleep(SETTLE_S)  # earlier requests' counts
        before = [scrape(url) for url in urls]
        action()
        time.sleep(SETTLE_S)
        after = [scrape(url) for url in urls]
        front_end, triton = (
            {name: value - old.get(name, 0) for name, value in new.items()}
            for old, new in zip(before, after, strict=True)
        )
        return front_end, triton

    return run


def scrape(url: str) -> Counts:
    """Values of vLLM's series by name; series of one name are added up, buckets left out."""
    counts: Counts = {}
    # Not with prometheus_client's parser: it adds _total to the names of counters.
    for name, labels, value in re.findall(r"^(vllm:\w+)\{(.*)\} (\S+)$", httpx.get(url, timeout=30).text, re.MULTILINE):
        if 'le="' not in labels:
            counts[name] = counts.get(name, 0) + float(value)
    return counts


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_front_ends_answer_counts_its_tokens(
    stream: bool, grown: Callable[..., tuple[Counts, Counts]], frontend: httpx.Client
) -> None:
    body = {"model": MODEL, "prompt": [7, 8, 9], "max_tokens": NUM_TOKENS, "ignore_eos": True, "stream": stream}
    front_end, triton = grown(lambda: frontend.post("/v1/completions", json=body).raise_for_status())
    assert front_end["vllm:inter_token_latency_seconds_count"] == NUM_TOKENS - 1
    assert front_end["vllm:iteration_tokens_total_count"] == NUM_TOKENS
    assert front_end["vllm:iteration_tokens_total_sum"] >= NUM_TOKENS
    assert front_end["vllm:generation_tokens_total"] == NUM_TOKENS
    between = front_end["vllm:inter_token_latency_seconds_sum"]
    assert between == pytest.approx(front_end["vllm:request_decode_time_seconds_sum"], abs=1e-6)
    assert triton["vllm:time_per_output_token_seconds_sum"] == pytest.approx(between, abs=1e-6)
    check_generations(triton, n=1, num_prompt_tokens=3)


def test_several_processes_count_together(lora_stack: Stack) -> None:
    """The front end has two worker processes; each answers some of the requests."""
    url, headers = lora_stack.frontend_url, bearer(lora_stack.api_key)
    before = scrape(f"{url}/metrics")
    body = {"model": MODEL, "prompt": [7], "max_tokens": NUM_TOKENS, "ignore_eos": True}
    for _ in range(6):
        httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=120).raise_for_status()
    time.sleep(SETTLE_S)
    grown = {name: value - before.get(name, 0) for name, value in scrape(f"{url}/metrics").items()}
    assert grown["vllm:inter_token_latency_seconds_count"] == 6 * (NUM_TOKENS - 1)
    assert grown["vllm:iteration_tokens_total_count"] == grown["vllm:generation_tokens_total"] == 6 * NUM_TOKENS
    assert "tritonlive_build_info{" in httpx.get(f"{url}/metrics", timeout=30).text


def test_triton_counts_requests_of_every_kind_and_no_failures(stack: Stack) -> None:
    """Why docs/reference/metrics.md says that Triton's own metrics tell little. If this changes, it has to say so."""

    def counts() -> Counts:
        text = httpx.get(stack.metrics_url, timeout=30).text
        found = re.findall(r"^nv_inference_request_(success|failure)\{.*\} (\S+)$", text, re.MULTILINE)
        return {kind: sum(float(value) for each, value in found if each == kind) for kind in ("success", "failure")}

    before = counts()
    refused = httpx.post(f"{stack.http_url}/v2/models/llm/generate", json={"control_operation": "nonsense"}, timeout=60)
    assert refused.status_code != 200
    wait_until(lambda: counts()["success"] >= before["success"] + 3, 10)  # the other ones ask about health
    assert counts()["failure"] == before["failure"]


def test_n_answers_are_one_request(grown: Callable[..., tuple[Counts, Counts]], frontend: httpx.Client) -> None:
    body = {"model": MODEL, "prompt": [7, 8, 9], "max_tokens": NUM_TOKENS, "ignore_eos": True, "n": 3}
    front_end, triton = grown(lambda: frontend.post("/v1/completions", json=body).raise_for_status())
    assert front_end["vllm:inter_token_latency_seconds_count"] == 3 * (NUM_TOKENS - 1)
    assert front_end["vllm:iteration_tokens_total_count"] >= NUM_TOKENS
    assert front_end["vllm:generation_tokens_total"] == 3 * NUM_TOKENS
    check_generations(triton, n=3, num_prompt_tokens=3)


@pytest.mark.parametrize("returns", [{}, {"return_text": False, "return_token_ids": True}], ids=["text", "arrays"])
@pytest.mark.parametrize("n", [1, 2])
def test_native_generations_count_as_those_of_front_ends(
    returns: dict[str, bool],
    n: int,
    grown: Callable[..., tuple[Counts, Counts]],
    triton: Callable[[dict[str, Any]], httpx.Response],
) -> None:
    parameters = {"max_tokens": NUM_TOKENS, "ignore_eos": True, "n": n}
    body = {"input_ids": [7, 8, 9, 10], "sampling_parameters": json.dumps(parameters), **returns}
    front_end, model = grown(lambda: triton(body).raise_for_status())
    check_generations(model, n=n, num_prompt_tokens=4)
    assert front_end["vllm:generation_tokens_total"] == 0


def check_generations(grown: Counts, n: int, num_prompt_tokens: int) -> None:
    """One request of n generations is in Triton's metrics."""
    assert grown["vllm:generation_tokens_total"] == grown["vllm:request_generation_tokens_sum"] == n * NUM_TOKENS
    assert grown["vllm:prompt_tokens_total"] == grown["vllm:request_prompt_tokens_sum"] == n * num_prompt_tokens
    assert grown["vllm:time_to_first_token_seconds_count"] == n
    assert grown["vllm:time_per_output_token_seconds_count"] == n * (NUM_TOKENS - 1)
    assert (grown["vllm:request_params_n_count"], grown["vllm:request_params_n_sum"]) == (1, n)
    assert grown["vllm:request_success_total"] == n
    for name in TIMES:
        assert grown[f"vllm:{name}_seconds_count"] == n
        assert 0 <= grown[f"vllm:{name}_seconds_sum"] < 60 * n
    assert grown["vllm:e2e_request_latency_seconds_sum"] >= grown["vllm:request_inference_time_seconds_sum"] > 0


def test_an_abandoned_generation_is_counted_as_aborted(
    grown: Callable[..., tuple[Counts, Counts]], frontend: httpx.Client
) -> None:
    body = {"model": MODEL, "prompt": [7], "max_tokens": 2000, "ignore_eos": True, "stream": True}

    def leave() -> None:
        with frontend.stream("POST", "/v1/completions", json=body) as answer:
            next(answer.iter_lines())

    _, triton = grown(leave)
    assert triton["vllm:request_success_total"] == triton["vllm:time_to_first_token_seconds_count"] == 1
    assert triton["vllm:e2e_request_latency_seconds_count"] == 0


def test_no_sum_is_negative_or_longer_than_the_server_has_run(stack: Stack) -> None:
    for url in (f"{stack.frontend_url}/metrics", stack.metrics_url):
        counts = scrape(url)
        for name, value in counts.items():
            if name.endswith("_seconds_sum"):
                assert 0 <= value <= 600 * max(1, counts[name.replace("_sum", "_count")]), name


def test_histograms_on_triton_have_cumulative_buckets(stack: Stack) -> None:
    text = httpx.get(stack.metrics_url, timeout=30).text
    pattern = r"^vllm:e2e_request_latency_seconds_bucket\{([^}]*)\} (\S+)$"
    found = [
        (re.findall(r'(\w+)="([^"]*)"', labels), float(value)) for labels, value in re.findall(pattern, text, re.M)
    ]
    buckets = sorted((float(dict(labels)["le"]), value) for labels, value in found)
    assert len(buckets) > 10
    assert [value for _, value in buckets] == sorted(value for _, value in buckets)
    assert all(dict(labels)["model"] == "llm" and dict(labels)["version"] == "1" for labels, _ in found)


def test_the_versions(stack: Stack, frontend: httpx.Client) -> None:
    told = frontend.get("/version").json()
    assert told == {"version": vllm_version, "tritonlive_version": tritonlive.__version__}
    for url in (f"{stack.frontend_url}/metrics", stack.metrics_url):
        (line,) = re.findall(r"^tritonlive_build_info\{(.*)\} 1(?:\.0)?$", httpx.get(url, timeout=30).text, re.M)
        labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
        assert labels == {"version": tritonlive.__version__, "vllm_version": vllm_version}


def test_counts_of_a_long_answer_arrive_while_it_runs(stack: Stack, frontend: httpx.Client) -> None:
    """A whole answer's tokens stay in the model until its end, and their counts do not."""

    def num_tokens() -> float:
        return scrape(f"{stack.frontend_url}/metrics")["vllm:generation_tokens_total"]

    before, seen = num_tokens(), []
    body = {"model": MODEL, "prompt": [7], "max_tokens": 1500, "ignore_eos": True}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(lambda: frontend.post("/v1/completions", json=body).raise_for_status())
        while not answer.done():
            seen.append(num_tokens() - before)
            time.sleep(0.1)
        answer.result()
    wait_until(lambda: num_tokens() - before == 1500, 10)
    assert len({value for value in seen if 1 < value < 1500}) > 2
