"""Requests with header values that no client library sends: HTTP/1.1 and gRPC, written by hand."""

import socket
import struct

DATA, HEADERS, SETTINGS = 0, 1, 4
END_STREAM, END_HEADERS = 1, 4


def http(address: tuple[str, int], method: str, path: str, headers: dict[str, bytes]) -> bytes:
    """The answer to a request over HTTP/1.1, or what came before the server closed the connection."""
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n".encode()
    lines = b"".join(name.encode() + b": " + value + b"\r\n" for name, value in headers.items())
    return _exchange(address, head + lines + b"\r\n", until=None)


def grpc(address: tuple[str, int], method: str, headers: dict[str, bytes]) -> bytes:
    """The frames of the answer to an empty gRPC request, a unary one; `method` is a function of Triton's service."""
    fields = {
        ":method": b"POST",
        ":scheme": b"http",
        ":path": f"/inference.GRPCInferenceService/{method}".encode(),
        ":authority": b"x",
        "te": b"trailers",
        "content-type": b"application/grpc",
        **headers,
    }
    # HPACK: a literal field, not indexed, with a new name.
    block = b"".join(b"\x00" + _text(name.encode()) + _text(value) for name, value in fields.items())
    empty_message = b"\x00" + struct.pack(">I", 0)
    frames = (
        _frame(SETTINGS, 0, 0, b""),
        _frame(HEADERS, END_HEADERS, 1, block),
        _frame(DATA, END_STREAM, 1, empty_message),
    )
    return _exchange(address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"".join(frames), until=b"grpc-status")


def _text(value: bytes) -> bytes:
    if len(value) > 126:
        raise ValueError("longer than one byte of length can say")
    return bytes([len(value)]) + value


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _exchange(address: tuple[str, int], sent: bytes, until: bytes | None) -> bytes:
    answer = b""
    with socket.create_connection(address, timeout=3) as connection:
        connection.sendall(sent)
        try:
            while until is None or until not in answer:
                part = connection.recv(65536)
                if not part:
                    break
                answer += part
        except (TimeoutError, ConnectionResetError):
            pass
    return answer
