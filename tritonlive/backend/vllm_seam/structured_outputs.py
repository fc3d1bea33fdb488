"""vLLM's structured outputs: validation, compilers, and the manager in the engine core.

vLLM 0.32 has one compiler for an engine's whole life: that of the first request with a grammar. Later requests that
validation gave to another compiler fail (vllm#43920, vllm#45592). `install` puts a manager with one compiler for each
name into the engine core. It is unnecessary once StructuredOutputManager chooses the backend for each request.
"""

import copy
import threading
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.tokenizers import TokenizerLike, cached_tokenizer_from_config
from vllm.v1.engine import core
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_guidance import GuidanceGrammar
from vllm.v1.structured_output.backend_types import StructuredOutputBackend, StructuredOutputGrammar
from vllm.v1.structured_output.request import get_structured_output_key
from vllm.v1.structured_output.utils import choice_as_grammar

from .messages import AsyncLLM, EngineCoreOutput

__all__ = [
    "GrammarBackends",
    "StructuredOutputsParams",
    "failure_reason",
    "install",
    "leave_to_us",
    "set_backend",
    "tokenizer_of",
    "validate",
]

_MODULE = "vllm.v1.structured_output.backend_"
_BACKENDS = {
    "xgrammar": ("xgrammar", "XgrammarBackend"),
    "guidance": ("guidance", "GuidanceBackend"),
    "outlines": ("outlines", "OutlinesBackend"),
    "lm-format-enforcer": ("lm_format_enforcer", "LMFormatEnforcerBackend"),
}
# The only text of a request that the scheduler copies into the output of a request that failed.
_REASON = "tritonlive-grammar-error"
# Compilations at the same time in the engine core. The helper process has compiled each of them before.
_NUM_THREADS = 4


def leave_to_us(llm: AsyncLLM) -> None:
    """Have `llm` no longer validate grammars on its event loop: `Grammars.admit` does it in another process."""
    processor: Any = llm.input_processor
    processor.structured_outputs_config = None  # SamplingParams.verify skips them then


def tokenizer_of(config: VllmConfig) -> TokenizerLike:
    """The model's tokenizer, as the engine core has it."""
    return cached_tokenizer_from_config(model_config=config.model_config)


def validate(config: VllmConfig, tokenizer: TokenizerLike, params: StructuredOutputsParams) -> str:
    """Validate as vLLM does; returns the name of the compiler that it chooses. May rewrite `choice` as `grammar`.

    Raises VLLMValidationError, ValueError, or anything else that a compiler raises.
    """
    request = SamplingParams(max_tokens=1, structured_outputs=params)
    request._validate_structured_outputs(config.model_config, config.structured_outputs_config, tokenizer)
    return str(params._backend)


def set_backend(params: StructuredOutputsParams, backend: str) -> None:
    """Leave `params` as vLLM's validation does that has chosen `backend`."""
    if backend == "xgrammar" and params.choice is not None:
        params.choice, params.grammar = None, choice_as_grammar(params.choice)
    params._backend, params._backend_was_auto = backend, True


class GrammarBackends:
    """vLLM's compilers, one for each name. Thread-safe."""

    def __init__(self, config: VllmConfig, tokenizer: TokenizerLike) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._backends: dict[str, StructuredOutputBackend] = {}
        self._width: int | None = None  # of a bitmask's row, in words
        self._lock = threading.Lock()

    def compile(
        self, name: str, params: StructuredOutputsParams, stop_token_ids: Set[int] | None = None
    ) -> StructuredOutputGrammar:
        """Compile with the compiler `name`. Raises ValueError, or anything else that the compiler raises."""
        kind, spec = get_structured_output_key(params)
        # A copy: vLLM's guidance keeps the grammar in an attribute between two steps, where threads would mix them up.
        backend = copy.copy(self._backend(name))
        grammar = backend.compile_grammar(kind, spec, stop_token_ids=set(stop_token_ids) if stop_token_ids else None)
        if isinstance(grammar, GuidanceGrammar):
            if error := grammar.ll_matcher.get_error():
                raise ValueError(error)
            grammar.__class__ = CheckedGuidanceGrammar
        return grammar

    def first_mask(self, name: str, grammar: StructuredOutputGrammar) -> torch.Tensor:
        """The tokens that a grammar allows first, one bit each: int32 [1, vocabulary / 32]."""
        mask = self._backend(name).allocate_token_bitmask(1)
        grammar.fill_bitmask(mask, 0)
        return mask

    def allocate_token_bitmask(self, num_rows: int) -> torch.Tensor:
        """int32 [num_rows, vocabulary / 32]; the same for all compilers."""
        with self._lock:
            backend = next(iter(self._backends.values()))
        return backend.allocate_token_bitmask(num_rows)

    def destroy(self) -> None:
        with self._lock:
            while self._backends:
                self._backends.popitem()[1].destroy()

    def _backend(self, name: str) -> StructuredOutputBackend:
        with self._lock:
            if name not in self._backends:
                self._backends[name] = self._create(name)
            return self._backends[name]

    def _create(self, name: str) -> StructuredOutputBackend:
        if name not in _BACKENDS:
            raise ValueError(f"there is no structured outputs backend {name!r}")
        module, class_name = _BACKENDS[name]
        make = getattr(import_module(_MODULE + module), class_name)
        vocabulary = self._config.model_config.get_vocab_size()
        backend = make(self._config, tokenizer=self._tokenizer, vocab_size=vocabulary)
        width = int(backend.allocate_token_bitmask(1).shape[1])
        if self._width not in (None, width):
            raise ValueError(f"the backend {name!r} counts another number of tokens than those in use")
        self._width = width
        return backend


class CheckedGuidanceGrammar(GuidanceGrammar):
    """Fails its request when the matcher has failed; vLLM would end the text there as if it were complete."""

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        return super().accept_tokens(request_id, tokens) and not self.ll_matcher.is_error()


class GrammarManager(StructuredOutputManager):
    """The engine core's manager, with one compiler for each name. `backend` is what its base allocates masks with."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        super().__init__(vllm_config)
        if not vllm_config.model_config.skip_tokenizer_init:
            self.backend: Any = GrammarBackends(vllm_config, self.tokenizer)
            self.executor = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="grammar")

    def _create_grammar(self, request: Request) -> StructuredOutputGrammar:
        structured = request.structured_output_request
        try:
            if structured is None or request.sampling_params is None:
                raise ValueError("the request has no grammar")
            stop_token_ids = request.sampling_params.all_stop_token_ids
            return self.backend.compile(str(structured.params._backend), structured.params, stop_token_ids)
        except Exception as error:  # compilers raise anything; the scheduler fails the request with it
            request.trace_headers = {**(request.trace_headers or {}), _REASON: str(error) or type(error).__name__}
            raise


def failure_reason(output: EngineCoreOutput) -> str | None:
    """Why the grammar of a failed request could not be compiled; None if that is not why it failed."""
    return (output.trace_headers or {}).get(_REASON)


def install() -> None:
    """Make engine cores of this process use GrammarManager. Repeated calls do nothing."""
    engine_core: Any = core
    engine_core.StructuredOutputManager = GrammarManager
