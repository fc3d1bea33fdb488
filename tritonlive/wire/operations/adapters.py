"""Operations about LoRA adapters: vLLM's own, by path, and those for adapters that trainers push."""

from typing import Annotated, Any, TypedDict

from msgspec import Meta

from tritonlive.wire.limits import MAX_PATH
from tritonlive.wire.operation import Arguments, Id, Name, Route, Scope, VersionName, operation
from tritonlive.wire.states import AdapterState

from .engine import Nothing


class Added(TypedDict):
    added: bool


class Removed(TypedDict):
    removed: bool


class LoraIds(TypedDict):
    loras: list[int]


class AdapterVersion(TypedDict):
    """`bytes` of adapter_model.safetensors, and its number of `tensors`."""

    name: str
    version: str
    bytes: int
    tensors: int


class StagedAdapter(AdapterVersion):
    """`is_changed` is False when this very version serves already."""

    is_changed: bool


class ListedAdapter(AdapterVersion):
    """`requests` are those that run on it now."""

    state: AdapterState
    requests: int


class ListedAdapters(TypedDict):
    adapters: list[ListedAdapter]


@operation("add_lora", Added, scope=Scope.ALL)
class AddLora(Arguments):
    """Load an adapter from a path of the server. vLLM serves it as POST /v1/load_lora_adapter."""

    lora_name: Name
    lora_int_id: Id
    lora_path: Annotated[str, Meta(min_length=1, max_length=MAX_PATH)]
    base_model_name: Name | None = None
    load_inplace: bool = False
    is_3d_lora_weight: bool = False


@operation("remove_lora", Removed, scope=Scope.ALL)
class RemoveLora(Arguments):
    """Unload an adapter. vLLM serves it as POST /v1/unload_lora_adapter."""

    lora_id: Id


@operation("list_loras", LoraIds, scope=Scope.ALL)
class ListLoras(Arguments):
    """The ids of the adapters that vLLM has loaded."""


@operation(
    "stage_adapter",
    StagedAdapter,
    route=Route("PUT", "/lora_adapters/{name}"),
    has_payload=True,
    positional=("name", "version", "config", "digest"),
)
class StageAdapter(Arguments):
    """Check and load an adapter, but do not serve it yet.

    The payload is adapter_model.safetensors, `config` is adapter_config.json, both as PEFT writes them; `digest` is the
    payload's XXH3 (64 bits) in hexadecimal. Over HTTP the payload is the body, `config` travels in the header
    x-adapter-config, and the adapter serves at once unless the query says stage=true.
    """

    name: Name
    version: VersionName
    config: dict[str, Any]
    digest: Name | None = None


@operation("activate_adapter", AdapterVersion, route=Route("POST", "/lora_adapters/{name}/activate"))
class ActivateAdapter(Arguments):
    """Serve the version that was staged, from now on. Idempotent."""

    name: Name
    version: VersionName


@operation("discard_adapter", Nothing, route=Route("POST", "/lora_adapters/{name}/discard"))
class DiscardAdapter(Arguments):
    """Forget the version that was staged; harmless if it is not."""

    name: Name
    version: VersionName


@operation("remove_adapter", AdapterVersion, route=Route("DELETE", "/lora_adapters/{name}"))
class RemoveAdapter(Arguments):
    """Serve the adapter no more; running requests end with it."""

    name: Name


@operation("adapters", ListedAdapters, route=Route("GET", "/lora_adapters"))
class GetAdapters(Arguments):
    """Name, version, state (serving, staged, replaced), bytes, tensors and running requests of each pushed adapter."""
