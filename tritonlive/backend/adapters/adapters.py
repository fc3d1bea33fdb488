"""LoRA adapters that trainers push from memory, under a name with a version.

    (nothing) ──stage──► staged ──activate──► serving ──the next version, or remove──► replaced ──unused──► (nothing)
                            └──discard, the next stage, or too late──► (nothing)

A version never changes: each push has an id, a folder and a label (NAME@VERSION) of its own. vLLM's prefix cache is
keyed by folder and label, so versions share no prefixes. A request ends with the version with which it began, and the
version's files stay until then: vLLM's workers read them whenever a request needs the adapter, also after they evicted
it or the engine was restarted.
"""

import asyncio
import itertools
import json
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from pathlib import Path
from typing import Any

from vllm.lora.request import LoRARequest

from tritonlive.backend.engine import Engine
from tritonlive.backend.tensors import BadTensor, Conflict, RequestError, Unavailable
from tritonlive.backend.weights.checkpoint import read_parameters
from tritonlive.backend.weights.worker_calls import OPERATION_TIMEOUT_S, answer
from tritonlive.wire.states import AdapterState
from tritonlive.wire.tensor_names import CONTROL_ARGUMENTS, ENGINE_REQUEST, SAMPLING_PARAMETERS

from . import adapter_files
from .adapter import Adapter

# The id in a front end's request for a pushed adapter, which is found by its label. Ids of pushed adapters are above;
# ids that vLLM's front end assigns to adapters on disk are below.
PUSHED_ID = 2**30
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
MAX_VERSION_LENGTH = 128
# A staged adapter is dropped after this time: its trainer does not come back.
STAGED_FOR_S = 600.0
# A replaced version stays this long: a request that a front end is rendering may still name it.
UNUSED_FOR_S = 30.0


class Adapters:
    """The pushed adapters of one replica; lives on the engine's loop."""

    def __init__(self, engine: Engine, announce: Callable[[], Awaitable[None]]) -> None:
        """`announce` is awaited after every change of the serving adapters."""
        self._engine = engine
        self._announce = announce
        self._folder = tempfile.TemporaryDirectory(prefix="tritonlive-adapters-", ignore_cleanup_errors=True)
        self._ids = itertools.count(PUSHED_ID + 1)
        self._serving: dict[str, Adapter] = {}
        self._staged: dict[str, Adapter] = {}
        self._replaced: list[Adapter] = []
        self._users: dict[Hashable, Adapter] = {}  # by running request
        self._num_changes = 0
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- called by trainers -----------------------------------------------------------------------------------------

    async def stage(
        self, name: str, version: str, config: dict[str, Any], digest: str | None, payload: bytes
    ) -> dict[str, Any]:
        """Check an adapter, write its files, and load it into vLLM. Requests do not see it yet.

        payload: adapter_model.safetensors. digest: its XXH3, or None. Does nothing if this version serves already.
        Raises Conflict, BadTensor, or RequestError with vLLM's reason.
        """
        self._check_names(name, version)
        actual = await self._off_loop(adapter_files.check_digest, payload, digest)
        async with self._lock:
            serving = self._serving.get(name)
            if serving is not None and serving.version == version:
                if serving.digest != actual:
                    raise Conflict(f"stage_adapter: {serving.label} serves already, with other weights")
                return serving.result() | {"is_changed": False}
            parameters = await self._parameters()
            num_tensors = await self._off_loop(adapter_files.check, payload, config, parameters)
            number = next(self._ids)
            folder = Path(self._folder.name) / str(number)
            request = LoRARequest(lora_name=f"{name}@{version}", lora_int_id=number, lora_path=str(folder))
            adapter = Adapter(name, version, actual, request, num_tensors, len(payload))
            try:
                await self._off_loop(adapter_files.write, folder, payload, config)
                await answer(self._engine, self._engine.llm.add_lora(request), OPERATION_TIMEOUT_S)
            except BaseException:
                await self._drop(adapter)
                raise
            await self._discard(name)
            self._staged[name] = adapter
            self._sweep_after(STAGED_FOR_S)
            return adapter.result() | {"is_changed": True}

    async def activate(self, name: str, version: str) -> dict[str, Any]:
        """Serve the staged version from now on; returns when the front ends know. Idempotent. Raises Conflict."""
        async with self._lock:
            staged, serving = self._staged.get(name), self._serving.get(name)
            if staged is None or staged.version != version:
                if serving is not None and serving.version == version:
                    return serving.result()
                raise Conflict(f"activate_adapter: {name}@{version} is not staged; another push may have replaced it")
            del self._staged[name]
            self._serving[name] = staged
            if serving is not None:
                self._replace(serving)
            await self._announce_change()
            return staged.result()

    async def discard(self, name: str, version: str) -> dict[str, Any]:
        """Drop a staged version. Does nothing if it is not staged."""
        async with self._lock:
            if (staged := self._staged.get(name)) is not None and staged.version == version:
                await self._discard(name)
        return {}

    async def remove(self, name: str) -> dict[str, Any]:
        """Stop serving the adapter; running requests still end with it. Raises BadTensor."""
        async with self._lock:
            if name not in self._serving:
                raise BadTensor(CONTROL_ARGUMENTS, f"of remove_adapter: {self._unknown(name)}")
            removed = self._serving.pop(name)
            self._replace(removed)
            await self._announce_change()
            return removed.result()

    def describe(self) -> list[dict[str, Any]]:
        """All versions here, with their state and number of running requests."""
        users = Counter(self._users.values())
        states = [
            (AdapterState.SERVING, self._serving.values()),
            (AdapterState.STAGED, self._staged.values()),
            (AdapterState.REPLACED, self._replaced),
        ]
        return [
            adapter.result() | {"state": state, "requests": users[adapter]}
            for state, adapters in states
            for adapter in adapters
        ]

    # ---- called for requests ----------------------------------------------------------------------------------------

    def announcement(self) -> str:
        """The serving adapters as JSON: engine_adapters in config.pbtxt."""
        serving = {name: adapter.version for name, adapter in self._serving.items()}
        return json.dumps({"serial": self.serial, "adapters": serving})

    @property
    def serial(self) -> str:
        """Number of the set of adapters that serves now."""
        return str(self._num_changes)

    def find(self, name: str) -> LoRARequest:
        """The serving version of that adapter. Raises BadTensor."""
        if (adapter := self._serving.get(name)) is None:
            raise BadTensor(SAMPLING_PARAMETERS, f"lora_name: {self._unknown(name)}")
        return adapter.request

    def resolve(self, request: LoRARequest) -> LoRARequest:
        """The adapter that a front end names by NAME@VERSION, with its id and files here. Others stay unchanged.

        Staged versions count: during a push to a fleet, front ends may learn of a version from another replica first.
        Raises Unavailable if the version is not here: another replica may have it, or the front end will learn of a
        newer one. Raises BadTensor for an id that front ends do not use.
        """
        if request.lora_int_id < PUSHED_ID:
            return request
        if request.lora_int_id > PUSHED_ID:
            raise BadTensor(ENGINE_REQUEST, f"lora_int_id {request.lora_int_id}: request a pushed adapter by its name")
        for adapter in (*self._serving.values(), *self._staged.values(), *reversed(self._replaced)):
            if adapter.label == request.lora_name:
                return adapter.request
        raise Unavailable(f"adapter {request.lora_name} is not served here any more; send the request again")

    def begin(self, user: Hashable, request: LoRARequest | None) -> None:
        """Note that the request `user` (any hashable identity) uses this adapter until `end`."""
        if request is not None and request.lora_int_id > PUSHED_ID:
            known = (*self._serving.values(), *self._staged.values(), *self._replaced)
            self._users.update((user, adapter) for adapter in known if adapter.request is request)

    def end(self, user: Hashable) -> None:
        """Note that the request has ended."""
        if (adapter := self._users.pop(user, None)) is not None:
            adapter.unused_since = time.monotonic()
            if adapter in self._replaced:
                self._sweep_after(UNUSED_FOR_S)

    def close(self) -> None:
        """Remove all files, after the engine has ended."""
        self._folder.cleanup()

    # ---- steps ------------------------------------------------------------------------------------------------------

    def _check_names(self, name: str, version: str) -> None:
        require_lora(self._engine, "stage_adapter")
        if not isinstance(name, str) or NAME.fullmatch(name) is None:
            raise BadTensor(
                CONTROL_ARGUMENTS, f"of stage_adapter: name {name!r} must be letters, digits, '.', '_', '-'"
            )
        if not isinstance(version, str) or not 0 < len(version) <= MAX_VERSION_LENGTH or not version.isprintable():
            raise BadTensor(
                CONTROL_ARGUMENTS, f"of stage_adapter: version {version!r} must be printable, and not empty"
            )
        served = self._engine.llm.model_config.served_model_name
        if name in ([served] if isinstance(served, str) else served or ()):
            raise BadTensor(CONTROL_ARGUMENTS, f"of stage_adapter: {name!r} is the name of the served model itself")

    async def _parameters(self) -> list[dict[str, Any]] | None:
        model = self._engine.llm.model_config
        try:
            return await self._off_loop(read_parameters, model.model, model.revision)
        except (OSError, ValueError):  # no safetensors files: vLLM reads the model from another format
            return None

    async def _off_loop(self, function: Callable[..., Any], *args: Any) -> Any:
        return await self._engine.loop.run_in_executor(None, function, *args)

    async def _announce_change(self) -> None:
        self._num_changes += 1
        await self._announce()

    def _unknown(self, name: str) -> str:
        return f"no adapter {name!r} was pushed; there are {', '.join(sorted(self._serving)) or 'none'}"

    def _replace(self, adapter: Adapter) -> None:
        adapter.unused_since = time.monotonic()
        self._replaced.append(adapter)
        self._sweep_after(UNUSED_FOR_S)

    async def _discard(self, name: str) -> None:
        if (staged := self._staged.pop(name, None)) is not None:
            await self._drop(staged)

    def _sweep_after(self, seconds: float) -> None:
        self._engine.loop.call_later(seconds + 0.1, self._sweep)  # a timer may be a moment early

    def _sweep(self) -> None:
        """Drop replaced versions that are unused, and staged ones that are late."""
        now = time.monotonic()
        used = set(self._users.values())
        unused = [
            adapter for adapter in self._replaced if adapter not in used and now - adapter.unused_since >= UNUSED_FOR_S
        ]
        late = [adapter for adapter in self._staged.values() if now - adapter.staged_at >= STAGED_FOR_S]
        for adapter in unused:
            self._replaced.remove(adapter)
        for adapter in late:
            del self._staged[adapter.name]
        for adapter in (*unused, *late):
            task = asyncio.create_task(self._drop(adapter))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _drop(self, adapter: Adapter) -> None:
        try:
            if self._engine.is_running:
                await answer(
                    self._engine, self._engine.llm.remove_lora(adapter.request.lora_int_id), OPERATION_TIMEOUT_S
                )
        except RequestError:  # the engine has died, and the adapter with it
            pass
        finally:
            await self._off_loop(shutil.rmtree, adapter.folder, True)  # noqa: FBT003 (ignore_errors)


def require_lora(engine: Engine, operation: str) -> None:
    """Raises Conflict if vLLM was started without LoRA."""
    if engine.llm.vllm_config.lora_config is None:
        raise Conflict(f"{operation}: LoRA is off; start vLLM with --enable-lora (and --max-lora-rank, --max-loras)")
