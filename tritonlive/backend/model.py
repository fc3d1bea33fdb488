"""The class that Triton loads: initialize, execute, finalize. service.py does the work."""

import gc
import json
import locale
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

from tritonlive.wire.limits import MAX_N

from .private_files import keep_private

if TYPE_CHECKING:
    from .service import Service
    from .unbatched.listener import Listener


class TritonPythonModel:
    """One vLLM engine behind the tensors of config.pbtxt."""

    _service: "Service"
    _listener: "Listener"

    def initialize(self, args: dict[str, str]) -> None:
        """Start the engine; returns when it can generate. Raises TritonModelException, ValueError, or vLLM's errors."""
        check_single_instance(json.loads(args["model_config"]))
        keep_private()
        # The embedded interpreter starts in the C locale, in which torch cannot read its own files.
        locale.setlocale(locale.LC_ALL, "C.UTF-8")
        os.environ.setdefault("VLLM_MAX_N_SEQUENCES", str(MAX_N))
        # Imported here and not above: Triton first loads this file in a process without a model, to ask for its
        # configuration, and vLLM's import takes ten seconds.
        from sync.worker.orphan import end_with_parent

        from .unbatched.listener import Listener

        end_with_parent()  # otherwise this process outlives a tritonserver that is killed or gives up waiting
        self._service = self.assemble(Path(args["model_repository"]) / args["model_version"])
        self._service.start()
        self._listener = Listener(args["model_name"], self._service.take)
        self._listener.start()

    def assemble(self, version_folder: Path) -> "Service":
        """Make the service, without starting it. Raises ValueError for settings that cannot be read."""
        from .engine import Engine
        from .grammars.compiler_client import CompilerClient
        from .responses import ResponseWriter
        from .service import Service
        from .settings import Settings

        engine = Engine(Settings.load(version_folder))
        return Service(engine, ResponseWriter(), CompilerClient(engine.argv))

    def execute(self, requests: list[Any]) -> None:
        """Take a batch of requests. The model is decoupled: responses go through each request's sender later."""
        self._service.submit(requests)

    def is_ready(self) -> bool:
        """Whether there is an engine. Newer Tritons than 25.12 ask, when they are asked whether the model is ready."""
        return self._service.is_ready

    def finalize(self) -> None:
        """Stop the engine with all its processes, which would otherwise outlive the server."""
        self._listener.close()
        self._service.stop()
        # Response senders that are collected at the interpreter's end crash Triton's stub, which has gone by then.
        del self._service
        gc.collect()


def check_single_instance(config: dict[str, Any]) -> None:
    """Raises TritonModelException unless the model has exactly one instance."""
    count = sum(group.get("count", 1) * max(1, len(group.get("gpus", []))) for group in config["instance_group"])
    if count != 1:
        raise pb_utils.TritonModelException(
            f"instance_group asks for {count} instances of {config['name']}, and each would be an engine of its own "
            "that a push of weights misses: set count to 1, and use vLLM's tensor_parallel_size or "
            "data_parallel_size for more GPUs, or more Triton servers for more replicas"
        )
