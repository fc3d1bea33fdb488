"""The client of Triton's gRPC endpoint: text in, text out, one call per request. Like client.py, a separate process."""

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import grpc
import uvloop
from tritonclient.grpc import service_pb2_grpc

from bench.client import Answered, Client, LoadError, Outcome, answer_job, outcome_of
from tritonlive.triton_messages import build_request
from tritonlive.wire.triton_tensors import read_contents

MODULE = "bench.grpc_client"
REQUEST_TIMEOUT_S = 300.0
COUNT = "num_output_tokens"


@dataclass(frozen=True)
class GrpcJob:
    """Prompts to send, `concurrency` of them at a time."""

    url: str
    """host:port"""
    prompts: list[str]
    params: dict[str, Any]
    """vLLM's sampling parameters."""
    concurrency: int
    stream: bool


def run_grpc_job(job: GrpcJob, client: Client | None = None) -> Outcome:
    """Run the job in `client`, or in a new client. Raises LoadError if a request failed."""
    return (client or Client(MODULE)).run(asdict(job))


async def send_all(job: GrpcJob) -> Outcome:
    """Send the job's requests and measure the answers. Raises LoadError as soon as a request fails."""
    requests = [_request(job, prompt) for prompt in job.prompts]
    answers: list[Answered] = []
    async with grpc.aio.insecure_channel(job.url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        cpu_started, started = time.process_time(), time.perf_counter()
        queue = iter(requests)  # shared by all senders: a free sender takes the next request
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(job.concurrency, len(requests))):
                    group.create_task(_worker(stub, queue, answers))
        except* (LoadError, grpc.RpcError) as errors:
            raise LoadError(repr(errors.exceptions[0])) from errors
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    return outcome_of(answers, wall_s, cpu_s)


def _request(job: GrpcJob, prompt: str) -> Any:
    return build_request(
        {
            "text_input": prompt,
            "stream": job.stream,
            "sampling_parameters": json.dumps(job.params),
            f"return_{COUNT}": True,
        }
    )


async def _worker(stub: Any, queue: Iterator[Any], answers: list[Answered]) -> None:
    answers.extend([await _send(stub, request) for request in queue])


async def _send(stub: Any, request: Any) -> Answered:
    started = last = time.perf_counter()
    ttft, gaps, tokens = None, [], 0
    async for response in stub.ModelStreamInfer(iter([request]), timeout=REQUEST_TIMEOUT_S):
        if response.error_message:
            raise LoadError(response.error_message)
        now = time.perf_counter()
        if ttft is None:
            ttft = now - started
        else:
            gaps.append(now - last)
        last = now
        tokens += read_count(response.infer_response)
    # The prompt's length is not asked for.
    usage = {"prompt_tokens": 0, "completion_tokens": tokens}
    return Answered(time.perf_counter() - started, usage, ttft, tuple(gaps))


def read_count(response: Any) -> int:
    """Number of tokens in a response: the output `num_output_tokens`. Raises LoadError if there is none."""
    if raw := read_contents(response).get(COUNT):
        return int.from_bytes(raw, "little")
    raise LoadError(f"a response has no {COUNT}")


if __name__ == "__main__":
    answer_job(lambda job: uvloop.run(send_all(GrpcJob(**job))))
