"""Measured against vLLM's own server: speed (`python -m bench`), equality of answers (`python -m bench.parity`)."""
