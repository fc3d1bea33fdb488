"""The loads of a trainer that uses arrays: one call takes token ids and returns numpy arrays."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from bench.array_client import MODULE, ArrayJob, run_array_job
from bench.client import Client
from bench.measure import Figures
from bench.server import Server
from bench.server_load import ServerLoad

TOKEN_IDS = (1000, 30_000)
"""Range of the prompts' token ids: ordinary tokens in any vocabulary."""


@dataclass(frozen=True, kw_only=True)
class ArrayLoad(ServerLoad):
    """One call for all prompts. If a server has only JSON, its client makes the arrays."""

    module = MODULE
    call: ClassVar[Literal["generate", "score"]]

    num_prompts: int
    prompt_tokens: int

    @abstractmethod
    def params(self) -> dict[str, Any]:
        """The call's keyword arguments."""

    def job(self, url: str, served_name: str, seed: int) -> ArrayJob:
        """The load as a job for the client. Another seed gives other prompts of the same length."""
        prompts = self.rng(seed).integers(*TOKEN_IDS, (self.num_prompts, self.prompt_tokens)).tolist()
        return ArrayJob(url, served_name, self.call, prompts, self.params())

    def send(self, server: Server, served_name: str, seed: int, client: Client | None = None) -> Figures:
        return run_array_job(self.job(server.rollouts_url, served_name, seed), client).figures()


@dataclass(frozen=True, kw_only=True)
class Rollouts(ArrayLoad):
    """Several sampled completions of each prompt, with token ids and logprobs (sampled token and most likely token).

    Sampling has no seed, so texts differ between runs. Their lengths are equal.
    """

    call = "generate"

    prompt_tokens: int = 32
    samples: int = 8
    max_tokens: int

    @property
    def name(self) -> str:
        return f"rollouts/{self.samples} binary"

    def params(self) -> dict[str, Any]:
        return {
            "n": self.samples,
            "logprobs": 1,
            "max_tokens": self.max_tokens,
            "temperature": 1.0,
            "ignore_eos": True,
        }


@dataclass(frozen=True, kw_only=True)
class TeacherScores(ArrayLoad):
    """The most likely tokens at every position of several sequences, with logprobs."""

    call = "score"

    num_prompts: int = 8
    prompt_tokens: int = 512
    top: int = 100

    @property
    def name(self) -> str:
        return f"teacher/top{self.top} binary"

    def params(self) -> dict[str, Any]:
        return {"top_k": self.top, "temperature": 0}
