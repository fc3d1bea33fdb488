"""How the bytes of weights travel from a trainer to a replica's workers."""

from typing import Literal

Backend = Literal["nccl", "ipc", "gloo"]
"""What trainers and the command line call it. vLLM calls "ipc" "cuda_ipc"."""
