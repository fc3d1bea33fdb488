"""The MkDocs hook: puts what is made from the code in place of `<!-- generated: NAME -->`."""

import re
from typing import Any

from docgen import benchmark, contract, front_ends, metrics, options, parity, python_api, routes

from tritonlive.wire import reference

GENERATORS = {
    "benchmark": benchmark.benchmark_table,
    "front-ends": front_ends.front_ends_systems,
    "front-ends-targets": front_ends.front_ends_targets,
    "errors": python_api.errors_table,
    "metrics": metrics.metrics_table,
    "operations": reference.operations_markdown,
    "options": options.options_sections,
    "parity": parity.justified_table,
    "parity-rust": parity.rust_table,
    "python": python_api.python_api,
    "routes": routes.routes_table,
    "tensors": contract.tensor_contract,
}
MARKER = re.compile(r"<!-- generated: (.+?) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Raises KeyError for a marker that nothing here makes."""
    return MARKER.sub(lambda match: GENERATORS[match[1]](), markdown)
