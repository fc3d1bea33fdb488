"""Runs native requests that want text: through AsyncLLM and its output processor."""

from collections.abc import AsyncGenerator

from vllm.exceptions import VLLMClientError
from vllm.inputs import EngineInput
from vllm.lora.request import LoRARequest

from tritonlive.backend.engine import EngineDied
from tritonlive.backend.output_tensors import Tensors
from tritonlive.backend.tensors import (
    BadTensor,
    RequestError,
)
from tritonlive.backend.vllm_seam import requests
from tritonlive.backend.vllm_seam.messages import AsyncLLM, EngineDeadError, EngineGenerateError
from tritonlive.wire.error_codes import ErrorCode
from tritonlive.wire.tensor_names import INPUT_IDS, SAMPLING_PARAMETERS, TEXT_INPUT

from .failure import GenerationFailed
from .native_request import NativeRequest
from .text_tensors import to_tensors


async def render(llm: AsyncLLM, prompt: str | list[int]) -> EngineInput:
    """Tokenize off the event loop. Raises BadTensor for a prompt that the model cannot take."""
    try:
        return await requests.render(llm, prompt)
    except (VLLMClientError, ValueError, TypeError) as error:
        raise BadTensor(TEXT_INPUT if isinstance(prompt, str) else INPUT_IDS, str(error)) from None


async def generate(
    llm: AsyncLLM, request: NativeRequest, request_id: str, adapter: LoRARequest | None = None
) -> AsyncGenerator[tuple[Tensors, bool], None]:
    """Yield each response's tensors, and whether it is the last. Raises RequestError."""
    prompt = await render(llm, request.prompt)
    prompt_text = request.prompt if request.prepend_prompt and isinstance(request.prompt, str) else ""
    try:
        async for output in llm.generate(prompt, request.params, request_id, lora_request=adapter):
            if any(sequence.finish_reason == "error" for sequence in output.outputs):
                raise GenerationFailed
            tensors = to_tensors(output, request.returns, prompt_text, wants_logprobs=request.wants_logprobs)
            yield tensors, output.finished
    except (VLLMClientError, ValueError) as error:
        raise BadTensor(SAMPLING_PARAMETERS, str(error)) from None
    except EngineDeadError:
        raise EngineDied from None
    except EngineGenerateError as error:
        if isinstance(error.__cause__, ValueError):  # vLLM refused the request late
            raise BadTensor(SAMPLING_PARAMETERS, str(error.__cause__)) from None
        raise RequestError(f"engine: {error.__cause__ or error}", ErrorCode.INTERNAL) from None
