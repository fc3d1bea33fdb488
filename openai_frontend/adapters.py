"""Makes LoRA adapters that trainers pushed into the model in Triton known to vLLM's serving layer.

vLLM's serving objects look a request's `model` up in a table, name → LoRARequest. The model in Triton announces the
adapters that serve and their versions (`engine_adapters` in config.pbtxt). This module updates the table. Its entries
are named NAME@VERSION; their ids and paths are placeholders, because only the model knows the real ones. Entries of
vLLM's own /v1/load_lora_adapter stay unchanged.
"""

import json
from collections import ChainMap
from contextvars import ContextVar

from starlette.datastructures import MutableHeaders, State
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.lora.request import LoRARequest

from openai_frontend.headers import header_value
from openai_frontend.vllm_seam import ModelList, OpenAIServingModels, change_class

# The model replaces it with the version's own id (tritonlive/backend/adapters/adapters.py). vLLM's ids are smaller.
PUSHED_ID = 2**30
HEADER = "x-adapter-version"

# Adapter versions that answered the current HTTP request; AdapterVersionHeader makes the list.
_used: ContextVar[list[str] | None] = ContextVar("adapters_used", default=None)


class PushedAdapters:
    """The adapters of the newest announcement, which serve."""

    def __init__(self) -> None:
        self._told: dict[int, dict[str, str]] = {}  # by replica: name → version; the newest announcement is last
        self._models: OpenAIServingModels | None = None

    def take(self, announcement: str, replica: int = 0) -> str:
        """Apply an announcement of the model; returns its serial.

        If replicas have different versions of an adapter, the newest announcement counts. A push activates one replica
        a moment before the others, and by then all have staged the version.
        """
        told = json.loads(announcement)
        self._told.pop(replica, None)
        self._told[replica] = dict(told["adapters"])
        self._update()
        return told["serial"]

    def attach(self, state: State) -> None:
        """Keep the serving objects' table up to date. Call it after vLLM's `init_app_state`. Raises TypeError."""
        models = change_class(state.openai_serving_models, OpenAIServingModels, Models, "openai_serving_models")
        self._models = models
        self._update()

    def _update(self) -> None:
        if self._models is None:
            return
        table = self._models.lora_requests
        for name in [name for name, request in table.items() if is_pushed(request)]:
            del table[name]
        for name, version in ChainMap(*reversed(self._told.values())).items():
            label = f"{name}@{version}"
            table[name] = LoRARequest(lora_name=label, lora_int_id=PUSHED_ID, lora_path=f"pushed:{label}")


class Models(OpenAIServingModels):
    """Lists a pushed adapter under the name for requests, without the version that its table entry has."""

    async def show_available_models(self) -> ModelList:
        listed = await super().show_available_models()
        names = {request.lora_name: name for name, request in self.lora_requests.items() if is_pushed(request)}
        for card in listed.data:
            card.id = names.get(card.id, card.id)
        return listed


def is_pushed(request: LoRARequest) -> bool:
    return request.lora_int_id == PUSHED_ID


def version_of(request: LoRARequest | None) -> str | None:
    """NAME@VERSION of a pushed adapter; None for other adapters, which have no version."""
    return request.lora_name if request is not None and is_pushed(request) else None


def note(request: LoRARequest | None) -> None:
    """Record that this adapter generates a part of the current HTTP request's answer."""
    if (version := version_of(request)) is not None and (used := _used.get()) is not None:
        used.append(version)


class AdapterVersionHeader:
    """Adds `x-adapter-version: NAME@VERSION` to every response that a pushed adapter generated."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        used: list[str] = []
        # vLLM runs its handlers in other tasks. They share this list, but cannot set this task's variable.
        _used.set(used)

        async def send_with_version(message: Message) -> None:
            if message["type"] == "http.response.start" and used:
                MutableHeaders(scope=message)[HEADER] = header_value(used[-1])
            await send(message)

        await self.app(scope, receive, send_with_version)
