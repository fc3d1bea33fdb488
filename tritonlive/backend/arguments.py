"""The engine's command line: the operator's arguments, completed with what pushes of weights need."""

import json

from vllm.engine.arg_utils import AsyncEngineArgs

from .vllm_seam.arguments import is_on_cpu, parse_serve_arguments, resolve_class, weight_transfer_backends

WORKER_EXTENSION = "sync.worker.worker_extension.WeightOperations"


def parse_arguments(argv: list[str]) -> AsyncEngineArgs:
    """Parse a `vllm serve` command line. Raises ValueError with the parser's message."""
    arguments = parse_serve_arguments(argv)
    # Several processes feed the one engine (front ends and this one). vLLM's multi-modal sender cache assumes a single
    # feeder, so it must stay off.
    arguments.mm_processor_cache_gb = 0
    return arguments


def with_weight_transfer(argv: list[str]) -> list[str]:
    """`argv` with a backend for pushes of weights, unless it names one: NCCL on GPUs, gloo on a CPU.

    gloo is a plug-in of the installed package: without the package it is left out.
    """
    if parse_arguments(argv).weight_transfer_config is not None:
        return argv
    backend = "gloo" if is_on_cpu() else "nccl"
    if backend not in weight_transfer_backends():
        return argv
    return [*argv, "--weight-transfer-config", json.dumps({"backend": backend})]


def with_weight_operations(argv: list[str]) -> list[str]:
    """`argv` with the worker extension that runs weight operations (sync/worker/worker_extension.py).

    Raises ValueError when `argv` names another extension that does not derive from it.
    """
    named = parse_arguments(argv).worker_extension_cls
    if not named:
        return [*argv, "--worker-extension-cls", WORKER_EXTENSION]
    from sync.worker.worker_extension import WeightOperations

    if not issubclass(resolve_class(named), WeightOperations):
        raise ValueError(f"--worker-extension-cls {named}: must derive from {WORKER_EXTENSION}")
    return argv
