"""Which attributes a constructor sets, read from its source."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any


def attributes_set_in(function: Callable[..., Any]) -> set[str]:
    """Names of `self.X = …` in a function's source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    targets = [
        target
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    return {
        target.attr
        for target in targets
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"
    }
