"""Environment variables that more than one process reads or sets."""

CONTROL_KEY_VARIABLE = "TRITONLIVE_CONTROL_KEY"
"""The control key. Without it the model and the front end refuse control operations."""

API_KEY_VARIABLE = "TRITONLIVE_API_KEY"
"""The inference keys of front end and model, separated by commas. Without it anyone who reaches a port may generate."""

ENGINE_ARGS_VARIABLE = "TRITONLIVE_ENGINE_ARGS"
"""vLLM's arguments for the model, as a shell would read them; they win over model.json."""

CACHE_DIR_VARIABLE = "TRITONLIVE_CACHE_DIR"
"""Where the launcher prepares models and the server's backend, and writes logs."""

ENGINE_HOOK_VARIABLE = "TRITONLIVE_ENGINE_HOOK"
"""`module:function` that vLLM's processes call when they start. The model sets it for the processes of its engine."""

GRAMMAR_VARIABLES = {
    "max_bytes": "TRITONLIVE_GRAMMAR_MAX_BYTES",
    "max_values": "TRITONLIVE_GRAMMAR_MAX_VALUES",
    "timeout_s": "TRITONLIVE_GRAMMAR_TIMEOUT",
    "memory_mib": "TRITONLIVE_GRAMMAR_MEMORY",
}
"""The model's limits of grammars, by field of wire.limits.GrammarDefaults."""
