"""Operations about weights: the trainer's lease, an update's life, and the versions at hand."""

from typing import Any, NotRequired, TypedDict

from tritonlive.wire.operation import Arguments, Lease, Name, Route, VersionName, operation
from tritonlive.wire.outcomes import Outcome
from tritonlive.wire.states import State

from .engine import CommitResult, InFlightMode, LeaseDescription, Nothing


class Parameter(TypedDict):
    """`dtype` is the one that a push brings the tensor in; not `loaded` are those that the model leaves out."""

    name: str
    dtype: str
    shape: list[int]
    loaded: bool


class Parameters(TypedDict):
    """`parameters` is None when the names are not known, for the `reason` given.

    `tied` are names that a push may leave out; `untraced` says why the model's loader could not be followed.
    """

    parameters: list[Parameter] | None
    tied: list[str]
    reason: NotRequired[str]
    untraced: NotRequired[str | None]
    load_format: NotRequired[str]
    quantization: NotRequired[str | None]


class LeaseAnswer(TypedDict):
    lease: LeaseDescription | None


class UpdateStarted(TypedDict):
    update_id: str


class Prepared(TypedDict):
    """`digest` is of the tensors that the ranks have staged; None where they stage nothing."""

    update_id: str
    digest: str | None
    is_unchanged: bool


class UpdateOutcome(TypedDict):
    """Outcome of an update; `outcome` is None if the replica does not know the update."""

    state: State
    reason: str | None
    outcome: Outcome | None
    is_live: bool
    result: CommitResult | None
    weight_version: str


class UpdateRecord(TypedDict):
    """One update. Seconds; `started_at` since the epoch. `pause_s` is drain, load and flush together."""

    kind: str
    holder: str | None
    update_id: str
    started_at: float
    outcome: Outcome
    reason: str | None
    weight_version: str | None
    num_bytes: int
    num_tensors: int
    in_flight: str | None
    stage_s: float
    pause_s: float
    drain_s: float
    load_s: float
    flush_s: float
    total_s: float


class Timeline(TypedDict):
    """`updates`: the last ones, oldest first. `in_flight`: running requests by the version they began with."""

    weight_version: str
    state: State
    lease: LeaseDescription | None
    updates: list[UpdateRecord]
    in_flight: dict[str, int]


class WeightVersion(TypedDict):
    weight_version: str


class Checksums(TypedDict):
    """One object for each worker: checksums by tensor name."""

    checksums: list[dict[str, str]]


@operation("parameters", Parameters, route=Route("GET", "/weight_parameters"))
class GetParameters(Arguments):
    """Names, dtypes and shapes of the tensors that a push must bring, as the model loads them."""


@operation("reserve_lease", LeaseAnswer, route=Route("POST", "/reserve_lease"))
class ReserveLease(Arguments):
    """Take the lease (`holder`, `lease_s`) before the workers are called into a group. A conflict while it is held."""

    init_info: dict[str, Any]


@operation("init_weight_transfer_engine", Nothing, route=Route("POST", "/init_weight_transfer_engine", is_vllms=True))
class InitWeightTransferEngine(Arguments):
    """Join the trainer's group, and give the trainer the lease. `init_info` is the backend's."""

    init_info: dict[str, Any]


@operation(
    "shutdown_weight_transfer_engine",
    Nothing,
    lease=Lease.HOLDER,
    route=Route("POST", "/shutdown_weight_transfer_engine", is_vllms=True),
)
class ShutdownWeightTransferEngine(Arguments):
    """Leave the trainer's group, and end its lease."""


@operation(
    "start_weight_update",
    UpdateStarted,
    lease=Lease.HOLDER,
    route=Route("POST", "/start_weight_update", message="Weight update started", metric="start"),
)
class StartWeightUpdate(Arguments):
    """Begin an update. `update_id` names it; `in_flight` determines the handling of running requests."""

    update_id: Name | None = None
    in_flight: InFlightMode = "keep"


@operation(
    "update_weights",
    Nothing,
    lease=Lease.HOLDER,
    route=Route("POST", "/update_weights", message="Weights updated", metric="update"),
)
class UpdateWeights(Arguments):
    """Receive the tensors that `update_info` announces."""

    update_info: dict[str, Any] | list[dict[str, Any]]
    update_id: Name | None = None


@operation("prepare_weight_update", Prepared, lease=Lease.HOLDER, route=Route("POST", "/prepare_weight_update"))
class PrepareWeightUpdate(Arguments):
    """Have every rank say whether it can load the update; nothing changes."""

    update_id: Name | None = None


@operation(
    "finish_weight_update",
    CommitResult,
    lease=Lease.HOLDER,
    route=Route("POST", "/finish_weight_update", message="Weight update finished", metric="finish"),
    changes_version=True,
)
class FinishWeightUpdate(Arguments):
    """Make the update live as `weight_version`, by default "v<n+1>", and say how long generation was paused.

    Idempotent: a second finish of the same update answers as the first.
    """

    weight_version: VersionName | None = None
    in_flight: InFlightMode | None = None
    update_id: Name | None = None


@operation(
    "abort_weight_update",
    UpdateOutcome,
    lease=Lease.HOLDER_UNLESS_FORCED,
    route=Route("POST", "/abort_weight_update"),
    positional=("reason",),
)
class AbortWeightUpdate(Arguments):
    """Give up a running update, and say what became of `update_id`, which is final. Harmless without one.

    `force` gives up the update of any trainer, and releases that trainer.
    """

    reason: str = "asked for"
    update_id: Name | None = None
    force: bool = False


@operation("renew_lease", LeaseAnswer, lease=Lease.HOLDER, route=Route("POST", "/renew_lease"))
class RenewLease(Arguments):
    """The heartbeat of a connected trainer. A conflict when no trainer is connected."""


@operation(
    "rollback",
    CommitResult,
    lease=Lease.HOLDER,
    route=Route("POST", "/rollback"),
    changes_version=True,
    positional=("in_flight",),
)
class Rollback(Arguments):
    """Serve an earlier version again: the one named `to`, else the one before."""

    in_flight: InFlightMode = "keep"
    to: VersionName | None = None
    update_id: Name | None = None


@operation(
    "reload",
    CommitResult,
    lease=Lease.HOLDER,
    route=Route("POST", "/reload"),
    changes_version=True,
    positional=("weight_version",),
)
class Reload(Arguments):
    """Serve the checkpoint on disk again. `weight_version` names it; it is needed when its files have changed."""

    weight_version: VersionName | None = None
    in_flight: InFlightMode = "keep"
    update_id: Name | None = None


@operation("fence", UpdateOutcome, lease=Lease.HOLDER, route=Route("POST", "/fence"))
class Fence(Arguments):
    """Refuse to generate until a push commits, unless the update `unless_committed` is live here."""

    reason: str
    unless_committed: Name | None = None


@operation("timeline", Timeline, route=Route("GET", "/weight_timeline"))
class GetTimeline(Arguments):
    """The last updates, oldest first, and with which weights the running requests began."""


@operation("get_weight_version", WeightVersion, route=Route("GET", "/weight_info", is_vllms=True))
class GetWeightVersion(Arguments):
    """The version of the weights that serve."""


@operation("update_weight_version", WeightVersion)
class UpdateWeightVersion(Arguments):
    """Give the weights that serve another name. vLLM serves it as POST /update_weight_version."""

    new_version: VersionName


@operation("compute_weight_checksums", Checksums)
class ComputeWeightChecksums(Arguments):
    """Checksums of the weights in every worker. vLLM serves it as POST /weight_checker."""


@operation("reset_weights", Nothing)
class ResetWeights(Arguments):
    """Zero the weights: vLLM's weight checker proves with it that a push writes every tensor. The replica is dirty."""
