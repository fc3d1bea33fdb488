"""The OpenAI API in front of a Triton server: vLLM's own serving layer over an engine that Triton runs."""
