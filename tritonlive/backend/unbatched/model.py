"""The class that Triton loads for a model without a batch dimension: it has no engine, and shares another model's."""

import gc
import json
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from sync.worker.orphan import end_with_parent
from tritonlive.backend.private_files import keep_private
from tritonlive.wire.machine import UNBATCHED_NAME

from .engine_link import EngineLink, engine_model


class TritonPythonModel:
    """The native tensors of another model's config.pbtxt, in the shapes of Triton's vllm_backend."""

    _link: EngineLink

    def initialize(self, args: dict[str, str]) -> None:
        """Raises TritonModelException if the configuration does not name the model with the engine."""
        config = json.loads(args["model_config"])
        keep_private()
        end_with_parent()
        Path("/proc/self/comm").write_text(UNBATCHED_NAME)
        self._link = EngineLink(
            engine_model(config), is_decoupled=pb_utils.using_decoupled_model_transaction_policy(config)
        )

    def execute(self, requests: list[Any]) -> None:
        """Pass on the requests. Responses go through each request's sender later."""
        for request in requests:
            self._link.submit(request)

    def finalize(self) -> None:
        """Close the link. Senders collected at the interpreter's end would crash Triton's stub."""
        self._link.close()
        del self._link
        gc.collect()
