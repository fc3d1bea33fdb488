"""vLLM's Rust front end over Triton: a second port for inference.

`vllm-rs` speaks the protocol of vLLM's engine core over ZeroMQ. The bridge (`python -m openai_frontend.rust`) is what
it takes for engines: it passes requests on to the replicas, and their steps back. The bridge imports no vLLM.
"""
