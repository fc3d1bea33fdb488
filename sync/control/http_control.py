"""Control over the front end's HTTP routes: vLLM's RL routes, and those of our own."""

import json
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx

from sync.errors import ConflictError, ControlError, DeadlineError, InvalidError, RefusedError, UnavailableError

from .client import DEFAULT_TIMEOUT_S, ControlClient
from .target import Target


class Route(NamedTuple):
    """Where an operation is; with a {name} in its path, its arguments are in the URL, else in a JSON body."""

    method: str
    path: str


ROUTES = {
    "status": Route("GET", "/replica_status"),
    "parameters": Route("GET", "/weight_parameters"),
    "get_weight_version": Route("GET", "/weight_info"),
    "is_paused": Route("GET", "/is_paused"),
    "reserve_lease": Route("POST", "/reserve_lease"),
    "init_weight_transfer_engine": Route("POST", "/init_weight_transfer_engine"),
    "shutdown_weight_transfer_engine": Route("POST", "/shutdown_weight_transfer_engine"),
    "start_weight_update": Route("POST", "/start_weight_update"),
    "update_weights": Route("POST", "/update_weights"),
    "prepare_weight_update": Route("POST", "/prepare_weight_update"),
    "finish_weight_update": Route("POST", "/finish_weight_update"),
    "abort_weight_update": Route("POST", "/abort_weight_update"),
    "renew_lease": Route("POST", "/renew_lease"),
    "rollback": Route("POST", "/rollback"),
    "reload": Route("POST", "/reload"),
    "fence": Route("POST", "/fence"),
    "score": Route("POST", "/weight_score"),
    "timeline": Route("GET", "/weight_timeline"),
    "adapters": Route("GET", "/lora_adapters"),
    "stage_adapter": Route("PUT", "/lora_adapters/{name}"),
    "activate_adapter": Route("POST", "/lora_adapters/{name}/activate"),
    "discard_adapter": Route("POST", "/lora_adapters/{name}/discard"),
    "remove_adapter": Route("DELETE", "/lora_adapters/{name}"),
}

ERRORS: dict[int, type[ControlError]] = {
    400: InvalidError,
    401: RefusedError,
    403: RefusedError,
    404: InvalidError,
    413: InvalidError,
    409: ConflictError,
    422: InvalidError,
    502: UnavailableError,
    503: UnavailableError,
}


class HttpControl(ControlClient):
    """Control client of a front end."""

    def __init__(self, target: Target, timeout: float = DEFAULT_TIMEOUT_S) -> None:
        super().__init__(target, timeout)
        headers = {"Authorization": f"Bearer {target.control_key}"} if target.control_key else {}
        # trust_env off: a proxy or a .netrc must not come between a trainer and its replica, or see the key.
        # No connection is kept: the pause between two calls may be just as long as a server keeps an idle one.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.Client(base_url=str(target), headers=headers, limits=limits, trust_env=False)

    def call(
        self,
        operation: str,
        arguments: dict[str, Any] | None = None,
        timeout: float | None = None,
        payload: bytes | None = None,
    ) -> dict[str, Any]:
        route = ROUTES.get(operation)
        if route is None:
            raise InvalidError(str(self.target), operation, f"not an HTTP route; there are {', '.join(ROUTES)}")
        seconds = self.timeout if timeout is None else timeout
        request = _request(route, arguments or {}, payload)
        if self.holder:
            request["headers"] = request.get("headers", {}) | {"x-lease-holder": self.holder}
        try:
            response = self._http.request(route.method, timeout=seconds, **request)
        except httpx.ConnectError as error:
            raise UnavailableError(str(self.target), operation, f"cannot connect: {error}") from None
        except httpx.TimeoutException:
            raise DeadlineError(f"{self.target}: {operation}: no answer within {seconds:g} s") from None
        except httpx.HTTPError as error:
            raise UnavailableError(str(self.target), operation, f"the connection broke: {error}") from None
        if response.is_success:
            return _read_object(response)
        raise ERRORS.get(response.status_code, ControlError)(str(self.target), operation, _message(response))

    def status(self, timeout: float | None = None) -> dict[str, Any]:
        """Raises InvalidError for a front end over several replicas: weights must change at all of them together."""
        answer = super().status(timeout)
        if "replicas" in answer:
            targets = ", ".join(f'"grpc://{replica["url"]}"' for replica in answer["replicas"])
            reason = f"a front end over several replicas; address them yourself: WeightSync([{targets}])"
            raise InvalidError(str(self.target), "status", reason)
        return answer

    def close(self) -> None:
        self._http.close()


def _request(route: Route, arguments: dict[str, Any], payload: bytes | None) -> dict[str, Any]:
    """httpx's arguments for a call: JSON in the body, or, about an adapter, see openai_frontend/routes/adapters.py."""
    if "{name}" not in route.path:
        return {"url": route.path, "json": arguments if route.method == "POST" else None}
    query = dict(arguments)
    request: dict[str, Any] = {"url": route.path.format(name=quote(query.pop("name"), safe=""))}
    if payload is not None:
        config = json.dumps(query.pop("config"))
        request["headers"] = {"content-type": "application/octet-stream", "x-adapter-config": config}
        request["content"] = payload
        query["stage"] = True
    return request | {"params": query}


def _read_object(response: httpx.Response) -> dict[str, Any]:
    """The body's JSON object; vLLM's own routes answer some calls with no body, or with `null`."""
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _message(response: httpx.Response) -> str:
    """What the error says, in OpenAI's shape, FastAPI's, or as plain text."""
    body = _read_object(response)
    error = body.get("error", body.get("detail"))
    if isinstance(error, dict):
        error = error.get("message", error)
    return f"HTTP {response.status_code}: {error or response.text[:500] or response.reason_phrase}"
