"""vLLM's CUDA IPC engine with handles as JSON (backend "cuda_ipc", registered by plugin.py).

It needs a GPU. No push over it has completed yet (docs/gpu.md).
"""

from typing import Any

from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine, IPCWeightTransferUpdateInfo

from sync.transport.ipc_handles import decode_handles


class CudaIpcWeightTransferEngine(IPCWeightTransferEngine):
    """Differs from vLLM's engine only in how it decodes handles."""

    def parse_update_info(self, update_dict: dict[str, Any]) -> IPCWeightTransferUpdateInfo:
        """See the base class. Pickled handles are refused, whatever vLLM's settings allow."""
        if update_dict.get("ipc_handles_pickled") is not None:  # vLLM's trainer has the field, empty
            raise ValueError("ipc_handles_pickled: pickle is not accepted; send ipc_handles as JSON")
        if "ipc_handles" not in update_dict:
            raise ValueError("ipc_handles: missing")
        return super().parse_update_info(update_dict | {"ipc_handles": decode_handles(update_dict["ipc_handles"])})
