"""Runs native requests that want token ids and no text: below vLLM's output processor.

vLLM's own input processor makes and checks the request, and it is split for n > 1 as AsyncLLM does it. The outputs take
another path: they are intercepted before AsyncLLM sees them, and stay arrays (sequences.py).
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from vllm.exceptions import GracefulHTTPError, VLLMClientError
from vllm.inputs import EngineInput
from vllm.lora.request import LoRARequest

from tritonlive.backend.engine import Engine, EngineDied
from tritonlive.backend.output_tensors import Tensors, strings
from tritonlive.backend.tensors import BadTensor, Unavailable
from tritonlive.backend.vllm_seam.core import abort_requests, add_request, intercept_outputs
from tritonlive.backend.vllm_seam.messages import AsyncLLM, EngineCoreOutputs, EngineCoreRequest, EngineDeadError
from tritonlive.backend.vllm_seam.requests import make_request, split
from tritonlive.wire.tensor_names import ADAPTER_VERSION, SAMPLING_PARAMETERS

from .failure import failure_of
from .generate import render
from .native_request import NativeRequest
from .sequences import TokenSequence, to_tensors


@dataclass(frozen=True)
class Running:
    """A request's sequences, and a future that is done when all have ended."""

    sequences: Sequence[TokenSequence]
    ended: "asyncio.Future[None]"


class TokenLevel:
    """Runs token-level requests on the engine's loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._running: dict[str, tuple[TokenSequence, Running]] = {}  # by the engine's id of the sequence
        engine.on_start(lambda llm: intercept_outputs(llm, self._collect))
        engine.on_death(self._fail_all)

    async def generate(self, request: NativeRequest, request_id: str, adapter: LoRARequest | None = None) -> Tensors:
        """Run a request and return its tensors. Cancelling aborts it in the engine. Raises RequestError."""
        llm = self._engine.llm
        prompt = await render(llm, request.prompt)
        parts = await self._prepare(llm, prompt, request, request_id, adapter)
        running = Running([TokenSequence() for _ in parts], asyncio.get_running_loop().create_future())
        for part, sequence in zip(parts, running.sequences, strict=True):
            self._running[part.request_id] = (sequence, running)
        try:
            for part in parts:
                await add_request(llm, part)
            await running.ended
        except EngineDeadError:
            raise EngineDied from None
        finally:
            await self._abort([part.request_id for part in parts])
        prompt_token_ids = parts[0].prompt_token_ids or []
        tensors = to_tensors(running.sequences, prompt_token_ids, request.returns, request.params.num_logprobs)
        return tensors | ({ADAPTER_VERSION: strings([adapter.lora_name])} if adapter is not None else {})

    async def _prepare(
        self,
        llm: AsyncLLM,
        prompt: EngineInput,
        request: NativeRequest,
        request_id: str,
        adapter: LoRARequest | None,
    ) -> list[EngineCoreRequest]:
        """One engine request for each of the n sequences. Raises BadTensor, Unavailable."""
        params = request.params
        if params.prompt_logprobs is not None and llm.vllm_config.cache_config.kv_sharing_fast_prefill:
            raise BadTensor(SAMPLING_PARAMETERS, "prompt_logprobs are wrong with --kv-sharing-fast-prefill")
        tasks = await llm.get_supported_tasks()
        try:
            whole = make_request(llm, request_id, prompt, params, tasks, adapter)
            # AsyncLLM counts its own requests, but not these.
            llm.check_admission(len(self._running) + params.n, request_id)
        except (VLLMClientError, ValueError) as error:
            raise BadTensor(SAMPLING_PARAMETERS, str(error)) from None
        except GracefulHTTPError as error:
            raise Unavailable(f"engine: {error}") from None
        return split(llm, whole, params.n)

    async def _abort(self, ids: Sequence[str]) -> None:
        """Forget sequences, and abort in the engine those that have not ended."""
        unfinished = [request_id for request_id in ids if self._running.pop(request_id, None) is not None]
        if unfinished and self._engine.is_running:
            await abort_requests(self._engine.llm, unfinished)

    def _collect(self, outputs: EngineCoreOutputs) -> EngineCoreOutputs | None:
        """Take the outputs of running sequences out of a step. Returns the rest of the step, or None."""
        if not self._running:
            return outputs
        rest = []
        for output in outputs.outputs:
            found = self._running.get(output.request_id)
            if found is None:
                rest.append(output)
                continue
            sequence, running = found
            if (error := failure_of(output)) is not None:
                del self._running[output.request_id]
                if not running.ended.done():
                    running.ended.set_exception(error)
                continue
            sequence.add(output, outputs.weight_version)
            if sequence.finish_reason is not None:
                del self._running[output.request_id]
                if all(each.finish_reason is not None for each in running.sequences) and not running.ended.done():
                    running.ended.set_result(None)
        if not rest and outputs.scheduler_stats is None:
            return None
        return msgspec.structs.replace(outputs, outputs=rest)

    def _fail_all(self, reason: str) -> None:
        for _, running in self._running.values():
            if not running.ended.done():
                running.ended.set_exception(Unavailable(f"engine: {reason}"))
        self._running.clear()
