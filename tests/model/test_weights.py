"""Updates that come tensor by tensor into the model itself (NCCL), over an engine that only remembers its calls."""

import asyncio
import socket
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

INIT = {"host": "0.0.0.0", "port": 51216, "world_size": 2, "client_device_uuid": "1"}


class FakeLLM:
    """AsyncLLM, as far as weights need it."""

    def __init__(self, backend: str) -> None:
        self.vllm_config = SimpleNamespace(weight_transfer_config=SimpleNamespace(backend=backend))
        self.engine_core = self
        self.calls: list[str] = []
        self.version = "default"
        self.failing: str | None = None

    async def get_weight_version(self) -> str:
        return self.version

    async def update_weight_version(self, version: str) -> None:
        self.version = version

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*_args: Any, **_kwargs: Any) -> None:
            self.calls.append(name)
            if name == self.failing:
                raise RuntimeError("a worker failed")

        return call


@pytest.fixture
def llm() -> FakeLLM:
    return FakeLLM("nccl_trl_legacy")


@pytest.fixture
async def weights(llm: FakeLLM, load: Callable[[str], ModuleType]) -> Any:
    died = asyncio.get_running_loop().create_future()
    engine = SimpleNamespace(llm=llm, died=died, is_running=True, on_death=lambda _hook: None)
    return load("weights").Weights(engine, lambda _version: None)


def tensor(name: str) -> dict[str, Any]:
    return {"names": [name], "dtype_names": ["bfloat16"], "shapes": [[2, 3]]}


async def test_it_stands_still_from_the_first_tensor_to_the_commit(llm: FakeLLM, weights: Any) -> None:
    await weights.connect(INIT)
    await weights.start()
    await weights.update(tensor("a"))
    await weights.update(tensor("b"))
    await weights.finish("step-0")
    assert llm.calls == [
        "init_weight_transfer_engine",
        *("pause_scheduler_async", "start_weight_update", "update_weights", "update_weights"),
        *("pause_scheduler_async", "finish_weight_update", "reset_prefix_cache", "resume_generation"),
    ]
    record = weights.history.last
    assert (record.outcome, record.num_tensors, record.num_bytes) == ("committed", 2, 24)
    assert (weights.state, llm.version) == ("serving", "step-0")


@pytest.mark.parametrize("step", ["update_weights", "finish_weight_update"])
async def test_a_failure_leaves_it_dirty_until_a_whole_update(llm: FakeLLM, weights: Any, step: str) -> None:
    await weights.connect(INIT)
    await weights.start()

    async def rest() -> None:
        await weights.update(tensor("a"))
        await weights.finish("step-0")

    llm.failing = step
    with pytest.raises(Exception, match="a worker failed"):
        await rest()
    assert weights.state == "dirty"
    assert weights.reason == f"{step} failed: a worker failed"
    assert not weights.lease.is_held
    assert llm.version == "default"
    finishing = ["start_weight_update", "finish_weight_update", "update_weights", "shutdown_weight_transfer_engine"]
    assert llm.calls[-5:-1] == finishing, "no layer is left half loaded for the next update"

    llm.failing = None
    await weights.connect(INIT)
    await weights.start()
    assert weights.state == "updating"
    await rest()
    assert (weights.state, llm.version) == ("serving", "step-0")


async def test_trainers_that_the_workers_listen_to_are_told_apart_by_their_gpu(
    weights: Any, load: Callable[[str], ModuleType]
) -> None:
    await weights.connect(INIT)
    await weights.connect(INIT)
    with pytest.raises(load("tensors").Conflict, match="trainer GPU 1 is connected"):
        await weights.connect(INIT | {"client_device_uuid": "2"})


class StuckLLM(FakeLLM):
    """Its workers receive for ever."""

    async def update_weights(self, _request: Any) -> None:
        self.calls.append("update_weights")
        await asyncio.Event().wait()


@pytest.mark.parametrize("is_gone", [True, False], ids=["trainer gone", "trainer lives"])
async def test_workers_that_a_dead_trainer_left_in_a_collective(
    load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, *, is_gone: bool
) -> None:
    """Nothing but the engine's end gets them out; with a trainer that lives they are waited for."""
    module = load("weights")
    monkeypatch.setattr(module, "STUCK_S", 0.1)
    loop = asyncio.get_running_loop()
    engine = SimpleNamespace(llm=StuckLLM("nccl"), died=loop.create_future(), is_running=True)
    hooks: list[Callable[[str], None]] = []
    engine.on_death = hooks.append

    def kill() -> None:
        engine.is_running = False
        hooks[0]("killed")
        engine.died.set_result(None)

    engine.kill = kill
    weights = module.Weights(engine, lambda _version: None)
    with socket.create_server(("127.0.0.1", 0)) as rendezvous:
        rendezvous.settimeout(0)
        address, port = rendezvous.getsockname()
        init_info = {"master_address": address, "master_port": port, "holder": "a", "timeout_s": 60}
        await weights.connect(init_info)
        watcher, _ = await loop.sock_accept(rendezvous)
    with watcher:
        await weights.start()
        update = asyncio.create_task(weights.update(tensor("a")))
        await asyncio.sleep(0.5)
        assert not update.done()
        if is_gone:
            watcher.close()
            with pytest.raises(module.Unavailable):
                await asyncio.wait_for(update, 10)
            assert (weights.state, weights.lease.is_held) == ("serving", False)
            assert weights.history.last.outcome == "failed"
        else:
            await asyncio.sleep(0.5)
            assert not update.done()
            update.cancel()
    assert engine.died.done() is is_gone
