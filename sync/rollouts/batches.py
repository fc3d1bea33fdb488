"""The results of `Rollouts`: flat arrays, one sequence after another."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class WeightSpan:
    """Weights of `version` made the tokens [start, end) of a sequence."""

    version: str
    start: int
    end: int


@dataclass(frozen=True)
class PaddedRollouts:
    """Rollouts as rows, padded at their end; rows are prompt-major."""

    token_ids: np.ndarray
    """int32 [prompts * n, longest]"""
    mask: np.ndarray
    """bool [prompts * n, longest]: true for tokens, false for padding"""
    logprobs: np.ndarray | None
    """float32 [prompts * n, longest], 0 for padding; None if not requested"""


@dataclass(frozen=True)
class RolloutBatch:
    """Generated sequences, prompt-major: the n of the first prompt, then those of the next."""

    token_ids: np.ndarray
    """int32 [total]: sequence after sequence"""
    lengths: np.ndarray
    """int32 [prompts, n]: tokens of each sequence"""
    logprobs: np.ndarray | None
    """float32 [total]: of each sampled token. None if not requested, like the next two fields"""
    top_token_ids: np.ndarray | None
    """int32 [total, N]: the likeliest tokens, in order, then the sampled one if it is not among them; padded with -1"""
    top_logprobs: np.ndarray | None
    """float32 [total, N]; padded with -inf"""
    finish_reasons: list[list[str]]
    """[prompts][n]: stop, length, abort, repetition or error"""
    weight_versions: list[list[list[WeightSpan]]]
    """[prompts][n]: which weights made which tokens"""

    @property
    def offsets(self) -> np.ndarray:
        """int64 [prompts * n + 1]: sequence i is token_ids[offsets[i] : offsets[i + 1]]."""
        return offsets_of(self.lengths)

    def padded(self, pad_token_id: int = 0) -> PaddedRollouts:
        """The sequences as rows of rectangular arrays."""
        lengths = self.lengths.reshape(-1, 1)
        mask = np.arange(lengths.max(initial=0)) < lengths
        return PaddedRollouts(
            spread(self.token_ids, mask, pad_token_id),
            mask,
            None if self.logprobs is None else spread(self.logprobs, mask, 0),
        )

    def torch(self) -> "dict[str, Tensor]":
        """The arrays as CPU tensors that share their memory, by name."""
        return as_tensors(self, ("token_ids", "lengths", "logprobs", "top_token_ids", "top_logprobs"))


@dataclass(frozen=True)
class Scores:
    """Logprobs of given sequences: one row for each token except a sequence's first."""

    lengths: np.ndarray
    """int32 [sequences]: rows of each sequence, one fewer than its tokens"""
    logprobs: np.ndarray
    """float32 [total]: of the sequences' own tokens, given the tokens before them"""
    top_token_ids: np.ndarray
    """int32 [total, top_k]: the likeliest tokens at each position, in order"""
    top_logprobs: np.ndarray
    """float32 [total, top_k]"""
    weight_versions: list[str]
    """[sequences]"""

    @property
    def offsets(self) -> np.ndarray:
        """int64 [sequences + 1]: rows of sequence i are logprobs[offsets[i] : offsets[i + 1]]."""
        return offsets_of(self.lengths)

    def torch(self) -> "dict[str, Tensor]":
        """The arrays as CPU tensors that share their memory, by name."""
        return as_tensors(self, ("lengths", "logprobs", "top_token_ids", "top_logprobs"))


def as_tensors(batch: RolloutBatch | Scores, names: Sequence[str]) -> "dict[str, Tensor]":
    from torch import from_numpy  # imported here: users of numpy need not wait for torch

    arrays = {name: getattr(batch, name) for name in names}
    return {name: from_numpy(array) for name, array in arrays.items() if array is not None}


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def spread(flat: np.ndarray, mask: np.ndarray, fill: float) -> np.ndarray:
    """The values of `flat` where `mask` is true, row by row."""
    rows = np.full(mask.shape, fill, flat.dtype)
    rows[mask] = flat
    return rows


def stack_rows(parts: Sequence[np.ndarray], fill: float) -> np.ndarray:
    """Stack arrays [rows, N] vertically, padded to the widest."""
    width = max((part.shape[1] for part in parts), default=0)
    filled = [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=fill) for part in parts]
    return np.concatenate(filled)


def read_spans(text: str) -> list[WeightSpan]:
    return [WeightSpan(**span) for span in json.loads(text)]
