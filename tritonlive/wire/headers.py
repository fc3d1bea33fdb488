"""HTTP headers that clients and the front end agree on."""

LEASE_HOLDER_HEADER = "x-lease-holder"
"""The trainer on whose behalf a control route is called; see tritonlive/backend/weights/lease.py."""

ADAPTER_CONFIG_HEADER = "x-adapter-config"
"""The JSON of adapter_config.json, beside a body with adapter_model.safetensors."""

WEIGHT_VERSION_HEADER = "x-weight-version"
"""In every answer: the version of the weights that made its newest token when the answer began."""

MIN_WEIGHT_VERSION_HEADER = "x-min-weight-version"
"""In a request: refuse it (409) unless the weights are of this version or newer."""
