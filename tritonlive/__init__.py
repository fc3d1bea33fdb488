"""Serve a language model on NVIDIA Triton, speak the OpenAI API, and replace its weights while it serves.

A trainer needs two classes and the errors they raise:

    from tritonlive import Rollouts, WeightSync

    with WeightSync("http://127.0.0.1:9000", backend="gloo", control_key=key) as client:
        report = client.push(model, version="step-100")
    with Rollouts("grpc://127.0.0.1:8001") as rollouts:
        batch = rollouts.generate(prompts, n=8, max_tokens=64)

The public names are those of `sync.__all__`, and `__version__`. They are looked up on first use, so importing this
package imports neither torch nor numpy nor `sync`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tritonlive.version import __version__ as __version__

if TYPE_CHECKING:
    from sync import *  # noqa: F403 - one list of public names, the one in sync


def __getattr__(name: str) -> Any:
    """Looks up a public name in `sync`. `from tritonlive import *` asks for `__all__` here, too."""
    if name == "__all__":
        return __dir__()
    # Every public name is a class. Names of submodules also arrive here, and must not import `sync`.
    if name[:1].isupper() and name in (sync := import_module("sync")).__all__:
        return getattr(sync, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return [*import_module("sync").__all__, "__version__"]
