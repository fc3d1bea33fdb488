"""A push by all ranks of a trainer: rank 0 controls the replicas and sends, all ranks gather.

    every rank     meets the others (trainer_ranks.py)
    rank 0         sends its tensors' names; the others compare them with theirs, and report
    rank 0         checks, connects, sends (`push`); when it iterates its source, the others iterate theirs
    rank 0         sends the outcome; every rank returns the same report, or raises the same error

Collectives run in separate threads, so a caller's thread ends by its deadline, whatever a collective waits for.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

from sync.deadline import Deadline, spawn, wait
from sync.errors import ConflictError, DeadlineError, SourceError, SyncError, TransferError
from sync.weights.weight_source import WeightSource

from .caller_stream import CallerStream
from .lead_source import LeadSource
from .push_channel import PushChannel, ReportKind
from .push_outcome import decode_error, decode_outcome, encode_error, encode_report
from .report import PushReport
from .trainer_ranks import TrainerRanks, poll

PushCall = Callable[[WeightSource], PushReport]
WATCH_INTERVAL_S = 0.1
# A field of the outcome: rank 0 has read its last iteration to the end, so every rank's iteration ends too.
GATHERED = "gathered"
# Time that rank 0 may need after its deadline: to abort the update everywhere, and to leave the group.
CLEAN_UP_S = 30.0


def collective_reason(weights: Any) -> str | None:
    """Why every rank must take part in a push of these weights; None when one process has them complete.

    weights: as given to `push`. A generator is not inspected: reading it may already be a collective.
    """
    if getattr(weights, "is_collective", False):
        return "the weights are gathered from all ranks (is_collective)"
    if callable(getattr(weights, "parameters", None)):
        tensors = list(weights.parameters())
    elif isinstance(weights, Mapping):
        tensors = list(weights.values())
    elif isinstance(weights, list | tuple):
        tensors = [pair[1] for pair in weights if isinstance(pair, list | tuple) and len(pair) == 2]
    else:
        return None
    return "the weights are sharded (DTensor)" if any(map(is_sharded, tensors)) else None


def is_sharded(tensor: Any) -> bool:
    """Whether `full_tensor` is a collective of several ranks."""
    return callable(getattr(tensor, "full_tensor", None)) and tensor.device_mesh.size() > 1


def collective_push(
    ranks: TrainerRanks,
    source: WeightSource,
    push: PushCall,
    timeout_s: float,
    why: str | None,
) -> PushReport:
    """Run `push(source)`: at rank 0 with all ranks taking part when there is a `why`, otherwise at this rank alone.

    why: as `collective_reason` returns it.
    timeout_s: the longest that `push` takes. The other ranks wait that long, and for rank 0's clean-up.
    Raises the errors of `push`, at every rank; SourceError when a rank is missing, or has other tensors.
    """
    if why is None or ranks.world_size == 1:
        return _push_alone(ranks, source, push)
    channel = ranks.meet(why)
    if ranks.rank == 0:
        return _lead(ranks, channel, source, push, timeout_s)
    return _follow(channel, source, timeout_s)


def _push_alone(ranks: TrainerRanks, source: WeightSource, push: PushCall) -> PushReport:
    try:
        return push(source)
    except ConflictError as error:
        if ranks.rank > 0:
            error.add_note(
                f"this is rank {ranks.rank} of {ranks.world_size}: weights that are whole at every rank are pushed by "
                "one of them, or by all with collective=True"
            )
        raise


# ---- rank 0 -----------------------------------------------------------------------------------------------------


def _lead(
    ranks: TrainerRanks, channel: PushChannel, source: WeightSource, push: PushCall, timeout_s: float
) -> PushReport:
    lead = LeadSource(source, channel)
    try:
        channel.send({"names": _names(source)})
        _expect_ready(ranks, channel)
        with _watched(channel, lead):
            report = push(lead)
        _finish(lead, timeout_s)
        outcome = {**encode_report(report), GATHERED: True}
    except BaseException as error:
        problem = _try_to_finish(lead, timeout_s)
        if problem is not None:
            error.add_note(f"while waiting for the other ranks: {problem}")
        outcome = {**encode_error(error), GATHERED: problem is None and not lead.failure.done()}
        raise
    finally:
        with suppress(RuntimeError):  # without the store the others end by themselves; this rank's outcome stands
            channel.send(outcome)
    return report


def _expect_ready(ranks: TrainerRanks, channel: PushChannel) -> None:
    ready: dict[int, dict[str, Any]] = {}

    def are_ready() -> bool:
        ready.update(channel.reports(ReportKind.READY))
        return len(ready) == ranks.world_size - 1

    if not poll(are_ready, ranks.rank_timeout_s):
        missing = ", ".join(str(rank) for rank in range(1, ranks.world_size) if rank not in ready)
        raise SourceError(f"rank {missing} called push, but did not answer within {ranks.rank_timeout_s:g} s")
    for rank, answer in sorted(ready.items()):
        if "error" in answer:
            raise decode_error(answer, f"rank {rank}")


@contextmanager
def _watched(channel: PushChannel, lead: LeadSource) -> Iterator[None]:
    """Pass another rank's failure on to `lead`."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(WATCH_INTERVAL_S):
            try:
                failed = [
                    decode_error(answer, f"rank {rank}") for rank, answer in channel.reports(ReportKind.FAILED).items()
                ]
            except RuntimeError as error:
                failed = [TransferError(f"the store of torch.distributed failed: {error}")]
            if failed:
                lead.fail(failed[0])
                return

    watcher = threading.Thread(target=watch, name="trainer-ranks", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _finish(lead: LeadSource, timeout_s: float) -> None:
    """Finish the collectives with the other ranks: they must be over when the caller computes again."""
    caller = CallerStream.capture()
    wait(spawn(caller.bound(lead.finish), "trainer-ranks-drain"), Deadline(timeout_s), "gathering the rest")


def _try_to_finish(lead: LeadSource, timeout_s: float) -> BaseException | None:
    try:
        _finish(lead, timeout_s)
    except Exception as problem:  # reported as a note of the error that ended the push
        return problem
    return None


# ---- the other ranks --------------------------------------------------------------------------------------------


def _follow(channel: PushChannel, source: WeightSource, timeout_s: float) -> PushReport:
    # Rank 0 may take `timeout_s` to push, the same again to finish the iteration, and then cleans up.
    deadline = Deadline(2 * timeout_s + CLEAN_UP_S)
    caller = CallerStream.capture()
    gathering = spawn(lambda: None, "trainer-ranks")  # the last iteration
    try:
        while True:
            command = _next_command(channel, deadline)
            if "names" in command:
                channel.report(ReportKind.READY, _compare_names(command["names"], source, channel.rank))
            elif "iterate" in command:
                wait(gathering, deadline, "the iteration before")
                gathering = spawn(caller.bound(lambda: _iterate(channel, source)), "trainer-ranks-gather")
            else:
                return _end(command, gathering, deadline)
    except SyncError:
        raise
    except BaseException as error:  # Ctrl-C: rank 0 must not go on without this one
        channel.report(ReportKind.FAILED, encode_error(error))
        raise


def _next_command(channel: PushChannel, deadline: Deadline) -> dict[str, Any]:
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        command = channel.receive()
        found.extend([command] if command is not None else [])
        return bool(found)

    what = "waiting for rank 0 to end the push"
    try:
        is_in_time = poll(is_there, deadline.remaining(what))
    except RuntimeError as error:
        raise TransferError(f"rank 0 is gone: the store of torch.distributed failed: {error}") from None
    if not is_in_time:
        error = DeadlineError(f"{what}: not done within {deadline.seconds:g} s")
        channel.report(ReportKind.FAILED, encode_error(error))
        raise error
    return found[0]


def _iterate(channel: PushChannel, source: WeightSource) -> None:
    try:
        for _ in source:
            pass
    except BaseException as error:
        channel.report(ReportKind.FAILED, encode_error(error))
        raise


def _end(outcome: dict[str, Any], gathering: Future[None], deadline: Deadline) -> PushReport:
    """Return rank 0's report, or raise its error.

    Waits for this rank's iteration only when rank 0 has read its own to the end: otherwise a collective may never end.
    """
    if outcome.pop(GATHERED):
        try:
            wait(gathering, deadline, "gathering the rest")
        except Exception:
            if "error" not in outcome:  # rank 0's error says why the push ended
                raise
    return decode_outcome(outcome, "rank 0")


def _names(source: WeightSource) -> list[str] | None:
    """The names that iteration yields; None for a stream, which does not know them in advance."""
    try:
        return [meta.name for meta in source.metadata()]
    except SourceError:
        return None


def _compare_names(lead_names: list[str] | None, source: WeightSource, rank: int) -> dict[str, Any]:
    """{} when this rank iterates the same names in the same order; otherwise the encoded error."""
    try:
        own = _names(source)
    except Exception as error:
        return encode_error(error)
    if lead_names is None or own is None or lead_names == own:
        return {}
    pairs = enumerate(zip([*lead_names, None], [*own, None], strict=False))
    position, (theirs, ours) = next((index, pair) for index, pair in pairs if pair[0] != pair[1])
    differ = f"tensor {position} is {theirs or 'none'} at rank 0 and {ours or 'none'} at rank {rank}"
    return encode_error(SourceError(f"weights: {differ}; every rank must give the same tensors in the same order"))
