"""Pushes a checkpoint with TRL 1.16: `python trl_trainer.py URL WEIGHTS.safetensors DEVICE`."""

import sys

import torch
from safetensors.torch import load_file
from trl.generation.vllm_client import VLLMClient


def main(url: str, weights: str, device: str) -> None:
    torch.cuda.set_device(device)
    client = VLLMClient(url)
    client.init_communicator(device=device)
    tensors = load_file(weights, device)
    metadata = [
        (name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)) for name, tensor in tensors.items()
    ]
    client.update_named_params(metadata, iter(tensors.items()))
    client.reset_prefix_cache()
    client.close_communicator()


if __name__ == "__main__":
    main(*sys.argv[1:])
