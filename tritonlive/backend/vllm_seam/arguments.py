"""The command line of `vllm serve`, vLLM's plug-ins, its platform, and the processors that it may use."""

from typing import Any

from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.lora.utils import is_base_embedding_weights
from vllm.platforms import current_platform
from vllm.plugins import load_general_plugins
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.cpu_resource_utils import LogicalCPUInfo, get_allowed_cpu_list, get_visible_memory_node
from vllm.utils.import_utils import resolve_obj_by_qualname

from tritonlive.wire.option_names import completed

__all__ = [
    "LogicalCPUInfo",
    "allowed_cpus",
    "is_base_embedding_weights",
    "is_on_cpu",
    "num_memory_nodes",
    "parse_serve_arguments",
    "resolve_class",
    "weight_transfer_backends",
]


def parse_serve_arguments(argv: list[str]) -> AsyncEngineArgs:
    """Parse a `vllm serve` command line with vLLM's own parser. Raises ValueError with the parser's message."""
    try:
        namespace = make_arg_parser(_RaisingParser()).parse_args(argv)
    except SystemExit as error:  # argparse ends the process; in Triton that must be an error of the model
        raise ValueError(f"vLLM engine arguments: {error}") from error
    return AsyncEngineArgs.from_cli_args(namespace)


class _RaisingParser(FlexibleArgumentParser):
    """Raises the parser's message; argparse would only print it to stderr."""

    def error(self, message: str) -> Any:
        raise ValueError(f"vLLM engine arguments: {completed(message, self._option_string_actions)}")


def weight_transfer_backends() -> frozenset[str]:
    """Names of the weight transfer engines, those of installed plug-ins included."""
    load_general_plugins()
    return frozenset(WeightTransferEngineFactory._registry)


def resolve_class(qualified_name: str) -> type:
    """The class of that dotted name. Raises ImportError or AttributeError."""
    return resolve_obj_by_qualname(qualified_name)


def is_on_cpu() -> bool:
    """Whether vLLM computes on a CPU."""
    return current_platform.is_cpu()


def allowed_cpus() -> list[LogicalCPUInfo]:
    """The logical CPUs that this process may use: id, physical core, NUMA node."""
    return get_allowed_cpu_list()


def num_memory_nodes() -> int:
    """Number of NUMA nodes that this process may use."""
    return len(get_visible_memory_node())
