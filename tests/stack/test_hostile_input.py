"""What a hostile client sends to the front end: refused by name, at once, and the next chat is answered."""

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.stack.conftest import MODEL
from tritonlive.launch import Stack

MESSAGES = [{"role": "user", "content": "ab"}]
CHAT = {"model": MODEL, "messages": MESSAGES, "max_tokens": 2}
COMPLETION = {"model": MODEL, "prompt": "ab", "max_tokens": 2}
TOKENIZE = {"model": MODEL, "messages": MESSAGES}
RESPONSE = {"model": MODEL, "input": "ab", "max_output_tokens": 16}
BATCH = {**CHAT, "messages": [MESSAGES]}
LEGACY = {"messages": [MESSAGES], "max_tokens": 2}
TEMPLATE_ROUTES = {
    "/v1/chat/completions": CHAT,
    "/v1/chat/completions/batch": BATCH,
    "/v1/messages": CHAT,
    "/v1/messages/count_tokens": TOKENIZE,
    "/v1/responses": RESPONSE,
    "/tokenize": TOKENIZE,
    "/invocations": CHAT,
    "/chat/": LEGACY,
}
# The answer is due in this time, however busy the machine is.
AT_ONCE_S = 10.0


@pytest.fixture(autouse=True)
def _healthy(frontend: httpx.Client, stack: Stack) -> Iterator[None]:
    """After each test a chat is answered on a connection that was used before, and the log has no new traceback."""
    before = stack.frontend_log.stat().st_size
    yield
    answer = frontend.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 200, answer.text
    with stack.frontend_log.open("rb") as log:
        log.seek(before)
        assert b"Traceback" not in log.read()


def message_of(answer: httpx.Response) -> str:
    return answer.json()["error"]["message"]


@pytest.mark.row(32)
@pytest.mark.parametrize("path", TEMPLATE_ROUTES)
@pytest.mark.parametrize(
    "template_kwargs",
    [
        {"tokenize": True, "padding": "max_length", "max_length": 100_000_000},
        {"tokenize": False},
        {"truncation": True},
        {"return_tensors": "pt"},
        {"tokenizer_kwargs": {"max_length": 3}},
        {"conversation": []},
        {"chat_template": "{% for i in range(9) %}x{% endfor %}"},
    ],
    ids=lambda given: next(iter(given)),
)
def test_template_kwargs_do_not_reach_the_tokenizer(
    frontend: httpx.Client, path: str, template_kwargs: dict[str, Any]
) -> None:
    answer = frontend.post(path, json={**TEMPLATE_ROUTES[path], "chat_template_kwargs": template_kwargs})
    assert answer.status_code == 400, answer.text
    assert "template" in message_of(answer)
    allowed = frontend.post(path, json={**TEMPLATE_ROUTES[path], "chat_template_kwargs": {"enable_thinking": True}})
    assert allowed.status_code == 200, allowed.text


@pytest.mark.row(10)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize", "/chat/"])
def test_a_clients_chat_template_needs_the_servers_trust(frontend: httpx.Client, path: str) -> None:
    answer = frontend.post(
        path, json={**TEMPLATE_ROUTES[path], "chat_template": "{% for i in range(9) %}x{% endfor %}"}
    )
    assert answer.status_code == 400
    assert "--trust-request-chat-template" in message_of(answer)


@pytest.mark.row(11)
@pytest.mark.parametrize("value", ["AAAA", ["AAAA"], "gAJjb3MKc3lzdGVtCg=="], ids=["text", "list", "pickle"])
def test_prompt_embeddings_are_refused(frontend: httpx.Client, value: Any) -> None:
    for prompt in (None, "ab"):
        answer = frontend.post("/v1/completions", json={**COMPLETION, "prompt": prompt, "prompt_embeds": value})
        assert answer.status_code == 400, answer.text
        assert "--enable-prompt-embeds" in message_of(answer)
    part = {"type": "prompt_embeds", "prompt_embeds": value}
    answer = frontend.post("/v1/chat/completions", json={**CHAT, "messages": [{"role": "user", "content": [part]}]})
    assert answer.status_code == 400, answer.text


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server on 127.0.0.1 that a media address may name. It only counts: nobody may connect."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield server
        with pytest.raises(BlockingIOError):
            server.accept()


def with_media(kind: str, url: str) -> dict[str, dict[str, Any]]:
    """Bodies that ask each route with messages to look at `url`."""
    content = [{"type": "text", "text": "What is it?"}, {"type": f"{kind}_url", f"{kind}_url": {"url": url}}]
    messages = [{"role": "user", "content": content}]
    image = {"type": "input_image", "image_url": url, "detail": "auto"}
    source = {"type": "image", "source": {"type": "url", "url": url}}
    return {
        "/v1/chat/completions": {**CHAT, "messages": messages},
        "/v1/chat/completions/batch": {**BATCH, "messages": [messages]},
        "/tokenize": {**TOKENIZE, "messages": messages},
        "/v1/responses": {**RESPONSE, "input": [{"role": "user", "content": [image]}]},
        "/v1/messages": {**CHAT, "messages": [{"role": "user", "content": [source]}]},
    }


@pytest.mark.row(13)
@pytest.mark.parametrize("kind", ["image", "audio", "video"])
@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:{port}/x.png",
        "http://localhost:{port}/x.png",
        "http://[::ffff:127.0.0.1]:{port}/x.png",
        "http://2130706433:{port}/x.png",
        "http://example.com\\@127.0.0.1:{port}/x.png",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
    ],
)
def test_a_media_address_is_refused_and_not_opened(
    frontend: httpx.Client, listener: socket.socket, kind: str, address: str
) -> None:
    url = address.format(port=listener.getsockname()[1])
    for path, body in with_media(kind, url).items():
        answer = frontend.post(path, json=body)
        assert answer.status_code == 400, (path, answer.text)
        assert "root:" not in answer.text


@pytest.mark.row(14)
@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,AAAA",
        "data:image/png;base64,!!!",
        "data:image/gif;base64,R0lGODlhAQABAAAAACw=",
        "data:,",
        "data:image/png;base64," + "A" * 1_000_000,
    ],
    ids=["short", "no base64", "cut short", "empty", "large"],
)
def test_a_malformed_image_is_refused_without_addresses_of_memory_or_files(frontend: httpx.Client, url: str) -> None:
    for path, body in with_media("image", url).items():
        answer = frontend.post(path, json=body)
        assert answer.status_code == 400, (path, answer.text)
        assert not re.search(r"0x[0-9a-f]{6}|/[a-z]+/[a-z0-9_.]+\.py", answer.text), (path, answer.text[:500])


@pytest.mark.row(12)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stop.0", rb'"stop":["x\ud83e"]'),
        ("bad_words.0", rb'"bad_words":["x\ud83e"]'),
        ("request_id", rb'"request_id":"x\ud83e"'),
        ("prompt", rb'"prompt":"x\ud83e"'),
        ("model", rb'"model":"x\ud83e"'),
        ("vllm_xargs.k", rb'"vllm_xargs":{"k":"x\ud83e"}'),
        ("structured_outputs.regex", rb'"structured_outputs":{"regex":"x\ud83e"}'),
        ("top_k", b'"top_k":1180591620717411303424'),
        ("stream_interval", b'"stream_interval":1180591620717411303424'),
        ("repetition_detection.min_count", b'"repetition_detection":{"min_count":1180591620717411303424}'),
        ("logit_bias.5", b'"logit_bias":{"5":Infinity}'),
        ("temperature", b'"temperature":NaN'),
        ("vllm_xargs.a", b'"vllm_xargs":{"a":1e999}'),
    ],
)
def test_what_cannot_be_encoded_is_400_with_the_fields_name(
    frontend: httpx.Client, field: str, value: bytes, *, stream: bool
) -> None:
    others = json.dumps({**COMPLETION, "stream": stream}).encode()[1:-1]
    answer = frontend.post(
        "/v1/completions",
        content=b"{" + others + b"," + value + b"}",
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400, answer.text
    assert (message_of(answer).split(":")[0], answer.json()["error"]["param"]) == (field, field)


@pytest.mark.row(8)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("n", 16384, "--max-n"),
        ("n", 10**9, ""),
        ("max_tokens", 10**12, ""),
        ("logprobs", 10**6, "logprobs"),
        ("stop_token_ids", [-1], "stop_token_ids"),
        ("prompt", ["a"] * 1025, "--max-prompts"),
        ("repetition_penalty", 1e39, "repetition_penalty"),
    ],
)
def test_what_is_out_of_range_is_refused_before_anything_runs(
    frontend: httpx.Client, name: str, value: Any, reason: str, *, stream: bool
) -> None:
    begin = time.monotonic()
    answer = frontend.post("/v1/completions", json={**COMPLETION, "stream": stream, name: value})
    assert answer.status_code == 400, answer.text
    assert reason in message_of(answer)
    assert time.monotonic() - begin < AT_ONCE_S


def test_the_legacy_routes_have_the_same_limits(frontend: httpx.Client) -> None:
    for path, body in (("/generate/", {"prompts": ["a"], "n": 1000}), ("/chat/", {**LEGACY, "n": 1000})):
        answer = frontend.post(path, json=body)
        assert answer.status_code == 400
        assert "--max-n" in message_of(answer)
    answer = frontend.post("/generate/", json={"prompts": ["a"], "generation_kwargs": {"logit_bias": {"5": 1e300}}})
    assert answer.status_code == 400
    assert "logit_bias" in message_of(answer)


def test_a_priority_from_a_header_is_checked(frontend: httpx.Client) -> None:
    answer = frontend.post("/v1/completions", json=COMPLETION, headers={"x-vllm-priority": str(2**70)})
    assert answer.status_code == 400
    assert "priority" in message_of(answer)


@pytest.mark.row(43)
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"prompt":"a","metadata":' + b"[" * 5000 + b"]" * 5000 + b"}", "nested deeper"),
        (b"{" + b",".join(b'"k%d":1' % number for number in range(1_000_000)) + b"}", "keys"),
        (json.dumps(COMPLETION).encode("utf-16"), "UTF-8"),
    ],
    ids=["nesting", "keys", "UTF-16"],
)
def test_a_body_that_is_costly_to_read_is_refused(frontend: httpx.Client, body: bytes, reason: str) -> None:
    answer = frontend.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert reason in message_of(answer)


@pytest.mark.row(12)
@pytest.mark.parametrize("text", ["a" * 1_000_000, "1" * 1_000_000], ids=["a", "1"])
def test_a_text_longer_than_any_prompt_is_not_tokenized(frontend: httpx.Client, text: str) -> None:
    begin = time.monotonic()
    for body in (
        {"model": MODEL, "prompt": text},
        {"model": MODEL, "messages": [{"role": "user", "content": text}]},
    ):
        assert frontend.post("/tokenize", json=body).status_code == 400
    answer = frontend.post("/v1/completions", json={**COMPLETION, "prompt": text, "truncate_prompt_tokens": 1})
    assert answer.status_code == 400
    assert time.monotonic() - begin < AT_ONCE_S


@pytest.mark.row(6)
@pytest.mark.row(39)
@pytest.mark.parametrize("is_announced", [True, False])
def test_a_body_beyond_the_limit_is_413(frontend: httpx.Client, *, is_announced: bool) -> None:
    size = 33 * 2**20
    if is_announced:
        answer = raw(frontend, b"content-length: %d" % size)
    else:
        piece = b"4000000\r\n" + b" " * 0x4000000 + b"\r\n"
        answer = raw(frontend, b"transfer-encoding: chunked", piece)
    assert answer.startswith(b"HTTP/1.1 413"), answer[:300]
    assert b"--max-body-size" in answer


@pytest.mark.row(6)
def test_a_negative_length_is_400(frontend: httpx.Client) -> None:
    assert raw(frontend, b"content-length: -5").startswith(b"HTTP/1.1 400")


@pytest.mark.row(7)
@pytest.mark.row(36)
def test_a_huge_header_is_431_without_a_key(frontend: httpx.Client) -> None:
    with connection(frontend) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nx: ")
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 136 * 2**20:
                sent += client.send(b"a" * 65536)
    assert sent < 8 * 2**20  # what the sockets' buffers hold


@pytest.mark.row(42)
@pytest.mark.parametrize("path", ["/metrics/x", "/v1/completions", "/health"])
def test_a_websocket_is_no_error_of_the_server(frontend: httpx.Client, stack: Stack, path: str) -> None:
    upgrade = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "eA==",
    }
    assert httpx.get(stack.frontend_url + path, headers=upgrade, timeout=30).status_code < 500


@pytest.mark.row(42)
def test_a_slash_too_many_is_no_redirect(frontend: httpx.Client) -> None:
    answer = frontend.post("/v1/completions/", json=COMPLETION, headers={"host": "evil.example"})
    assert answer.status_code == 404
    assert "location" not in answer.headers


@pytest.mark.row(42)
def test_a_basic_key_that_is_no_ascii_is_a_wrong_key(stack: Stack) -> None:
    headers = {b"Authorization": b"Basic \xe9\xe9"}
    assert httpx.get(f"{stack.frontend_url}/v1/models", headers=headers, timeout=30).status_code == 401


def connection(frontend: httpx.Client) -> socket.socket:
    url = frontend.base_url
    return socket.create_connection((url.host, url.port or 80), timeout=30)


def raw(frontend: httpx.Client, header: bytes, body: bytes = b"") -> bytes:
    """Send a request with the inference key and a header of its own; returns the answer."""
    key = frontend.headers["Authorization"].encode()
    with connection(frontend) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: %s\r\n%s\r\n\r\n" % (key, header))
        with contextlib.suppress(OSError):  # the server may have answered and closed
            client.sendall(body)
        answer = b""
        while not is_whole(answer) and (piece := client.recv(4096)):
            answer += piece
        return answer


def is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"^content-length: (\d+)", head, re.IGNORECASE | re.MULTILINE)
    return bool(end) and len(body) >= int(length[1] if length else 0)
