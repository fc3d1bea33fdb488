"""What the model is made of."""

from pathlib import Path

from .engine import Engine
from .responses import ResponseWriter
from .service import Service
from .settings import Settings


def assemble(version_folder: Path) -> Service:
    """The model, to be started. Raises ValueError for settings that cannot be read."""
    return Service(Engine(Settings.load(version_folder)), ResponseWriter())
