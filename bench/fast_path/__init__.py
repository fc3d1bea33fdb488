"""Processor time of the front end per token and per request, with and without each part of its fast path."""
