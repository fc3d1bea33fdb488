"""TRL's client for tritonlive: `sync.trl.install()`, or `VLLMClient` itself. Importing it needs trl."""

from .client import VLLMClient, install, uninstall

__all__ = ["VLLMClient", "install", "uninstall"]
