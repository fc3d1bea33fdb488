"""Operations about the engine: what it is, whether it generates, its caches and its memory."""

from typing import Annotated, Literal, NotRequired, TypedDict

from msgspec import Meta

from tritonlive.wire.limits import MAX_SCORE_PROMPTS
from tritonlive.wire.operation import Arguments, Route, Scope, operation
from tritonlive.wire.outcomes import Outcome
from tritonlive.wire.states import State

InFlightMode = Literal["abort", "wait", "keep"]
"""Handling of running requests: end them, wait for them, or continue them afterwards. vLLM's PauseMode."""
MemoryKind = Literal["weights", "kv_cache", "scheduling"]
TokenId = Annotated[int, Meta(ge=0, lt=2**31)]


class Nothing(TypedDict):
    """An empty object."""


class EngineDescription(TypedDict):
    """Facts for a front end's serving layer. `engine_argv` is a command line of `vllm serve`.

    `supported_tasks` are vLLM's names of what the model can do: generate, embed, classify, token_embed and others.
    """

    vllm_version: str
    engine_argv: list[str]
    model: str
    served_model_name: list[str]
    supported_tasks: list[str]
    dtype: str
    max_model_len: int
    num_gpu_blocks: int | None
    block_size: int
    kv_cache_size_tokens: int | None
    world_size: int
    world_size_across_dp: int
    weight_version: str
    weight_transfer_backend: str | None
    started_at: float
    num_restarts: int


class Health(TypedDict):
    healthy: bool


class LeaseDescription(TypedDict):
    """`seconds` is how long it lasts without a call, `left_s` how much of that is left."""

    holder: str
    seconds: float
    left_s: float


class CommitResult(TypedDict):
    """Result of an update. `is_changed` is False if every rank already had these tensors."""

    update_id: str
    outcome: Outcome
    weight_version: str | None
    is_changed: bool
    paused_s: float
    load_s: float
    total_s: float


class KeptVersion(TypedDict):
    """A version that every rank could load now; `digest` is None for a checkpoint on disk."""

    weight_version: str
    update_id: str
    digest: str | None


class Status(TypedDict):
    """While the engine is restarting, only the first three and `last_update` are there."""

    state: State
    weight_version: str | None
    reason: str | None
    newest_numbered: NotRequired[str | None]
    kept_versions: NotRequired[list[KeptVersion]]
    model: NotRequired[str]
    dtype: NotRequired[str]
    world_size: NotRequired[int]
    weight_transfer_backend: NotRequired[str | None]
    machine: NotRequired[str]
    host_memory_available: NotRequired[int]
    lease: NotRequired[LeaseDescription | None]
    last_update: CommitResult | None


class PauseStatus(TypedDict):
    status: Literal["paused", "resumed"]


class IsPaused(TypedDict):
    is_paused: bool


class Ok(TypedDict):
    ok: bool


class FullyAwake(TypedDict):
    fully_awake: bool


class IsSleeping(TypedDict):
    is_sleeping: bool


class Scores(TypedDict):
    """One list for each prompt; None replaces a value that is not a finite number."""

    logprobs: list[list[float | None]]
    weight_version: str


@operation("describe", EngineDescription, is_public=True, scope=Scope.OWN)
class Describe(Arguments):
    """Say what a front end needs before anyone has shown a key."""


@operation("health", Health, is_public=True, scope=Scope.OWN)
class GetHealth(Arguments):
    """Answer only if the engine process does, and may generate."""


@operation("status", Status, scope=Scope.EACH, route=Route("GET", "/replica_status"))
class GetStatus(Arguments):
    """State of the replica's weights: serving, updating, dirty, fenced, paused or restarting, and since which update.

    Of several replicas a list, with the reason why one is left out.
    """


@operation(
    "pause_generation", PauseStatus, scope=Scope.ALL, route=Route("POST", "/pause", is_vllms=True, in_query=True)
)
class PauseGeneration(Arguments):
    """Stop generating. `mode` determines the handling of running requests."""

    mode: InFlightMode = "abort"
    clear_cache: bool = True


@operation("resume_generation", PauseStatus, scope=Scope.ALL, route=Route("POST", "/resume", is_vllms=True))
class ResumeGeneration(Arguments):
    """Generate again."""


@operation("is_paused", IsPaused, scope=Scope.ALL, route=Route("GET", "/is_paused", is_vllms=True))
class GetIsPaused(Arguments):
    """Whether a client has paused generation."""


@operation("flush_generations", Nothing, is_public=True, scope=Scope.OWN)
class FlushGenerations(Arguments):
    """Send what the engine has made so far. A front end asks before it gives up generations and answers with them."""


@operation("score", Scores, route=Route("POST", "/weight_score"))
class Score(Arguments):
    """Logprobs of the prompts' own tokens, for a trainer to compare with its own.

    For each prompt (token ids): log p(token | the tokens before it) of all its tokens but the first.
    """

    prompts: Annotated[
        list[Annotated[list[TokenId], Meta(min_length=2)]], Meta(min_length=1, max_length=MAX_SCORE_PROMPTS)
    ]


@operation("reset_prefix_cache", Ok, scope=Scope.ALL)
class ResetPrefixCache(Arguments):
    """Drop cached prefixes; not `ok` while running requests hold blocks. vLLM serves it as POST /reset_prefix_cache."""

    reset_running_requests: bool = False
    reset_connector: bool = False


@operation("reset_mm_cache", Nothing, scope=Scope.ALL)
class ResetMmCache(Arguments):
    """Drop processed media. vLLM serves it as POST /reset_mm_cache."""


@operation("reset_encoder_cache", Nothing, scope=Scope.ALL)
class ResetEncoderCache(Arguments):
    """Drop outputs of encoders. vLLM serves it as POST /reset_encoder_cache."""


@operation("sleep", Nothing, scope=Scope.ALL)
class Sleep(Arguments):
    """Give memory back. From level 2 on the weights are lost, and the replica is dirty."""

    level: Annotated[int, Meta(ge=0, le=2)] = 1
    mode: InFlightMode = "abort"


@operation("wake_up", FullyAwake, scope=Scope.ALL)
class WakeUp(Arguments):
    """Take memory again: all of it, or the kinds in `tags` (weights, kv_cache, scheduling)."""

    tags: Annotated[list[MemoryKind], Meta(min_length=1, max_length=3)] | None = None


@operation("is_sleeping", IsSleeping, scope=Scope.ALL)
class GetIsSleeping(Arguments):
    """Whether the engine has given memory back."""
