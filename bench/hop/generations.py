"""Runs, counts and times generations of an engine core client."""

import asyncio
import sys
import time
import uuid

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core_client import EngineCoreClient

from bench.measure import Figures
from openai_frontend import engine_info
from openai_frontend.engine.core_client import TritonCoreClient

PROMPT_TOKEN_IDS = [1] * 32
CONNECT_TIMEOUT_S = 60.0
TIMEOUT_S = 60.0
"""Time limit of one run. A run normally takes one or two seconds."""


class Generations:
    """Runs generations of one client. The client reports failures to `on_failure`."""

    def __init__(self) -> None:
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_failure(self, request_id: str, error: Exception) -> None:
        if not self._failure.done():
            self._failure.set_exception(error)

    async def run(self, core: EngineCoreClient, concurrency: int, max_tokens: int) -> Figures:
        """Run `concurrency` generations at once; the time runs from the first request to the last token.

        Raises the error of a generation that failed, TimeoutError after TIMEOUT_S.
        """
        requests = [make_request(max_tokens) for _ in range(concurrency)]
        began, cpu_began = time.perf_counter(), time.process_time()
        for request in requests:
            await core.add_request_async(request)
        counting = asyncio.create_task(count(core, concurrency))
        try:
            await asyncio.wait({counting, self._failure}, timeout=TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
            is_counted = counting.done()
            counting.cancel()
        if self._failure.done():
            self._failure.result()
        if not is_counted:
            raise TimeoutError(f"{concurrency} generations of {max_tokens} tokens took more than {TIMEOUT_S:.0f} s")
        tokens, steps = counting.result()
        return {
            "seconds": seconds,
            "tokens/s": tokens / seconds,
            "completion tokens": float(tokens),
            "steps": float(steps),
            "client CPU s": cpu_s,
        }


async def connect(url: str) -> tuple[Generations, TritonCoreClient]:
    """Connect the front end's client to the Triton server at `url`. Raises EngineUnavailable, TimeoutError."""
    described = engine_info.wait([url], CONNECT_TIMEOUT_S, lambda text: print(text, file=sys.stderr))
    generations = Generations()
    core = TritonCoreClient([url], described, generations.on_failure)
    for replica in core.replicas.members:
        await replica.connect()
    await core.replicas.require()
    return generations, core


async def count(core: EngineCoreClient, num_running: int) -> tuple[int, int]:
    """Count (tokens, steps that carry tokens) until `num_running` generations have ended."""
    tokens = steps = 0
    while num_running:
        outputs = (await core.get_output_async()).outputs
        steps += bool(outputs)
        for output in outputs:
            tokens += len(output.new_token_ids)
            num_running -= output.finish_reason is not None
    return tokens, steps


def make_request(max_tokens: int) -> EngineCoreRequest:
    """A request such as a front end makes for a stream."""
    return EngineCoreRequest(
        request_id=f"hop-{uuid.uuid4().hex}",
        prompt_token_ids=PROMPT_TOKEN_IDS,
        mm_features=None,
        sampling_params=SamplingParams(
            temperature=0.0, max_tokens=max_tokens, ignore_eos=True, output_kind=RequestOutputKind.DELTA
        ),
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
