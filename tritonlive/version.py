"""The version, in a module of its own: the package's root leads to `sync`, which servers do not import."""

__version__ = "0.2.0"
