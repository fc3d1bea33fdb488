"""Ports that servers listen on by default, and that clients call when an address names none."""

FRONT_END_PORT = 9000
TRITON_HTTP_PORT = 8000
TRITON_GRPC_PORT = 8001
TRITON_METRICS_PORT = 8002
