"""All metrics of the model on Triton's /metrics, and what each publishes."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import cycle, islice

from vllm.version import __version__ as vllm_version

from tritonlive.version import __version__
from tritonlive.wire.tensor_names import MODEL

from .generation_statistics import GENERATION_DESCRIPTIONS, GenerationStatistics
from .histograms import TritonHistogram
from .metrics import (
    BUILD_DESCRIPTIONS,
    DESCRIPTIONS,
    SENDING_DESCRIPTIONS,
    WEIGHT_DESCRIPTIONS,
    LabelledCounters,
    SendingStatistics,
    Statistics,
    TritonMetrics,
)
from .weights.history import WeightStatistics

# Each bucket that grew is a message to Triton, for which tokens wait. So the histograms take turns.
HISTOGRAMS_AT_ONCE = 2


class ModelMetrics:
    """Metrics with the labels of Triton's vllm_backend, model and version. Made while Triton loads the model."""

    def __init__(self, model_version: str) -> None:
        """model_version: Triton's name for the model's version."""
        self._labels = {"model": MODEL, "version": model_version}
        self._engine = TritonMetrics("vllm:", DESCRIPTIONS, self._labels)
        self._own = TritonMetrics("tritonlive_", SENDING_DESCRIPTIONS | WEIGHT_DESCRIPTIONS, self._labels)
        self._histograms: dict[str, TritonHistogram] = {}
        self._due: Iterator[str] = iter(())
        self._ended: LabelledCounters | None = None
        versions = {"version": __version__, "vllm_version": vllm_version}
        self._build = TritonMetrics("tritonlive_", BUILD_DESCRIPTIONS, versions)

    def register(self, generations: GenerationStatistics) -> None:
        """Register the generations' metrics: their buckets depend on the engine, which has started by now."""
        self._ended = LabelledCounters(
            "vllm:request_success_total",
            "Ended generations by reason.",
            self._labels,
            "finished_reason",
            generations.num_ended,
        )
        for name, histogram in generations.histograms.items():
            description = GENERATION_DESCRIPTIONS[name]
            self._histograms[name] = TritonHistogram(f"vllm:{name}", description, self._labels, histogram.les)
        self._due = cycle(self._histograms)

    def publication(
        self,
        engine: Statistics,
        sending: SendingStatistics,
        weights: WeightStatistics,
        generations: GenerationStatistics,
    ) -> Callable[[], None]:
        """Read all values, on the engine's loop. Returns the job that publishes them, for the writer's thread."""
        counted, own = asdict(engine), asdict(sending) | asdict(weights)
        ended = dict(generations.num_ended)
        series = {name: generations.histograms[name].series() for name in islice(self._due, HISTOGRAMS_AT_ONCE)}

        def publish() -> None:
            self._build.publish({"build_info": 1})
            self._engine.publish(counted)
            self._own.publish(own)
            if self._ended is not None:
                self._ended.publish(ended)
            for name, values in series.items():
                self._histograms[name].publish(values)

        return publish
