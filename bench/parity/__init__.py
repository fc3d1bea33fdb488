"""The same requests to tritonlive and to vLLM's own server, and every difference between the answers."""
