"""Usage gives the number of tokens, and the arrival of bytes their times, in any division into chunks."""

import pytest

from bench.meter import StreamError, StreamMeter
from bench.sse import parse_events

RECORDED = (
    b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
    b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"The capital"},"finish_reason":null}]}\n\n'
    b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":" is Paris."},"finish_reason":"length"}]}\n\n'
    b'data: {"id":"chatcmpl-1","choices":[],"usage":{"prompt_tokens":7,"total_tokens":13,"completion_tokens":6}}\n\n'
    b"data: [DONE]\n\n"
)
"""Two events for six tokens."""


@pytest.mark.parametrize("size", [1, 7, 100, len(RECORDED)])
def test_tokens_come_from_usage_however_the_stream_is_cut(size: int) -> None:
    meter = StreamMeter(started=0.0)
    for start in range(0, len(RECORDED), size):
        meter.feed(RECORDED[start : start + size], now=1.0)
    assert meter.usage()["completion_tokens"] == 6
    assert meter.ttft == 1.0
    assert len(meter.gaps) == 1


def test_the_role_is_no_token_and_gaps_are_between_tokens() -> None:
    role, first, second, *rest = RECORDED.split(b"\n\n")
    meter = StreamMeter(started=10.0)
    for event, now in ((role, 10.5), (first, 11.0), (second, 11.25), (b"\n\n".join(rest), 20.0)):
        meter.feed(event + b"\n\n", now)
    assert meter.ttft == 1.0
    assert meter.gaps == [0.25]


def test_a_comment_is_no_token() -> None:
    meter = StreamMeter(started=0.0)
    meter.feed(b": keep-alive\n\n", now=1.0)
    assert meter.ttft is None


def test_a_stream_without_usage_is_an_error() -> None:
    meter = StreamMeter(started=0.0)
    meter.feed(RECORDED.split(b"data: {", 4)[1].join([b"data: {", b""]), now=1.0)
    with pytest.raises(StreamError, match="without usage"):
        meter.usage()


def test_an_empty_stream_is_an_error() -> None:
    with pytest.raises(StreamError, match="not JSON"):
        StreamMeter(started=0.0).usage()


def test_an_error_event_is_an_error() -> None:
    with pytest.raises(StreamError, match="engine died"):
        StreamMeter(started=0.0).feed(b'data: {"error":{"message":"engine died"}}\n\n', now=1.0)


def test_events_are_parsed_as_the_standard_says() -> None:
    text = ': keep-alive\n\nevent: message\ndata: {"a":\ndata: 1}\n\ndata:x\r\n\r\ndata: [DONE]\n\n'
    events = list(parse_events(text))
    assert [(event.name, event.value()) for event in events] == [("message", {"a": 1}), (None, "x"), (None, "[DONE]")]
