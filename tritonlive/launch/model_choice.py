"""Which model a stack serves: the one named, or the default one."""

from dataclasses import replace

from . import dtype
from .config import StackConfig, resolved
from .default_model import NAME, default_model


def with_model(config: StackConfig) -> StackConfig:
    """`config` with the default model where none is named, and with a local path made absolute.

    Raises LaunchError if a path does not exist.
    """
    if not config.model:
        # The first two candidates of its answer to a well-known question are so close that bfloat16's rounding decides.
        chosen = () if dtype.is_named(config.extra_args) else dtype.FLOAT32
        return replace(
            config,
            model=str(default_model(config.cache_dir)),
            served_model_name=config.served_model_name or NAME,
            extra_args=(*chosen, *config.extra_args),
        )
    return replace(config, model=resolved(config.model))
