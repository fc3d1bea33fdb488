"""Whether a server is ready: it is when it has generated a token, or pooled a prompt."""

import threading
from dataclasses import dataclass

import grpc
import httpx
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonlive.wire.tensor_names import MODEL

from .errors import LaunchError

FIRST_TOKEN_TIMEOUT_S = 600.0
READY_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Ready:
    """Facts about a stack that answers."""

    model: str
    weight_version: str
    first_token_s: float
    generates: bool = True
    """False: the model embeds, classifies or scores."""


def is_ok(client: httpx.Client, url: str) -> bool:
    """Whether GET `url` answers 200."""
    try:
        return client.get(url).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def is_model_ready(grpc_url: str) -> bool:
    """Whether Triton at `grpc_url` (host:port) says that its model is ready."""
    request = service_pb2.ModelReadyRequest(name=MODEL)  # ty: ignore[missing-attribute] - generated
    with grpc.insecure_channel(grpc_url) as channel:
        try:
            return service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelReady(request, timeout=READY_TIMEOUT_S).ready
        except grpc.RpcError:
            return False


class FirstToken:
    """Asks the front end for one token, in a thread: the first one may take a minute, and its server may die."""

    def __init__(self, frontend_url: str, *, api_key: str | None, control_key: str) -> None:
        self._url = frontend_url
        self._api_key = api_key
        self._control_key = control_key
        self._answer: Ready | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="first-token", daemon=True)
        self._thread.start()

    def is_done(self) -> bool:
        """Whether the token or an error has arrived."""
        return not self._thread.is_alive()

    def result(self) -> Ready:
        """The answer; raises LaunchError if the front end refused."""
        if self._answer is None:
            raise LaunchError(f"the first token could not be generated: {self._error}") from self._error
        return self._answer

    def _run(self) -> None:
        try:
            self._answer = self._ask()
        except (httpx.HTTPError, KeyError, IndexError, ValueError) as error:
            self._error = error

    def _ask(self) -> Ready:
        inference = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
        control = {"Authorization": f"Bearer {self._control_key}"}
        with httpx.Client(base_url=self._url, timeout=FIRST_TOKEN_TIMEOUT_S) as client:
            model = client.get("/v1/models", headers=inference).raise_for_status().json()["data"][0]["id"]
            body = {"model": model, "prompt": "Hello", "max_tokens": 1}
            answer = client.post("/v1/completions", json=body, headers=inference)
            generates = answer.status_code != httpx.codes.NOT_FOUND
            if not generates:  # a model that does not generate has no such route
                answer = client.post("/pooling", json={"model": model, "input": "Hello"}, headers=inference)
            answer.raise_for_status()
            version = client.get("/weight_info", headers=control).raise_for_status().json()["weight_version"]
        return Ready(model, version, answer.elapsed.total_seconds(), generates)
