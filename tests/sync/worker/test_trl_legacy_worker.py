"""The workers' end of `trl vllm-serve`'s protocol: vLLM's rendezvous and layerwise reload, tensors over the rendezvous.

What NCCL would carry goes through the group's store here, so this needs no GPU; it says nothing about NCCL.
"""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from vllm.distributed.device_communicators import pynccl
from vllm.distributed.utils import StatelessProcessGroup
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload.layerwise import record_metadata_for_reloading

from sync.errors import TransferError
from sync.worker.plugin import register
from sync.worker.trl_legacy_worker import TrlLegacyInitInfo, TrlLegacyWeightTransferEngine

TIMEOUT_S = 30


class StoreCommunicator:
    """Fake of the used part of vLLM's PyNcclCommunicator."""

    disabled = False

    def __init__(self, group: StatelessProcessGroup, device: Any) -> None:
        self.group, self.rank, self.world_size = group, group.rank, group.world_size
        self.sources: list[int] = []

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        self.sources.append(src)
        tensor.copy_(self.group.broadcast(tensor, src))

    def destroy(self) -> None:
        del self.group


class Fused(nn.Module):
    """A layer that fuses two of the checkpoint's tensors, like vLLM's q, k and v."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 3), requires_grad=False)
        vars(self.weight)["weight_loader"] = self.load

    @staticmethod
    def load(param: torch.Tensor, loaded_weight: torch.Tensor, row: int) -> None:
        param.data[row].copy_(loaded_weight)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Fused(), Fused()

    def load_weights(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in weights:
            layer, _, row = name.partition(".")
            param: Any = self.get_submodule(layer).weight
            param.weight_loader(param, tensor, int(row))


class Trainer:
    """TRL's client without its HTTP: it joins as the last rank, then makes a broadcast and a barrier per tensor."""

    def __init__(self, port: int, world_size: int) -> None:
        self.rank = world_size - 1
        self.group = StatelessProcessGroup.create("127.0.0.1", port, self.rank, world_size)
        self.communicator = StoreCommunicator(self.group, None)

    def send(self, tensor: torch.Tensor) -> None:
        self.communicator.broadcast(tensor, src=self.rank)
        self.group.barrier()


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynccl, "PyNcclCommunicator", StoreCommunicator)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def run() -> Iterator[Callable[..., list[Any]]]:
    """run(a, b) → [a(), b()] in parallel, for operations of a group."""
    with ThreadPoolExecutor(8) as threads:

        def together(*calls: Callable[[], Any]) -> list[Any]:
            return [future.result(TIMEOUT_S) for future in [threads.submit(call) for call in calls]]

        yield together


def engine_of(rank: int = 0, num_workers: int = 1, replica: int = 0) -> TrlLegacyWeightTransferEngine:
    """An engine in a worker: `rank` of the `num_workers` of its data-parallel replica."""
    model = Model()
    record_metadata_for_reloading(model)
    for layer in model.children():  # a parameter in its kernel's layout cannot load the checkpoint's tensors any more
        del vars(layer.get_parameter("weight"))["weight_loader"]
    parallel = SimpleNamespace(data_parallel_index=replica, world_size=num_workers, rank=rank)
    config: Any = SimpleNamespace(parallel_config=parallel, model_config=SimpleNamespace(dtype=torch.float32))
    return TrlLegacyWeightTransferEngine(SimpleNamespace(), config, torch.device("cpu"), model)  # ty: ignore[invalid-argument-type]


def announce(engine: TrlLegacyWeightTransferEngine, name: str, tensor: torch.Tensor) -> None:
    dtype = str(tensor.dtype).removeprefix("torch.")
    info = {"names": [name], "dtype_names": [dtype], "shapes": [list(tensor.shape)]}
    engine.receive_weights(engine.parse_update_info(info))


def weights(offset: float) -> dict[str, torch.Tensor]:
    names = ("a.0", "a.1", "b.0", "b.1")
    return {name: torch.arange(3.0) + offset + index for index, name in enumerate(names)}


def assert_holds(engine: TrlLegacyWeightTransferEngine, expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in expected.items():
        layer, _, row = name.partition(".")
        assert torch.equal(engine.model.get_parameter(f"{layer}.weight")[int(row)], tensor), name


def connect(engines: list[TrlLegacyWeightTransferEngine], port: int, run: Callable[..., list[Any]]) -> Trainer:
    world_size = len(engines) + 1
    info = {"host": "127.0.0.1", "port": port, "world_size": world_size, "client_device_uuid": "gpu-1"}
    joins = [lambda engine=engine: engine.init_transfer_engine(engine.parse_init_info(info)) for engine in engines]
    return run(*joins, lambda: Trainer(port, world_size))[-1]


def push(
    engines: list[TrlLegacyWeightTransferEngine],
    trainer: Trainer,
    tensors: dict[str, torch.Tensor],
    run: Callable[..., list[Any]],
) -> None:
    for engine in engines:
        engine.start_weight_update()
    for name, tensor in tensors.items():
        receives = [lambda engine=engine, n=name, t=tensor: announce(engine, n, t) for engine in engines]
        run(*receives, lambda tensor=tensor: trainer.send(tensor))
    for engine in engines:
        engine.finish_weight_update()


def test_vllm_finds_the_engine() -> None:
    register()
    assert WeightTransferEngineFactory._registry["nccl_trl_legacy"]() is TrlLegacyWeightTransferEngine


@pytest.mark.parametrize(("num_workers", "num_replicas"), [(1, 1), (2, 1), (2, 2)])
def test_all_workers_get_what_the_last_rank_sends(
    num_workers: int, num_replicas: int, port: int, run: Callable[..., list[Any]]
) -> None:
    engines = [engine_of(rank, num_workers, replica) for replica in range(num_replicas) for rank in range(num_workers)]
    trainer = connect(engines, port, run)
    for offset in (10.0, 20.0):
        push(engines, trainer, weights(offset), run)
        for engine in engines:
            assert_holds(engine, weights(offset))
    for rank, engine in enumerate(engines):
        assert engine._communicator is not None
        assert engine._communicator.rank == rank, "the first worker hosts, the trainer is the last"
        assert set(engine._communicator.sources) == {len(engines)}  # ty: ignore[missing-attribute]


def test_tensors_arrive_in_the_dtype_and_shape_announced(port: int, run: Callable[..., list[Any]]) -> None:
    engine = engine_of()
    trainer = connect([engine], port, run)
    seen: list[tuple[str, torch.dtype, tuple[int, ...]]] = []
    engine.model.load_weights = lambda pairs: seen.extend((n, t.dtype, tuple(t.shape)) for n, t in pairs)  # ty: ignore[invalid-assignment]
    for tensor in (torch.ones(2, 3).bfloat16(), torch.tensor(1.5), torch.ones(0, 4, dtype=torch.int32)):
        run(lambda tensor=tensor: announce(engine, "x", tensor), lambda tensor=tensor: trainer.send(tensor))
    assert seen == [("x", torch.bfloat16, (2, 3)), ("x", torch.float32, ()), ("x", torch.int32, (0, 4))]


def test_neither_goes_on_before_the_barrier(port: int, run: Callable[..., list[Any]]) -> None:
    engine = engine_of()
    trainer = connect([engine], port, run)
    engine.start_weight_update()
    name, tensor = next(iter(weights(1.0).items()))
    with ThreadPoolExecutor(1) as thread:
        receiving = thread.submit(announce, engine, name, tensor)
        trainer.communicator.broadcast(tensor, src=trainer.rank)
        with pytest.raises(TimeoutError):
            receiving.result(0.3)
        trainer.group.barrier()
        receiving.result(TIMEOUT_S)


def test_an_update_that_leaves_a_layer_out_is_refused(port: int, run: Callable[..., list[Any]]) -> None:
    engine = engine_of()
    trainer = connect([engine], port, run)
    only_a = {name: tensor for name, tensor in weights(1.0).items() if name.startswith("a")}
    with pytest.raises(TransferError, match=r"did not load these layers: b$"):
        push([engine], trainer, only_a, run)
    push([engine], trainer, weights(2.0), run)
    assert_holds(engine, weights(2.0))


def test_what_an_update_that_was_given_up_had_brought_does_not_count_for_the_next(
    port: int, run: Callable[..., list[Any]]
) -> None:
    engine = engine_of()
    trainer = connect([engine], port, run)
    engine.start_weight_update()
    name, tensor = next(iter(weights(1.0).items()))  # half a layer, it waits for the other half
    run(lambda: announce(engine, name, tensor), lambda: trainer.send(tensor))
    push([engine], trainer, weights(2.0), run)
    assert_holds(engine, weights(2.0))


def test_a_trainer_that_comes_again_finds_the_port_free(port: int, run: Callable[..., list[Any]]) -> None:
    engine = engine_of()
    connect([engine], port, run)
    trainer = connect([engine], port, run)
    push([engine], trainer, weights(3.0), run)
    assert_holds(engine, weights(3.0))
    engine.shutdown()
    with pytest.raises(TransferError, match="no trainer is connected"):
        announce(engine, *next(iter(weights(3.0).items())))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # vLLM leaves its socket open then
def test_a_port_that_is_taken_fails_at_once() -> None:
    engine = engine_of()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            engine.init_transfer_engine(TrlLegacyInitInfo("127.0.0.1", taken.getsockname()[1], 2, "gpu-1"))


def test_without_nccl_nothing_is_loaded_that_never_came(
    port: int, run: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's communicator is disabled then, and its broadcast leaves the tensor as it was made."""
    monkeypatch.setattr(StoreCommunicator, "disabled", True)
    with pytest.raises(TransferError, match="NCCL is not available"):
        connect([engine_of()], port, run)
