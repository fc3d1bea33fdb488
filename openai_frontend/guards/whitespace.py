"""Refuses options of a request's structured output that only the engine's configuration has.

vLLM 0.32 has the fields in StructuredOutputsParams (vllm.sampling_params) and reads only those of the engine
(vllm.v1.structured_output.backend_*). No version of vLLM reads them, or refuses them, yet.
"""

from typing import Any

from vllm.exceptions import VLLMValidationError

OPTIONS = ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern")


def check(structured_outputs: Any, engines: Any) -> None:
    """Raises VLLMValidationError for an option that differs from the engine's.

    structured_outputs: as in the body. engines: the StructuredOutputsConfig.
    """
    if not isinstance(structured_outputs, dict):
        return
    for name in OPTIONS:
        value = structured_outputs.get(name)
        if value is not None and value != getattr(engines, name, None):
            configured = (
                f"; set it for the server, with --structured-outputs-config.{name}" if hasattr(engines, name) else ""
            )
            raise VLLMValidationError(
                f"structured_outputs.{name}: vLLM ignores it in a request{configured}",
                parameter=f"structured_outputs.{name}",
            )
