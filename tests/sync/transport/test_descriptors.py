"""Enough file descriptors for a group, or an error that says how many are needed."""

import json
import subprocess
import sys

import pytest

from sync.transport.descriptors import gloo_descriptors
from sync.transport.gloo import MAX_CONNECTIONS, devices_for

SCRIPT = """
import json, os, resource, sys
from sync.transport.descriptors import SPARE, ensure_descriptors
from sync.errors import TransferError
soft, hard, needed = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
try:
    ensure_descriptors(needed, "a gloo group of 9 members")
    message = ""
except TransferError as error:
    message = str(error)
print(json.dumps([message, resource.getrlimit(resource.RLIMIT_NOFILE)[0]]))
"""


def ensure(soft: int, hard: int, needed: int) -> tuple[str, int]:
    command = [sys.executable, "-c", SCRIPT, str(soft), str(hard), str(needed)]
    message, limit = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return message, limit


def test_a_limit_that_does_is_left_alone():
    assert ensure(256, 512, 100) == ("", 256)


def test_the_soft_limit_is_raised_to_the_hard_one_when_needed():
    assert ensure(128, 512, 200) == ("", 512)


def test_too_low_a_hard_limit_is_named_with_what_is_needed():
    message, limit = ensure(128, 256, 1000)
    assert limit == 128
    assert message.startswith("a gloo group of 9 members needs 1000 file descriptors, 10")
    assert "the limit is 256" in message
    total = int(message.rpartition("ulimit -n ")[2])
    assert ensure(128, total, 1000)[0] == ""


@pytest.mark.parametrize("world_size", [2, 3, 9, 65, 129, 257, 1025])
def test_large_groups_have_fewer_devices(world_size):
    devices = devices_for(world_size)
    assert 1 <= devices <= 4
    assert gloo_descriptors(world_size, devices) <= max(MAX_CONNECTIONS, world_size) + 4 * devices
