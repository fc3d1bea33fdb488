"""What a running stack really has is what the reference pages list."""

import re

import httpx
from docgen import metrics, routes

from tritonlive.launch import Stack

OURS = re.compile(r"^# TYPE ((?:tritonlive|vllm)_\w+) ", re.MULTILINE)


def test_metrics(stack: Stack, frontend: httpx.Client) -> None:
    """Triton's Python backend registers ours when the model starts, so all of them are there from the beginning."""
    served = set(OURS.findall(httpx.get(stack.metrics_url).text)) | set(OURS.findall(frontend.get("/metrics").text))
    assert served == {each.name for each in metrics.metrics()}


def test_routes(stack: Stack, frontend: httpx.Client) -> None:
    """FastAPI's description of the API leaves out only its own pages."""
    answer = frontend.get("/openapi.json")
    served = {(method.upper(), path) for path, methods in answer.json()["paths"].items() for method in methods}
    documented = {(each.method, each.path) for each in routes.routes()}
    assert served <= documented
    assert {path for _, path in documented - served} <= {"/docs", "/docs/oauth2-redirect", "/openapi.json", "/redoc"}
