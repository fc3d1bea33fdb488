"""Sends the same requests to tritonlive and to vLLM's own server and reports every difference of the answers."""
