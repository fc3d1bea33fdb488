"""Memory that the leader writes and followers lock."""

import fcntl
import os
import signal
import subprocess
import sys

import psutil
import pytest

from sync import TransferError
from sync.transport.sealed import CHUNK_BYTES, SIZE_SEALS, create_sealed
from sync.transport.worker.segments import Segment, SegmentView
from sync.weights.findings import Findings

SIZES = (1024, 2)
FOUND = Findings([1, 2**64 - 1], [True, False])


@pytest.fixture
def segment():
    made = Segment(*SIZES)
    made.data.fill_(7)
    made.write_report(FOUND)
    return made


@pytest.fixture
def view(segment):
    return SegmentView(segment.descriptor, *SIZES)


def test_a_follower_reads_what_the_leader_writes(segment, view):
    assert view.data.tolist() == [7] * 1024
    assert view.findings() == FOUND
    segment.data[3] = 8  # the next update, through the mapping that is there
    assert view.data[:5].tolist() == [7, 7, 7, 8, 7]


def test_only_the_leader_can_write(segment, view):
    with pytest.raises(OSError, match="not permitted"):
        os.write(segment.descriptor, b"x")
    view.data[0] = 9  # of its own
    assert segment.data[0] == 7


def test_one_that_is_held_is_not_written_to(segment, view):
    other = SegmentView(segment.descriptor, *SIZES)
    assert segment.is_free(2)
    view.hold()
    other.hold()
    assert not segment.is_free(2)
    view.release()
    assert not segment.is_free(2)
    other.release()
    assert segment.is_free(2)


def test_one_for_more_or_fewer_tensors_does_not_fit(segment, view):
    for num_tensors in (1, 3):
        assert not segment.is_free(num_tensors)
        assert not view.is_of(segment.descriptor, num_tensors)


def test_a_follower_knows_its_segment_again(segment, view):
    descriptor = os.dup(segment.descriptor)
    assert view.is_of(descriptor, 2)
    os.close(descriptor)
    assert not view.is_of(Segment(*SIZES).descriptor, 2)


def test_a_view_that_is_dropped_holds_nothing(segment):
    view = SegmentView(segment.descriptor, *SIZES)
    view.hold()
    assert not segment.is_free(2)
    del view
    assert segment.is_free(2)


def test_a_killed_follower_holds_nothing(segment):
    holder = (
        "import sys, time; from sync.transport.worker.segments import SegmentView; "
        f"view = SegmentView(int(sys.argv[1]), *{SIZES}); view.hold(); print('held', flush=True); time.sleep(60)"
    )
    descriptor = os.dup(segment.descriptor)
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(descriptor)], pass_fds=[descriptor], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        assert not segment.is_free(2)
    finally:
        process.kill()
        process.communicate()
        os.close(descriptor)
    assert segment.is_free(2)


def test_a_forked_child_does_not_go_on_holding(segment, view):
    view.hold()
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        view.release()
        assert segment.is_free(2)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_it_outlives_the_leader():
    segment = Segment(*SIZES)
    segment.data.fill_(3)
    view = SegmentView(segment.descriptor, *SIZES)
    del segment
    assert view.data.tolist() == [3] * 1024


def test_memory_of_another_size_is_refused():
    descriptor, _ = create_sealed("test", 1024)
    with pytest.raises(TransferError, match="not 1042 bytes, sealed"):
        SegmentView(descriptor, *SIZES)
    os.close(descriptor)


def test_memory_that_others_can_write_to_is_refused():
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 1042)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SIZE_SEALS)
    with pytest.raises(TransferError, match="not 1042 bytes, sealed"):
        SegmentView(descriptor, *SIZES)
    os.close(descriptor)


def test_a_long_allocation_reports_its_progress():
    reported: list[int] = []
    Segment(3 * CHUNK_BYTES, 0, reported.append)
    assert reported == [CHUNK_BYTES, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES]


def test_an_allocation_whose_report_fails_leaves_no_descriptor():
    def fail(num_bytes: int) -> None:
        raise TransferError("the trainer is gone")

    before = psutil.Process().num_fds()
    with pytest.raises(TransferError, match="the trainer is gone"):
        Segment(1024, 0, fail)
    assert psutil.Process().num_fds() == before


def test_too_little_memory_says_what_helps(monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(TransferError, match=r"no memory for 2 MB .*Cannot allocate memory.*keep_previous=False"):
        Segment(2_000_000, 1)


def test_an_update_of_nothing():
    empty = Segment(0, 0)
    empty.write_report(Findings([], []))
    view = SegmentView(empty.descriptor, 0, 0)
    assert (len(view.data), view.findings()) == (0, Findings([], []))
