"""vLLM's AsyncLLM over a FreeCore."""

from unittest.mock import patch

from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import EngineCoreClient

from bench.hop.free_core import FreeCore
from tritonlive.backend.engine import Engine
from tritonlive.backend.responses import ResponseWriter
from tritonlive.backend.settings import Settings


class FreeEngine(Engine):
    """The engine with a FreeCore below vLLM's AsyncLLM. It starts and is watched like any other."""

    def __init__(self, settings: Settings, writer: ResponseWriter) -> None:
        super().__init__(settings)
        self._writer = writer

    def create_llm(self) -> AsyncLLM:
        # A step waits until the previous one is sent, so the core cannot run ahead of the channel.
        core = FreeCore(self._writer.drained)
        # AsyncLLM has no parameter for its core client.
        with patch.object(EngineCoreClient, "make_async_mp_client", lambda **_: core):
            return super().create_llm()
