"""Keys: how a list of them is written, and how a shown key is compared with those that are accepted."""

import hashlib
import hmac
from collections.abc import Iterable


def split_keys(text: str | None) -> tuple[str, ...]:
    """The keys in "KEY,KEY", each once, in their order; none for None and for an empty text."""
    keys = (key.strip() for key in (text or "").split(","))
    return tuple(dict.fromkeys(key for key in keys if key))


def matches(key: str | None, accepted: Iterable[str]) -> bool:
    """Whether `key` is one of `accepted`. Compares digests, so the time does not depend on the accepted keys."""
    if key is None:
        return False
    digest = _digest(key)
    found = False
    for candidate in accepted:
        found |= hmac.compare_digest(digest, _digest(candidate))
    return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()
