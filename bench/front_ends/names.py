"""Names of the systems, in the order of tables and pictures."""

VLLM = "vllm"
"""`vllm serve`."""
VLLM_RUST = "vllm-rust"
"""`vllm serve` with its Rust front end."""
OURS = "tritonlive"
"""Our FastAPI front end."""
OURS_RUST = "tritonlive-rust"
"""Our Rust port: vLLM's Rust front end, the bridge, Triton."""
GRPC = "triton-grpc"
"""Triton's own gRPC endpoint, without a front end."""
ALL = (VLLM, VLLM_RUST, OURS, OURS_RUST, GRPC)
