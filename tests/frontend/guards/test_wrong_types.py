"""Values of types that their fields do not take, in an app with one model like vLLM's."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, model_validator

from openai_frontend.guards import wrong_types


class Asked(BaseModel):
    """A request model with a validator that runs before pydantic checks types."""

    options: dict[str, int] | None = None
    number: int | None = None

    @model_validator(mode="before")
    @classmethod
    def look(cls, data: Any) -> Any:
        if (options := data.get("options")) is not None and options.get("a") and options["b"]:
            raise ValueError("not both")
        if (number := data.get("number")) is not None and number < 0:
            raise ValueError("negative")
        return data


@pytest.fixture
def client() -> httpx.AsyncClient:
    app = FastAPI()
    app.state.args = type("Args", (), {"log_error_stack": False})

    async def ask(body: Asked) -> str:
        return {}["missing"] if body.number == 500 else "answer"

    app.post("/ask")(ask)
    wrong_types.attach(app)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://test")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"options": "json_object"}, "options: Input should be a valid dictionary"),
        ({"options": [1]}, "options: Input should be a valid dictionary"),
        ({"number": "many"}, "number: Input should be a valid integer"),
        ({"options": {"a": 1}}, "of a type that it does not take"),
        ([], "of a type that it does not take"),
    ],
)
async def test_a_value_of_a_wrong_type_is_refused_by_its_name(
    client: httpx.AsyncClient, body: Any, message: str
) -> None:
    answer = await client.post("/ask", json=body)
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["error"]["message"]


async def test_what_fails_in_the_route_stays_the_servers_error(client: httpx.AsyncClient) -> None:
    assert (await client.post("/ask", json={"number": 500})).status_code == 500
    assert (await client.post("/ask", json={"number": 5})).text == '"answer"'
