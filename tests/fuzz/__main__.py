"""`python -m tests.fuzz --url http://127.0.0.1:9000`: random requests at a running front end."""

import asyncio
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from .requests import Requests
from .runner import Findings, run

app = typer.Typer(add_completion=False)
console = Console(soft_wrap=True)


@app.command()
def fuzz(
    url: Annotated[str, typer.Option(help="The front end.")] = "http://127.0.0.1:9000",
    key: Annotated[
        str | None,
        typer.Option(
            envvar="TRITONLIVE_API_KEY", help="Inference key. Without the control key, control routes refuse."
        ),
    ] = None,
    seed: int = 0,
    count: Annotated[int, typer.Option(min=1)] = 5000,
    only: Annotated[
        list[int] | None, typer.Option(help="Send only the request of this number; may be repeated.")
    ] = None,
    show: Annotated[int | None, typer.Option(help="Print the request of this number and send nothing.")] = None,
    concurrency: Annotated[int, typer.Option(min=1)] = 8,
    log: Annotated[
        list[Path] | None, typer.Option(exists=True, help="Log to search for tracebacks; may be repeated.")
    ] = None,
) -> None:
    """Send random requests made from /openapi.json. Fail on a 5xx but 501 and 503, a lost connection, a traceback."""
    if show is not None:
        document = httpx.get(f"{url}/openapi.json").raise_for_status().json()
        request = Requests(document, "MODEL", seed).make(show)
        console.print(request.route.name, request.path, request.params, request.content_type, markup=False)
        console.print((request.content or b"").decode(errors="replace"), markup=False)
        return
    total = len(only) if only else count
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("requests", total=total)
        findings = asyncio.run(
            run(
                url,
                key=key,
                seed=seed,
                numbers=only or range(count),
                concurrency=concurrency,
                logs=log or [],
                progress=lambda: progress.advance(task),
            )
        )
    report(findings)
    raise typer.Exit(0 if findings.is_clean else 1)


def report(findings: Findings) -> None:
    """Print the counts by route and status, and every fault."""
    routes: dict[str, Counter[str]] = defaultdict(Counter)
    for (route, status), times in findings.statuses.items():
        routes[route][status] += times
    statuses = sorted({status for _, status in findings.statuses})
    table = Table("route", *statuses, box=None)
    for route in sorted(routes):
        table.add_row(route, *(str(routes[route][status] or "") for status in statuses))
    sums = [str(sum(counts[status] for counts in routes.values())) for status in statuses]
    table.add_row("all", *sums)
    console.print(table)
    for fault in findings.faults:
        console.print(json.dumps(fault), markup=False, highlight=False)
    console.print(f"faults: {len(findings.faults)}, tracebacks in the logs: {findings.tracebacks}")


if __name__ == "__main__":
    app()
