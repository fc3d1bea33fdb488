"""Comparisons with vLLM's own server: speed (`python -m bench`) and equal answers (`python -m bench.parity`)."""
