"""Reads constants of the product's modules without importing them."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGES = ("openai_frontend", "sync", "tritonlive")


class Module:
    """One parsed file and its constants."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = ast.parse(path.read_text())
        self.constants: dict[str, ast.expr] = {}
        for node in self.tree.body:
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name) and node.value is not None:
                self.constants[target.id] = node.value

    def calls(self, *names: str) -> Iterator[ast.Call]:
        """Calls of a function or class by its bare name."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                yield node

    def imports_from(self, package: str) -> bool:
        """Whether the file has `from package import …`."""
        return any(isinstance(node, ast.ImportFrom) and node.module == package for node in ast.walk(self.tree))

    def strings(self) -> Iterator[str]:
        """Every string literal, docstrings included."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value

    def text(self, node: ast.expr) -> str:
        """The value of a string literal, or of an f-string over this module's constants.

        Raises ValueError for any other expression.
        """
        if isinstance(node, ast.JoinedStr):
            return "".join(self.text(part) for part in node.values)
        if isinstance(node, ast.FormattedValue):
            return self.text(node.value)
        if isinstance(node, ast.Name) and node.id in self.constants:
            return self.text(self.constants[node.id])
        if isinstance(node, ast.Constant):
            return str(node.value)
        raise ValueError(f"{self.path}:{node.lineno}: not a constant text: {ast.unparse(node)}")


def modules(*packages: str) -> list[Module]:
    """The modules of these packages, or of the whole product."""
    return [Module(path) for package in packages or PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
