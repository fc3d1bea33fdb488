"""tokens/s of the way through Triton alone: the model gets an engine core that makes tokens for free."""
