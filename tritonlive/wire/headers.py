"""HTTP headers that clients and the front end agree on."""

LEASE_HOLDER_HEADER = "x-lease-holder"
"""The trainer on whose behalf a control route is called; see tritonlive/backend/weights/lease.py."""

ADAPTER_CONFIG_HEADER = "x-adapter-config"
"""The JSON of adapter_config.json, beside a body with adapter_model.safetensors."""
