"""Measures the front end's processor time per token and per request, with and without each part of its fast path."""
