"""A gloo trainer whose pushes all go through one client, from a source that a test may replace."""

from typing import Any

from sync.transport.progress import Progress
from sync.transport.trainer.gloo_trainer import GlooTrainer, GlooTrainerInitInfo
from sync.weights.weight_source import WeightSource


class DrivenTrainer(GlooTrainer):
    def __init__(self, init_info: GlooTrainerInitInfo, client: Any, source: WeightSource) -> None:
        super().__init__(init_info, client)
        self.client = client
        self.source = source
        self.progress: Progress | None = None

    def push(self) -> None:
        self.send_weights(self.client, self.source, self.progress)
