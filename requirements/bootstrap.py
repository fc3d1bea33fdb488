"""Build the virtual environment from the exact lock, with the standard library only.

    python3 requirements/bootstrap.py --venv .venv

Run by `make` with whatever Python there is (3.8 or later); finds the one that fits. What is current already is left
alone, what is not is brought up to date; an environment that cannot be used is built anew.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, NoReturn, Optional

WANTED = "3.11"
ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("cpu.txt", "dev.txt")
INPUTS = ("pyproject.toml", *(f"requirements/{lock}" for lock in LOCKS), "requirements/bootstrap.py")
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
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
    """One line on stderr; with end="" one that the next replaces, on a terminal."""
    if end or sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        start = "\r" if sys.stderr.isatty() else ""
        sys.stderr.write(start + (text[:width].ljust(width) if start else text) + end)
        sys.stderr.flush()


def probe(python: str) -> Optional[Dict[str, object]]:
    """What is to know about an interpreter, None if it does not run."""
    try:
        answer = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, timeout=60, check=True)
        return json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def find_python() -> str:
    """A Python 3.11 with its shared library and venv; ends with the package to install where there is none."""
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
    """Changes with everything the environment is made from, and with the interpreter."""
    digest = hashlib.sha256(str(Path(python).resolve()).encode())
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def make_venv(python: str, venv: Path) -> None:
    """Create the environment, unless one of the right version is there already."""
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


def pip(venv: Path, arguments: List[str], total: int = 0) -> Optional[str]:
    """Run pip, counting the packages it has fetched; None if it worked, else its last lines."""
    command = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", *arguments]
    lines: List[str] = []
    fetched = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1) as child:
        for raw in child.stdout or ():
            lines.append(raw.rstrip())
            word, _, rest = raw.strip().partition(" ")
            if word in ("Collecting", "Requirement"):
                fetched += 1
                name = rest.replace("already satisfied: ", "").split(" ")[0]
                say(f"  {fetched}/{total or '?'} {name}", end="")
            elif raw.startswith("Installing collected"):
                say(f"  installing {raw.count(',') + 1} packages (a minute or two)", end="")
    return None if child.returncode == 0 else "\n".join(lines[-15:])


def install(venv: Path) -> None:
    """Install the locks, torch first: its CPU build may be on PyTorch's index alone."""
    requirements = [line for lock in LOCKS for line in pinned(lock)]
    torch = next(line for line in requirements if line.startswith("torch=="))
    if pip(venv, ["--no-deps", torch]) is not None:
        say(f"  {torch} is not on the configured index, asking {TORCH_CPU_INDEX}")
        if error := pip(venv, ["--no-deps", torch, "--index-url", TORCH_CPU_INDEX]):
            fail(f"{torch} could not be installed:\n{error}")
    locks = [argument for lock in LOCKS for argument in ("-r", str(ROOT / "requirements" / lock))]
    if error := pip(venv, ["--no-deps", *locks], total=len(set(requirements))):
        fail(f"the packages could not be installed:\n{error}")


def main() -> None:
    """Bring the environment up to date."""
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
        say(f"Setting up {venv.name} (the first time only; about 3 GB)")
        say(f"[1/3] virtual environment with {python}")
        make_venv(python, venv)
        say("[2/3] packages from requirements/cpu.txt and dev.txt")
        install(venv)
        say("[3/3] tritonlive itself")
        # compat: the folder itself is put on the path, so packages added later need no new installation.
        editable = ["--no-deps", "--no-build-isolation", "--config-settings", "editable_mode=compat", "-e", str(ROOT)]
        if error := pip(venv, editable):
            fail(f"tritonlive could not be installed:\n{error}")
        stamp.write_text(wanted)
        say(f"Ready in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
