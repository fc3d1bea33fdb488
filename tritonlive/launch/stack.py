"""The stack: tritonserver and the front end, which are started, watched and stopped together."""

import contextlib
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psutil

from tritonlive.wire.environment import API_KEY_VARIABLE, CONTROL_KEY_VARIABLE, ENGINE_ARGS_VARIABLE
from tritonlive.wire.keys import split_keys
from tritonlive.wire.machine import STUB_NAME, UNBATCHED_NAME
from tritonlive.wire.tensor_names import MODEL

from . import ready, rust_binary, tritonserver
from .config import StackConfig
from .errors import LaunchError, ReadyTimeoutError, StackCancelled
from .exposure import FORCE_OPTION
from .log_folder import LogFolder
from .ports import ReservedPorts, check_ports
from .process import ManagedProcess
from .shared_memory import SharedMemory

Progress = Callable[[str, str], None]
"""Called often, with the stack's phase and its last log line."""

FRONTEND_STOP_S = 15.0
TRITON_STOP_S = 30.0
SOCKET_FOLDER_VARIABLE = "VLLM_RPC_BASE_PATH"


class Stack:
    """One tritonserver and one front end.

        with Stack(StackConfig(model="DIR", extra_args=("--enforce-eager",))) as stack:
            stack.wait_ready(timeout_s=300)
            httpx.get(stack.frontend_url + "/v1/models")

    Start it from a thread that lives as long as the stack: the kernel ends its processes when that thread ends.
    `stack.triton` and `stack.frontend` can be stopped, killed and started again one by one.
    """

    def __init__(
        self,
        config: StackConfig,
        *,
        ports: ReservedPorts | None = None,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> None:
        """Reserve the ports of `config` unless `ports` holds them. Starts nothing. Raises LaunchError."""
        self._ports = ports or ReservedPorts(config)
        control_key = config.control_key or secrets.token_urlsafe(24)
        self.config = replace(config, **self._ports.numbers, control_key=control_key)
        self.control_key = control_key
        self.api_key = next(iter(split_keys(self.config.api_key)), None)
        self._progress = progress or (lambda phase, detail: None)
        self.server = tritonserver.find(config.tritonserver, config.cache_dir)
        log_dir = config.log_dir or config.cache_dir / "logs" / str(self.config.port)
        self._logs = LogFolder(log_dir)
        self._shared_memory = SharedMemory(self.config.triton_grpc_port)
        # Inference keys come from the configuration alone.
        base_env = {name: value for name, value in os.environ.items() if name != API_KEY_VARIABLE}
        triton_env = base_env | self.server.environment(self.config, base_env)
        frontend_env = base_env | dict(config.env) | {CONTROL_KEY_VARIABLE: self.control_key}
        if offline := triton_env.get("HF_HUB_OFFLINE"):
            frontend_env["HF_HUB_OFFLINE"] = offline  # both processes read a local model, and neither asks a hub
        if engine_args := triton_env.get(ENGINE_ARGS_VARIABLE):
            frontend_env[ENGINE_ARGS_VARIABLE] = engine_args  # it checks them while the engine still starts
        if config.api_key:
            frontend_env[API_KEY_VARIABLE] = config.api_key
        self.triton = ManagedProcess(
            "tritonserver",
            self.server.command(self.config, shm_prefix=self._shared_memory.prefix),
            triton_env,
            log_dir / "tritonserver.log",
        )
        self.frontend = ManagedProcess("front end", self._frontend_command(), frontend_env, log_dir / "frontend.log")
        self._is_socket_folder_ours = SOCKET_FOLDER_VARIABLE not in triton_env
        self._model_process: psutil.Process | None = None
        self._unbatched: dict[psutil.Process, str] = {}
        self._cancel = cancel or threading.Event()

    @property
    def frontend_url(self) -> str:
        """Base URL of the OpenAI API (without /v1)."""
        return _url(self.config.host, self.config.port)

    @property
    def rust_url(self) -> str | None:
        """Base URL of vLLM's Rust front end (without /v1), if there is one."""
        return None if self.config.rust_port is None else _url(self.config.host, self.config.rust_port)

    @property
    def http_url(self) -> str:
        """Base URL of Triton's HTTP endpoint, if it has one."""
        return _url(self.config.triton_http_host, self.config.triton_http_port)

    @property
    def grpc_url(self) -> str:
        """host:port of Triton's gRPC endpoint, as tritonclient wants it."""
        return _url(self.config.triton_host, self.config.triton_grpc_port).removeprefix("http://")

    @property
    def metrics_url(self) -> str:
        """URL of Triton's Prometheus metrics."""
        return _url(self.config.triton_host, self.config.triton_metrics_port) + "/metrics"

    @property
    def triton_log(self) -> Path:
        """Output of tritonserver, the model and vLLM."""
        return self.triton.log_path

    @property
    def frontend_log(self) -> Path:
        """Output of the front end."""
        return self.frontend.log_path

    @property
    def engine_core_pids(self) -> list[int]:
        """Process ids of vLLM's engine cores, found by their process titles."""
        found = []
        for process in self.triton.members():
            with contextlib.suppress(psutil.NoSuchProcess):  # it may end in between
                if "EngineCore" in " ".join(process.cmdline()):
                    found.append(process.pid)
        return found

    def start(self) -> None:
        """Check the ports and start both processes, without waiting. A stopped stack can be started again."""
        if not self.config.model_repository.is_dir():
            raise LaunchError(f"model_repository {self.config.model_repository}: no such directory")
        self._ports.reserve()
        check_ports(self.config)
        self._logs.reserve()
        self._shared_memory.reserve()
        self._make_socket_folder()
        self.triton.start()
        self.frontend.start()

    def wait_ready(self, timeout_s: float = 900.0) -> ready.Ready:
        """Wait until a token has been generated through the front end.

        Raises ProcessDiedError, ReadyTimeoutError or StackCancelled.
        """
        deadline = time.monotonic() + timeout_s
        self.wait_triton_ready(timeout_s)
        with httpx.Client(timeout=5.0) as client:
            for name, url in (("front end", self.frontend_url), ("Rust front end", self.rust_url)):
                if url is not None:
                    self._wait(name, lambda url=url: ready.is_ok(client, f"{url}/health"), deadline)
        answer = ready.FirstToken(self.frontend_url, api_key=self.api_key, control_key=self.control_key)
        self._wait("first token", answer.is_done, deadline)
        return answer.result()

    def wait_triton_ready(self, timeout_s: float = 900.0) -> None:
        """Wait until Triton's model is ready, with or without a front end.

        Raises ProcessDiedError, ReadyTimeoutError or StackCancelled.
        """
        deadline = time.monotonic() + timeout_s
        # Triton opens its ports when its models are loaded; until then only its log shows progress.
        self._wait("tritonserver", lambda: self.triton.log_contains(f"loading: {MODEL}:"), deadline)
        self._wait("engine", lambda: ready.is_model_ready(self.grpc_url), deadline)

    def check(self) -> None:
        """Raise ProcessDiedError if either process has failed, StackCancelled if a stop was requested."""
        if (failure := self.triton_failure()) is not None:
            raise self.triton.died(failure)
        self.frontend.check()
        if self._cancel.is_set():
            raise StackCancelled("stopped while starting")

    def find_model_process(self) -> None:
        """Note in which processes Triton's models run, to know when they end. Call it once they are ready."""
        self._model_process, self._unbatched = None, {}
        for process in self.triton.members():
            with contextlib.suppress(psutil.NoSuchProcess):  # it may end in between
                if process.name() == STUB_NAME:
                    self._model_process = process
                elif process.name() == UNBATCHED_NAME:
                    self._unbatched[process] = Path(process.cmdline()[1]).parents[1].name  # …/NAME/VERSION/model.py

    def triton_failure(self) -> str | None:
        """Why Triton cannot serve and will not recover by itself; None if it can.

        Triton 2.51 stays up, and says that it is ready, when the process of its Python model has ended.
        """
        if (failure := self.triton.failure()) is not None:
            return failure
        if self._model_process is None or _is_alive(self._model_process):
            return None
        return f"the model's process in tritonserver ({self._model_process.pid}) ended"

    def lost_models(self) -> list[str]:
        """What to say of the models without an engine whose processes have ended since the last call.

        Triton neither starts such a process again nor answers the requests that it had. Only another tritonserver
        would, and that would cost all clients their requests, and the weights that were pushed.
        """
        if not self.triton.is_running:  # they ended with it
            return []
        lost = [process for process in self._unbatched if not _is_alive(process)]
        return [
            f"the process of {self._unbatched.pop(process)} in tritonserver ({process.pid}) ended: its requests fail "
            f"until tritonserver is started again, and those that it had get no answer; {MODEL} goes on"
            for process in lost
        ]

    def start_again(self, process: ManagedProcess) -> None:
        """Start `triton` or `frontend` again after `kill`; the other one runs on. Its log so far is kept."""
        if process is self.triton:
            self._model_process, self._unbatched = None, {}
            self._shared_memory.clear()  # a killed tritonserver leaves its regions behind
            self._make_socket_folder()
        process.start(keeps_log=True)

    def stop(self) -> None:
        """Stop the front end, which ends its requests, then Triton, whose model shuts the engine down."""
        try:
            self._progress("stopping the front end", "")
            self.frontend.stop(FRONTEND_STOP_S)
            self._progress("stopping tritonserver", "")
            self.triton.stop(TRITON_STOP_S)
        except BaseException:  # a second Ctrl-C must not leave processes behind
            self.kill()
            raise
        self._clean_up()

    def kill(self) -> None:
        """Send SIGKILL to every process of the stack."""
        self.frontend.kill()
        self.triton.kill()
        self._clean_up()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _frontend_command(self) -> list[str]:
        config = self.config
        return [
            *(sys.executable, "-P", "-m", "openai_frontend"),  # -P: modules in the working directory are not ours
            *("--triton-url", self.grpc_url, "--host", config.host, "--port", str(config.port)),
            *("--workers", str(config.workers)),
            *self._rust_arguments(),
            *((FORCE_OPTION,) if config.allow_network_without_key else ()),
            *config.extra_args,
            *config.frontend_args,
        ]

    def _rust_arguments(self) -> list[str]:
        config = self.config
        if config.rust_port is None:
            return []
        phase = "vLLM's Rust front end"
        binary = rust_binary.find_or_fetch(config.cache_dir, lambda detail: self._progress(phase, detail))
        return ["--rust-port", str(config.rust_port), "--rust-binary", str(binary)]

    def _wait(self, phase: str, is_reached: Callable[[], bool], deadline: float) -> None:
        process = self.frontend if phase.endswith("front end") else self.triton
        while not is_reached():
            self.check()
            if time.monotonic() > deadline:
                raise ReadyTimeoutError(
                    f"not ready in time, still waiting for: {phase}. "
                    f"Last lines of {process.log_path}:\n{process.log_tail(25)}"
                )
            self._progress(phase, process.log_tail(1))
            self._cancel.wait(0.25)

    def _clean_up(self) -> None:
        self._ports.release()
        self._logs.release()
        self._shared_memory.release()

    def _make_socket_folder(self) -> None:
        """Give vLLM a folder for its sockets: processes that are killed leave theirs behind, in /tmp by default."""
        if self._is_socket_folder_ours:
            self.triton.env[SOCKET_FOLDER_VARIABLE] = self._shared_memory.make_folder()


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _url(host: str, port: int) -> str:
    """The URL by which a client on this machine reaches a server bound to `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
