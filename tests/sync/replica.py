"""A replica to push to without a server: the control routes over HTTP, a real gloo receiver, a dict as the model."""

import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import torch

from sync.buckets import DEFAULT_BUCKET_BYTES
from sync.gloo_receiver import Announcement, GlooReceiver, Membership
from sync.kept import KeptWeights
from sync.sources import ParamMeta

KEY = "replica-key"


class Replica:
    """The front end's control routes; `calls` lists what was asked, `fail` maps an operation to (status, text)."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], tied: tuple[str, ...] = (), world_size: int = 1) -> None:
        self.tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        self.tied = list(tied)
        self.world_size = world_size
        self.state = "serving"
        self.version = "default"
        self.backend = "gloo"
        self.status: dict[str, Any] = {}  # what else it says of itself
        self.calls: list[str] = []
        self.fail: dict[str, tuple[int, str]] = {}
        self.objection = ""
        self.receivers: list[GlooReceiver] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def receiver(self) -> GlooReceiver:
        return self.receivers[0]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._close_receivers()

    # ---- operations ---------------------------------------------------------------------------------------------

    def replica_status(self, _body: dict[str, Any]) -> dict[str, Any]:
        return {
            "state": self.state,
            "weight_version": self.version,
            "world_size": self.world_size,
            "weight_transfer_backend": self.backend,
            **self.status,
        }

    def weight_parameters(self, _body: dict[str, Any]) -> dict[str, Any]:
        metas = [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors.items()]
        named = [{"name": meta.name, "dtype": meta.dtype_name, "shape": list(meta.shape)} for meta in metas]
        return {"parameters": named, "tied": self.tied}

    def weight_info(self, _body: dict[str, Any]) -> dict[str, Any]:
        return {"weight_version": self.version}

    def init_weight_transfer_engine(self, body: dict[str, Any]) -> dict[str, Any]:
        info = body["init_info"]
        self._close_receivers()
        for worker in range(self.world_size):
            membership = Membership(
                info["master_address"],
                info["master_port"],
                info["rank_offset"] + worker,
                info["world_size"],
                info["group_name"],
                info["timeout_s"],
            )
            self.receivers.append(GlooReceiver(membership, KeptWeights(lambda: None)))
        return {}

    def start_weight_update(self, _body: dict[str, Any]) -> dict[str, Any]:
        self.state = "updating"
        return {}

    def update_weights(self, body: dict[str, Any]) -> dict[str, Any]:
        info = body["update_info"]
        zipped = zip(info["names"], info["dtype_names"], info["shapes"], strict=True)
        metas = [ParamMeta.from_names(*item) for item in zipped]
        for receiver in self.receivers:
            receiver.announce(Announcement(metas, info.get("bucket_bytes", DEFAULT_BUCKET_BYTES), self.objection))
        return {}

    def finish_weight_update(self, body: dict[str, Any]) -> dict[str, Any]:
        for receiver in self.receivers:
            update = receiver.take(5)
            self.tensors.update((name, tensor.clone()) for name, tensor in update.tensors)
        self.state, self.version = "serving", body["weight_version"]
        return {
            "weight_version": self.version,
            "is_changed": not body["unchanged"],
            "paused_s": 0.02,
            "load_s": 0.01,
        }

    def renew_lease(self, _body: dict[str, Any]) -> dict[str, Any]:
        return {}

    def fence(self, body: dict[str, Any]) -> dict[str, Any]:
        self.state, self.reason = "fenced", body["reason"]
        return {}

    def abort_weight_update(self, _body: dict[str, Any]) -> dict[str, Any]:
        self.state = "serving"
        return {}

    def shutdown_weight_transfer_engine(self, _body: dict[str, Any]) -> dict[str, Any]:
        self._close_receivers()
        return {}

    def _close_receivers(self) -> None:
        for receiver in self.receivers:
            receiver.close()
        self.receivers = []

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        replica = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                self._answer(json.loads(self.rfile.read(length) or b"{}"))

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Quiet."""

            def _answer(self, body: dict[str, Any]) -> None:
                name = self.path.strip("/")
                replica.calls.append(name)
                if self.headers.get("Authorization") != f"Bearer {KEY}":
                    self._send(401, {"error": {"message": "no control key"}})
                elif name in replica.fail:
                    status, text = replica.fail[name]
                    self._send(status, {"error": {"message": text}})
                else:
                    try:
                        self._send(200, getattr(replica, name)(body))
                    except Exception as error:
                        self._send(500, {"error": {"message": str(error)}})

            def _send(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        return Handler
