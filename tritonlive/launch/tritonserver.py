"""Find a tritonserver, on the machine or else in the nvidia-pytriton wheel, and say how to run it."""

import os
import secrets
import shlex
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from tritonlive.wire.environment import API_KEY_VARIABLE, CONTROL_KEY_VARIABLE, ENGINE_ARGS_VARIABLE

from .config import StackConfig
from .errors import LaunchError

EMBEDDED_DISTRIBUTION = "nvidia-pytriton"
INSTALLED = Path("/opt/tritonserver/bin/tritonserver")
CLOSED_APIS = ("shared-memory", "model-repository", "logging", "trace")
"""Triton's groups of functions that would load and unload models, read and write memory, and write files."""
ADMINISTRATION_HEADER = "Tritonlive-Closed"
PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class TritonServer:
    """A tritonserver binary, with the backends and libraries it needs."""

    binary: Path
    backend_directory: Path | None = None
    """None: the server's own."""
    library_path: tuple[Path, ...] = ()
    description: str = "tritonserver"

    def command(self, config: StackConfig, *, shm_prefix: str | None = None) -> list[str]:
        """The command line that serves `config.model_repository`; `config`'s ports must be real ones, not 0."""
        command = [
            str(self.binary),
            "--model-repository",
            str(config.model_repository),
            *self._http_options(config),
            *(f"--{service}-address={config.triton_host}" for service in ("grpc", "metrics")),
            f"--grpc-port={config.triton_grpc_port}",
            f"--metrics-port={config.triton_metrics_port}",
            *restricted_apis(),
        ]
        if self.backend_directory is not None:
            command.append(f"--backend-directory={self.backend_directory}")
        if shm_prefix is not None:
            command.append(f"--backend-config=python,shm-region-prefix-name={shm_prefix}")
        return [*command, *config.triton_args]

    @staticmethod
    def _http_options(config: StackConfig) -> tuple[str, ...]:
        if not config.triton_http:
            return ("--allow-http=false",)
        return f"--http-address={config.triton_http_host}", f"--http-port={config.triton_http_port}"

    def environment(self, config: StackConfig, inherited: Mapping[str, str]) -> dict[str, str]:
        """Variables to set on top of the inherited environment."""
        env = {
            # The embedded interpreter finds the virtual environment, and vLLM its own python, through PATH.
            "PATH": _prepend([Path(sys.prefix) / "bin"], inherited.get("PATH")),
            "VLLM_NO_USAGE_STATS": inherited.get("VLLM_NO_USAGE_STATS", "1"),
            "VLLM_CPU_KVCACHE_SPACE": inherited.get("VLLM_CPU_KVCACHE_SPACE", "2"),
        }
        if config.model:
            named = ("--served-model-name", config.served_model_name) if config.served_model_name else ()
            env[ENGINE_ARGS_VARIABLE] = shlex.join(["--model", config.model, *named, *config.extra_args])
        if self.library_path:
            env["LD_LIBRARY_PATH"] = _prepend(self.library_path, inherited.get("LD_LIBRARY_PATH"))
        if config.model and Path(config.model).is_dir():
            env["HF_HUB_OFFLINE"] = inherited.get("HF_HUB_OFFLINE", "1")
        if config.kv_cache_space_gib is not None:
            env["VLLM_CPU_KVCACHE_SPACE"] = str(config.kv_cache_space_gib)
        if config.control_key:
            env[CONTROL_KEY_VARIABLE] = config.control_key
        if config.api_key:
            env[API_KEY_VARIABLE] = config.api_key
        return {**env, **config.env}


def restricted_apis() -> tuple[str, ...]:
    """Options that close Triton's administration, over HTTP and gRPC, to everyone.

    Triton wants the name and the value of a header that opens it. Every user of the machine can read a command line, so
    these are such as nobody can send: HTTP/1.1 carries no line break in a value, and HTTP/2, gRPC's, no capital letter
    in a name. The value is random, for other machines in case Triton changes how it compares.
    """
    value = f"{secrets.token_urlsafe(16)}\n{secrets.token_urlsafe(16)}"
    rule = f"{','.join(CLOSED_APIS)}:{ADMINISTRATION_HEADER}={value}"
    return f"--http-restricted-api={rule}", f"--grpc-restricted-protocol={rule}"


def find(explicit: Path | None, cache_dir: Path) -> TritonServer:
    """The server to use: `explicit`, else on PATH, else in /opt/tritonserver, else the embedded one."""
    if explicit is not None:
        if not os.access(explicit, os.X_OK) or explicit.is_dir():
            raise LaunchError(f"--tritonserver {explicit}: not an executable file")
        return TritonServer(explicit.absolute())
    if on_path := shutil.which("tritonserver"):
        return TritonServer(Path(on_path).absolute())
    if os.access(INSTALLED, os.X_OK):
        return TritonServer(INSTALLED)
    return _embedded(cache_dir)


def _embedded(cache_dir: Path) -> TritonServer:
    """The server inside the nvidia-pytriton wheel, with a backend folder assembled in the cache directory."""
    spec = util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise LaunchError(
            "no tritonserver found: give --tritonserver PATH, put one on PATH, install it in /opt/tritonserver, "
            f"or pip install {EMBEDDED_DISTRIBUTION} for the embedded one"
        )
    package = Path(spec.origin).parent
    home = package / "tritonserver"
    stub = home / "python_backend_stubs" / PYTHON_VERSION / "triton_python_backend_stub"
    if not stub.is_file():
        raise LaunchError(f"the embedded tritonserver has no Python backend for Python {PYTHON_VERSION}")
    version = metadata.version(EMBEDDED_DISTRIBUTION)
    backends = cache_dir / "backends" / f"{EMBEDDED_DISTRIBUTION}-{version}-py{PYTHON_VERSION}"
    if not backends.is_dir():
        _prepare_backends(home / "backends" / "python", stub, backends)
    return TritonServer(
        binary=home / "bin" / "tritonserver",
        backend_directory=backends,
        # The stub must load libpython of exactly the running version: otherwise C extensions miss symbols.
        library_path=(_libpython_dir(), package.parent / "nvidia_pytriton.libs"),
        description=f"embedded tritonserver ({EMBEDDED_DISTRIBUTION} {version})",
    )


def _prepare_backends(python_backend: Path, stub: Path, target: Path) -> None:
    """Copy the Python backend and its stub to `target`/python. Of two processes at once the second drops its copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        copy = Path(temporary) / "backends"
        shutil.copytree(python_backend, copy / "python")
        runnable = copy / "python" / stub.name
        shutil.copyfile(stub, runnable)
        runnable.chmod(0o755)
        try:
            copy.rename(target)
        except OSError:
            if not target.is_dir():
                raise


def _libpython_dir() -> Path:
    """The folder of this interpreter's shared libpython."""
    directory, name = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
    if not directory or not name or not (Path(directory) / name).is_file():
        raise LaunchError(
            f"{sys.executable} has no shared libpython ({name or 'libpython'} in {directory}), which the embedded "
            f"tritonserver needs: apt-get install libpython{PYTHON_VERSION} and rebuild .venv with that Python"
        )
    return Path(directory)


def _prepend(first: list[Path] | tuple[Path, ...], rest: str | None) -> str:
    return os.pathsep.join([*map(str, first), *([rest] if rest else [])])
