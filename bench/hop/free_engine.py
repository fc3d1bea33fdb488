"""vLLM's AsyncLLM over a FreeCore, which makes tokens for free."""

from unittest.mock import patch

from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import EngineCoreClient

from bench.hop.free_core import FreeCore
from tritonlive.backend.engine import Engine
from tritonlive.backend.responses import ResponseWriter
from tritonlive.backend.settings import Settings


class FreeEngine(Engine):
    """vLLM's AsyncLLM, started and watched as always, over a FreeCore."""

    def __init__(self, settings: Settings, writer: ResponseWriter) -> None:
        super().__init__(settings)
        self._writer = writer

    def create_llm(self) -> AsyncLLM:
        # A step waits until the one before is sent: the core makes them at the speed at which they travel.
        core = FreeCore(self._writer.drained)
        # AsyncLLM does not let its caller choose.
        with patch.object(EngineCoreClient, "make_async_mp_client", lambda **_: core):
            return super().create_llm()
