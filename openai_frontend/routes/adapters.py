"""Pushes of LoRA adapters over HTTP; all of it needs the control key. (/adapters is vLLM's own, for SageMaker.)

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

router = APIRouter()

# As tritonlive/backend/adapters/adapter_files.py, which has the last word; here, so that no more is held in memory.
MAX_BYTES = 2**30


class BadAdapter(GracefulHTTPError):
    """400 or 413: what was sent cannot be an adapter."""


@router.get("/lora_adapters")
async def adapters(request: Request) -> JSONResponse:
    """Name, version, state (serving, staged, replaced), bytes, tensors and running requests of each."""
    return JSONResponse(await engine(request).control("adapters"))


@router.put("/lora_adapters/{name}")
async def push_adapter(
    request: Request,
    name: str,
    version: str,
    x_adapter_config: Annotated[str, Header()],
    *,
    digest: str | None = None,
    stage: bool = False,
) -> JSONResponse:
    """The body is adapter_model.safetensors, the header the JSON of adapter_config.json, both as PEFT writes them.

    digest: XXH3 (64 bits) of the body, in hexadecimal. stage: only check and load it; `…/activate` lets it serve.
    """
    config, payload = read_config(x_adapter_config), await read_body(request)
    staged = await engine(request).control(
        "stage_adapter", payload, name=name, version=version, config=config, digest=digest
    )
    if not stage:
        staged |= await engine(request).control("activate_adapter", name=name, version=version)
    return JSONResponse(staged)


@router.post("/lora_adapters/{name}/activate")
async def activate_adapter(request: Request, name: str, version: str) -> JSONResponse:
    """Serve the version that was staged."""
    return JSONResponse(await engine(request).control("activate_adapter", name=name, version=version))


@router.post("/lora_adapters/{name}/discard")
async def discard_adapter(request: Request, name: str, version: str) -> JSONResponse:
    """Forget the version that was staged."""
    return JSONResponse(await engine(request).control("discard_adapter", name=name, version=version))


@router.delete("/lora_adapters/{name}")
async def remove_adapter(request: Request, name: str) -> JSONResponse:
    """Serve the adapter no more; running requests end with it."""
    return JSONResponse(await engine(request).control("remove_adapter", name=name))


def read_config(text: str) -> dict[str, Any]:
    """Raises BadAdapter."""
    try:
        config = json.loads(text)
    except ValueError as error:
        raise BadAdapter(f"x-adapter-config: is not JSON: {error}", HTTPStatus.BAD_REQUEST) from None
    if not isinstance(config, dict):
        raise BadAdapter("x-adapter-config: expected a JSON object", HTTPStatus.BAD_REQUEST)
    return config


async def read_body(request: Request) -> bytes:
    """Raises BadAdapter, as soon as it is known to be too large."""
    announced = request.headers.get("content-length", "")
    body = bytearray()
    if not announced.isdigit() or int(announced) <= MAX_BYTES:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BYTES:
                break
        else:
            if not body:
                raise BadAdapter("the body is empty; send adapter_model.safetensors", HTTPStatus.BAD_REQUEST)
            return bytes(body)
    raise BadAdapter(f"an adapter may have {MAX_BYTES} bytes", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
