"""Control operations about weights: the trainer's lease, an update's life, and the versions at hand."""

from typing import Any

from tritonlive.backend.engine import Engine
from tritonlive.backend.tensors import Conflict
from tritonlive.wire.limits import MAX_REASON
from tritonlive.wire.operations.engine import Nothing
from tritonlive.wire.operations.weights import (
    AbortWeightUpdate,
    Checksums,
    ComputeWeightChecksums,
    Fence,
    FinishWeightUpdate,
    GetParameters,
    GetTimeline,
    GetWeightVersion,
    InitWeightTransferEngine,
    PrepareWeightUpdate,
    Reload,
    RenewLease,
    ReserveLease,
    ResetWeights,
    Rollback,
    ShutdownWeightTransferEngine,
    StartWeightUpdate,
    UpdateStarted,
    UpdateWeights,
    UpdateWeightVersion,
    WeightVersion,
)

from .history import InFlight
from .weights import Weights


class WeightControl:
    """Handlers: every public method runs the operation of its name (tritonlive/wire/operations/weights.py)."""

    def __init__(self, engine: Engine, weights: Weights, in_flight: InFlight) -> None:
        self._engine = engine
        self._weights = weights
        self._in_flight = in_flight

    async def parameters(self, _arguments: GetParameters) -> dict[str, Any]:
        return await self._weights.parameters()

    # ---- the lease ------------------------------------------------------------------------------------------------

    async def reserve_lease(self, arguments: ReserveLease) -> dict[str, Any]:
        await self._weights.reserve(arguments.init_info)
        return {"lease": self._weights.lease.describe()}

    async def init_weight_transfer_engine(self, arguments: InitWeightTransferEngine) -> Nothing:
        await self._weights.connect(arguments.init_info)
        return {}

    async def shutdown_weight_transfer_engine(self, _arguments: ShutdownWeightTransferEngine) -> Nothing:
        await self._weights.disconnect()
        return {}

    async def renew_lease(self, _arguments: RenewLease) -> dict[str, Any]:
        """Control renews the lease with every call of its holder; this one does nothing else."""
        if not self._weights.lease.is_held:
            raise Conflict("renew_lease: no trainer is connected; call init_weight_transfer_engine")
        return {"lease": self._weights.lease.describe()}

    # ---- an update ------------------------------------------------------------------------------------------------

    async def start_weight_update(self, arguments: StartWeightUpdate) -> UpdateStarted:
        return {"update_id": await self._weights.start(arguments.update_id, arguments.in_flight)}

    async def update_weights(self, arguments: UpdateWeights) -> Nothing:
        await self._weights.update(arguments.update_info, arguments.update_id)
        return {}

    async def prepare_weight_update(self, arguments: PrepareWeightUpdate) -> dict[str, Any]:
        return await self._weights.prepare(arguments.update_id)

    async def finish_weight_update(self, arguments: FinishWeightUpdate) -> dict[str, Any]:
        return await self._weights.finish(arguments.weight_version, arguments.in_flight, arguments.update_id)

    async def abort_weight_update(self, arguments: AbortWeightUpdate) -> dict[str, Any]:
        reason = arguments.reason[:MAX_REASON]
        if arguments.force:
            await self._weights.evict_trainer(reason)
        return await self._weights.abort(reason, arguments.update_id)

    async def fence(self, arguments: Fence) -> dict[str, Any]:
        return await self._weights.fence(arguments.reason[:MAX_REASON], arguments.unless_committed)

    # ---- versions -------------------------------------------------------------------------------------------------

    async def rollback(self, arguments: Rollback) -> dict[str, Any]:
        return await self._weights.rollback(arguments.in_flight, arguments.to, arguments.update_id)

    async def reload(self, arguments: Reload) -> dict[str, Any]:
        return await self._weights.reload(arguments.weight_version, arguments.in_flight, arguments.update_id)

    async def timeline(self, _arguments: GetTimeline) -> dict[str, Any]:
        return {
            "weight_version": await self._weights.version(),
            "state": self._weights.state,
            "lease": self._weights.lease.describe(),
            "updates": self._weights.history.describe(),
            "in_flight": self._in_flight.by_version(),
        }

    async def get_weight_version(self, _arguments: GetWeightVersion) -> WeightVersion:
        return {"weight_version": await self._weights.version()}

    async def update_weight_version(self, arguments: UpdateWeightVersion) -> WeightVersion:
        await self._weights.set_version(arguments.new_version)
        return {"weight_version": arguments.new_version}

    async def compute_weight_checksums(self, _arguments: ComputeWeightChecksums) -> Checksums:
        return {"checksums": await self._engine.llm.compute_weight_checksums()}

    async def reset_weights(self, _arguments: ResetWeights) -> Nothing:
        await self._weights.reset()
        return {}
