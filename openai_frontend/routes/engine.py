"""The engine client of a request's app."""

from fastapi import Request

from openai_frontend.engine.triton_engine import TritonEngineClient


def engine(request: Request) -> TritonEngineClient:
    return request.app.state.engine_client
