"""`python -m bench.fast_path.frontend PARTS …`: a front end without some parts of its fast path.

PARTS: comma separated, or `-` for none. The other arguments are the front end's own.
"""

import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from openai_frontend import __main__, app
from openai_frontend.streaming import weight_spans
from openai_frontend.streaming.weight_spans import fields, label


async def plain(
    items: AsyncIterator[Any],
    result_of: Callable[[Any], Any],
    build: Callable[[Any], AsyncGenerator[str, None]],
    **_: Any,
) -> AsyncGenerator[str, None]:
    """What vLLM's generator makes, with the spans of the choices that end."""
    ended: dict[int, Any] = {}

    async def noted() -> AsyncIterator[Any]:
        async for item in items:
            first, result = result_of(item)
            for each in result.outputs:
                if each.finish_reason is not None:
                    ended[first + each.index] = fields(result, each)
            yield item

    events = build(noted())
    try:
        async for event in events:
            yield label(event, ended) if ended else event
    finally:
        await events.aclose()


def never(*_: Any, **__: Any) -> bool:
    return False


PARTS: dict[str, list[tuple[Any, str, Any]]] = {
    "shortcut": [(app, "is_transparent", never)],
    "stamps": [(weight_spans, "is_text_only", never)],
    "stamped": [(weight_spans, "stamped", plain)],
    "short_prompts": [(app, "render_short_prompts_at_once", never)],
    "put_first": [(app, "put_first", never)],
}

if __name__ == "__main__":
    for part in sys.argv.pop(1).split(","):
        for owner, name, replacement in PARTS.get(part, []):
            setattr(owner, name, replacement)
    sys.exit(__main__.main())
