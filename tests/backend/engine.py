"""A fake engine for the weights' state machine. Records its calls; tests set how its ranks answer."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

CHECKPOINT = "checkpoint"


class Rank:
    """Answers like sync/worker/worker_extension.py, without a model."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.current: str | None = None
        self.kept: list[str] = []
        self.digest: str | None = "d"  # of what it has staged
        self.is_unchanged = False
        self.is_checkpoint_loadable = True
        self.checkpoint_id = CHECKPOINT
        self.fails: dict[str, str] = {}  # code by operation

    def run(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        code, message, result = self.fails.get(operation, "ok"), "", {}
        if code == "ok":
            result = getattr(self, operation)(**arguments) or {}
        else:
            message = f"{operation}: meant to fail"
            self.current = None if code == "touched" else self.current
        kept = [{"id": each, "digest": f"of {each}", "is_loadable": True} for each in self.kept]
        checkpoint = {
            "id": self.checkpoint_id,
            "fingerprint": "not the files'",
            "is_loadable": self.is_checkpoint_loadable,
        }
        report = {"current": self.current, "kept": kept, "checkpoint": checkpoint}
        return {"rank": self.rank, "code": code, "message": message, **result, **report}

    def connect(self, init_info: dict[str, Any]) -> None: ...
    def disconnect(self) -> None: ...
    def start(self) -> None: ...
    def update(self, update_info: Any) -> None: ...
    def abort(self) -> None: ...
    def adopt(self) -> None: ...
    def report(self) -> None: ...

    def prepare(self) -> dict[str, Any]:
        return {"is_unchanged": self.is_unchanged, "digest": self.digest}

    def load(self, update_id: str, keep: list[str]) -> None:
        self.kept = [each for each in self.kept if each in keep] + [update_id]
        self.current = update_id

    def restore(self, update_id: str) -> None:
        self.current = update_id

    def reload(self, update_id: str) -> None:
        self.current = self.checkpoint_id = update_id

    def reset(self) -> None:
        self.current = None

    forget = reset


class Core:
    """AsyncLLM's engine core client."""

    def __init__(self, llm: "Llm") -> None:
        self._llm = llm

    async def pause_scheduler_async(self, mode: str, clear_cache: bool) -> None:
        self._llm.calls.append(f"pause {mode}")
        self._llm.is_paused = True

    async def call_utility_all_async(self, method: str, *args: Any) -> list[list[dict[str, Any]]]:
        worker_method, seconds, (operation, arguments), keywords = args
        assert (method, worker_method, seconds, keywords) == ("collective_rpc", "weight_operation", None, None)
        self._llm.calls.append(operation)
        if operation in self._llm.hangs:
            await asyncio.Event().wait()
        if operation in self._llm.raises:
            raise RuntimeError("Worker failed with error")
        return [[rank.run(operation, arguments)] for rank in self._llm.ranks]


class Llm:
    """The part of AsyncLLM that the weights use. Any other call fails."""

    def __init__(self, backend: str | None, folder: Path, num_ranks: int = 1) -> None:
        config = SimpleNamespace(backend=backend) if backend is not None else None
        self.vllm_config = SimpleNamespace(weight_transfer_config=config)
        self.model_config = SimpleNamespace(model=str(folder), revision=None, is_multimodal_model=False)
        self.engine_core = Core(self)
        self.ranks = [Rank(rank) for rank in range(num_ranks)]
        self.calls: list[str] = []
        self.version = "default"
        self.is_paused = False
        self.hangs: set[str] = set()
        self.raises: set[str] = set()

    async def get_weight_version(self) -> str:
        return self.version

    async def update_weight_version(self, new_version: str) -> None:
        self.version = new_version

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        self.calls.append(f"pause {mode}")
        self.is_paused = True

    async def resume_generation(self) -> None:
        self.calls.append("resume")
        self.is_paused = False

    async def reset_prefix_cache(self, *, reset_running_requests: bool, reset_connector: bool) -> bool:
        assert reset_running_requests
        assert reset_connector
        self.calls.append("reset_prefix_cache")
        return True

    async def reset_mm_cache(self) -> None:
        self.calls.append("reset_mm_cache")

    async def reset_encoder_cache(self) -> None:
        self.calls.append("reset_encoder_cache")

    async def sleep(self, level: int, mode: str) -> None:
        self.calls.append(f"sleep {level}")
        self.is_paused = True

    async def wake_up(self, tags: list[str] | None) -> bool:
        self.calls.append("wake_up")
        self.is_paused = False
        return True


class FakeEngine:
    """The model's Engine: `kill` ends it, `start` brings a new one with the checkpoint."""

    def __init__(self, backend: str | None, folder: Path, num_ranks: int = 1) -> None:
        self._make = lambda: Llm(backend, folder, num_ranks)
        self.llm = self._make()
        self.is_running = True
        self.num_kills = 0
        self.num_restarts = 0
        self.died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_start: list[Callable[[Any], Any]] = []
        self._on_death: list[Callable[[str], None]] = []

    def on_start(self, hook: Callable[[Any], Any]) -> None:
        self._on_start.append(hook)

    def on_death(self, hook: Callable[[str], None]) -> None:
        self._on_death.append(hook)

    def kill(self) -> None:
        self.num_kills += 1
        self.is_running = False
        for hook in self._on_death:
            hook("killed")
        if not self.died.done():
            self.died.set_result(None)

    async def start(self) -> None:
        self.llm = self._make()
        for hook in self._on_start:
            if (pending := hook(self.llm)) is not None:
                await pending
        self.died = asyncio.get_running_loop().create_future()
        self.is_running = True
