"""The engine's command line: vLLM's own parser, completed with what pushes need."""

from pathlib import Path

import pytest

from sync.worker.worker_extension import WeightOperations
from tritonlive.backend.arguments import (
    WORKER_EXTENSION,
    parse_arguments,
    with_weight_operations,
    with_weight_transfer,
)

MODEL = ["--model", "HuggingFaceTB/SmolLM2-135M-Instruct"]


class Derived(WeightOperations):
    """A user's extension."""


def test_vllm_understands_the_command_line(tiny_model_dir: Path) -> None:
    argv = ["--model", "other", "--model", str(tiny_model_dir), "--enforce-eager", "--tool-call-parser", "hermes"]
    arguments = parse_arguments(argv)
    assert arguments.model == str(tiny_model_dir)
    assert arguments.enforce_eager is True


def test_an_unknown_argument_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="--no-such-argument"):
        parse_arguments(["--no-such-argument"])


def test_weights_can_be_pushed_without_asking_for_it(tiny_model_dir: Path) -> None:
    argv = ["--model", str(tiny_model_dir)]
    assert with_weight_transfer(argv)[2:] == ["--weight-transfer-config", '{"backend": "gloo"}']
    chosen = [*argv, "--weight-transfer-config", '{"backend": "nccl"}']
    assert with_weight_transfer(chosen) == chosen


def test_workers_run_weight_operations() -> None:
    assert with_weight_operations(MODEL)[-2:] == ["--worker-extension-cls", WORKER_EXTENSION]


def test_a_worker_extension_of_the_users_must_have_them() -> None:
    derived = [*MODEL, "--worker-extension-cls", f"{__name__}.Derived"]
    assert with_weight_operations(derived) == derived
    with pytest.raises(ValueError, match="must derive from"):
        with_weight_operations([*MODEL, "--worker-extension-cls", "pathlib.Path"])


def test_the_multi_modal_cache_of_a_single_sender_is_off() -> None:
    assert parse_arguments([*MODEL, "--mm-processor-cache-gb", "4"]).mm_processor_cache_gb == 0
