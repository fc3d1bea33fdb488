"""Sends the tests of a group to one process of pytest-xdist.

pytest-xdist 3.8 puts the group of a test into its node id, which pytest 9.2 no longer lets it change: its own
scheduler then takes every test for a group.
"""

from xdist.scheduler import LoadScopeScheduling

from tests.paths import group_of


class GroupScheduling(LoadScopeScheduling):
    """Groups as in tests/paths.py. The largest groups start first."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
