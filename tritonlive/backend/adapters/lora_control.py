"""Control operations about LoRA adapters: vLLM's own, by path, and those for adapters that trainers push."""

from collections.abc import Awaitable, Callable
from typing import Any

from vllm.lora.request import LoRARequest

from tritonlive.backend.engine import Engine
from tritonlive.backend.tensors import BadTensor

from .adapters import PUSHED_ID, Adapters

Operation = Callable[..., Awaitable[dict[str, Any]]]


class LoraControl:
    """`operations` is the part of control.py's table that is about adapters."""

    def __init__(self, engine: Engine, adapters: Adapters) -> None:
        self._engine = engine
        self._adapters = adapters
        self.operations: dict[str, Operation] = {
            "add_lora": self.add_lora,
            "remove_lora": self.remove_lora,
            "list_loras": self.list_loras,
            "stage_adapter": self.stage_adapter,
            "activate_adapter": self.activate_adapter,
            "discard_adapter": self.discard_adapter,
            "remove_adapter": self.remove_adapter,
            "adapters": self.adapters,
        }

    async def add_lora(self, lora_name: str, lora_int_id: int, lora_path: str, **options: Any) -> dict[str, Any]:
        try:
            request = LoRARequest(lora_name=lora_name, lora_int_id=lora_int_id, lora_path=lora_path, **options)
        except (TypeError, ValueError) as error:
            raise BadTensor("control_arguments", f"of add_lora: {error}") from None
        if lora_int_id >= PUSHED_ID:
            raise BadTensor(
                "control_arguments", f"of add_lora: {lora_name!r} was pushed; remove_adapter makes room for it"
            )
        return {"added": await self._engine.llm.add_lora(request)}

    async def remove_lora(self, lora_id: int) -> dict[str, Any]:
        return {"removed": await self._engine.llm.remove_lora(lora_id)}

    async def list_loras(self) -> dict[str, Any]:
        return {"loras": sorted(await self._engine.llm.list_loras())}

    async def stage_adapter(
        self, name: str, version: str, config: dict[str, Any], payload: bytes, digest: str | None = None
    ) -> dict[str, Any]:
        """`payload`: adapter_model.safetensors; `config`: adapter_config.json; `digest`: XXH3 of the payload."""
        if not isinstance(config, dict):
            raise BadTensor("control_arguments", "of stage_adapter: config must be a JSON object")
        return await self._adapters.stage(name, version, config, digest, payload)

    async def activate_adapter(self, name: str, version: str) -> dict[str, Any]:
        return await self._adapters.activate(name, version)

    async def discard_adapter(self, name: str, version: str) -> dict[str, Any]:
        return await self._adapters.discard(name, version)

    async def remove_adapter(self, name: str) -> dict[str, Any]:
        return await self._adapters.remove(name)

    async def adapters(self) -> dict[str, Any]:
        """The pushed adapters' versions at hand, and how many running requests each makes."""
        return {"adapters": self._adapters.describe()}
