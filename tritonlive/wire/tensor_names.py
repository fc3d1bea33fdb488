"""Names of the model's tensors, and the check that a server has those that a front end needs.

model_repository/llm/config.pbtxt documents each tensor; a test compares the two.
"""
# ruff: noqa: S105 - "token" in a name is no password

from collections.abc import Iterable

MODEL = "llm"
# Models without an engine that pass native requests to it: for clients of Triton's vllm_backend, and for infer().
VLLM_MODEL = "vllm_model"
UNARY_MODEL = "llm_unary"

# ---- inputs: native -------------------------------------------------------------------------------------------------
TEXT_INPUT = "text_input"
INPUT_IDS = "input_ids"
STREAM = "stream"
SAMPLING_PARAMETERS = "sampling_parameters"
EXCLUDE_INPUT_IN_OUTPUT = "exclude_input_in_output"
MIN_WEIGHT_VERSION = "min_weight_version"
RETURN_FINISH_REASON = "return_finish_reason"
RETURN_CUMULATIVE_LOGPROB = "return_cumulative_logprob"
RETURN_LOGPROBS = "return_logprobs"
RETURN_NUM_INPUT_TOKENS = "return_num_input_tokens"
RETURN_NUM_OUTPUT_TOKENS = "return_num_output_tokens"
RETURN_TOKEN_IDS = "return_token_ids"
RETURN_PROMPT_TOKEN_IDS = "return_prompt_token_ids"
RETURN_TOKEN_LOGPROBS = "return_token_logprobs"
RETURN_TEXT = "return_text"
RETURN_PROMPT_TOKEN_LOGPROBS = "return_prompt_token_logprobs"
# ---- inputs: keys ---------------------------------------------------------------------------------------------------
API_KEY = "api_key"
# ---- inputs: control ------------------------------------------------------------------------------------------------
CONTROL_OPERATION = "control_operation"
CONTROL_ARGUMENTS = "control_arguments"
CONTROL_KEY = "control_key"
CONTROL_PAYLOAD = "control_payload"
# ---- inputs: the front end's engine traffic -------------------------------------------------------------------------
ENGINE_CHANNEL = "engine_channel"
ENGINE_REQUEST = "engine_request"
ENGINE_ABORT = "engine_abort"
ENGINE_SEEN = "engine_seen"

INPUTS = frozenset(
    {
        *(TEXT_INPUT, INPUT_IDS, STREAM, SAMPLING_PARAMETERS, EXCLUDE_INPUT_IN_OUTPUT, MIN_WEIGHT_VERSION),
        *(RETURN_FINISH_REASON, RETURN_CUMULATIVE_LOGPROB, RETURN_LOGPROBS),
        *(RETURN_NUM_INPUT_TOKENS, RETURN_NUM_OUTPUT_TOKENS, RETURN_TOKEN_IDS, RETURN_PROMPT_TOKEN_IDS),
        *(RETURN_TOKEN_LOGPROBS, RETURN_TEXT, RETURN_PROMPT_TOKEN_LOGPROBS),
        *(API_KEY, CONTROL_OPERATION, CONTROL_ARGUMENTS, CONTROL_KEY, CONTROL_PAYLOAD),
        *(ENGINE_CHANNEL, ENGINE_REQUEST, ENGINE_ABORT, ENGINE_SEEN),
    }
)

# ---- outputs: native ------------------------------------------------------------------------------------------------
TEXT_OUTPUT = "text_output"
FINISH_REASON = "finish_reason"
STOP_REASON = "stop_reason"
CUMULATIVE_LOGPROB = "cumulative_logprob"
LOGPROBS = "logprobs"
NUM_INPUT_TOKENS = "num_input_tokens"
NUM_OUTPUT_TOKENS = "num_output_tokens"
TOKEN_IDS = "token_ids"
TOKEN_LOGPROBS = "token_logprobs"
TOP_TOKEN_IDS = "top_token_ids"
TOP_LOGPROBS = "top_logprobs"
PROMPT_TOKEN_IDS = "prompt_token_ids"
NUM_CACHED_TOKENS = "num_cached_tokens"
PROMPT_TOKEN_LOGPROBS = "prompt_token_logprobs"
PROMPT_TOP_TOKEN_IDS = "prompt_top_token_ids"
PROMPT_TOP_LOGPROBS = "prompt_top_logprobs"
WEIGHT_VERSION = "weight_version"
WEIGHT_VERSION_SPANS = "weight_version_spans"
ADAPTER_VERSION = "adapter_version"
# ---- outputs: control, and the front end's engine traffic -----------------------------------------------------------
CONTROL_RESULT = "control_result"
ENGINE_OUTPUTS = "engine_outputs"
ENGINE_REFUSED = "engine_refused"
ENGINE_ADAPTERS = "engine_adapters"

OUTPUTS = frozenset(
    {
        *(TEXT_OUTPUT, FINISH_REASON, STOP_REASON, CUMULATIVE_LOGPROB, LOGPROBS, NUM_INPUT_TOKENS, NUM_OUTPUT_TOKENS),
        *(TOKEN_IDS, TOKEN_LOGPROBS, TOP_TOKEN_IDS, TOP_LOGPROBS, PROMPT_TOKEN_IDS, NUM_CACHED_TOKENS),
        *(PROMPT_TOKEN_LOGPROBS, PROMPT_TOP_TOKEN_IDS, PROMPT_TOP_LOGPROBS),
        *(WEIGHT_VERSION, WEIGHT_VERSION_SPANS, ADAPTER_VERSION),
        *(CONTROL_RESULT, ENGINE_OUTPUTS, ENGINE_REFUSED, ENGINE_ADAPTERS),
    }
)

FRONT_END_INPUTS = frozenset({API_KEY, ENGINE_CHANNEL, ENGINE_REQUEST, ENGINE_ABORT, CONTROL_OPERATION})
FRONT_END_OUTPUTS = frozenset({ENGINE_OUTPUTS, ENGINE_REFUSED, CONTROL_RESULT})
"""Tensors of a front end's requests and answers. A server without them has another model or version."""


def missing_tensors(inputs: Iterable[str], outputs: Iterable[str]) -> list[str]:
    """The tensors that a front end needs and a model with these lacks, sorted."""
    return sorted((FRONT_END_INPUTS - set(inputs)) | (FRONT_END_OUTPUTS - set(outputs)))
