"""A stack with the settings that TRL needs, and both generations of its client."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LEGACY_TRL_VERSION
from tritonlive.launch import Stack, StackConfig

LEGACY_CLIENT = Path(__file__).with_name("legacy_client.py")

# ChatML that shows tools: SmolLM2's own template passes over them.
CHAT_TEMPLATE = """\
{% if tools %}<|im_start|>system
Tools: {{ tools | tojson }}<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

Call = tuple[str, dict[str, Any]]
"""Name of a VLLMClient's method, and its keyword arguments."""


STACK = pytest.StashKey[Stack]()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the stack after the last test of this folder: other folders' stacks need the memory.

    pytest's scope "package" needs an __init__.py, and a package of this name would hide TRL's own.
    """
    stack = item.session.stash.get(STACK, None)
    if stack is not None and (nextitem is None or nextitem.path.parent != item.path.parent):
        stack.kill()


@pytest.fixture(scope="session")
def trl_stack(
    request: pytest.FixtureRequest, stack_config: StackConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    template = tmp_path_factory.mktemp("trl") / "chat_template.jinja"
    template.write_text(CHAT_TEMPLATE)
    config = replace(
        stack_config,
        extra_args=(
            *stack_config.extra_args,
            *("--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1"),
            *("--chat-template", str(template)),
        ),
        log_dir=tmp_path_factory.mktemp("trl-logs"),
    )
    with Stack(config) as running:
        running.wait_ready(240)
        request.session.stash[STACK] = running
        yield running


@pytest.fixture(scope="session")
def trainer_url(trl_stack: Stack) -> str:
    """URL with the control key, because TRL's clients accept a key only in the URL."""
    return trl_stack.frontend_url.replace("http://", f"http://trainer:{trl_stack.control_key}@")


@pytest.fixture(scope="session")
def legacy_client(legacy_trl_dir: Path, trainer_url: str) -> Callable[[dict[str, Call]], dict[str, Any]]:
    """Runs calls of TRL 1.10.0's client in a separate process. Returns the results by name."""

    def run(calls: dict[str, Call]) -> dict[str, Any]:
        child = subprocess.run(
            [sys.executable, str(LEGACY_CLIENT), trainer_url],
            env=os.environ | {"PYTHONPATH": str(legacy_trl_dir)},
            input=json.dumps(calls),
            stdout=subprocess.PIPE,
            text=True,
            timeout=300,
            check=True,
        )
        results = json.loads(child.stdout.splitlines()[-1])
        assert results.pop("trl") == [LEGACY_TRL_VERSION, str(legacy_trl_dir / "trl" / "__init__.py")]
        return results

    return run
