"""Sizes and bounds that more than one process must agree on."""

MAX_NAME = 200
"""Characters of a version's or a lease holder's name, at most. A version travels in a response header."""

MAX_BATCH = 64
"""Generations in one Triton request, at most; well below max_batch_size in model_repository/llm/config.pbtxt."""

MAX_ADAPTER_BYTES = 2**30
"""Bytes of one adapter_model.safetensors, at most. The front end stops reading there, the model has the last word."""

MAX_SCORE_PROMPTS = 256
"""Prompts in one `score`, at most."""

MIN_LEASE_S, MAX_LEASE_S = 1.0, 3600.0
"""Seconds that a trainer may ask a lease for."""
