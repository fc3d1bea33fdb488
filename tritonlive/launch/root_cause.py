"""Why a process of the stack has ended: the line of its log that says it.

A log of a failed start has hundreds of lines: tracebacks of three processes, of which the later ones only say that an
earlier one has failed, and Triton's table of its options at the end.
"""

import re

FRONT_END = "openai_frontend: "
"""How the front end's own lines begin."""
PREFIX = re.compile(r"^(?:\(\w+(?: pid=\d+)?\) )*(?:(?:ERROR|CRITICAL) [\d:. -]+\[[^\]]+\] )?")
"""What vLLM's loggers put before a line: the process, the level, the time, the place."""
EXCEPTION = re.compile(
    r"^(?:\w+\.)*[A-Z]\w*(?:Error|Exception|Died|Exit|Interrupt|Warning)\b(?:: .*)?$|^Exception: .*$"
)
SECONDHAND = re.compile(
    r"[Ss]ee root cause above|[Ss]ee stack trace (?:above )?for (?:the )?root cause|Engine core initialization failed"
    r"|EngineDeadError|SystemExit|KeyboardInterrupt|CancelledError|BrokenPipeError|ConnectionResetError"
)
"""Exceptions that report another one, or that come from the end of the process."""
TRITON_STUB = re.compile(r'Failed to initialize Python stub: (.*?)(?:\\n\\nAt:.*)?"?$')
TRITON_ERROR = re.compile(r"^(?:error: |E\d{4} [\d:.]+ \d+ [\w.]+:\d+\] )\"?(.*?)\"?$")
MAX_LINES = 12


def find(log: str) -> str | None:
    """The first cause in the text of a log: an exception's last line, with what belongs to it; None if it has none."""
    lines = [PREFIX.sub("", line) for line in log.splitlines()]
    return _from_front_end(lines) or _from_exceptions(lines) or _from_triton(lines)


def _from_front_end(lines: list[str]) -> str | None:
    """What the front end said last, which is why it ended."""
    starts = [number for number, line in enumerate(lines) if line.startswith(FRONT_END)]
    if not starts or any(EXCEPTION.match(line) for line in lines[starts[-1] + 1 :]):
        return None
    return "\n".join(lines[starts[-1] :][:MAX_LINES]).removeprefix(FRONT_END)


def _from_exceptions(lines: list[str]) -> str | None:
    """The last exception before those that only report it."""
    found = None
    for number, line in enumerate(lines):
        if not EXCEPTION.match(line):
            continue
        if not SECONDHAND.search(line):
            found = number
        elif found is not None:
            break
    return None if found is None else _with_its_lines(lines, found)


def _with_its_lines(lines: list[str], number: int) -> str:
    """The exception's line, and the further lines of its message."""
    message = [lines[number]]
    for line in lines[number + 1 :][: MAX_LINES - 1]:
        if not line.startswith((" ", "\t")) or line.lstrip().startswith('File "'):
            break
        message.append(line)
    return _readable("\n".join(message))


def _from_triton(lines: list[str]) -> str | None:
    """What Triton quotes of its Python stub's end, else its own last error."""
    for line in lines:
        if quoted := TRITON_STUB.search(line):
            return _readable(quoted[1].replace("\\n", "\n"))
    errors = [match[1] for line in lines if (match := TRITON_ERROR.match(line))]
    return errors[-1] if errors else None


def _readable(message: str) -> str:
    """Without pydantic's heading and trailer."""
    lines = message.partition(" [type=")[0].strip().splitlines()
    if len(lines) > 1 and "validation error" in lines[0]:
        lines = [line.strip() for line in lines[1:]]
    return "\n".join(lines).removeprefix("Value error, ")
