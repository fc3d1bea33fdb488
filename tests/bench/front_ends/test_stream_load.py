"""A side sends its load with the load's own program."""

from pathlib import Path

import pytest

from bench.aiperf import Aiperf
from bench.bench_serve import BenchServe
from bench.client import LoadError
from bench.front_ends.comparison import aiperf_loads, plan
from bench.front_ends.stream_load import Generator, StreamLoad, StreamSide

STREAM = StreamLoad(kind="chat", concurrency=4, num_requests=40, max_tokens=3)


def test_each_load_has_its_program() -> None:
    generator = Generator(Path("vllm-rs"), Path("m"), Path("aiperf"))
    (aiperf,) = aiperf_loads()
    assert isinstance(aiperf, StreamLoad)
    assert (generator.program(STREAM), generator.program(aiperf)) == (Path("vllm-rs"), Path("aiperf"))
    assert isinstance(STREAM.generator(2), BenchServe)
    assert isinstance(aiperf.generator(2), Aiperf)
    assert aiperf.name not in [load.name for load in plan((64,))]
    with pytest.raises(LoadError, match="aiperf"):
        Generator(Path("vllm-rs"), Path("m")).program(aiperf)


def test_a_warm_up_is_short_and_has_prompts_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[int, int]] = []

    def run(self: BenchServe, *arguments: object) -> dict[str, float]:
        runs.append((self.num_requests, int(str(arguments[-1]))))
        return {}

    monkeypatch.setattr(BenchServe, "run", run)
    side = StreamSide("a", "http://a", "m", list, STREAM, Generator(Path("vllm-rs"), Path("m")))
    side.warm_up()
    side.run(0)
    (warm_up, warm_up_seed), measured = runs
    assert warm_up < measured[0] == 40
    assert warm_up_seed != measured[1] == 0
