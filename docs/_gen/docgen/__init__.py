"""Makes the reference pages from the code."""
