"""Random sequences against the model's control and real workers: python -m tests.property --seed 7 --count 5000."""

import argparse
import faulthandler
import logging
import os
import sys
from pathlib import Path

from tests import triton_stand_in

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "CRITICAL",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TORCH_CPP_LOG_LEVEL": "FATAL",  # gloo's groups break here on purpose
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.property", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=360)
    parser.add_argument("--first", type=int, default=0, help="number of the first sequence")
    parser.add_argument("--replay", help="a sequence as a failure has printed it")
    parser.add_argument("--found", action="store_true", help="run the sequences that have found faults first")
    parser.add_argument("--coverage", action="store_true", help="fail unless every state and edge was reached 20 times")
    options = parser.parse_args()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    faulthandler.enable()
    logging.disable(logging.CRITICAL)  # faults are meant here, and would be logged with tracebacks

    triton_stand_in.install()  # before the model's modules are imported
    from .runner import Runner, build_world, from_json, temporary_folder

    with temporary_folder() as folder:
        world = build_world(Path(folder))
        runner = Runner(world, say)
        if options.replay:
            failure = runner.try_steps(from_json(options.replay))
            failures = [failure] if failure is not None else []
        else:
            failures = runner.run_found() if options.found else []
            failures += runner.run(options.seed, options.count, options.first) if not failures else []
        for failure in failures:
            say(f"shortest found: {len(failure.steps)} steps\n{failure.report(options.seed)}")
    say(world.coverage.report())
    missed = world.coverage.missed() if options.coverage and not failures else []
    for line in missed:
        say(f"reached too seldom: {line}")
    say(f"mislabelled: {len(failures)}")
    return 1 if failures or missed else 0


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - a command line


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # gloo's threads, of groups whose members are gone, need not be waited for
