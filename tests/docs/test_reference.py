"""The built site: every metric, route, option, operation and tensor is on its page."""

import ast
import html
import re
from pathlib import Path

import pytest
from docgen import metrics, options, routes, source
from mkdocs.commands.build import build
from mkdocs.config import load_config

from tritonlive.wire import reference

from .pages import DOCS, ROOT

MODEL_METRICS = {
    *("vllm:num_requests_running", "vllm:time_to_first_token_seconds", "vllm:request_success_total"),
    *("tritonlive_weight_updates_committed_total", "tritonlive_requests_stale", "tritonlive_build_info"),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it: any warning fails. In this process, so that vLLM is imported once."""
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder)))
    return folder


def code_on(site: Path, page: str) -> set[str]:
    """The pieces of inline code on a built page."""
    text = (site / "reference" / f"{page}.html").read_text()
    return {html.unescape(each) for each in re.findall(r"<code>([^<]+)</code>", text)}


def test_every_page_is_built(site: Path) -> None:
    names = {str(page.relative_to(DOCS).with_suffix(".html")) for page in DOCS.rglob("*.md")}
    assert {name for name in names if not (site / name).is_file()} == set()


def test_no_marker_is_left(site: Path) -> None:
    assert [page.name for page in site.rglob("*.html") if "<!-- generated" in page.read_text()] == []


def test_no_page_asks_a_foreign_server_for_fonts_or_scripts(site: Path) -> None:
    fetched = re.compile(r'(?:<script[^>]+src|<link[^>]+rel="(?:stylesheet|preconnect)"[^>]+href)="?https?://')
    assert [page.name for page in site.rglob("*.html") if fetched.search(page.read_text())] == []


def test_every_metric_is_listed(site: Path) -> None:
    listed = code_on(site, "metrics")
    assert {each.name for each in metrics.metrics()} <= listed
    assert listed >= MODEL_METRICS
    names = re.compile(r"tritonlive_[a-z_]+")
    literal = {
        text
        for module in source.modules()
        if module.imports_from("prometheus_client")
        for text in module.strings()
        if names.fullmatch(text)
    }
    assert "tritonlive_event_loop_lag_seconds" in literal
    assert literal <= listed


def test_every_metric_has_a_description() -> None:
    assert [each.name for each in metrics.metrics() if not each.description.endswith((".", "out."))] == []


def test_every_route_is_listed(site: Path) -> None:
    listed = code_on(site, "routes")
    assert {each.path for each in routes.routes()} <= listed
    assert declared_paths() <= listed


def test_routes_that_change_weights_need_the_control_key() -> None:
    access = {each.path: each.access for each in routes.routes()}
    assert access["/v1/chat/completions"] == "inference"
    assert access["/health"] == "open"
    assert {access[path] for path in ("/update_weights", "/rollback", "/fence", "/lora_adapters/{name}")} == {"control"}


def test_every_option_is_listed(site: Path) -> None:
    listed = code_on(site, "options")
    assert {name for each in options.options() for name in each.names} <= listed
    text = (site / "reference" / "options.html").read_text()
    assert {name for name, _ in options.commands() if f"{name}</h2>" not in re.sub(r"<a .*?</a>", "", text)} == set()
    assert "--triton-url" in text


def test_every_tensor_is_listed(site: Path) -> None:
    contract = (ROOT / "model_repository" / "llm" / "config.pbtxt").read_text()
    text = html.unescape(re.sub(r"<[^>]+>", "", (site / "reference" / "tensors.html").read_text()))
    names = re.findall(r'name: "(\w+)"', contract)
    assert len(names) > 30
    assert [name for name in names if f'"{name}"' not in text] == []


def test_every_control_operation_is_listed(site: Path) -> None:
    names = set(re.findall(r"^\| `(\w+)`", reference.operations_markdown(), re.MULTILINE))
    assert len(names) > 30
    assert names <= code_on(site, "operations")


def declared_paths() -> set[str]:
    """The paths in decorators such as @router.post("/path")."""
    methods = ("get", "post", "put", "delete", "add_api_route")
    paths = (
        node.args[0].value
        for module in source.modules("openai_frontend/routes")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in methods
        and node.args
        and isinstance(node.args[0], ast.Constant)
    )
    return {path for path in paths if isinstance(path, str) and path.startswith("/")}
