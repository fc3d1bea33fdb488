import fcntl
import mmap
import os

import numpy as np
import pytest

from sync import TransferError
from sync.transport.frames import FRAME_BYTES
from sync.transport.ring import NUM_SLOTS, RING_BYTES, create_ring, map_ring


def test_what_is_written_on_one_side_is_read_on_the_other():
    descriptor, written = create_ring()
    read = map_ring(descriptor)
    assert read.shape == written.shape == (NUM_SLOTS, FRAME_BYTES)
    written[1, :4] = [1, 2, 3, 4]
    assert read[1, :5].tolist() == [1, 2, 3, 4, 0]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_nobody_else_can_write_or_shrink_it():
    descriptor, written = create_ring()
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(descriptor, 0)
    with pytest.raises(OSError, match="not permitted"):
        os.write(descriptor, b"x")
    with pytest.raises(PermissionError):
        mmap.mmap(descriptor, RING_BYTES)
    read = map_ring(descriptor)
    with pytest.raises(ValueError, match="read-only"):
        read[0, 0] = 1
    assert not written.any()


@pytest.mark.parametrize(("size", "seals"), [(RING_BYTES, 0), (RING_BYTES - 1, fcntl.F_SEAL_SHRINK)])
def test_memory_that_could_be_taken_away_is_refused(size, seals):
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    with pytest.raises(TransferError, match="not 16777216 bytes, sealed"):
        map_ring(descriptor)


def test_something_else_than_memory_is_refused():
    descriptor, other = os.pipe()
    with pytest.raises(TransferError, match="Invalid argument"):
        map_ring(descriptor)
    os.close(other)


def test_it_outlives_the_side_that_made_it():
    descriptor, written = create_ring()
    read = map_ring(descriptor)
    written[0, 0] = 7
    del written
    assert np.array_equal(read[0, :2], [7, 0])
