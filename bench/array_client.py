"""The client of a trainer's calls, which returns arrays. Like bench/client.py, it runs in a separate process."""

import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bench.client import Client, LoadError, Outcome, answer_job
from bench.json_rollouts import JsonRollouts
from sync import SyncError
from sync.rollouts.rollouts import Rollouts

MODULE = "bench.array_client"


@dataclass(frozen=True)
class ArrayJob:
    """One call of `sync.Rollouts`, or of JsonRollouts for a server that answers in JSON."""

    url: str
    """`grpc://` of a Triton server, `http://` of an OpenAI server."""
    served_name: str
    call: Literal["generate", "score"]
    prompts: list[list[int]]
    params: dict[str, Any]
    """The call's keyword arguments."""


def run_array_job(job: ArrayJob, client: Client | None = None) -> Outcome:
    """Run the job in `client`, or in a new client. Raises LoadError if the call failed."""
    return (client or Client(MODULE)).run(asdict(job))


def call(job: ArrayJob) -> Outcome:
    """Make the call. The time runs from lists of token ids to arrays, and includes connecting. Raises LoadError."""
    is_grpc = job.url.startswith("grpc:")
    rollouts = Rollouts(job.url) if is_grpc else JsonRollouts(job.url, job.served_name)
    cpu_started, started = time.process_time(), time.perf_counter()
    try:
        batch = getattr(rollouts, job.call)(job.prompts, **job.params)
    except SyncError as error:
        raise LoadError(str(error)) from error
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    completion_tokens = int(batch.lengths.sum()) if job.call == "generate" else 0
    return Outcome(wall_s, cpu_s, sum(map(len, job.prompts)), completion_tokens)


if __name__ == "__main__":
    answer_job(lambda job: call(ArrayJob(**job)))
