"""Refuses, or mends, in front of vLLM what would harm the server, its other clients, or the truth of an answer.

One module guards one thing. Its docstring names what vLLM does without it, and since when it would not be needed.
"""
