"""Counts how often the sequences reached each state of a replica, and each transition."""

from collections import Counter

REQUIRED = 20
STATES = ("serving", "updating", "dirty", "fenced", "paused", "restarting")
Edge = tuple[str, str, str]
# From, by what, to.
EDGES: tuple[Edge, ...] = (
    ("serving", "start", "updating"),
    ("paused", "start", "updating"),
    ("dirty", "start", "updating"),
    ("fenced", "start", "updating"),
    ("updating", "committed", "serving"),
    ("updating", "committed", "paused"),
    ("updating", "unchanged", "serving"),
    ("updating", "prepare failed", "serving"),
    ("updating", "commit failed", "dirty"),
    ("updating", "commit failed", "serving"),
    ("updating", "abort", "serving"),
    ("updating", "abort", "dirty"),
    ("updating", "abort", "fenced"),
    ("updating", "fence", "fenced"),
    ("updating", "trainer gone", "serving"),
    ("serving", "rollback", "serving"),
    ("dirty", "rollback", "serving"),
    ("fenced", "rollback", "serving"),
    ("serving", "rollback failed", "dirty"),
    ("serving", "reload", "serving"),
    ("dirty", "reload", "serving"),
    ("fenced", "reload", "serving"),
    ("serving", "reload failed", "dirty"),
    ("serving", "reset", "dirty"),
    ("serving", "sleep", "dirty"),
    ("serving", "fence", "fenced"),
    ("serving", "pause", "paused"),
    ("paused", "resume", "serving"),
    ("serving", "engine died", "restarting"),
    ("updating", "engine died", "restarting"),
    ("dirty", "engine died", "restarting"),
    ("fenced", "engine died", "restarting"),
    ("restarting", "engine started", "serving"),
    ("restarting", "engine started", "fenced"),
)


class Coverage:
    """Counts over all sequences."""

    def __init__(self) -> None:
        self.states: Counter[str] = Counter()
        self.edges: Counter[Edge] = Counter()
        self.errors: Counter[str] = Counter()
        self.sequences = 0
        self.steps = 0

    def enter(self, before: str, cause: str, after: str) -> None:
        self.edges[before, cause, after] += 1
        if before != after:
            self.states[after] += 1

    def missed(self, required: int = REQUIRED) -> list[str]:
        """States and edges that were reached less than `required` times."""
        states = [f"{state}: {self.states[state]}" for state in STATES if self.states[state] < required]
        edges = [f"{describe(edge)}: {self.edges[edge]}" for edge in EDGES if self.edges[edge] < required]
        return states + edges

    def report(self) -> str:
        lines = [f"sequences {self.sequences}, steps {self.steps}"]
        lines += [f"  state {state:<12}{self.states[state]:>6}" for state in STATES]
        lines += [f"  edge  {describe(edge):<44}{self.edges[edge]:>6}" for edge in EDGES]
        others = {edge: count for edge, count in self.edges.items() if edge not in EDGES and edge[0] != edge[2]}
        lines += [f"  also  {describe(edge):<44}{count:>6}" for edge, count in sorted(others.items())]
        lines += [f"  error {name:<44}{count:>6}" for name, count in sorted(self.errors.items())]
        return "\n".join(lines)


def describe(edge: Edge) -> str:
    before, cause, after = edge
    return f"{before} --{cause}--> {after}"
