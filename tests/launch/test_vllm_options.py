"""tritonlive/launch/vllm_options.py: mistakes that are said before anything starts."""

import json
import re
from pathlib import Path

import pytest

from tritonlive.launch import vllm_options
from tritonlive.launch.errors import LaunchError


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--max-modle-len 5", "unrecognized arguments: --max-modle-len; did you mean --max-model-len?"),
        ("--enforce-eager --max_modle_len=5", "unrecognized arguments: --max-modle-len; did you mean --max-model-len?"),
        ("--qqqqqqqqqqqq 5", "unrecognized arguments: --qqqqqqqqqqqq"),
        ("--prot 9100", "unrecognized arguments: --prot; did you mean --port?"),
        ("--triton-htp-port 1", "unrecognized arguments: --triton-htp-port; did you mean --triton-http-port?"),
        (
            "--tool-call-parser hermess",
            "--tool-call-parser hermess: no such name; did you mean hermes? Valid: apertus, ",
        ),
        ("--reasoning-parser=qwen4", "--reasoning-parser qwen4: no such name; did you mean qwen3? Valid: "),
        ("--dtype float33", "--dtype float33: no such name; did you mean float32? Valid: auto, "),
        ("--load-format x --kv-cache-dtype zzz", "--kv-cache-dtype zzz: no such name. Valid: auto, "),
    ],
)
def test_a_mistake_is_named_with_what_would_be_right(arguments: str, said: str) -> None:
    with pytest.raises(LaunchError, match="^" + re.escape(said)):
        vllm_options.check(arguments.split(), {"--triton-http-port"})


@pytest.mark.parametrize(
    "arguments",
    [
        "--max-model-len 5 --enforce-eager -tp 2 -O3 --no-enable-prefix-caching",
        "--max_model_len=1k --compilation-config.mode 3 --speculative_config.method=ngram",
        "--enforce-e --max-model 5",  # argparse takes unambiguous beginnings
        "--tool-call-parser mine --tool-parser-plugin ./mine.py",
        "--reasoning-parser mine --reasoning_parser_plugin=./mine.py",
        "--served-model-name a b --override-generation-config {}",
        "--dtype",  # vLLM says that a value is missing
        "",
    ],
)
def test_what_vllm_takes_passes(arguments: str) -> None:
    vllm_options.check(arguments.split())


def test_another_version_of_vllm_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = json.loads(vllm_options.TABLE.read_text()) | {"vllm": "0.1.0"}
    (tmp_path / "table.json").write_text(json.dumps(table))
    monkeypatch.setattr(vllm_options, "TABLE", tmp_path / "table.json")
    vllm_options.check(["--max-modle-len", "5"])
