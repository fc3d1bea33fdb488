"""Addresses of replicas."""

from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from sync.errors import TargetError
from tritonlive.wire.ports import FRONT_END_PORT, TRITON_GRPC_PORT

DEFAULT_PORTS = {"http": FRONT_END_PORT, "https": 443, "grpc": TRITON_GRPC_PORT, "grpcs": TRITON_GRPC_PORT}


@dataclass(frozen=True)
class Target:
    """One replica's address, and the key to show there: the control key, or for `Rollouts` an inference key.

    `http(s)://host:9000` is a front end, `grpc(s)://host:8001` is a Triton server.
    """

    scheme: str
    host: str
    port: int
    path: str = ""
    key: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, address: str, key: str | None = None) -> "Target":
        """Read an address. A key in it (`http://user:key@host`) wins over `key`.

        Raises TargetError, whose message never contains the key.
        """
        parts = urlsplit(address if "://" in address else f"http://{address}")
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        if parts.scheme not in DEFAULT_PORTS:
            raise TargetError(f"target {shown}: the scheme must be one of {', '.join(DEFAULT_PORTS)}")
        try:
            port = parts.port
        except ValueError:
            raise TargetError(f"target {shown}: the port must be a number from 1 to 65535") from None
        if not parts.hostname:
            raise TargetError(f"target {shown}: has no host; write for example http://127.0.0.1:9000")
        own_key = parts.password or parts.username
        return cls(
            parts.scheme,
            parts.hostname,
            port or DEFAULT_PORTS[parts.scheme],
            parts.path.rstrip("/"),
            unquote(own_key) if own_key else key,
        )

    @property
    def is_grpc(self) -> bool:
        return self.scheme in ("grpc", "grpcs")

    @property
    def is_secure(self) -> bool:
        return self.scheme in ("https", "grpcs")

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"
