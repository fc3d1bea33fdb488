"""Control operations about LoRA adapters: vLLM's own, by path, and those for adapters that trainers push."""

from typing import Any

from vllm.lora.request import LoRARequest

from tritonlive.backend.engine import Engine
from tritonlive.backend.tensors import BadTensor
from tritonlive.wire.operations.adapters import (
    ActivateAdapter,
    Added,
    AddLora,
    DiscardAdapter,
    GetAdapters,
    ListLoras,
    LoraIds,
    RemoveAdapter,
    Removed,
    RemoveLora,
    StageAdapter,
)
from tritonlive.wire.operations.engine import Nothing
from tritonlive.wire.tensor_names import CONTROL_ARGUMENTS

from .adapters import PUSHED_ID, Adapters, require_lora


class LoraControl:
    """Handlers: every public method runs the operation of its name (tritonlive/wire/operations/adapters.py)."""

    def __init__(self, engine: Engine, adapters: Adapters) -> None:
        self._engine = engine
        self._adapters = adapters

    async def add_lora(self, arguments: AddLora) -> Added:
        require_lora(self._engine, "add_lora")
        options = {name: getattr(arguments, name) for name in arguments.__struct_fields__}
        try:
            request = LoRARequest(**options)
        except (AssertionError, ValueError) as error:  # vLLM asserts that the path is not empty
            raise BadTensor(CONTROL_ARGUMENTS, f"of add_lora: {error}") from None
        if arguments.lora_int_id >= PUSHED_ID:
            raise BadTensor(
                CONTROL_ARGUMENTS, f"of add_lora: {arguments.lora_name!r} was pushed; remove_adapter makes room for it"
            )
        return {"added": await self._engine.llm.add_lora(request)}

    async def remove_lora(self, arguments: RemoveLora) -> Removed:
        require_lora(self._engine, "remove_lora")
        return {"removed": await self._engine.llm.remove_lora(arguments.lora_id)}

    async def list_loras(self, _arguments: ListLoras) -> LoraIds:
        require_lora(self._engine, "list_loras")
        return {"loras": sorted(await self._engine.llm.list_loras())}

    async def stage_adapter(self, arguments: StageAdapter, payload: bytes) -> dict[str, Any]:
        return await self._adapters.stage(
            arguments.name, arguments.version, arguments.config, arguments.digest, payload
        )

    async def activate_adapter(self, arguments: ActivateAdapter) -> dict[str, Any]:
        return await self._adapters.activate(arguments.name, arguments.version)

    async def discard_adapter(self, arguments: DiscardAdapter) -> Nothing:
        await self._adapters.discard(arguments.name, arguments.version)
        return {}

    async def remove_adapter(self, arguments: RemoveAdapter) -> dict[str, Any]:
        return await self._adapters.remove(arguments.name)

    async def adapters(self, _arguments: GetAdapters) -> dict[str, Any]:
        return {"adapters": self._adapters.describe()}
