"""Every metric that this project defines, read from the code that registers it."""

import ast
from dataclasses import dataclass

from docgen import source, tables

MODEL, FRONT_END = "Triton", "front end"
COLLECTORS = ("Counter", "Gauge", "Histogram", "Summary")


@dataclass(frozen=True)
class Metric:
    name: str
    kind: str
    where: str
    """Whose /metrics has it."""
    description: str


def metrics() -> list[Metric]:
    return [*_of_the_model(), *_of_the_front_end()]


def metrics_table() -> str:
    rows = [(tables.code(each.name), each.kind, each.where, each.description) for each in metrics()]
    return tables.table(("metric", "kind", "where", "meaning"), rows)


def _of_the_model() -> list[Metric]:
    """From calls TritonMetrics(prefix, A | B), where A and B are dictionaries name → description, and the like."""
    backend = source.modules("tritonlive/backend")
    descriptions = {
        name: {module.text(key): module.text(text) for key, text in zip(value.keys, value.values, strict=True) if key}
        for module in backend
        for name, value in module.constants.items()
        if isinstance(value, ast.Dict) and name.endswith("DESCRIPTIONS")
    }
    found = []
    for module in backend:
        for call in module.calls("TritonMetrics"):
            if not isinstance(call.args[0], ast.Constant):
                continue  # the parts of a histogram
            prefix = module.text(call.args[0])
            names = [node.id for node in ast.walk(call.args[1]) if isinstance(node, ast.Name)]
            for name, text in (item for each in names for item in descriptions[each].items()):
                kind = "counter" if name.endswith("_total") else "gauge"
                found.append(Metric(f"{prefix}{name}", kind, MODEL, text))
        named = (call for call in module.calls("LabelledCounters") if isinstance(call.args[0], ast.Constant))
        found += [Metric(module.text(call.args[0]), "counter", MODEL, module.text(call.args[1])) for call in named]
    generations = descriptions["GENERATION_DESCRIPTIONS"].items()
    return [*found, *(Metric(f"vllm:{name}", "histogram", MODEL, text) for name, text in generations)]


def _of_the_front_end() -> list[Metric]:
    """From prometheus_client's collectors; the model has Triton's metrics instead."""
    return [
        Metric(module.text(call.args[0]), _kind(call), FRONT_END, module.text(call.args[1]))
        for module in source.modules()
        if module.imports_from("prometheus_client")
        for call in module.calls(*COLLECTORS)
    ]


def _kind(call: ast.Call) -> str:
    assert isinstance(call.func, ast.Name)  # noqa: S101 - Module.calls yields no other
    return call.func.id.lower()
