"""Control operations: one table of small functions, named after the methods of vLLM's EngineClient.

Each takes the request's JSON arguments and returns a JSON object. All but a few need the control key.
"""

import hmac
import inspect
import json
from collections.abc import Callable
from typing import Any, cast, get_args

import psutil
from vllm.version import __version__ as vllm_version

from sync.push.host_memory import machine_id

from .adapters.adapters import Adapters
from .adapters.lora_control import LoraControl, Operation
from .engine import Engine
from .generation.scoring import prompt_logprobs
from .settings import CONTROL_KEY_VARIABLE
from .tensors import BadTensor, Conflict, read_bytes, read_json_object, read_string
from .vllm_seam.messages import PauseMode
from .weights.history import InFlight
from .weights.weights import Weights

# What a front end needs before anyone has shown a key, and what tells whether the replica lives.
KEYLESS = frozenset({"describe", "health", "flush_generations"})

MAX_NAME = 200

# What only the connected trainer may do, if one is connected (lease.py).
LEASED = frozenset(
    {
        "shutdown_weight_transfer_engine",
        "start_weight_update",
        "update_weights",
        "prepare_weight_update",
        "finish_weight_update",
        "abort_weight_update",
        "renew_lease",
        "rollback",
        "reload",
        "fence",
    }
)


class Control:
    """Runs control operations on the engine's loop."""

    def __init__(
        self,
        engine: Engine,
        weights: Weights,
        adapters: Adapters,
        in_flight: InFlight,
        flush_generations: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._weights = weights
        self._in_flight = in_flight
        self._flush_generations = flush_generations
        self.operations: dict[str, Operation] = {
            "describe": self.describe,
            "health": self.health,
            "status": self.status,
            "parameters": self.parameters,
            "pause_generation": self.pause_generation,
            "resume_generation": self.resume_generation,
            "is_paused": self.is_paused,
            "flush_generations": self.flush_generations,
            "reserve_lease": self.reserve_lease,
            "init_weight_transfer_engine": self.init_weight_transfer_engine,
            "shutdown_weight_transfer_engine": self.shutdown_weight_transfer_engine,
            "start_weight_update": self.start_weight_update,
            "update_weights": self.update_weights,
            "prepare_weight_update": self.prepare_weight_update,
            "finish_weight_update": self.finish_weight_update,
            "abort_weight_update": self.abort_weight_update,
            "renew_lease": self.renew_lease,
            "rollback": self.rollback,
            "reload": self.reload,
            "fence": self.fence,
            "timeline": self.timeline,
            "score": self.score,
            "get_weight_version": self.get_weight_version,
            "update_weight_version": self.update_weight_version,
            "compute_weight_checksums": self.compute_weight_checksums,
            "reset_weights": self.reset_weights,
            "reset_prefix_cache": self.reset_prefix_cache,
            "reset_mm_cache": self.reset_mm_cache,
            "reset_encoder_cache": self.reset_encoder_cache,
            "sleep": self.sleep,
            "wake_up": self.wake_up,
            "is_sleeping": self.is_sleeping,
            **LoraControl(engine, adapters).operations,
        }

    async def run(self, request: Any) -> str:
        """Read a control request, check its key, run it. Returns the JSON result; raises RequestError."""
        name = read_string(request, "control_operation") or ""
        operation = self.operations.get(name)
        if name not in KEYLESS:
            self._check_key(read_string(request, "control_key"))
        if operation is None:
            raise BadTensor("control_operation", f"unknown {name!r}; there are {', '.join(sorted(self.operations))}")
        arguments = read_json_object(request, "control_arguments") or {}
        holder = arguments.pop("holder", None)
        is_leased = name in LEASED and not arguments.get("force")
        if is_leased:
            self._weights.lease.require(holder)
        if "payload" in arguments:
            raise BadTensor("control_arguments", f"of {name}: the payload is a tensor of its own, control_payload")
        if (payload := read_bytes(request, "control_payload")) is not None:
            arguments["payload"] = payload
        try:
            inspect.signature(operation).bind(**arguments)
        except TypeError as error:
            raise BadTensor("control_arguments", f"of {name}: {error}") from None
        if not is_leased:
            return json.dumps(await operation(**arguments))
        self._weights.lease.renew()
        try:
            return json.dumps(await operation(**arguments))
        finally:
            self._weights.lease.renew()  # the call itself may have taken longer than the lease

    def _check_key(self, key: str | None) -> None:
        expected = self._engine.settings.control_key
        if expected is None:
            raise BadTensor("control_key", f"control is off: the server was started without {CONTROL_KEY_VARIABLE}")
        if not hmac.compare_digest((key or "").encode(), expected.encode()):
            raise BadTensor("control_key", "missing or wrong")

    # ---- what this replica is -----------------------------------------------------------------------------------

    async def describe(self) -> dict[str, Any]:
        """What a front end builds its serving layer from; the arguments are those of `vllm serve`."""
        config = self._engine.llm.vllm_config
        model = config.model_config
        transfer = config.weight_transfer_config
        served = model.served_model_name
        return {
            "vllm_version": vllm_version,
            "engine_argv": self._engine.argv,
            "model": model.model,
            "served_model_name": [served] if isinstance(served, str) else list(served or ()),
            "dtype": str(model.dtype).removeprefix("torch."),
            "max_model_len": model.max_model_len,
            "num_gpu_blocks": config.cache_config.num_gpu_blocks,
            "block_size": config.cache_config.block_size,
            "kv_cache_size_tokens": config.cache_config.kv_cache_size_tokens,
            "world_size": config.parallel_config.world_size,
            "world_size_across_dp": config.parallel_config.world_size_across_dp,
            "weight_version": await self._weights.version(),
            "weight_transfer_backend": transfer.backend if transfer is not None else None,
            "started_at": self._engine.started_at,
            "num_restarts": self._engine.num_restarts,
        }

    async def health(self) -> dict[str, Any]:
        """Answers only if the engine process does."""
        self._weights.replica.check_can_generate()
        await self._weights.version()
        return {"healthy": True}

    async def status(self) -> dict[str, Any]:
        parallel = self._engine.arguments
        if not self._engine.is_running:
            return {"state": "restarting", "weight_version": None, "reason": "the engine died", "last_update": None}
        config = self._engine.llm.vllm_config
        replica = self._weights.replica
        state = str(replica.state)
        if replica.is_paused and state == "serving":
            state = "paused"
        last = self._weights.history.last
        return {
            "state": state,
            "weight_version": await self._weights.version(),
            "reason": replica.reason,
            "newest_numbered": self._weights.updates.versions.newest_numbered,
            "kept_versions": self._weights.updates.kept,
            "model": parallel.model,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "world_size": config.parallel_config.world_size_across_dp,
            "weight_transfer_backend": self._weights.backend,
            "machine": machine_id(),
            "host_memory_available": psutil.virtual_memory().available,
            "lease": self._weights.lease.describe(),
            "last_update": last.result() if last is not None else None,
        }

    async def parameters(self) -> dict[str, Any]:
        """Names, dtypes and shapes of the tensors an update must bring, as the model loads them."""
        return await self._weights.parameters()

    # ---- generation -------------------------------------------------------------------------------------------

    async def pause_generation(self, mode: str = "abort", clear_cache: bool = True) -> dict[str, Any]:
        await self._weights.pause(pause_mode(mode), clear_cache=clear_cache)
        return {"status": "paused"}

    async def resume_generation(self) -> dict[str, Any]:
        await self._weights.resume()
        return {"status": "resumed"}

    async def is_paused(self) -> dict[str, Any]:
        return {"is_paused": await self._engine.llm.is_paused()}

    async def flush_generations(self) -> dict[str, Any]:
        """Before a front end gives up generations and answers with what they have: it has not seen all of it."""
        self._flush_generations()
        return {}

    # ---- weights ----------------------------------------------------------------------------------------------

    async def reserve_lease(self, init_info: dict[str, Any]) -> dict[str, Any]:
        """Take the lease (`holder`, `lease_s`), and call no worker yet."""
        await self._weights.reserve(init_info)
        return {"lease": self._weights.lease.describe()}

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> dict[str, Any]:
        await self._weights.connect(init_info)
        return {}

    async def shutdown_weight_transfer_engine(self) -> dict[str, Any]:
        await self._weights.disconnect()
        return {}

    async def start_weight_update(self, update_id: str | None = None, in_flight: str = "keep") -> dict[str, Any]:
        return {"update_id": await self._weights.start(update_id, pause_mode(in_flight))}

    async def update_weights(
        self, update_info: dict[str, Any] | list[dict[str, Any]], update_id: str | None = None
    ) -> dict[str, Any]:
        await self._weights.update(update_info, update_id)
        return {}

    async def prepare_weight_update(self, update_id: str | None = None) -> dict[str, Any]:
        return await self._weights.prepare(update_id)

    async def finish_weight_update(
        self, weight_version: str | None = None, in_flight: str | None = None, update_id: str | None = None
    ) -> dict[str, Any]:
        mode = pause_mode(in_flight) if in_flight is not None else None
        return await self._weights.finish(check_name("weight_version", weight_version), mode, update_id)

    async def abort_weight_update(
        self, reason: str = "asked for", update_id: str | None = None, *, force: bool = False
    ) -> dict[str, Any]:
        """Give up a running update; with `force`, whoever's it is, and release its trainer."""
        if force:
            await self._weights.evict_trainer(reason)
        return await self._weights.abort(reason, update_id)

    async def renew_lease(self) -> dict[str, Any]:
        """The connected trainer lives: this call, as any of its calls, renews the lease (see `run`)."""
        if not self._weights.lease.is_held:
            raise Conflict("renew_lease: nobody is connected; call init_weight_transfer_engine")
        return {"lease": self._weights.lease.describe()}

    async def rollback(
        self, in_flight: str = "keep", to: str | None = None, update_id: str | None = None
    ) -> dict[str, Any]:
        return await self._weights.rollback(pause_mode(in_flight), check_name("to", to), update_id)

    async def reload(
        self, weight_version: str | None = None, in_flight: str = "keep", update_id: str | None = None
    ) -> dict[str, Any]:
        name = check_name("weight_version", weight_version)
        return await self._weights.reload(name, pause_mode(in_flight), update_id)

    async def fence(self, reason: str, unless_committed: str | None = None) -> dict[str, Any]:
        return await self._weights.fence(reason, unless_committed)

    async def timeline(self) -> dict[str, Any]:
        """The last updates, oldest first, and with which weights the running requests began."""
        version = await self._weights.version()
        return {
            "weight_version": version,
            "state": str(self._weights.state),
            "lease": self._weights.lease.describe(),
            "updates": self._weights.history.describe(),
            "in_flight": self._in_flight.by_version(),
        }

    async def score(self, prompts: list[list[int]]) -> dict[str, Any]:
        """Logprobs of the prompts' own tokens (see scoring.py)."""
        self._weights.replica.check_can_generate()
        return {
            "logprobs": await prompt_logprobs(self._engine, prompts),
            "weight_version": await self._weights.version(),
        }

    async def get_weight_version(self) -> dict[str, Any]:
        return {"weight_version": await self._weights.version()}

    async def update_weight_version(self, new_version: str) -> dict[str, Any]:
        check_name("new_version", new_version)
        await self._weights.set_version(new_version)
        return {"weight_version": new_version}

    async def compute_weight_checksums(self) -> dict[str, Any]:
        return {"checksums": await self._engine.llm.compute_weight_checksums()}

    async def reset_weights(self) -> dict[str, Any]:
        """Zero the weights (vLLM's weight checker uses it to prove that a push writes every tensor)."""
        await self._weights.reset()
        return {}

    # ---- caches and memory --------------------------------------------------------------------------------------

    async def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> dict[str, Any]:
        return {"ok": await self._engine.llm.reset_prefix_cache(reset_running_requests, reset_connector)}

    async def reset_mm_cache(self) -> dict[str, Any]:
        await self._engine.llm.reset_mm_cache()
        return {}

    async def reset_encoder_cache(self) -> dict[str, Any]:
        await self._engine.llm.reset_encoder_cache()
        return {}

    async def sleep(self, level: int = 1, mode: str = "abort") -> dict[str, Any]:
        await self._weights.sleep(level, pause_mode(mode))
        return {}

    async def wake_up(self, tags: list[str] | None = None) -> dict[str, Any]:
        return {"fully_awake": await self._weights.wake_up(tags)}

    async def is_sleeping(self) -> dict[str, Any]:
        return {"is_sleeping": await self._engine.llm.is_sleeping()}


def check_name(field: str, name: str | None) -> str | None:
    """A version's name, or None. Raises BadTensor unless it is a string of 1 to MAX_NAME characters: it is a header."""
    if name is not None and (not isinstance(name, str) or not 0 < len(name) <= MAX_NAME):
        raise BadTensor("control_arguments", f"{field}: must be a string of 1 to {MAX_NAME} characters")
    return name


def pause_mode(mode: str) -> PauseMode:
    """What becomes of running requests. Raises BadTensor for anything but vLLM's three modes."""
    if mode not in get_args(PauseMode):
        raise BadTensor("control_arguments", f"mode {mode!r} is not one of {', '.join(get_args(PauseMode))}")
    return cast(PauseMode, mode)
