"""The keys of a front end, and what each of them allows."""

import base64
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum

from starlette.datastructures import Headers

from tritonlive.wire.keys import matches


class Access(Enum):
    OPEN = "open"
    INFERENCE = "inference"
    CONTROL = "control"


@dataclass(frozen=True)
class Keys:
    """`inference`: keys for generation; if empty, no key is needed. `control`: the key for all weight operations."""

    inference: Collection[str] = field(default=(), repr=False)
    control: str | None = field(default=None, repr=False)

    @property
    def for_triton(self) -> str | None:
        """The key that this front end shows the model, which accepts both kinds; None if it has none."""
        return self.control or next(iter(self.inference), None)

    def refusal(self, access: Access, headers: Headers) -> tuple[int, str] | None:
        """None if `headers` have the required key, else (HTTP status, message)."""
        if access is Access.OPEN:
            return None
        key = presented_key(headers)
        is_control = self.control is not None and matches(key, [self.control])
        if access is Access.CONTROL:
            if self.control is None:
                return 403, "control is off: the server was started without a control key (--control-key)"
            if is_control:
                return None
            if key is not None and matches(key, self.inference):
                return 403, "this route needs the control key; an inference key is not enough"
            return 401, "this route needs the control key, as 'Authorization: Bearer KEY' or as Basic's password"
        if not self.inference or is_control or matches(key, self.inference):
            return None
        return 401, "missing or wrong API key; send it as 'Authorization: Bearer KEY'"


def presented_key(headers: Headers) -> str | None:
    """The Bearer token, or the password of Basic, for trainers that put keys into URLs (http://user:key@host).

    Without `Authorization` it is `x-api-key`, which Anthropic's SDK sends.
    """
    authorization = headers.get("authorization")
    if authorization is None:
        return headers.get("x-api-key")
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except ValueError:  # no base64, or no UTF-8 in it
            return None
    return None
