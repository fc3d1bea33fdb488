"""Collects the engine's outputs of a request's sequences as arrays, and makes tensors of them at the end.

vLLM's engine core sends arrays. vLLM's output processor makes an object of every logprob, and text of every token. A
client that wants arrays gets them from here without either.
"""

import json
from collections.abc import Sequence

import numpy as np

from tritonlive.backend.output_tensors import Tensors, batch, strings
from tritonlive.backend.vllm_seam.messages import EngineCoreOutput, FinishReason, LogprobsLists, LogprobsTensors
from tritonlive.wire import tensor_names

ALL = slice(None)


class TokenSequence:
    """One of a request's n sequences: the outputs so far."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[LogprobsLists] = []  # one for each step; column 0 is for the sampled token
        self.prompt_logprobs: LogprobsTensors | None = None
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.num_cached_tokens = 0
        self._version_starts: list[tuple[str, int]] = []  # version, index of the first token that it made

    def add(self, output: EngineCoreOutput, version: str | None) -> None:
        """Add one step's output, made by weights `version`."""
        if output.prefill_stats is not None and not self.token_ids:
            self.num_cached_tokens = output.prefill_stats.num_cached_tokens
        if output.new_token_ids:
            if version is not None and (not self._version_starts or self._version_starts[-1][0] != version):
                self._version_starts.append((version, len(self.token_ids)))
            self.token_ids += output.new_token_ids
        if output.new_logprobs is not None:
            self.logprobs.append(output.new_logprobs)
        if output.new_prompt_logprobs_tensors is not None:
            self.prompt_logprobs = output.new_prompt_logprobs_tensors
        if output.finish_reason is not None:
            self.finish_reason, self.stop_reason = output.finish_reason, output.stop_reason

    @property
    def weight_version(self) -> str | None:
        """Version of the weights that made the last token; None before the first."""
        return self._version_starts[-1][0] if self._version_starts else None

    @property
    def spans_json(self) -> str:
        """The weight versions that made the tokens, as JSON: a list of {"version", "start", "end"}."""
        starts = [start for _, start in self._version_starts[1:]]
        spans = zip(self._version_starts, [*starts, len(self.token_ids)], strict=False)
        return json.dumps([{"version": version, "start": start, "end": end} for (version, start), end in spans])


def to_tensors(
    sequences: Sequence[TokenSequence],
    prompt_token_ids: Sequence[int],
    returns: frozenset[str],
    num_logprobs: int | None,
) -> Tensors:
    """The response's tensors, of the shapes in config.pbtxt with the batch dimension in front.

    num_logprobs: as the request asks. The engine's rows may be wider: as wide as any request of the same step asks.
    """
    tensors: Tensors = {}
    if tensor_names.FINISH_REASON in returns:
        tensors[tensor_names.FINISH_REASON] = strings([str(sequence.finish_reason) for sequence in sequences])
        tensors[tensor_names.STOP_REASON] = strings([json.dumps(sequence.stop_reason) for sequence in sequences])
    if tensor_names.NUM_INPUT_TOKENS in returns:
        tensors[tensor_names.NUM_INPUT_TOKENS] = batch(np.array([len(prompt_token_ids)], np.uint32))
    if returns & {tensor_names.NUM_OUTPUT_TOKENS, tensor_names.TOKEN_IDS, tensor_names.TOKEN_LOGPROBS}:
        tensors[tensor_names.NUM_OUTPUT_TOKENS] = batch(np.array([len(s.token_ids) for s in sequences], np.uint32))
    if tensor_names.TOKEN_IDS in returns:
        tensors[tensor_names.TOKEN_IDS] = batch(np.concatenate([np.array(s.token_ids, np.int32) for s in sequences]))
        tensors[tensor_names.NUM_CACHED_TOKENS] = batch(np.array([sequences[0].num_cached_tokens], np.uint32))
    if tensor_names.PROMPT_TOKEN_IDS in returns:
        tensors[tensor_names.PROMPT_TOKEN_IDS] = batch(np.array(prompt_token_ids, np.int32))
    columns = ALL if num_logprobs in (None, -1) else slice(num_logprobs + 1)
    if tensor_names.CUMULATIVE_LOGPROB in returns:
        sums = [sum_of_sampled(sequence) for sequence in sequences]
        tensors[tensor_names.CUMULATIVE_LOGPROB] = batch(np.array(sums, np.float32))
    if tensor_names.TOKEN_LOGPROBS in returns:
        tensors |= token_logprobs([step for sequence in sequences for step in sequence.logprobs], columns)
    if tensor_names.PROMPT_TOKEN_LOGPROBS in returns:
        tensors |= prompt_logprobs(sequences[0].prompt_logprobs)
    if versions := [sequence.weight_version for sequence in sequences if sequence.weight_version is not None]:
        tensors[tensor_names.WEIGHT_VERSION] = strings([versions[-1]])
        tensors[tensor_names.WEIGHT_VERSION_SPANS] = strings([sequence.spans_json for sequence in sequences])
    return tensors


def sum_of_sampled(sequence: TokenSequence) -> float:
    """Sum of the sampled tokens' logprobs, computed in float64; NaN without logprobs."""
    if not sequence.logprobs:
        return float("nan")
    return float(np.concatenate([step.logprobs[:, 0] for step in sequence.logprobs]).sum(dtype=np.float64))


def token_logprobs(steps: Sequence[LogprobsLists], columns: slice) -> Tensors:
    """token_logprobs [tokens], top_token_ids and top_logprobs [tokens, N].

    In the engine's rows the sampled token comes first, then the N likeliest, which may repeat it. Here it is at its
    rank. Only where it is not among the N likeliest, a further column at the end holds it.
    """
    if not steps:
        return top_tensors("", np.empty(0), np.empty((0, 0)), np.empty((0, 0)))
    ids = np.concatenate([step.logprob_token_ids[:, columns] for step in steps])
    logprobs = np.concatenate([step.logprobs[:, columns] for step in steps])
    is_among_top = (ids[:, 1:] == ids[:, :1]).any(axis=1)
    top_ids, top = ids[:, 1:], logprobs[:, 1:]
    if not is_among_top.all():
        top_ids = np.column_stack([top_ids, np.where(is_among_top, -1, ids[:, 0])])
        top = np.column_stack([top, np.where(is_among_top, -np.inf, logprobs[:, 0])])
    return top_tensors("", logprobs[:, 0], top_ids, top)


def prompt_logprobs(tensors: LogprobsTensors | None) -> Tensors:
    """prompt_token_logprobs [prompt_len - 1], prompt_top_token_ids and prompt_top_logprobs [prompt_len - 1, K].

    No rows if the request ended before its prompt was computed.
    """
    if tensors is None:
        return top_tensors("prompt_", np.empty(0), np.empty((0, 0)), np.empty((0, 0)))
    ids, logprobs = tensors.logprob_token_ids.numpy(), tensors.logprobs.numpy()
    return top_tensors("prompt_", logprobs[:, 0], ids[:, 1:], logprobs[:, 1:])


def top_tensors(prefix: str, token: np.ndarray, top_ids: np.ndarray, top: np.ndarray) -> Tensors:
    """The three tensors of logprobs, in the types of config.pbtxt."""
    return {
        f"{prefix}{tensor_names.TOKEN_LOGPROBS}": batch(np.ascontiguousarray(token, np.float32)),
        f"{prefix}{tensor_names.TOP_TOKEN_IDS}": batch(np.ascontiguousarray(top_ids, np.int32)),
        f"{prefix}{tensor_names.TOP_LOGPROBS}": batch(np.ascontiguousarray(top, np.float32)),
    }
