"""/v1/completions: an echo that is complete, counts that are true, logprobs that name the sampled token.

Three faults of vllm.entrypoints.openai.completion.serving in vLLM 0.32, mended in its answers:

- With `return_token_ids`, `echo` puts no prompt into the text (vllm#57996, open pull request 58007).
- `echo` with `max_tokens` 0 generates one token that is not shown, yet counts it and returns its id. None yet.
- `top_logprobs` has texts as keys, so a token with the sampled one's text (two halves of a character are both "�")
  takes its place. None yet.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from vllm.outputs import RequestOutput

from openai_frontend.guards import events
from openai_frontend.vllm_seam import (
    CompletionLogProbs,
    CompletionRequest,
    CompletionResponse,
    ErrorResponse,
    OpenAIServingCompletion,
)


class GuardedCompletion(OpenAIServingCompletion):
    """vLLM's, with its answers mended."""

    async def render_completion_request(self, request: CompletionRequest) -> list[Any] | ErrorResponse:
        if loses_prompt(request):
            # vLLM detokenizes a prompt of token ids for an echo only without return_token_ids.
            request = request.model_copy(update={"return_token_ids": False})
        return await super().render_completion_request(request)

    def completion_stream_generator(
        self,
        request: CompletionRequest,
        engine_inputs: Any,
        result_generator: AsyncIterator[tuple[int, RequestOutput]],
        *args: Any,
        **kwargs: Any,
    ) -> AsyncGenerator[str, None]:
        chunks = super().completion_stream_generator(request, engine_inputs, result_generator, *args, **kwargs)
        if not loses_prompt(request) and not is_prompt_only(request):
            return chunks
        return mended(chunks, request, [self._extract_prompt_text(each) or "" for each in engine_inputs])

    def request_output_to_completion_response(
        self, final_res_batch: list[RequestOutput], request: CompletionRequest, *args: Any, **kwargs: Any
    ) -> CompletionResponse:
        response = super().request_output_to_completion_response(final_res_batch, request, *args, **kwargs)
        if loses_prompt(request):
            prompts = [result.prompt or "" for result in final_res_batch for _ in result.outputs]
            for choice, prompt in zip(response.choices, prompts, strict=True):
                choice.text = prompt + choice.text
        if is_prompt_only(request):
            for choice in response.choices:
                choice.token_ids = None if choice.token_ids is None else []
            response.usage.completion_tokens = 0
            response.usage.total_tokens = response.usage.prompt_tokens
        return response

    def _create_completion_logprobs(self, *args: Any, **kwargs: Any) -> CompletionLogProbs:
        logprobs = super()._create_completion_logprobs(*args, **kwargs)
        for token, value, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
            if top is not None and value is not None:
                top[token] = value
        return logprobs


def loses_prompt(request: CompletionRequest) -> bool:
    return bool(request.echo and request.return_token_ids)


def is_prompt_only(request: CompletionRequest) -> bool:
    return bool(request.echo and request.max_tokens == 0)


async def mended(
    chunks: AsyncGenerator[str, None], request: CompletionRequest, prompts: Sequence[str]
) -> AsyncGenerator[str, None]:
    """The events of a stream with echo. prompts: the text of each."""
    num_choices = request.n or 1
    try:
        async for event in chunks:
            chunk = events.parse(event)
            if chunk is None or "error" in chunk:
                yield event
                continue
            for choice in chunk["choices"]:
                # vLLM sends the ids of the prompt with the first piece of each choice, where its text belongs.
                if loses_prompt(request) and choice.get("prompt_token_ids") is not None:
                    choice["text"] = prompts[choice["index"] // num_choices] + choice["text"]
                if is_prompt_only(request) and choice.get("token_ids"):
                    choice["token_ids"] = []
            if is_prompt_only(request) and (usage := chunk.get("usage")):
                usage |= {"completion_tokens": 0, "total_tokens": usage["prompt_tokens"]}
            yield events.render(chunk)
    finally:
        await chunks.aclose()
