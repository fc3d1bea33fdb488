"""The engine core's manager of grammars, which has one compiler for each name.

Also the undocumented parts of vLLM under it; a release that moves one fails here, by name.
"""

import ast
import inspect
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, FinishReason, core
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_guidance import GuidanceGrammar

from tests.constructed import attributes_set_in
from tritonlive.backend.arguments import parse_arguments
from tritonlive.backend.vllm_seam import structured_outputs
from tritonlive.backend.vllm_seam.structured_outputs import GrammarManager, failure_reason, set_backend

NUM_TOKENS = 49152


@pytest.fixture(scope="module")
def config(tiny_model_dir: Path) -> VllmConfig:
    return parse_arguments(["--model", str(tiny_model_dir)]).create_engine_config()


@pytest.fixture(scope="module")
def manager(config: VllmConfig) -> Iterator[GrammarManager]:
    manager = GrammarManager(config)
    yield manager
    manager.executor.shutdown()


def request(backend: str, **fields: Any) -> Request:
    params = StructuredOutputsParams(**fields)
    set_backend(params, backend)
    return Request("r", [1], SamplingParams(max_tokens=8, structured_outputs=params), None)


def compiled(manager: GrammarManager, asked: Request) -> Any:
    """The grammar of a request, after the compilation; an exception if it failed."""
    manager.grammar_init(asked)
    assert asked.structured_output_request is not None
    future: Any = asked.structured_output_request._grammar
    try:
        return future.result(60)
    except Exception as error:
        return error


@pytest.mark.row(48)
def test_each_request_is_compiled_by_its_own_compiler(manager: GrammarManager) -> None:
    for backend, kind in (("xgrammar", "XgrammarGrammar"), ("guidance", "CheckedGuidanceGrammar")) * 2:
        assert type(compiled(manager, request(backend, regex="(Paris|London)"))).__name__ == kind


@pytest.mark.row(48)
def test_the_masks_of_different_compilers_have_one_width(manager: GrammarManager) -> None:
    for backend in ("xgrammar", "guidance", "outlines"):
        grammar = compiled(manager, request(backend, regex="a"))
        mask = manager.backend.allocate_token_bitmask(2)
        grammar.fill_bitmask(mask, 1)
        assert mask.shape == (2, NUM_TOKENS // 32)
        assert 0 < int((mask[1] != 0).sum()) < NUM_TOKENS // 32


def test_grammars_that_are_compiled_at_the_same_time_stay_apart(manager: GrammarManager, config: VllmConfig) -> None:
    """vLLM's guidance keeps the text of a grammar in an attribute between two steps."""
    letters = "abcdefghijklmnop" * 4
    with ThreadPoolExecutor(8) as pool:
        grammars = list(
            pool.map(lambda letter: compiled(manager, request("guidance", regex=f"{letter}{{5}}")), letters)
        )
    for letter, grammar in zip(letters, grammars, strict=True):
        (token,) = manager.tokenizer.encode(letter, add_special_tokens=False)
        assert grammar.validate_tokens([token]) == [token], letter


def test_choices_are_rewritten_for_xgrammar_as_vllm_does(manager: GrammarManager) -> None:
    params = StructuredOutputsParams(choice=["yes", "no"])
    set_backend(params, "xgrammar")
    assert (params.choice, params.grammar) == (None, 'root ::= "yes" | "no"')
    assert not isinstance(compiled(manager, request("xgrammar", choice=["yes", "no"])), Exception)


@pytest.mark.parametrize(
    ("backend", "fields", "reason"),
    [
        ("xgrammar", {"regex": "(?i)a"}, "Regex parsing error"),
        ("guidance", {"grammar": "root ::= undefined_rule"}, "undefined_rule"),
        ("no such", {"regex": "a"}, "no structured outputs backend 'no such'"),
    ],
)
def test_the_reason_of_a_failure_travels_with_the_request(
    manager: GrammarManager, backend: str, fields: dict[str, Any], reason: str
) -> None:
    asked = request(backend, **fields)
    assert isinstance(compiled(manager, asked), Exception)
    output = EngineCoreOutput("r", [], finish_reason=FinishReason.ERROR, trace_headers=asked.trace_headers)
    assert reason in str(failure_reason(output))
    assert failure_reason(EngineCoreOutput("r", [], finish_reason=FinishReason.ERROR)) is None


def test_a_matcher_that_has_failed_accepts_no_end(manager: GrammarManager) -> None:
    grammar = compiled(manager, request("guidance", regex="a"))
    (wrong,) = manager.tokenizer.encode("b", add_special_tokens=False)
    grammar.ll_matcher.consume_tokens([wrong])
    assert grammar.ll_matcher.is_error()
    end = [manager.tokenizer.eos_token_id]
    assert GuidanceGrammar.accept_tokens(grammar, "r", end), "vLLM ends the text as if it were complete"
    assert not grammar.accept_tokens("r", end)


def test_the_engine_core_makes_the_manager_by_the_name_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "StructuredOutputManager(vllm_config)" in inspect.getsource(core.EngineCore.__init__)
    monkeypatch.setattr(core, "StructuredOutputManager", StructuredOutputManager)  # put back after the test
    structured_outputs.install()
    assert core.StructuredOutputManager is GrammarManager


def test_vllms_manager_has_what_ours_replaces() -> None:
    assert {"backend", "tokenizer", "executor"} <= attributes_set_in(StructuredOutputManager.__init__)
    assert list(inspect.signature(StructuredOutputManager._create_grammar).parameters) == ["self", "request"]
    used = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(inspect.getmodule(StructuredOutputManager))))  # ty: ignore
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self.backend"
    }
    assert used <= {"compile_grammar", "allocate_token_bitmask", "destroy"}, "of what `backend` is taken for"
    assert "if self.backend is None" in inspect.getsource(StructuredOutputManager.grammar_init)


def test_the_scheduler_copies_the_reason_into_the_output() -> None:
    assert "trace_headers=request.trace_headers" in inspect.getsource(Scheduler.update_from_output)


def test_params_without_a_configuration_are_not_validated() -> None:
    """`leave_to_us` takes the configuration away."""
    parameters = list(inspect.signature(SamplingParams._validate_structured_outputs).parameters)
    assert parameters == ["self", "model_config", "structured_outputs_config", "tokenizer"]
    params: Any = SamplingParams(structured_outputs=StructuredOutputsParams(regex="("))
    params._validate_structured_outputs(None, None, None)
