"""Routes that `vllm serve` does not have, or has elsewhere."""
