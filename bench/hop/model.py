"""The model over a FreeEngine. Triton loads this class in place of tritonlive's."""

from pathlib import Path
from typing import TYPE_CHECKING

from tritonlive.backend.model import TritonPythonModel as OurModel

if TYPE_CHECKING:
    from tritonlive.backend.service import Service


class TritonPythonModel(OurModel):
    """tritonlive's model with a FreeEngine."""

    def assemble(self, version_folder: Path) -> "Service":
        from bench.hop.free_engine import FreeEngine
        from tritonlive.backend.grammars.compiler_client import CompilerClient
        from tritonlive.backend.responses import ResponseWriter
        from tritonlive.backend.service import Service
        from tritonlive.backend.settings import Settings

        writer = ResponseWriter()
        engine = FreeEngine(Settings.load(version_folder), writer)
        return Service(engine, writer, CompilerClient(engine.argv))
