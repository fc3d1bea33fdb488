"""The hop in a real Triton: its engine core has all that the model asks of one."""

from pathlib import Path

from bench.hop.server import hop


def test_tokens_come_through_triton(tiny_model_dir: Path) -> None:
    with hop(tiny_model_dir, ("--max-model-len", "2048", "--enforce-eager")) as running:
        figures = running.generate(concurrency=4, max_tokens=16)
    assert figures["completion tokens"] == 4 * 16
    assert figures["steps/message"] >= 1
