"""A running stack has exactly the metrics and our routes that the reference pages list."""

import re

import httpx
from docgen import metrics, routes

from tritonlive.launch import Stack

# A histogram of the model's is three families on Triton.
OURS = re.compile(r"^# TYPE ((?:tritonlive_|vllm:)\w+?)(?:_bucket|_sum|_count)?(?<!_created) ", re.MULTILINE)


def test_metrics(stack: Stack, frontend: httpx.Client) -> None:
    """Triton's Python backend registers the model's metrics when the model starts, so all are there at once."""
    on_triton = set(OURS.findall(httpx.get(stack.metrics_url).text))
    at_the_front_end = {name for name in OURS.findall(frontend.get("/metrics").text) if not name.startswith("vllm:")}
    assert on_triton | at_the_front_end == {each.name for each in metrics.metrics()}


def test_routes(frontend: httpx.Client) -> None:
    """FastAPI's description of the API omits its own pages, and routes that need another argument of vLLM's."""
    paths = frontend.get("/openapi.json").json()["paths"]
    served = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert served <= {(each.method, each.path) for each in routes.routes()}
    assert served >= {(each.method, each.path) for each in routes.routes() if each.origin == "tritonlive"}
