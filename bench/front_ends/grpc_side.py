"""Triton's own gRPC endpoint as a side of a load of completions: no front end of ours is between."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import psutil

from bench.client import Client
from bench.front_ends.stream_load import WARM_UP_REQUESTS, WARM_UP_SEED
from bench.grpc_client import MODULE, GrpcJob, run_grpc_job
from bench.loads import WORDS
from bench.measure import Figures
from bench.systems import TritonLive

PROMPT_WORDS = 32


class Sized(Protocol):
    """The size of a load."""

    @property
    def concurrency(self) -> int: ...

    @property
    def num_requests(self) -> int: ...

    @property
    def max_tokens(self) -> int: ...


@dataclass
class GrpcSide:
    """The model `llm` in Triton."""

    name: str
    server: TritonLive
    load: Sized
    stream: bool
    _client: Client | None = None

    def processes(self) -> list[psutil.Process]:
        return self.server.processes()

    def warm_up(self) -> None:
        run_grpc_job(self.job(WARM_UP_SEED, min(WARM_UP_REQUESTS, self.load.num_requests)))

    def prepare(self) -> None:
        """Start the client, which imports its libraries while the machine becomes idle."""
        self._client = Client(MODULE)

    def run(self, seed: int) -> Figures:
        client, self._client = self._client, None
        return run_grpc_job(self.job(seed, self.load.num_requests), client).figures()

    def job(self, seed: int, num_requests: int) -> GrpcJob:
        """Random words, as many as other clients' prompts have tokens."""
        rng = np.random.default_rng(seed)
        prompts: list[str] = [" ".join(rng.choice(np.array(WORDS), PROMPT_WORDS)) for _ in range(num_requests)]
        params = {"max_tokens": self.load.max_tokens, "temperature": 0, "seed": 0, "ignore_eos": True}
        return GrpcJob(self.server.grpc_url, prompts, params, self.load.concurrency, self.stream)
