"""Which model a stack serves: the one named, or the default one."""

from dataclasses import replace
from pathlib import Path

from . import dtype
from .config import StackConfig, resolved
from .default_model import NAME, default_model
from .errors import LaunchError

CONFIGURATIONS = ("config.json", "params.json")
"""Hugging Face's and Mistral's."""
CONFIG_OPTION = "--hf-config-path"


def with_model(config: StackConfig) -> StackConfig:
    """`config` with the default model where none is named, and with a local path made absolute.

    Raises LaunchError if a path does not exist, or has no model's configuration.
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
    chosen = replace(config, model=resolved(config.model))
    _require_configuration(chosen)
    return chosen


def _require_configuration(config: StackConfig) -> None:
    """Raise LaunchError if the model's folder cannot be one."""
    folder = Path(config.model)
    is_elsewhere = any(word.replace("_", "-").startswith(CONFIG_OPTION) for word in config.extra_args)
    if folder.is_dir() and not is_elsewhere and not any((folder / name).is_file() for name in CONFIGURATIONS):
        raise LaunchError(f"--model {folder}: it has no {' or '.join(CONFIGURATIONS)}, so it is no model's folder")
