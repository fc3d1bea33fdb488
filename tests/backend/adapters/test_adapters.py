"""tritonlive/backend/adapters/adapters.py: the life of an adapter's versions, without an engine."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save
from vllm.lora.request import LoRARequest

from tritonlive.backend.adapters import adapters
from tritonlive.backend.adapters.adapters import PUSHED_ID, Adapters
from tritonlive.backend.tensors import BadTensor, Conflict, RequestError, Unavailable

CONFIG = {"r": 2, "lora_alpha": 4}


class Engine:
    """Fake of the engine's methods that Adapters uses. `loaded` has the ids in vLLM's workers."""

    def __init__(self, lora_config: object = True) -> None:
        self.loop = asyncio.get_running_loop()
        self.is_running = True
        self.died: asyncio.Future[None] = self.loop.create_future()
        model = SimpleNamespace(served_model_name=["tiny"], model="/nowhere", revision=None)
        config = SimpleNamespace(lora_config=lora_config, model_config=model)
        self.llm = SimpleNamespace(
            vllm_config=config, model_config=model, add_lora=self._add_lora, remove_lora=self._remove_lora
        )
        self.loaded: set[int] = set()
        self.refusal: Exception | None = None

    async def _add_lora(self, request: LoRARequest) -> bool:
        if self.refusal is not None:
            raise self.refusal
        assert names_in(request.lora_path) == {"adapter_config.json", "adapter_model.safetensors"}
        self.loaded.add(request.lora_int_id)
        return True

    async def _remove_lora(self, number: int) -> bool:
        self.loaded.discard(number)
        return True


def names_in(folder: str | Path) -> set[str]:
    """Empty if it is not there, either."""
    return {path.name for path in Path(folder).glob("*")}


def payload(value: float) -> bytes:
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_"
    return save({f"{name}A.weight": torch.full((2, 3), value), f"{name}B.weight": torch.ones(4, 2)})


class Setting:
    """Adapters over a fake engine, and what was announced."""

    def __init__(self, **options: Any) -> None:
        self.engine: Any = Engine(**options)
        self.announced: list[dict[str, str]] = []
        self.adapters = Adapters(self.engine, self._announce)
        self.folder = Path(self.adapters._folder.name)

    async def _announce(self) -> None:
        self.announced.append(json.loads(self.adapters.announcement())["adapters"])

    async def stage(self, version: str, value: float = 1.0, name: str = "mine") -> dict[str, Any]:
        return await self.adapters.stage(name, version, CONFIG, None, payload(value))

    async def push(self, version: str, value: float = 1.0) -> LoRARequest:
        await self.stage(version, value)
        await self.adapters.activate("mine", version)
        return self.adapters.find("mine")

    def versions(self) -> list[tuple[str, str, int]]:
        return [(each["version"], each["state"], each["requests"]) for each in self.adapters.describe()]


Make = Callable[..., Setting]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Setting] = []

    def build(**options: Any) -> Setting:
        made.append(Setting(**options))
        return made[-1]

    yield build
    for setting in made:
        setting.adapters.close()


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "UNUSED_FOR_S", 0.05)


async def test_a_push_serves_when_it_is_activated(make: Make) -> None:
    setting = make()
    staged = await setting.stage("v1")
    assert staged == {"name": "mine", "version": "v1", "bytes": len(payload(1.0)), "tensors": 2, "is_changed": True}
    assert setting.announced == []
    with pytest.raises(BadTensor, match="no adapter 'mine' was pushed; there are none"):
        setting.adapters.find("mine")
    await setting.adapters.activate("mine", "v1")
    await setting.adapters.activate("mine", "v1")
    assert setting.announced == [{"mine": "v1"}]
    request = setting.adapters.find("mine")
    assert request.lora_name == "mine@v1"
    assert setting.engine.loaded == {request.lora_int_id}
    assert setting.folder.stat().st_mode & 0o777 == 0o700


async def test_each_version_has_its_own_id_and_folder(make: Make) -> None:
    setting = make()
    first, second = await setting.push("v1"), await setting.push("v2", 2.0)
    assert first.lora_int_id != second.lora_int_id
    assert first.lora_path != second.lora_path
    again = await setting.push("v1", 3.0)
    assert again.lora_path != first.lora_path, "a version that went may come back with other weights"


async def test_a_version_does_not_change(make: Make) -> None:
    setting = make()
    request = await setting.push("v1")
    assert (await setting.stage("v1"))["is_changed"] is False
    with pytest.raises(Conflict, match="mine@v1 serves already, with other weights"):
        await setting.stage("v1", 2.0)
    assert setting.adapters.find("mine") is request


@pytest.mark.usefixtures("quickly")
async def test_a_replaced_version_stays_until_its_requests_have_ended(make: Make) -> None:
    setting = make()
    first = await setting.push("v1")
    setting.adapters.begin("request", first)
    await setting.push("v2", 2.0)
    await asyncio.sleep(0.3)
    assert setting.versions() == [("v2", "serving", 0), ("v1", "replaced", 1)]
    assert names_in(first.lora_path)
    setting.adapters.end("request")
    await asyncio.sleep(0.3)
    assert setting.versions() == [("v2", "serving", 0)]
    assert not names_in(first.lora_path)
    assert first.lora_int_id not in setting.engine.loaded


@pytest.mark.usefixtures("quickly")
async def test_a_removed_adapter_is_gone_when_unused(make: Make) -> None:
    setting = make()
    await setting.push("v1")
    await setting.adapters.remove("mine")
    assert setting.announced[-1] == {}
    with pytest.raises(BadTensor, match="no adapter 'mine'"):
        await setting.adapters.remove("mine")
    await asyncio.sleep(0.3)
    assert not names_in(setting.folder)
    assert setting.engine.loaded == set()


async def test_front_ends_ask_by_name_and_version(make: Make) -> None:
    setting = make()
    pushed = PUSHED_ID

    def asked(label: str, number: int = pushed) -> LoRARequest:
        return setting.adapters.resolve(LoRARequest(label, number, "anywhere"))

    first = await setting.push("v1")
    assert asked("mine@v1") is first
    second = await setting.push("v2", 2.0)
    assert asked("mine@v1") is first, "a request rendered before the push"
    assert asked("mine@v2") is second
    await setting.stage("v3", 3.0)
    assert asked("mine@v3").lora_name == "mine@v3", "another replica serves it already"
    assert asked("on-disk", 7).lora_path == "anywhere"
    with pytest.raises(Unavailable, match="mine@v9 is not served here any more"):
        asked("mine@v9")
    with pytest.raises(BadTensor, match="request a pushed adapter by its name"):
        asked("mine@v1", first.lora_int_id)


async def test_what_vllm_refuses_leaves_nothing(make: Make) -> None:
    setting = make()
    request = await setting.push("v1")
    setting.engine.refusal = ValueError("rank 99 is greater than max_lora_rank")
    with pytest.raises(RequestError, match="rank 99"):
        await setting.stage("v2", 2.0)
    assert setting.versions() == [("v1", "serving", 0)]
    assert names_in(setting.folder) == {str(request.lora_int_id)}
    with pytest.raises(Conflict, match="mine@v2 is not staged"):
        await setting.adapters.activate("mine", "v2")
    assert setting.adapters.find("mine") is request


async def test_what_was_staged_goes_with_the_next_or_when_discarded(make: Make, monkeypatch: Any) -> None:
    setting = make()
    await setting.stage("v1")
    await setting.stage("v2", 2.0)
    assert setting.versions() == [("v2", "staged", 0)]
    await setting.adapters.discard("mine", "v1")
    assert setting.versions() == [("v2", "staged", 0)]
    await setting.adapters.discard("mine", "v2")
    assert setting.versions() == []
    monkeypatch.setattr(adapters, "STAGED_FOR_S", 0.05)
    await setting.stage("v3")
    await asyncio.sleep(0.3)
    assert setting.versions() == []
    assert not names_in(setting.folder)
    assert setting.engine.loaded == set()


async def test_without_lora_the_error_says_what_to_add(make: Make) -> None:
    with pytest.raises(Conflict, match="start vLLM with --enable-lora"):
        await make(lora_config=None).stage("v1")


@pytest.mark.parametrize(
    ("name", "version", "problem"),
    [
        ("tiny", "v1", "'tiny' is the name of the served model itself"),
        ("../x", "v1", "name '../x' must be letters"),
        ("a@b", "v1", "must be letters"),
        ("", "v1", "must be letters"),
        ("mine", "", "must be printable"),
        ("mine", "a\nb", "must be printable"),
        ("mine", "v" * 129, "must be printable"),
    ],
)
async def test_names_that_are_not_taken(make: Make, name: str, version: str, problem: str) -> None:
    with pytest.raises(BadTensor, match=problem):
        await make().stage(version, name=name)


async def test_the_files_go_when_the_model_stops(make: Make) -> None:
    setting = make()
    await setting.push("v1")
    setting.adapters.close()
    assert not setting.folder.exists()
