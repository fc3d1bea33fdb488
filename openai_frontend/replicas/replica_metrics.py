"""Metrics of each replica, in the front end's /metrics."""

from prometheus_client import REGISTRY, CollectorRegistry, Gauge

from openai_frontend.replicas.replica import Replica
from openai_frontend.replicas.replicas import Replicas


class ReplicaGauges:
    """Gauges of each replica. Of several front-end processes, `running` is the sum and `eligible` the minimum."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._running = Gauge(
            "tritonlive_replica_running",
            "Generations that this front end has running at the replica.",
            ["replica"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._eligible = Gauge(
            "tritonlive_replica_eligible",
            "1 if the replica may generate, 0 if it is excluded.",
            ["replica"],
            registry=registry,
            multiprocess_mode="livemin",
        )

    def publish(self, replicas: Replicas[Replica]) -> None:
        for replica in replicas.members:
            self._running.labels(replica.url).set(replica.num_running)
            self._eligible.labels(replica.url).set(replicas.why_left_out(replica) is None)
