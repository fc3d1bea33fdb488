"""The order of calls, with a fake of torch.accelerator. tests/gpu has the real accelerator."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sync.push.caller_stream import CallerStream, StreamOrderedSource
from sync.weights.sources import TensorSource

TENSORS = {"a": torch.ones(2), "b": torch.zeros(2)}


class Stream:
    def __init__(self, name: str, calls: list[str]) -> None:
        self.name = name
        self.calls = calls

    def record_event(self) -> str:
        self.calls.append(f"record on {self.name}")
        return f"event of {self.name}"

    def wait_event(self, event: str) -> None:
        self.calls.append(f"{self.name} waits for {event}")


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Fake of an accelerator. Its current stream is named after the thread and can be set."""
    made: list[str] = []
    own = threading.local()

    def current_stream() -> Stream:
        return getattr(own, "stream", Stream(threading.current_thread().name, made))

    def set_stream(name: str) -> None:
        own.stream = Stream(name, made)

    stand_in = SimpleNamespace(
        is_available=lambda: True,
        current_device_index=lambda: 3,
        set_device_index=lambda index: made.append(f"{threading.current_thread().name} uses device {index}"),
        current_stream=current_stream,
        set_stream=set_stream,
    )
    monkeypatch.setattr(torch, "accelerator", stand_in)
    return made


def in_thread(call, name: str) -> None:
    thread = threading.Thread(target=call, name=name)
    thread.start()
    thread.join()


def test_another_thread_takes_the_device_and_waits_for_the_callers_stream_before_it_calls(calls):
    caller = CallerStream.capture()
    in_thread(caller.bound(lambda: calls.append("read")), "push")
    assert calls == [
        "record on MainThread",
        "push uses device 3",
        "push waits for event of MainThread",
        "read",
    ]


def test_whatever_stream_reads_a_tensor_waits_first(calls):
    """Reads like vLLM's packed broadcast: each buffer on a separate stream."""

    class Noting(TensorSource):
        def __iter__(self):
            for pair in super().__iter__():
                calls.append(f"read {pair[0]}")
                yield pair

    set_stream: Any = torch.accelerator.set_stream  # the stand-in's, which takes a name
    pairs = iter(StreamOrderedSource(Noting(TENSORS), CallerStream.capture()))
    for buffer in ("buffer-0", "buffer-1"):
        set_stream(buffer)
        next(pairs)
    assert next(pairs, None) is None
    assert calls == [
        "record on MainThread",
        "buffer-0 waits for event of MainThread",
        "read a",
        "buffer-1 waits for event of MainThread",
        "read b",
        "buffer-1 waits for event of MainThread",
    ]


def test_without_an_accelerator_there_is_nothing_to_wait_for(monkeypatch):
    monkeypatch.setattr(torch, "accelerator", SimpleNamespace(is_available=lambda: False))
    caller = CallerStream.capture()
    caller.wait()
    assert caller.bound(lambda: 7)() == 7
    source = StreamOrderedSource(TensorSource(TENSORS), caller)
    assert all(tensor.equal(TENSORS[name]) for name, tensor in source)
    assert [name for name, _ in source] == list(TENSORS)
    assert source.metadata() == TensorSource(TENSORS).metadata()
