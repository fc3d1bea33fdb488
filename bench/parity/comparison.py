"""The two comparisons: which systems, which requests, and which differences stay."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.parity.profiles import COMMON, PROFILES, RUST_PROFILES
from bench.parity.shape import Profile, Shape
from bench.parity.shapes import all_shapes
from bench.parity.shapes.rust import rust_shapes

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Comparison:
    """A front end of ours against vLLM's own of the same kind."""

    left: str
    """The reference, by its name in `bench.systems`."""
    right: str
    """The system under test."""
    shapes: Callable[[], list[Shape]]
    profiles: dict[Profile, tuple[str, ...]]
    """The servers that the shapes need, with their arguments."""
    justified: Path
    """The differences that stay."""

    def server_args(self, profile: Profile) -> tuple[str, ...]:
        """vLLM arguments of the profile's server, without model, name and address."""
        return (*COMMON, *self.profiles[profile])


FASTAPI = Comparison("vllm", "tritonlive", all_shapes, PROFILES, HERE / "justified.toml")
RUST = Comparison("vllm-rust", "tritonlive-rust", rust_shapes, RUST_PROFILES, HERE / "justified-rust.toml")


def comparison(rust: bool) -> Comparison:
    """The comparison of the Rust front ends, or of the Python ones."""
    return RUST if rust else FASTAPI
