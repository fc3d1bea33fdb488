"""Compares front ends: ours, vLLM's, and vLLM's Rust one before both engines. Processor time is by kind of process."""
