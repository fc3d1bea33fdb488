"""Triton loads this file. The model's code is the installed package's, tritonlive.backend."""

from tritonlive.backend.unbatched.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
