"""Routes that `vllm serve` does not have, or has under another path."""
