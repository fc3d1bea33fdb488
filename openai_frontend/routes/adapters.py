"""Pushes of LoRA adapters over HTTP; they need the control key. (/adapters is vLLM's own, for SageMaker.)

curl -X PUT -H "Authorization: Bearer $KEY" -H "x-adapter-config: $(tr -d '\\n' < adapter_config.json)" \\
    --data-binary @adapter_model.safetensors "http://127.0.0.1:9000/lora_adapters/NAME?version=VERSION"
"""

import json
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from starlette.responses import JSONResponse
from vllm.exceptions import GracefulHTTPError

from openai_frontend.routes.engine import engine
from tritonlive.wire.headers import ADAPTER_CONFIG_HEADER
from tritonlive.wire.limits import MAX_ADAPTER_BYTES
from tritonlive.wire.operations.adapters import ActivateAdapter, StageAdapter

ROUTE = StageAdapter.operation.require_route()
# Routes that read a body that is no JSON, and limit it themselves.
PAYLOAD_PATHS = frozenset({ROUTE.path})
router = APIRouter()


class BadAdapter(GracefulHTTPError):
    """400 or 413: the request does not contain a valid adapter."""


@router.put(ROUTE.path)
async def push_adapter(
    request: Request,
    name: str,
    version: str,
    config: Annotated[str, Header(alias=ADAPTER_CONFIG_HEADER)],
    *,
    digest: str | None = None,
    stage: bool = False,
) -> JSONResponse:
    """Load an adapter and serve it. With `stage` it is only checked and loaded; `…/activate` makes it serve.

    The body is adapter_model.safetensors. The header has the JSON of adapter_config.json. PEFT writes both files.
    digest: XXH3 (64 bits) of the body, in hexadecimal.
    """
    read, payload = read_config(config), await read_body(request)
    named = {"name": name, "version": version}
    result = await engine(request).control(StageAdapter.operation.name, payload, **named, config=read, digest=digest)
    if not stage:
        result |= await engine(request).control(ActivateAdapter.operation.name, **named)
    return JSONResponse(result)


def read_config(text: str) -> dict[str, Any]:
    """Parse the header. Raises BadAdapter."""
    try:
        config = json.loads(text)
    except ValueError as error:
        raise BadAdapter(f"{ADAPTER_CONFIG_HEADER}: is not JSON: {error}", HTTPStatus.BAD_REQUEST) from None
    if not isinstance(config, dict):
        raise BadAdapter(f"{ADAPTER_CONFIG_HEADER}: expected a JSON object", HTTPStatus.BAD_REQUEST)
    return config


async def read_body(request: Request) -> bytes:
    """Read the body. Raises BadAdapter; for a body that is too large, without reading it to the end."""
    announced = request.headers.get("content-length", "")
    body = bytearray()
    if not announced.isdigit() or int(announced) <= MAX_ADAPTER_BYTES:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_ADAPTER_BYTES:
                break
        else:
            if not body:
                raise BadAdapter("the body is empty; send adapter_model.safetensors", HTTPStatus.BAD_REQUEST)
            return bytes(body)
    raise BadAdapter(f"an adapter may have at most {MAX_ADAPTER_BYTES} bytes", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
