"""Exit statuses of the bridge's process."""

CANNOT_SERVE = 2
"""Another start would end alike."""
