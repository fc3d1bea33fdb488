"""GET /version names both versions."""

from fastapi import FastAPI
from starlette.testclient import TestClient

import tritonlive
from openai_frontend.routes import version
from openai_frontend.vllm_seam import vllm_version

BOTH = {"version": vllm_version, "tritonlive_version": tritonlive.__version__}


def test_vllms_route_is_replaced_by_one_with_both_versions() -> None:
    app = FastAPI()
    app.get("/version")(lambda: {"version": vllm_version})
    app.get("/other")(lambda: "other")
    version.attach(app)
    client = TestClient(app)
    assert client.get("/version").json() == BOTH
    assert client.get("/other").json() == "other"
    assert [getattr(route, "path", None) for route in app.router.routes].count("/version") == 1
