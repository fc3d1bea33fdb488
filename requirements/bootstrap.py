"""Build the virtual environment from the exact lock, with the standard library only.

    python3 requirements/bootstrap.py --venv .venv

`make` runs it with any Python from 3.8; the script finds a suitable Python 3.11. A current environment stays as it is,
an outdated one is updated, and a broken one is rebuilt.

pip installs uv, and uv installs everything else, because uv is several times faster and reports its downloads. uv gets
pip's settings.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Dict, List, NoReturn, Optional

WANTED = "3.11"
ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("cpu.txt", "dev.txt")
INPUTS = ("pyproject.toml", *(f"requirements/{lock}" for lock in LOCKS), "requirements/bootstrap.py")
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# Measured with `du -s --si .venv` after a set-up, rounded up.
VENV_MB = 3600
SPARE_MB = 1000
ON_TERMINAL_S = 0.5
IN_A_LOG_S = 10.0
DOWNLOAD = re.compile(r"^\s*(Downloading|Downloaded) (\S+)(?: \(([\d.]+)([KMG])iB\))?")
MEBI = {"K": 1 / 1024, "M": 1.0, "G": 1024.0}
# pip's name of each setting, and uv's environment variable for it.
PIP_TO_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
}
PROBE = """
import importlib.util, json, pathlib, sys, sysconfig
lib = pathlib.Path(sysconfig.get_config_var("LIBDIR") or "/", sysconfig.get_config_var("INSTSONAME") or "none")
print(json.dumps({
    "executable": sys.executable,
    "version": "%d.%d" % sys.version_info[:2],
    "libpython": lib.is_file() and ".so" in lib.name,
    "venv": all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")),
}))
"""


def fail(message: str) -> NoReturn:
    """End with a message on stderr."""
    sys.exit(f"\ntritonlive: {message}")


def say(text: str, end: str = "\n") -> None:
    """Print a line to stderr. With end="" the next line replaces it, and only a terminal shows it."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        text = "\r" + (text if end else text[:width]).ljust(width)
    elif not end:
        return
    sys.stderr.write(text + end)
    sys.stderr.flush()


def probe(python: str) -> Optional[Dict[str, object]]:
    """Facts about an interpreter; None if it does not run."""
    try:
        answer = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, timeout=60, check=True)
        return json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def find_python() -> str:
    """Find a Python 3.11 with its shared library and venv. If there is none, end and name the package to install."""
    names = [os.environ.get("PYTHON") or "", f"python{WANTED}", f"/usr/bin/python{WANTED}", sys.executable, "python3"]
    problem = f"python{WANTED} not found"
    package = f"python{WANTED} python{WANTED}-venv libpython{WANTED}"
    for name in filter(None, names):
        facts = probe(name)
        if facts is None or facts["version"] != WANTED:
            continue
        if not facts["libpython"]:
            problem, package = f"{facts['executable']} has no shared libpython{WANTED}.so", f"libpython{WANTED}"
        elif not facts["venv"]:
            problem, package = f"{facts['executable']} cannot make virtual environments", f"python{WANTED}-venv"
        else:
            return str(facts["executable"])
    fail(f"{problem}. On Debian or Ubuntu: apt-get install {package}\nOr name another one: make PYTHON=/path/to/python")


def fingerprint(python: str) -> str:
    """Digest of the environment's inputs and of the interpreter."""
    digest = hashlib.sha256(str(Path(python).resolve()).encode())
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def require_disk(venv: Path) -> None:
    """Print the disk space of the set-up; end if a disk has too little."""
    needed_mb = SPARE_MB if venv.exists() else VENV_MB + SPARE_MB  # an update replaces few packages
    cache = Path(os.environ.get("UV_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser())
    # uv links the files in its cache into the environment; on another disk they are copied.
    places = {place.stat().st_dev: place for place in (existing(cache), existing(venv.parent))}
    for place in places.values():
        free_mb = shutil.disk_usage(place).free // 10**6
        say(f"{place}: takes about {VENV_MB / 1000:.1f} GB on disk, {free_mb / 1000:.1f} GB are free")
        if free_mb < needed_mb:
            fail(
                f"the disk of {place} has {free_mb / 1000:.1f} GB free, and the set-up needs {needed_mb / 1000:.1f} GB"
                ": free some, or use another disk (for the sources; for downloads UV_CACHE_DIR names one)"
            )


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def make_venv(python: str, venv: Path) -> None:
    """Create the environment unless one of the right version exists."""
    facts = probe(str(venv / "bin" / "python"))
    if facts and facts["version"] == WANTED and facts["libpython"]:
        return
    if venv.exists():
        say(f"  {venv.name} cannot be used (another or a removed Python): building it anew")
        shutil.rmtree(venv)
    subprocess.run([python, "-m", "venv", str(venv)], check=True)


def pinned(lock: str) -> List[str]:
    """The requirements of a lock, one per package."""
    lines = (ROOT / "requirements" / lock).read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def pip_settings(listing: str) -> Dict[str, str]:
    """Convert the output of `pip config list` to variables for uv, because uv does not read pip's configuration."""
    env = {}
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        # pip lists the environment after the files, and the environment takes precedence.
        if variable := PIP_TO_UV.get(key.rpartition(".")[2]):
            separator = "," if variable == "UV_FIND_LINKS" else " "
            env[variable] = separator.join(value.strip("'").replace("\\n", " ").split())
    return env


def uv_environment(python: str) -> Dict[str, str]:
    """Environment variables with which uv uses pip's indexes, links, certificates and proxy."""
    command = [python, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {**pip_settings(listing), **os.environ}


class Progress:
    """Shows the downloads: a live line on a terminal, else a line every ten seconds."""

    def __init__(self, venv: Path) -> None:
        self._venv = venv
        self._began = time.monotonic()
        self._used_before = shutil.disk_usage(venv).used
        self._running: Dict[str, float] = {}
        self._phase = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def read(self, line: str) -> None:
        """Update the state from a line that uv printed."""
        if found := DOWNLOAD.match(line):
            word, name, size, unit = found.groups()
            if word == "Downloading":
                self._running[name] = float(size or 0) * MEBI.get(unit or "M", 1.0)
            else:
                self._running.pop(name, None)
        elif line.startswith(("Resolved", "Prepared", "Installed")):
            self._phase = line.strip()

    def text(self) -> str:
        """The state in one line: bytes written to the disk since the start, and the running downloads."""
        written = max(0, shutil.disk_usage(self._venv).used - self._used_before) / 1e9
        seconds = time.monotonic() - self._began
        parts = [f"  {seconds:.0f} s", f"{written:.1f} of about {VENV_MB / 1000:.1f} GB on disk"]
        running = sorted(self._running.copy().items(), key=lambda item: -item[1])
        if running:
            parts.append("downloading " + ", ".join(f"{name} ({size:.0f} MB)" for name, size in running[:3]))
        elif self._phase:
            parts.append(self._phase)
        return " · ".join(parts)

    def _repeat(self) -> None:
        is_terminal = sys.stderr.isatty()
        while not self._ended.wait(ON_TERMINAL_S if is_terminal else IN_A_LOG_S):
            say(self.text(), end="" if is_terminal else "\n")


def run(command: List[str], env: Optional[Dict[str, str]] = None, progress: Optional[Progress] = None) -> Optional[str]:
    """Run an installer; None if it worked, else its last lines."""
    lines: List[str] = []
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    ) as child:
        for raw in child.stdout or ():
            lines.append(raw.rstrip())
            if progress:
                progress.read(raw)
    return None if child.returncode == 0 else "\n".join(lines[-15:])


def pip(venv: Path, *arguments: str) -> Optional[str]:
    """Run `pip install`; None if it worked, else its last lines."""
    return run([str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", *arguments])


def uv(venv: Path, *arguments: str) -> Optional[str]:
    """Run `uv pip install` and show its progress; None if it worked, else its last lines."""
    python = str(venv / "bin" / "python")
    # Like pip, treat all configured indexes as equal.
    command = [python, "-m", "uv", "pip", "install", "--python", python, "--index-strategy", "unsafe-best-match"]
    with Progress(venv) as progress:
        return run([*command, *arguments], uv_environment(python), progress)


def install(venv: Path) -> None:
    """Install the locks, torch first, because its CPU build may exist on PyTorch's index only."""
    requirements = [line for lock in LOCKS for line in pinned(lock)]
    installer, torch = (next(line for line in requirements if line.startswith(name)) for name in ("uv==", "torch=="))
    if error := pip(venv, "--no-deps", installer):
        fail(f"{installer} could not be installed:\n{error}")
    if uv(venv, "--no-deps", torch) is not None:
        say(f"  {torch} is not on the configured index, asking {TORCH_CPU_INDEX}")
        if error := uv(venv, "--no-deps", torch, "--default-index", TORCH_CPU_INDEX):
            fail(f"{torch} could not be installed:\n{error}")
    locks = [argument for lock in LOCKS for argument in ("-r", str(ROOT / "requirements" / lock))]
    if error := uv(venv, "--no-deps", *locks):
        fail(f"the packages could not be installed:\n{error}")


def main() -> None:
    """Update the environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    venv = parser.parse_args().venv.absolute()
    build = ROOT / ".build"
    build.mkdir(exist_ok=True)
    with (build / "bootstrap.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        python = find_python()
        stamp, wanted = venv / ".tritonlive-stamp", fingerprint(python)
        if stamp.is_file() and stamp.read_text() == wanted and probe(str(venv / "bin" / "python")):
            stamp.touch()
            return
        started = time.monotonic()
        say(f"Setting up {venv} from the exact lock")
        require_disk(venv)
        say(f"[1/3] virtual environment with {python}")
        make_venv(python, venv)
        say("[2/3] packages from requirements/cpu.txt and dev.txt")
        install(venv)
        say("[3/3] tritonlive itself")
        # compat: adds the folder itself to the path, so later packages need no new installation.
        editable = ("--no-deps", "--no-build-isolation", "--config-settings", "editable_mode=compat", "-e", str(ROOT))
        if error := pip(venv, *editable):
            fail(f"tritonlive could not be installed:\n{error}")
        stamp.write_text(wanted)
        say(f"Ready in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
