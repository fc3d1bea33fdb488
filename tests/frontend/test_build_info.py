"""The metric with the versions."""

from prometheus_client import CollectorRegistry

import tritonlive
from openai_frontend.build_info import publish_build_info
from openai_frontend.vllm_seam import vllm_version


def test_the_metric_names_both_versions() -> None:
    registry = CollectorRegistry()
    publish_build_info(registry)
    labels = {"version": tritonlive.__version__, "vllm_version": vllm_version}
    assert registry.get_sample_value("tritonlive_build_info", labels) == 1
