"""A response's tensors, made from the RequestOutput of vLLM's output processor."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from vllm.outputs import CompletionOutput, RequestOutput

from tritonlive.backend.output_tensors import Tensors, batch, strings
from tritonlive.wire import tensor_names


def to_tensors(
    output: RequestOutput, returns: frozenset[str], prompt_text: str = "", *, wants_logprobs: bool = True
) -> Tensors:
    """One response's tensors, of the shapes in config.pbtxt with the batch dimension in front.

    prompt_text: prepended to every sequence's text. wants_logprobs: false leaves out those that came unasked.
    """
    sequences = output.outputs
    tensors: Tensors = {tensor_names.TEXT_OUTPUT: strings([prompt_text + sequence.text for sequence in sequences])}
    if tensor_names.FINISH_REASON in returns:
        tensors[tensor_names.FINISH_REASON] = strings([str(sequence.finish_reason) for sequence in sequences])
        tensors[tensor_names.STOP_REASON] = strings([json.dumps(sequence.stop_reason) for sequence in sequences])
    if tensor_names.CUMULATIVE_LOGPROB in returns:
        values = [math.nan if s.cumulative_logprob is None else s.cumulative_logprob for s in sequences]
        tensors[tensor_names.CUMULATIVE_LOGPROB] = batch(np.array(values, np.float32))
    if tensor_names.LOGPROBS in returns:
        texts = [logprobs_json(sequence) if wants_logprobs else "null" for sequence in sequences]
        tensors[tensor_names.LOGPROBS] = strings(texts)
    if tensor_names.NUM_INPUT_TOKENS in returns:
        tensors[tensor_names.NUM_INPUT_TOKENS] = batch(np.array([len(output.prompt_token_ids or ())], np.uint32))
    if returns & {tensor_names.NUM_OUTPUT_TOKENS, tensor_names.TOKEN_IDS, tensor_names.TOKEN_LOGPROBS}:
        tensors[tensor_names.NUM_OUTPUT_TOKENS] = batch(np.array([len(s.token_ids) for s in sequences], np.uint32))
    if tensor_names.TOKEN_IDS in returns:
        tensors[tensor_names.TOKEN_IDS] = batch(np.array([t for s in sequences for t in s.token_ids], np.int32))
        tensors[tensor_names.NUM_CACHED_TOKENS] = batch(np.array([output.num_cached_tokens or 0], np.uint32))
    if tensor_names.PROMPT_TOKEN_IDS in returns:
        tensors[tensor_names.PROMPT_TOKEN_IDS] = batch(np.array(output.prompt_token_ids or [], np.int32))
    if tensor_names.TOKEN_LOGPROBS in returns:
        tensors |= token_logprobs(sequences)
    if spans := [sequence.weight_versions for sequence in sequences if sequence.weight_versions]:
        tensors[tensor_names.WEIGHT_VERSION] = strings([spans[-1][-1].version])
        tensors[tensor_names.WEIGHT_VERSION_SPANS] = strings([spans_json(sequence) for sequence in sequences])
        if output.lora_request is not None:
            tensors[tensor_names.ADAPTER_VERSION] = strings([output.lora_request.lora_name])
    return tensors


def token_logprobs(sequences: Sequence[CompletionOutput]) -> Tensors:
    """token_logprobs [tokens], top_token_ids and top_logprobs [tokens, N]; N is the length of the longest row."""
    rows = [(token, row) for s in sequences for token, row in zip(s.token_ids, s.logprobs or (), strict=False)]
    width = max((len(row) for _, row in rows), default=0)
    sampled = np.full(len(rows), np.nan, np.float32)
    top_ids = np.full((len(rows), width), -1, np.int32)
    top = np.full((len(rows), width), -np.inf, np.float32)
    for index, (token, row) in enumerate(rows):
        sampled[index] = row[token].logprob
        ranked = sorted(row.items(), key=lambda item: item[1].rank or 0)
        top_ids[index, : len(row)] = [candidate for candidate, _ in ranked]
        top[index, : len(row)] = [logprob.logprob for _, logprob in ranked]
    return {
        tensor_names.TOKEN_LOGPROBS: batch(sampled),
        tensor_names.TOP_TOKEN_IDS: batch(top_ids),
        tensor_names.TOP_LOGPROBS: batch(top),
    }


def logprobs_json(sequence: CompletionOutput) -> str:
    """The sequence's logprobs in the JSON of vllm_backend; "null" without logprobs."""
    if sequence.logprobs is None:
        return "null"
    fields = ("logprob", "rank", "decoded_token")
    rows = [{str(t): {f: getattr(lp, f) for f in fields} for t, lp in row.items()} for row in sequence.logprobs]
    return json.dumps(finite(rows))


def finite(rows: list[dict[str, dict[str, Any]]]) -> list[dict[str, dict[str, Any]]]:
    """`rows` with null for logprobs that are NaN or infinite: JSON has neither."""
    for row in rows:
        for entry in row.values():
            if not math.isfinite(entry["logprob"]):
                entry["logprob"] = None
    return rows


def spans_json(sequence: CompletionOutput) -> str:
    """The weight versions that made the sequence's tokens, as JSON."""
    return json.dumps([{"version": s.version, "start": s.start, "end": s.end} for s in sequence.weight_versions or ()])
