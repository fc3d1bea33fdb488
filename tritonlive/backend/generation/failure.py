"""Generations that the engine ended in an error.

vLLM's engine core reports them with the finish reason "error" and the tokens so far. Here they become errors before
they reach any route: a failed generation is never an answer. docs/serving.md has the table of finish reasons.
"""

from tritonlive.backend.tensors import BadTensor, RequestError, Unavailable
from tritonlive.backend.vllm_seam.messages import EngineCoreOutput, FinishReason
from tritonlive.backend.vllm_seam.structured_outputs import failure_reason
from tritonlive.wire.error_codes import ErrorCode

FIELD = "structured_outputs"


class GenerationFailed(RequestError):
    """The engine gave up a request that it had accepted."""

    def __init__(self) -> None:
        super().__init__("engine: the generation ended in an error, see the model's log", ErrorCode.INTERNAL)


def failure_of(output: EngineCoreOutput, *, pools: bool = False) -> RequestError | None:
    """The error of a generation that has failed; None if it has not.

    pools: whether it ends with a pooled output instead of tokens. Aborted, it has none, and vLLM's front end needs one.

    A miss in the cache of images is not an error yet: vLLM's front end asks the client to send them again.
    """
    if pools and output.finish_reason is FinishReason.ABORT:
        return Unavailable("engine: the request was aborted by a pause, a push or a sleep")
    if output.finish_reason is not FinishReason.ERROR or output.mm_cache_miss_hashes:
        return None
    reason = failure_reason(output)
    return GenerationFailed() if reason is None else BadTensor(FIELD, f"the grammar cannot be compiled: {reason}")
