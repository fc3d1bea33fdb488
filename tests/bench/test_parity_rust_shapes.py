"""The requests to the Rust front end: one for every kind of structured output and refusal, on routes that it has."""

import json
from pathlib import Path

import pytest

from bench.parity.checks import CHECKS
from bench.parity.comparison import RUST, comparison
from bench.parity.profiles import RUST_PROFILES
from bench.parity.shape import Shape
from bench.parity.shapes import all_shapes
from bench.parity.shapes.rust import FATAL, GENERATE, INVALID, LONG_CHOICE, ROUTES, is_served, rust_shapes
from tritonlive.wire.limits import GRAMMAR_DEFAULTS

PARSERS_IT_LACKS = {"chat/tools-pythonic", "chat/reasoning"}


def test_names_are_unique_and_servers_and_checks_exist() -> None:
    shapes = rust_shapes()
    names = [shape.name for shape in shapes]
    assert len(set(names)) == len(names) > 400
    for shape in shapes:
        assert shape.profile in RUST_PROFILES
        assert set(shape.checks) <= CHECKS.keys()


@pytest.mark.parametrize("route", sorted(ROUTES))
def test_every_route_gets_a_request(route: str) -> None:
    assert [shape for shape in rust_shapes() if shape.path == route]


def test_generation_is_asked_for_whole_and_streamed_on_every_route() -> None:
    for route in ("/v1/completions", "/v1/chat/completions", GENERATE):
        bodies = [shape.body for shape in rust_shapes() if shape.path == route and isinstance(shape.body, dict)]
        assert {bool(body.get("stream")) for body in bodies} == {True, False}


@pytest.mark.parametrize(
    ("path", "served"), [("/v1/completions", True), ("/v1/responses", False), ("/v1/messages", False)]
)
def test_other_routes_are_left_out(path: str, served: bool) -> None:
    assert is_served(Shape("routes/x", path)) is served
    assert is_served(Shape("bad/x", path))


def test_no_request_of_the_other_comparison_to_a_route_of_the_rust_front_end_is_left_out() -> None:
    names = {shape.name for shape in rust_shapes()}
    left_out = {shape.name for shape in all_shapes() if shape.path in ROUTES} - names
    assert {name.rsplit("/", 2 if name.endswith("stream") else 1)[0] for name in left_out} == PARSERS_IT_LACKS


def test_invalid_grammars_come_last() -> None:
    """A server may not survive one, and the answers to all others must be there then."""
    shapes = rust_shapes()
    first = min(i for i, shape in enumerate(shapes) if "rust/invalid" in shape.name)
    assert all("rust/" in shape.name or "generate/" in shape.name for shape in shapes[first:-1])
    assert len(shapes) - first == 4 * len(INVALID) + 5
    assert shapes[-1].name == FATAL


def test_the_long_choice_is_longer_than_the_limits_of_a_grammar() -> None:
    assert len(LONG_CHOICE["choice"]) > GRAMMAR_DEFAULTS.max_values
    assert len(json.dumps(LONG_CHOICE["choice"])) > GRAMMAR_DEFAULTS.max_bytes


def test_the_rust_comparison_has_a_file_of_its_own() -> None:
    assert comparison(rust=True) is RUST
    assert comparison(rust=False).justified.name == "justified.toml"
    assert Path(RUST.justified).name == "justified-rust.toml"
    assert (RUST.left, RUST.right) == ("vllm-rust", "tritonlive-rust")
