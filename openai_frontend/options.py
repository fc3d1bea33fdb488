"""The options of a front end, and how its worker processes get them."""

import os
import shlex
from dataclasses import dataclass

from openai_frontend.engine_info import EngineInfo
from openai_frontend.guards.limits import DEFAULTS, Limits
from openai_frontend.keys import Keys
from tritonlive.wire.environment import API_KEY_VARIABLE, CONTROL_KEY_VARIABLE
from tritonlive.wire.keys import split_keys

PREFIX = "TRITONLIVE_FRONTEND_"


@dataclass(frozen=True)
class Options:
    """Set by the parent process. Workers read them from the environment: uvicorn starts them as new processes."""

    triton_urls: list[str]
    vllm_argv: list[str]
    num_workers: int
    engine_info: EngineInfo
    use_fast_path: bool = True
    """False: vLLM builds every chunk of every stream (see docs/fast-path.md)."""
    limits: Limits = DEFAULTS
    ignore_unknown_fields: bool = False
    """True: a request field without effect is ignored, as vLLM does (see guards/ignored_fields.py)."""

    @property
    def keys(self) -> Keys:
        """From the environment only: a command line can be read by every user of the machine."""
        return Keys(split_keys(os.environ.get(API_KEY_VARIABLE)), os.environ.get(CONTROL_KEY_VARIABLE) or None)

    def to_environment(self) -> None:
        os.environ[f"{PREFIX}TRITON_URLS"] = ",".join(self.triton_urls)
        os.environ[f"{PREFIX}VLLM_ARGV"] = shlex.join(self.vllm_argv)
        os.environ[f"{PREFIX}NUM_WORKERS"] = str(self.num_workers)
        os.environ[f"{PREFIX}ENGINE_INFO"] = self.engine_info.to_json()
        os.environ[f"{PREFIX}USE_FAST_PATH"] = str(int(self.use_fast_path))
        os.environ[f"{PREFIX}LIMITS"] = self.limits.to_json()
        os.environ[f"{PREFIX}IGNORE_UNKNOWN_FIELDS"] = str(int(self.ignore_unknown_fields))

    @classmethod
    def from_environment(cls) -> "Options":
        """Raises ValueError outside a worker of `python -m openai_frontend`."""
        try:
            return cls(
                triton_urls=os.environ[f"{PREFIX}TRITON_URLS"].split(","),
                vllm_argv=shlex.split(os.environ[f"{PREFIX}VLLM_ARGV"]),
                num_workers=int(os.environ[f"{PREFIX}NUM_WORKERS"]),
                engine_info=EngineInfo.parse(os.environ[f"{PREFIX}ENGINE_INFO"]),
                use_fast_path=os.environ.get(f"{PREFIX}USE_FAST_PATH") != "0",
                limits=Limits.parse(os.environ.get(f"{PREFIX}LIMITS", "{}")),
                ignore_unknown_fields=os.environ.get(f"{PREFIX}IGNORE_UNKNOWN_FIELDS") == "1",
            )
        except KeyError as error:
            raise ValueError(f"{error} is not set: start the front end with `python -m openai_frontend`") from None
