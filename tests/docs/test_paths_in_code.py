"""Paths named in docstrings, comments and configuration exist: a move takes its mentions along."""

import ast
import io
import re
import tokenize
from pathlib import Path

from .pages import ROOT

PRODUCT = ("tritonlive", "sync", "openai_frontend", "bench", "examples", "docs/_gen", "requirements")
CODE = sorted(path for folder in (*PRODUCT, "tests") for path in (ROOT / folder).rglob("*.py"))
CONFIGURATION = [
    *(ROOT / name for name in ("Makefile", "Dockerfile", "pyproject.toml", "mkdocs.yml", ".importlinter")),
    *(ROOT / name for name in (".pre-commit-config.yaml", "model_repository/llm/config.pbtxt")),
]
KNOWN = {
    path.relative_to(ROOT).as_posix()
    for folder in (*PRODUCT, "tests", "docs", "model_repository")
    for path in (ROOT / folder).rglob("*.*")
} | {path.name for path in ROOT.iterdir()}
PATH = re.compile(r"(?<![\w./$}>-])(?:[\w.-]+/)*[\w-]+\.(?:py|md|toml|pbtxt)\b(?![\w/{(*])")
# Files of PEFT, in a stand-in for it.
FOREIGN = {"tuners/lora/layer.py", "utils/other.py"}


def test_paths_in_docstrings_and_comments_exist() -> None:
    missing = [f"{path.relative_to(ROOT)}: {name}" for path in CODE for name in unknown(prose(path), path)]
    assert missing == []


def test_paths_in_configuration_exist() -> None:
    missing = [f"{path.name}: {name}" for path in CONFIGURATION for name in unknown(path.read_text(), path)]
    assert missing == []


def test_the_check_sees_a_file_that_has_gone() -> None:
    text = "See launch/old_stack.py, sync/push/fleet_update.py, gone.md and (fleet_update.py)."
    assert unknown(text, ROOT / "sync/errors.py") == ["launch/old_stack.py", "gone.md"]


def prose(path: Path) -> str:
    """A file's comments and docstrings."""
    source = path.read_text()
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    statements = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr))
    texts = [node.value for node in statements if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return "\n".join([*comments, *texts])


def unknown(text: str, path: Path) -> list[str]:
    """The paths in `text` that are no file's: neither from the top, nor from the file's folder, nor the end of one."""
    beside = path.parent.relative_to(ROOT).as_posix()
    ends = {"/".join(known.split("/")[start:]) for known in KNOWN for start in range(known.count("/") + 1)}
    return [name for name in PATH.findall(text) if name not in ends | FOREIGN and f"{beside}/{name}" not in KNOWN]
