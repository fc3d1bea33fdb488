"""Both ends of the link between a model without a batch dimension and the model with the engine."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from tests.triton_stand_in import InputTensor
from tritonlive.backend.responses import Sender
from tritonlive.backend.tensors import BadTensor, Unavailable, read_array, read_bool, read_string
from tritonlive.backend.unbatched import listener, messages
from tritonlive.backend.unbatched.engine_link import EngineLink, engine_model
from tritonlive.backend.unbatched.listener import LinkedSender, Listener

Taken = list[tuple[Any, LinkedSender]]
# An address holds the parent's pid, and the processes of pytest-xdist have one parent.
ENGINE_MODEL = f"engine-link-test-{os.getpid()}"


class TritonSender:
    """What Triton's sender was given: responses, flags."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, int]] = []
        self.is_marked = False

    def send(self, response: Any = None, flags: int = 0) -> None:
        assert not self.is_closed
        self.sent.append((response, flags))

    def is_cancelled(self) -> bool:
        assert not self.is_closed
        return self.is_marked

    @property
    def is_closed(self) -> bool:
        return any(flags for _, flags in self.sent)


class TritonRequest:
    """A request without a batch dimension."""

    def __init__(self, **tensors: np.ndarray) -> None:
        self.sender = TritonSender()
        self._tensors = tensors

    def inputs(self) -> list[Any]:
        return [InputTensor(name, array) for name, array in self._tensors.items()]

    def parameters(self) -> str:
        return '{"max_tokens": 3}'

    def get_response_sender(self) -> TritonSender:
        return self.sender


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def taken() -> Taken:
    """The requests that the model with the engine was given."""
    return []


@pytest.fixture
def engine_end(taken: Taken) -> Iterator[Listener]:
    def take(batch: Sequence[tuple[Any, Sender]]) -> None:
        taken.extend(batch)  # ty: ignore[invalid-argument-type]

    opened = Listener(ENGINE_MODEL, take)
    opened.start()
    yield opened
    opened.close()


@pytest.fixture
def link(engine_end: Listener) -> Iterator[EngineLink]:
    opened = EngineLink(ENGINE_MODEL, is_decoupled=True)
    yield opened
    opened.close()


def submit(link: EngineLink, taken: Taken, **tensors: np.ndarray) -> tuple[TritonSender, Any, LinkedSender]:
    """Submit a request; returns Triton's sender, and what arrived at the other end."""
    request, before = TritonRequest(**tensors), len(taken)
    link.submit(request)
    wait_until(lambda: len(taken) > before)
    return request.sender, *taken[-1]


def test_tensors_get_a_batch_dimension_on_their_way(link: EngineLink, taken: Taken) -> None:
    _, request, _ = submit(
        link,
        taken,
        text_input=np.array([b"caf\xc3\xa9"], dtype=np.object_),
        input_ids=np.array([1, 2, 3], np.int32),
        stream=np.array([True]),
    )
    assert read_string(request, "text_input") == "café"
    ids = read_array(request, "input_ids")
    assert ids is not None
    assert ids.tolist() == [1, 2, 3]
    assert read_bool(request, "stream") is True
    assert request.parameters() == '{"max_tokens": 3}'


def test_answers_lose_it_and_the_last_closes_the_request(link: EngineLink, taken: Taken) -> None:
    triton, _, sender = submit(link, taken)
    sender.send({"text_output": np.array([[b"a", b"b"]], dtype=np.object_)}, final=False)
    sender.send({"top_logprobs": np.ones((1, 2, 3), np.float32)}, final=False)
    sender.finish()
    wait_until(lambda: triton.is_closed)
    (first, _), (second, _), (last, flags) = triton.sent
    assert first.output_tensors[0].array.tolist() == [b"a", b"b"]
    assert second.output_tensors[0].array.shape == (2, 3)
    assert (last, flags) == (None, 1)


@pytest.mark.parametrize(
    ("error", "text", "code"),
    [
        (BadTensor("stream", "is odd"), "Error generating stream: stream: is odd", "INVALID_ARG"),
        (RuntimeError("bug"), "Error generating stream: bug", "INTERNAL"),
        (Unavailable("engine: died"), "engine: died", "UNAVAILABLE"),
    ],
)
def test_errors_come_in_vllm_backends_words(
    link: EngineLink, taken: Taken, error: Exception, text: str, code: str
) -> None:
    triton, _, sender = submit(link, taken)
    sender.fail(error)
    wait_until(lambda: triton.is_closed)
    answer = triton.sent[0][0].error
    assert (answer.text, answer.number) == (text, getattr(type(answer), code))


def test_a_cancelled_request_is_cancelled_at_the_other_end(link: EngineLink, taken: Taken) -> None:
    triton, _, sender = submit(link, taken)
    assert not sender.is_cancelled()
    triton.is_marked = True
    wait_until(sender.is_cancelled)


def test_a_link_that_closes_cancels_its_requests(link: EngineLink, taken: Taken) -> None:
    _, _, sender = submit(link, taken)
    link.close()
    wait_until(sender.is_cancelled)


def test_requests_fail_when_the_engines_model_goes_and_run_when_it_is_back(
    engine_end: Listener, link: EngineLink, taken: Taken
) -> None:
    triton, _, _ = submit(link, taken)
    engine_end.close()
    wait_until(lambda: triton.is_closed)
    lost = TritonRequest()
    link.submit(lost)
    wait_until(lambda: lost.sender.is_closed)
    assert {each.sent[0][0].error.number for each in (triton, lost.sender)} == {4}  # UNAVAILABLE
    back = Listener(ENGINE_MODEL, lambda batch: taken.extend(batch))  # ty: ignore[invalid-argument-type]
    back.start()
    submit(link, taken)
    back.close()


def test_a_model_that_answers_once_refuses_to_stream(engine_end: Listener, taken: Taken) -> None:
    link = EngineLink(ENGINE_MODEL, is_decoupled=False)
    refused = TritonRequest(stream=np.array([True]))
    link.submit(refused)
    wait_until(lambda: refused.sender.is_closed)
    assert "stream: this model answers once" in refused.sender.sent[0][0].error.text
    submit(link, taken, stream=np.array([False]))
    link.close()


def test_inputs_that_cannot_be_read_are_refused(link: EngineLink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InputTensor, "as_numpy", lambda self: np.frombuffer(b"x", np.int32))
    request = TritonRequest(text_input=np.array([b"a"], dtype=np.object_))
    link.submit(request)
    wait_until(lambda: request.sender.is_closed)
    assert "the inputs cannot be read" in request.sender.sent[0][0].error.text


def test_an_end_that_does_not_read_is_given_up(link: EngineLink, taken: Taken, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender's thread serves others, too. The receiver is held in the middle of an answer."""
    hold = threading.Event()
    monkeypatch.setattr(EngineLink, "_take", lambda self, answer: hold.wait(20) and None)
    _, _, sender = submit(link, taken)
    large = {"token_ids": np.zeros((1, 2**22), np.int32)}
    began = time.monotonic()

    def send_all() -> None:
        while True:
            sender.send(large, final=False)

    with pytest.raises(BlockingIOError):
        send_all()
    assert time.monotonic() - began < 8 * messages.SEND_TIMEOUT_S  # a busy machine is late
    hold.set()


def test_another_users_process_is_refused(link: EngineLink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "peer_uid", lambda connected: os.getuid() + 1)
    request = TritonRequest()
    link.submit(request)
    wait_until(lambda: request.sender.is_closed)
    assert "belongs to user" in request.sender.sent[0][0].error.text


def test_a_name_that_is_taken_does_not_end_the_model_with_the_engine(
    engine_end: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(listener.pb_utils.Logger, "log_error", logged.append)
    second = Listener(ENGINE_MODEL, lambda batch: None)
    second.start()
    second.close()
    assert "cannot reach this one" in logged[0]


def test_a_configuration_must_name_the_model_with_the_engine() -> None:
    assert engine_model({"parameters": {"ENGINE_MODEL": {"string_value": "judge"}}}) == "judge"
    with pytest.raises(listener.pb_utils.TritonModelException, match="ENGINE_MODEL"):
        engine_model({"name": "vllm_model", "parameters": {}})
