"""tritonlive/launch/root_cause.py, with logs of real starts that failed (tests/launch/logs)."""

from pathlib import Path

import pytest

from tritonlive.launch import root_cause

LOGS = Path(__file__).with_name("logs")


@pytest.mark.row(64)
@pytest.mark.parametrize(
    ("name", "cause"),
    [
        (
            "kv-cache-too-large",
            "ValueError: Available memory on node 0 (9.44/16.46 GiB) on kv cache allocation is less than requested "
            "memory for kv (500.0 GiB). Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE, or reduce CPU memory "
            "used by other processes.",
        ),
        (
            "too-few-numa-nodes",
            "AssertionError: Not enough allowed NUMA nodes to bind threads of 2 local CPUWorkers. Allowed NUMA nodes "
            "are [0]. Please try to bind threads manually or decrease DP/TP/PP.",
        ),
        (
            "unknown-option",
            "ValueError: vLLM engine arguments: unrecognized arguments: --max-modle-len; did you mean --max-model-len?",
        ),
        (
            "model-without-config",
            "Invalid repository ID or local directory specified: '/models/noconf'.\n"
            "Please verify the following requirements:\n"
            "1. Provide a valid Hugging Face repository ID.\n"
            "2. Specify a local directory that contains a recognized configuration file.\n"
            "- For Hugging Face models: ensure the presence of a 'config.json'.\n"
            "- For Mistral models: ensure the presence of a 'params.json'.",
        ),
    ],
)
def test_the_cause_in_tritonservers_log(name: str, cause: str) -> None:
    assert root_cause.find((LOGS / f"{name}.txt").read_text()) == cause


FRONT_END = """INFO 11-30 02:45:49 [arg_utils.py:1945] chatter
openai_frontend: waiting for Triton at 127.0.0.1:8001
openai_frontend: --tool-call-parser hermess: no such name; did you mean hermes?
Valid: hermes
"""


def test_what_the_front_end_said_last() -> None:
    said = "--tool-call-parser hermess: no such name; did you mean hermes?\nValid: hermes"
    assert root_cause.find(FRONT_END) == said


def test_an_exception_after_the_front_ends_last_word_counts() -> None:
    trace = (
        'Traceback (most recent call last):\n  File "x.py", line 3, in f\n    f()\nmodule.OddError: it broke\n  twice\n'
    )
    assert root_cause.find(FRONT_END + trace) == "module.OddError: it broke\n  twice"


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("", None),
        ("all is well\nValueError is a word here\n", None),
        (
            "(Worker pid=7) ERROR 11-30 02:51:24 [x.py:1] RuntimeError: out of memory\n"
            "(EngineCore pid=6) ERROR 11-30 02:51:25 [y.py:1] Exception: WorkerProc initialization failed due to an "
            "exception in a background process. See stack trace for root cause.\n"
            "RuntimeError: Engine core initialization failed. See root cause above.\n"
            "ProcessLookupError: [Errno 3] No such process\n",
            "RuntimeError: out of memory",
        ),
        ("RuntimeError: Engine core initialization failed. See root cause above.\n", None),
        (
            "error: creating server: Internal - failed to load all models\n",
            "creating server: Internal - failed to load all models",
        ),
    ],
)
def test_logs_with_less(log: str, cause: str | None) -> None:
    assert root_cause.find(log) == cause
