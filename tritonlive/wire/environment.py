"""Environment variables that more than one process reads."""

CONTROL_KEY_VARIABLE = "TRITONLIVE_CONTROL_KEY"
"""The control key. Without it the model and the front end refuse control operations."""
