"""Pushes a checkpoint with TRL 1.10: `python legacy_trl_trainer.py URL WEIGHTS.safetensors DEVICE`."""

import sys

import torch
from safetensors.torch import load_file
from trl.generation.vllm_client import VLLMClient


def main(url: str, weights: str, device: str) -> None:
    torch.cuda.set_device(device)
    client = VLLMClient(url)
    client.init_communicator(device=device)
    for name, tensor in load_file(weights, device).items():
        client.update_named_param(name, tensor)
    client.reset_prefix_cache()
    client.close_communicator()


if __name__ == "__main__":
    main(*sys.argv[1:])
