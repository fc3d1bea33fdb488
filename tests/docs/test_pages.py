"""The hand-written pages: links, paths, commands and examples in them are real."""

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest
from docgen import benchmark, options, source

from .pages import DOCS, ROOT, Block, blocks, page_name, pages, prose

MAX_README_LINES = 150
LINK = re.compile(r"\]\(([^)\s]+)\)")
INLINE_CODE = re.compile(r"`([^`\n]+)`")
COMMAND = re.compile(r"tritonlive ([a-z][a-z-]+)")
TARGET = re.compile(r"\bmake ([a-z][a-z-]*)")
TOP = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
# Riddles, and what a second-language reader must decode.
BANNED = ("is told", "whoever", "the other way", "let go", "one more.", "so do the", "misfit", "canary")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


def test_the_readmes_speed_is_the_benchmarks() -> None:
    (report,) = (each for each in json.loads(benchmark.RESULTS.read_text())["models"] if each["model"] == "smollm2")

    def span(pattern: str) -> str:
        medians = [row["reached"]["median"] for row in report["rows"] if re.fullmatch(pattern, row["name"])]
        return f"{min(medians):.2f} to {max(medians):.2f}"

    expected = f"{span(r'(completions|chat)/[0-9]+')} whole and {span(r'(completions|chat)-stream/[0-9]+')} streamed"
    assert expected in " ".join((ROOT / "README.md").read_text().split())


@pytest.mark.parametrize("page", pages(), ids=page_name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    missing = []
    for link in LINK.findall(prose(page)):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


@pytest.mark.parametrize("page", pages(), ids=page_name)
def test_paths_of_the_repository_exist(page: Path) -> None:
    named = [text for text in INLINE_CODE.findall(prose(page)) if re.fullmatch(r"[\w.]+(/[\w.*-]+)+/?", text)]
    assert [path for path in named if path.split("/")[0] in TOP and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", pages(), ids=page_name)
def test_targets_of_make_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = INLINE_CODE.findall(prose(page)) + [block.text for block in blocks("sh", "text") if block.page == page]
    assert {target for text in code for target in TARGET.findall(text)} <= targets


@pytest.mark.parametrize("page", pages(), ids=page_name)
def test_commands_exist(page: Path) -> None:
    commands = {name.rpartition(" ")[2] for name, _ in options.commands()}
    code = INLINE_CODE.findall(prose(page)) + [block.text for block in blocks("sh") if block.page == page]
    named = {command for text in code for line in text.splitlines() for command in COMMAND.findall(line)}
    assert named <= commands


@pytest.mark.parametrize("page", pages(), ids=page_name)
def test_the_prose_has_no_riddles(page: Path) -> None:
    text = " ".join(prose(page).lower().split())
    assert [phrase for phrase in BANNED if phrase in text] == []


@pytest.mark.parametrize("block", blocks("sh"), ids=lambda block: page_name(block.page))
def test_shell_examples_parse(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: page_name(block.page))
def test_python_examples_parse_and_import_what_exists(block: Block) -> None:
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in source.PACKAGES:
            module = __import__(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize("block", blocks("json"), ids=lambda block: page_name(block.page))
def test_json_examples_parse(block: Block) -> None:
    json.loads(block.text)


def test_every_environment_variable_is_explained() -> None:
    """Variables that one process of tritonlive sets for another are not settings."""
    name = re.compile(r"TRITONLIVE_[A-Z_]*[A-Z]")
    used = {text for module in source.modules() for text in module.strings() if name.fullmatch(text)}
    text = (DOCS / "operations.md").read_text()
    assert used
    assert {each for each in used if f"`{each}`" not in text and "_FRONTEND_" not in each} == set()


def test_every_header_is_explained() -> None:
    name = re.compile(r"x-[a-z]+(-[a-z]+)+")
    used = {text for module in source.modules() for text in module.strings() if name.fullmatch(text)}
    text = "".join(page.read_text() for page in pages())
    assert {each for each in used if f"`{each}" not in text} == set()


def test_every_exit_code_is_explained() -> None:
    constants = {name: value for module in source.modules() for name, value in module.constants.items()}
    codes, interrupted = constants["EXIT_CODES"], constants["INTERRUPTED"]
    assert isinstance(codes, ast.Dict)
    text = (DOCS / "operations.md").read_text()
    expected = ["0", "1", "2", *map(ast.unparse, codes.values), ast.unparse(interrupted)]
    assert [code for code in expected if f"\n| {code} |" not in text] == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the site makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}
