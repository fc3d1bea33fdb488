"""Control over a front end's HTTP routes; the table of operations has their paths."""

import json
from typing import Any
from urllib.parse import quote

import httpx

from sync.errors import DeadlineError, InvalidError, UnavailableError
from tritonlive.wire.error_codes import code_of_status
from tritonlive.wire.headers import ADAPTER_CONFIG_HEADER, LEASE_HOLDER_HEADER
from tritonlive.wire.operation import Route
from tritonlive.wire.operations import OPERATIONS

from .client import DEFAULT_TIMEOUT_S, Call, ControlClient
from .control_errors import control_error
from .target import Target


class HttpControl(ControlClient):
    """Control client of a front end."""

    def __init__(self, target: Target, timeout: float = DEFAULT_TIMEOUT_S) -> None:
        super().__init__(target, timeout)
        headers = {"Authorization": f"Bearer {target.key}"} if target.key else {}
        # trust_env is off so that no proxy sees the key, and no .netrc replaces it.
        # No connection is kept: the server could close an idle one at the moment that the next call uses it.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.Client(base_url=str(target), headers=headers, limits=limits, trust_env=False)

    def send(self, call: Call) -> dict[str, Any]:
        name, route = call.operation.name, call.operation.route
        if route is None:
            routed = ", ".join(name for name, operation in OPERATIONS.items() if operation.route is not None)
            raise InvalidError(str(self.target), name, f"has no HTTP route; these have one: {routed}")
        request = _request(route, call.arguments, call.payload)
        if self.holder:
            request["headers"] = request.get("headers", {}) | {LEASE_HOLDER_HEADER: self.holder}
        try:
            response = self._http.request(route.method, timeout=call.timeout, **request)
        except httpx.ConnectError as error:
            raise UnavailableError(str(self.target), name, f"cannot connect: {error}") from None
        except httpx.TimeoutException:
            raise DeadlineError(f"{self.target}: {name}: no answer within {call.timeout:g} s") from None
        except httpx.HTTPError as error:
            raise UnavailableError(str(self.target), name, f"the connection broke: {error}") from None
        if response.is_success:
            return _read_object(response)
        raise control_error(self.target, name, _message(response), code_of_status(response.status_code))

    def status(self, timeout: float | None = None) -> dict[str, Any]:
        """Raises InvalidError for a front end over several replicas: a trainer must address each replica itself."""
        answer = self.call("status", timeout=timeout)
        if "replicas" in answer:
            targets = ", ".join(f'"grpc://{replica["url"]}"' for replica in answer["replicas"])
            reason = f"a front end over several replicas; connect to them directly: WeightSync([{targets}])"
            raise InvalidError(str(self.target), "status", reason)
        return answer

    def close(self) -> None:
        self._http.close()


def _request(route: Route, arguments: dict[str, Any], payload: bytes | None) -> dict[str, Any]:
    """httpx's arguments for a call: the operation's in a JSON body or in the URL, the payload as the body."""
    if not route.is_in_url:
        return {"url": route.path, "json": arguments if route.method == "POST" else None}
    in_path = {name: value for name, value in arguments.items() if f"{{{name}}}" in route.path}
    query = {name: value for name, value in arguments.items() if name not in in_path}
    request: dict[str, Any] = {
        "url": route.path.format(**{name: quote(value, safe="") for name, value in in_path.items()})
    }
    if payload is not None:  # an adapter, see openai_frontend/routes/adapters.py
        config = json.dumps(query.pop("config"))
        request["headers"] = {"content-type": "application/octet-stream", ADAPTER_CONFIG_HEADER: config}
        request["content"] = payload
        query["stage"] = True
    return request | {"params": query}


def _read_object(response: httpx.Response) -> dict[str, Any]:
    """The body's JSON object, or an empty one: vLLM's own routes answer some calls with no body, or with `null`."""
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _message(response: httpx.Response) -> str:
    """The error's message; the body is in OpenAI's form, in FastAPI's, or plain text."""
    body = _read_object(response)
    error = body.get("error", body.get("detail"))
    if isinstance(error, dict):
        error = error.get("message", error)
    return f"HTTP {response.status_code}: {error or response.text[:500] or response.reason_phrase}"
