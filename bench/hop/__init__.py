"""Measures tokens/s through Triton alone: the model's engine core makes tokens without computing them."""
