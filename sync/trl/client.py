"""TRL's `VLLMClient` for tritonlive: TRL's trainers generate and push through it, on any training device.

    import sync.trl
    sync.trl.install()  # the one line; keys from TRITONLIVE_CONTROL_KEY and TRITONLIVE_API_KEY
    GRPOTrainer(..., args=GRPOConfig(use_vllm=True, vllm_mode="server", vllm_server_base_url="http://127.0.0.1:9000"))

TRL's own client builds the requests and reads the answers, so their meaning is TRL's. This client changes how they
travel (the openai SDK, keys, deadlines), and how weights travel (`WeightSync` instead of NCCL).
"""

import atexit
import functools
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import httpx
import torch
from torch import nn

from sync.addresses import own_address_towards
from sync.closing import Closing
from sync.control.target import Target
from sync.deadline import Deadline, spawn, wait
from sync.errors import TargetError
from sync.push.report import PushReport
from sync.push.weight_sync import Backend, WeightSync
from sync.rollouts.rollouts import Rollouts
from tritonlive.wire.environment import API_KEY_VARIABLE, CONTROL_KEY_VARIABLE
from tritonlive.wire.headers import WEIGHT_VERSION_HEADER
from tritonlive.wire.keys import split_keys
from tritonlive.wire.ports import FRONT_END_PORT
from tritonlive.wire.versions import next_step

try:
    import openai

    with warnings.catch_warnings():
        # Which vLLM is installed next to the trainer does not matter here; the server's generates.
        warnings.filterwarnings("ignore", message="TRL currently supports vLLM")
        from trl.generation import vllm_client, vllm_generation
    from trl.generation.vllm_client import VLLMClient as TRLClient

    from .rollouts import RolloutsClient
except ImportError as error:
    raise ImportError(
        f"sync.trl needs TRL 1.11 or later, and the openai SDK ({error}): pip install 'trl>=1.16' openai"
    ) from error

M = TypeVar("M", bound=Callable[..., Any])
DEFAULT_TIMEOUT_S = 600.0
HEALTH_TIMEOUT_S = 5.0
HEALTH_INTERVAL_S = 0.5


def bounded(method: M) -> M:
    """Add a deadline over all of a method's requests, retries included. The method then raises DeadlineError."""
    name = getattr(method, "__name__", "request")

    @functools.wraps(method)
    def call(self: "VLLMClient", *args: Any, **kwargs: Any) -> Any:
        result = spawn(lambda: method(self, *args, **kwargs), name=f"trl-{name}")
        return wait(result, Deadline(self.timeout), f"{self.base_url}: {name}")

    return cast(M, call)


class VLLMClient(Closing, RolloutsClient):
    """TRL's client with more abilities: pushes from any device, keys, deadlines, rollouts as arrays.

    base_url: the front end, `http://127.0.0.1:9000`; the control key may stand in it (`http://user:key@host:9000`).
    host, server_port: the same, used when there is no base_url.
    group_port: where this process listens for the replica's workers (nccl, gloo); 0 picks a free port.
    connection_timeout: seconds to wait for the server to be up; ConnectionError after that.
    backend: how weights travel, as the server was started with: "gloo" (any device), "nccl" or "ipc".
    control_key, api_key: by default TRITONLIVE_CONTROL_KEY and TRITONLIVE_API_KEY. Without an inference key the control
        key is shown, which does for generation too.
    timeout: seconds that one call, pushes included, may take.
    rollouts: Triton's gRPC address, `grpc://127.0.0.1:8001`, or several. With it `get_sequence_logprobs`, and
        `generate` from token ids without stop strings, get arrays from there instead of JSON from the front end.

    A push is one atomic `WeightSync.push` of all weights, under the version "step-<n>": "step-0" holds the weights
    before the first step, and a client that follows another one goes on counting. Errors are those of `sync.errors` and
    `openai`.
    """

    weight_version: str | None
    """Version of the last push; None before."""
    served_version: str | None
    """Version of the weights that made the last answer, as reported by the server."""
    last_push: PushReport | None

    def __init__(
        self,
        base_url: str | None = None,
        host: str = "127.0.0.1",
        server_port: int = FRONT_END_PORT,
        group_port: int = 51216,
        connection_timeout: float = 0.0,
        *,
        backend: Backend = "gloo",
        control_key: str | None = None,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        rollouts: str | Sequence[str] | None = None,
    ) -> None:
        # TRL's constructor is not called: it wants vLLM installed, and opens a session without keys or deadlines.
        control_key = control_key if control_key is not None else os.environ.get(CONTROL_KEY_VARIABLE)
        target = Target.parse(base_url or f"http://{host}:{server_port}", control_key)
        if target.is_grpc:
            raise TargetError(f"target {target}: generation needs the front end's address, http://host:9000")
        self.base_url = str(target)
        self.host, self.server_port, self.group_port = target.host, target.port, group_port
        self.backend: Backend = backend
        self.timeout = timeout
        self.communicator: WeightSync | None = None
        self.weight_version = self.served_version = self.last_push = None
        api_key = api_key or next(iter(split_keys(os.environ.get(API_KEY_VARIABLE))), None) or target.key
        self.rollouts = None if rollouts is None else Rollouts(rollouts, api_key=api_key, timeout=timeout)
        self._target = target
        self._pending: dict[str, torch.Tensor] | None = None  # a dict inside `weight_update`
        self._updating_weights = False
        api_key = api_key or "none"
        # trust_env off: a proxy or a .netrc must not come between a trainer and its server, or see the keys.
        # No connection is kept: the pause between two pushes is about as long as a server keeps an idle one.
        transport = httpx.HTTPTransport(retries=2, limits=httpx.Limits(max_keepalive_connections=0), trust_env=False)
        self.session: Any = httpx.Client(  # instead of TRL's requests.Session, with the same methods
            auth=self._authorize(api_key), timeout=timeout, trust_env=False, transport=transport
        )
        self._openai = openai.OpenAI(
            base_url=f"{self.base_url}/v1",
            api_key=api_key,
            timeout=timeout,
            http_client=openai.DefaultHttpxClient(trust_env=False),
        )
        try:
            self.check_server(connection_timeout)
            self.model = self._get(f"{self.base_url}/v1/models")["data"][0]["id"]
        except BaseException:
            self.close()
            raise

    # ---- requests -----------------------------------------------------------------------------------------------

    generate = bounded(RolloutsClient.generate)
    chat = bounded(TRLClient.chat)
    get_sequence_logprobs = bounded(RolloutsClient.get_sequence_logprobs)
    image_features = bounded(TRLClient.image_features)

    def check_server(self, total_timeout: float = 0.0, retry_interval: float = HEALTH_INTERVAL_S) -> None:
        """Return when the server reports that it is healthy. Raises ConnectionError after `total_timeout` seconds."""
        deadline = time.monotonic() + total_timeout
        while True:
            try:
                response = self.session.get(f"{self.base_url}/health", timeout=HEALTH_TIMEOUT_S)
                if response.status_code == 200:
                    return
                problem = f"/health answers {response.status_code}"
            except httpx.TransportError as error:
                problem = str(error) or type(error).__name__
            if time.monotonic() + retry_interval > deadline:
                raise ConnectionError(f"{self.base_url}: no server within {total_timeout:g} s: {problem}")
            time.sleep(retry_interval)

    def _post(self, url: str, **kwargs: Any) -> dict:
        """Sends every request of TRL's client. OpenAI requests go through the SDK, which retries failures."""
        # `extra_body` carries TRL's fields unchanged. The call returns raw JSON, since TRL reads vLLM's extensions.
        if url == f"{self.base_url}/v1/completions":
            body = kwargs["json"]
            create = self._openai.completions.with_raw_response.create
            response = create(model=body["model"], prompt=body["prompt"], extra_body=body)
        elif url == f"{self.base_url}/v1/chat/completions":
            body = kwargs["json"]
            create = self._openai.chat.completions.with_raw_response.create
            response = create(model=body["model"], messages=body["messages"], extra_body=body)
        else:
            return super()._post(url, **kwargs)
        self.served_version = response.headers.get(WEIGHT_VERSION_HEADER)
        return response.http_response.json()

    def _authorize(self, api_key: str) -> Callable[[httpx.Request], httpx.Request]:
        inference = tuple(f"{self.base_url}/{prefix}/" for prefix in ("v1", "inference/v1"))

        def sign(request: httpx.Request) -> httpx.Request:
            key = api_key if str(request.url).startswith(inference) else self._target.key
            if key is not None:
                request.headers["Authorization"] = f"Bearer {key}"
            return request

        return sign

    # ---- weights ------------------------------------------------------------------------------------------------

    def init_communicator(self, device: torch.device | str | int = 0) -> None:
        """Prepare pushes from any device. The first push forms the group with the replica's workers."""
        self._connected()

    @contextmanager
    def weight_update(self) -> Iterator[None]:
        """Collects the `update_named_param` calls in the block, and pushes them together at its end."""
        self._pending, self._updating_weights = {}, True
        try:
            yield
            pending = self._pending
        finally:
            self._pending, self._updating_weights = None, False
        self._push(pending)

    def update_named_param(self, name: str, weights: torch.Tensor) -> None:
        """Add one tensor to the running `weight_update`. A push has all tensors, or does not happen."""
        if self._pending is None:
            raise RuntimeError(f"update_named_param({name!r}): call it inside `with client.weight_update():`")
        self._pending[name] = self._copy(weights)

    def update_named_params(
        self, metadata: list[tuple[str, str, list[int]]], named_params: Iterator[tuple[str, torch.Tensor]]
    ) -> None:
        """Push the tensors, which must be all of the model's. `metadata` is TRL's and is not used."""
        # Copies: a gathered or merged tensor is valid only until the iterator advances (ZeRO-3, FSDP, PEFT).
        copies = {name: self._copy(tensor) for name, tensor in named_params}
        if self._pending is None:
            self._push(copies)
        else:
            self._pending |= copies

    def update_model_params(self, model: nn.Module) -> None:
        """Push the weights of a whole model."""
        if self._pending is None:
            self._push(model)
        else:
            self._pending |= {name: self._copy(tensor) for name, tensor in model.state_dict().items()}

    def close_communicator(self) -> None:
        """Leave the group. The server keeps its weights, and this client can still generate."""
        communicator, self.communicator = self.communicator, None
        if communicator is not None:
            communicator.close()
            atexit.unregister(self.close_communicator)

    def close(self) -> None:
        """Leave the group and close the connections."""
        self.close_communicator()
        if self.rollouts is not None:
            self.rollouts.close()
        self._openai.close()
        self.session.close()

    def _connected(self) -> WeightSync:
        """The communicator, created at the first call."""
        if self.communicator is None:
            self.communicator = WeightSync(
                self.base_url,
                backend=self.backend,
                control_key=self._target.key,
                timeout=self.timeout,
                master_address=own_address_towards(self._target.host, self._target.port),
                master_port=self.group_port,
            )
            atexit.register(self.close_communicator)
        return self.communicator

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        device = "cpu" if self.backend == "gloo" else tensor.device
        return tensor.detach().to(device, copy=True)

    def _push(self, weights: nn.Module | dict[str, torch.Tensor]) -> None:
        communicator = self._connected()
        last = self.weight_version or self._get(f"{self.base_url}/weight_info")["weight_version"]
        version = next_step(str(last))
        self.last_push = communicator.push(weights, version)
        self.weight_version = version


def install(**options: Any) -> None:
    """Make TRL's trainers in this process use our client from now on.

    Replaces the name `VLLMClient` in the two modules of TRL from which trainers import it. options: those of our
    `VLLMClient` that TRL does not set: backend, control_key, api_key, timeout, rollouts.
    """
    ours = functools.partial(VLLMClient, **options)
    for module in (vllm_client, vllm_generation):
        vars(module)["VLLMClient"] = ours


def uninstall() -> None:
    """Undo `install` for trainers that are created later."""
    for module in (vllm_client, vllm_generation):
        vars(module)["VLLMClient"] = TRLClient
