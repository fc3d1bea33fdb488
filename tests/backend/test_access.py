"""tritonlive/backend/access.py: which key a request needs."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.triton_stand_in import Request, tensor
from tritonlive.backend.access import Access
from tritonlive.backend.settings import Settings
from tritonlive.backend.tensors import Refused
from tritonlive.wire.error_codes import ErrorCode

KEYS = Settings([], "control", ("one", "two"))
NO_KEYS = Settings([], None)


def request(**keys: str) -> Any:
    made = Request()
    made.update({name: tensor(key) for name, key in keys.items()})
    return made


@pytest.mark.parametrize("key", ["one", "two", "control"])
def test_each_inference_key_and_the_control_key_may_generate(key: str) -> None:
    Access(KEYS).require_inference(request(api_key=key))


@pytest.mark.parametrize("keys", [{}, {"api_key": ""}, {"api_key": "one,two"}, {"control_key": "one"}])
def test_others_may_not(keys: dict[str, str]) -> None:
    with pytest.raises(Refused, match=r"api_key: missing or wrong.*TRITONLIVE_API_KEY") as caught:
        Access(KEYS).require_inference(request(**keys))
    assert caught.value.code is ErrorCode.UNAUTHENTICATED


@pytest.mark.parametrize("key", ["one", "two", "control"])
def test_the_key_may_be_a_request_parameter(key: str) -> None:
    Access(KEYS).require_inference(Request(json.dumps({"api_key": key, "max_tokens": 5})))


@pytest.mark.parametrize("parameters", ['{"api_key": "x"}', '{"api_key": 1}', '{"api_key": null}', '{"x": "api_key"}'])
def test_a_wrong_request_parameter_is_refused(parameters: str) -> None:
    with pytest.raises(Refused, match="api_key: missing or wrong"):
        Access(KEYS).require_inference(Request(parameters))


def test_the_tensor_goes_before_the_request_parameter() -> None:
    made = Request('{"api_key": "one"}', api_key=tensor("x"))
    with pytest.raises(Refused, match="api_key: missing or wrong"):
        Access(KEYS).require_inference(made)


def test_control_takes_no_request_parameter() -> None:
    with pytest.raises(Refused, match="control_key: missing or wrong"):
        Access(KEYS).require_control(Request('{"control_key": "control", "api_key": "control"}'))


@pytest.mark.parametrize("settings", [NO_KEYS, Settings([], "control")])
def test_without_inference_keys_everybody_may_generate(settings: Settings) -> None:
    Access(settings).require_inference(request())
    Access(settings).require_inference(request(api_key="whatever"))


@pytest.mark.parametrize("keys", [{}, {"control_key": "one"}, {"control_key": ""}, {"api_key": "control"}])
def test_control_needs_the_control_key(keys: dict[str, str]) -> None:
    with pytest.raises(Refused, match="control_key: missing or wrong") as caught:
        Access(KEYS).require_control(request(**keys))
    assert caught.value.code is ErrorCode.REFUSED
    Access(KEYS).require_control(request(control_key="control"))


@pytest.mark.parametrize("check", [Access.require_inference, Access.require_control])
def test_no_message_holds_a_key(check: Callable[[Access, Any], None]) -> None:
    settings = Settings([], "control-secret", ("one-secret",))
    with pytest.raises(Refused) as caught:
        check(Access(settings), request(api_key="mine-secret", control_key="mine-secret"))
    assert "secret" not in str(caught.value)
