"""Environment variables that more than one process reads or sets."""

CONTROL_KEY_VARIABLE = "TRITONLIVE_CONTROL_KEY"
"""The control key. Without it the model and the front end refuse control operations."""

API_KEY_VARIABLE = "TRITONLIVE_API_KEY"
"""The front end's inference keys, separated by commas. Without it anyone who reaches the port may generate."""

ENGINE_ARGS_VARIABLE = "TRITONLIVE_ENGINE_ARGS"
"""vLLM's arguments for the model, as a shell would read them; they win over model.json."""

CACHE_DIR_VARIABLE = "TRITONLIVE_CACHE_DIR"
"""Where the launcher prepares models and the server's backend, and writes logs."""
