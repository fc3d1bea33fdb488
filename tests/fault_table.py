"""The fault list (docs/faults.md) as a table at the end of a run: one line for each row that was run."""

import pytest

PROPERTY = "row"


def note_rows(item: pytest.Item, report: pytest.TestReport) -> None:
    """Put the rows of a test's marks into its report, which pytest-xdist carries to the process that prints."""
    report.user_properties += [(PROPERTY, number) for mark in item.iter_markers("row") for number in mark.args]


def write_table(reporter: pytest.TerminalReporter) -> None:
    """Write the table, if a row was run."""
    rows = _reports_by_row(reporter)
    if rows:
        reporter.section("fault list")
    for number, reports in sorted(rows.items()):
        bad = [report for report in reports if report.failed]
        verdict = f"{len(bad)} of {len(reports)} FAILED" if bad else f"ok ({len(reports)})"
        reporter.write_line(f"row {number:2}  {verdict:<18} {', '.join(sorted({_title(each) for each in reports}))}")


def _reports_by_row(reporter: pytest.TerminalReporter) -> dict[int, list[pytest.TestReport]]:
    rows: dict[int, list[pytest.TestReport]] = {}
    for outcome in ("passed", "failed", "error"):
        for report in reporter.getreports(outcome):
            if not isinstance(report, pytest.TestReport):
                continue  # a module that could not be collected
            for name, number in report.user_properties if report.when == "call" or report.failed else ():
                if name == PROPERTY and isinstance(number, int):
                    rows.setdefault(number, []).append(report)
    return rows


def _title(report: pytest.TestReport) -> str:
    """The test's name as words, without parameters and pytest-xdist's group."""
    name = report.nodeid.rpartition("::")[2].partition("[")[0].partition("@")[0]
    return name.removeprefix("test_").replace("_", " ")
