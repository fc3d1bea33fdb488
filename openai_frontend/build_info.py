"""The metric with the versions of tritonlive and vLLM."""

from prometheus_client import REGISTRY, CollectorRegistry, Gauge

from openai_frontend.vllm_seam import vllm_version
from tritonlive.version import __version__


def publish_build_info(registry: CollectorRegistry = REGISTRY) -> None:
    """Add the metric to this process's metrics."""
    build_info = Gauge(
        "tritonlive_build_info",
        "Always 1; the labels are the versions of tritonlive and vLLM.",
        ["version", "vllm_version"],
        registry=registry,
        multiprocess_mode="livemax",
    )
    build_info.labels(__version__, vllm_version).set(1)
