"""360 random sequences of pushes, failures and restarts: no replica ever serves weights under a wrong label."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 900


def test_no_sequence_serves_weights_under_a_wrong_label() -> None:
    """Runs in its own process, because it holds vLLM's models, and gloo's threads of killed trainers.

    TRITONLIVE_PROPERTY_SEED and TRITONLIVE_PROPERTY_COUNT choose others; `python -m tests.property --help` has more.
    """
    seed = os.environ.get("TRITONLIVE_PROPERTY_SEED", "0")
    count = os.environ.get("TRITONLIVE_PROPERTY_COUNT", "360")
    command = [sys.executable, "-m", "tests.property", "--found", "--seed", seed, "--count", count]
    command += ["--coverage"] if int(count) >= 300 else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    report = done.stdout[-20_000:] + done.stderr[-5_000:]
    assert done.returncode == 0, report
    assert re.search(r"^mislabelled: 0$", done.stdout, re.MULTILINE), report
    print(done.stdout)  # noqa: T201 - the coverage, with pytest -s
