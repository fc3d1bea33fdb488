"""AsyncLLM's methods about an engine as a whole, as control operations at the replicas."""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from vllm.lora.request import LoRARequest

from openai_frontend.replicas.fleet_control import FleetControl
from openai_frontend.replicas.replica import Replica
from openai_frontend.replicas.replicas import Replicas
from openai_frontend.vllm_seam import AsyncLLM, PauseMode, WeightTransferInitRequest, WeightTransferUpdateRequest

# The trainer on whose behalf a control route runs, if it sent its name (see routes/control.py).
lease_holder: ContextVar[str | None] = ContextVar("lease_holder", default=None)


class ControlOperations(AsyncLLM):
    """AsyncLLM whose engines are controlled over Triton.

    An operation that changes weights runs at the only replica: a trainer addresses several replicas by itself. Every
    other operation runs at all replicas at once. All methods raise TritonError as the model answers, and
    EngineUnavailable when a replica does not answer.
    """

    _control: FleetControl

    @property
    def replicas(self) -> Replicas[Replica]:
        """The replicas behind this front end."""
        raise NotImplementedError

    async def control(self, operation: str, payload: bytes | None = None, /, **arguments: Any) -> Any:
        """Run a control operation at the only replica, for the trainer whose request this is.

        Raises TritonError, and SeveralReplicas if there is more than one replica.
        """
        if (holder := lease_holder.get()) is not None:
            arguments["holder"] = holder
        return await self._control.one(operation, arguments, payload)

    async def control_all(self, operation: str, **arguments: Any) -> list[Any]:
        """Run a control operation at all replicas at once. Raises TritonError, which names the replica."""
        return await self._control.all(operation, arguments)

    # ---- generation as a whole ----------------------------------------------------------------------------------

    async def pause_generation(self, *, mode: PauseMode = "abort", clear_cache: bool = True) -> None:
        if clear_cache:
            await self.renderer.clear_mm_cache_async()
        await self.control_all("pause_generation", mode=mode, clear_cache=clear_cache)

    async def resume_generation(self) -> None:
        await self.control_all("resume_generation")

    async def is_paused(self) -> bool:
        return all(answer["is_paused"] for answer in await self.control_all("is_paused"))

    async def sleep(self, level: int = 1, mode: PauseMode = "abort") -> None:
        await self.control_all("sleep", level=level, mode=mode)

    async def wake_up(self, tags: list[str] | None = None) -> bool:
        return all(answer["fully_awake"] for answer in await self.control_all("wake_up", tags=tags))

    async def is_sleeping(self) -> bool:
        return all(answer["is_sleeping"] for answer in await self.control_all("is_sleeping"))

    # ---- weights ------------------------------------------------------------------------------------------------

    async def init_weight_transfer_engine(self, request: WeightTransferInitRequest) -> None:
        await self.control("init_weight_transfer_engine", init_info=request.init_info)

    async def shutdown_weight_transfer_engine(self) -> None:
        await self.control("shutdown_weight_transfer_engine")

    async def start_weight_update(self) -> None:
        await self.control("start_weight_update")

    async def update_weights(self, request: WeightTransferUpdateRequest) -> None:
        await self.control("update_weights", update_info=request.update_info)

    async def finish_weight_update(self, weight_version: str | None = None) -> None:
        await self.commit_weight_update(weight_version)

    async def commit_weight_update(self, weight_version: str | None = None, **options: Any) -> Mapping[str, Any]:
        """`finish_weight_update` that returns the operation's result; `options` are those of the control operation."""
        return await self.change_version("finish_weight_update", weight_version=weight_version, **options)

    async def change_version(self, operation: str, **arguments: Any) -> Mapping[str, Any]:
        """Run a control operation after which another version serves."""
        result = await self.control(operation, **arguments)
        self.replicas.members[0].weight_version = result["weight_version"]
        return result

    async def update_weight_version(self, new_version: str) -> None:
        await self.control("update_weight_version", new_version=new_version)
        self.replicas.members[0].weight_version = new_version

    async def get_weight_version(self) -> str:
        """Ask the replicas for the version that serves; `weight_version` is the newest one this process heard of.

        Raises EngineUnavailable if no replica may generate.
        """
        await self._control.ask_versions()
        await self.replicas.require()
        version = self.replicas.weight_version
        if version is None:
            raise self.replicas.unavailable()
        return version

    async def get_replica_status(self) -> Mapping[str, Any]:
        """The only replica's own status; of several replicas a list, and which version they serve together."""
        if len(self.replicas.members) == 1:
            return await self.control("status")
        return await self._control.statuses()

    def get_world_size(self, *, include_dp: bool) -> int:
        """Number of workers of all replicas; a replica that was never reached counts as the first one."""
        infos = [replica.engine_info for replica in self.replicas.members]
        return sum(each.world_size_across_dp if include_dp else each.world_size for each in infos)

    async def get_weight_parameters(self) -> Mapping[str, Any]:
        """Names, dtypes and shapes of the tensors that a push must bring."""
        return await self.control("parameters")

    async def compute_weight_checksums(self) -> list[dict[str, str]]:
        return (await self.control("compute_weight_checksums"))["checksums"]

    async def collective_rpc(
        self,
        method: str,
        timeout: float | None = None,  # noqa: ASYNC109 (vLLM's signature)
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> list[Any]:
        """Runs `reset_weights`, which vLLM's RL routes need. Raises NotImplementedError for any other method.

        A server that runs any method by name would let its clients run code of their choice.
        """
        if method != "reset_weights":
            raise NotImplementedError(f"collective_rpc({method!r}) is not served over Triton")
        await self.control("reset_weights")
        return []

    # ---- caches -------------------------------------------------------------------------------------------------

    async def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        answers = await self.control_all(
            "reset_prefix_cache", reset_running_requests=reset_running_requests, reset_connector=reset_connector
        )
        return all(answer["ok"] for answer in answers)

    async def reset_mm_cache(self) -> None:
        await self.renderer.clear_mm_cache_async()
        await self.control_all("reset_mm_cache")

    async def reset_encoder_cache(self) -> None:
        await self.control_all("reset_encoder_cache")

    # ---- adapters -----------------------------------------------------------------------------------------------

    async def add_lora(self, lora_request: LoRARequest) -> bool:
        answers = await self.control_all(
            "add_lora",
            lora_name=lora_request.lora_name,
            lora_int_id=lora_request.lora_int_id,
            lora_path=lora_request.lora_path,
        )
        return all(answer["added"] for answer in answers)

    async def remove_lora(self, lora_id: int) -> bool:
        return all(answer["removed"] for answer in await self.control_all("remove_lora", lora_id=lora_id))

    async def list_loras(self) -> set[int]:
        return set.intersection(*(set(answer["loras"]) for answer in await self.control_all("list_loras")))
