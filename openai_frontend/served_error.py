"""Triton's errors in the form that vLLM's serving layer answers with their own status."""

from vllm.exceptions import GracefulHTTPError

from openai_frontend.errors import TritonError


class ServedError(GracefulHTTPError):
    """A TritonError among vLLM's exceptions: vLLM answers any other one with 500."""

    @classmethod
    def of(cls, error: TritonError) -> "ServedError":
        return cls(error.message, error.http_status)
