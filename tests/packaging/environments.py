"""Virtual environments with the built wheel, made in seconds: what they need beside it is linked, not installed.

The wheel itself is installed by pip. CONTRIBUTING.md has the commands that install the dependencies, too.
"""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def make_environment(folder: Path, wheel: Path) -> Path:
    """An environment with the wheel and nothing else; returns its site-packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    return next((folder / "lib").glob("python*")) / "site-packages"


def link_everything(site_packages: Path) -> None:
    """Put all packages of the running environment on the path, after the environment's own."""
    # A folder named in a .pth file is put on the path; .pth files in it, such as that of this checkout, are not read.
    folders = [path for path in sys.path if path.endswith("site-packages")]
    (site_packages / "linked.pth").write_text("\n".join(folders) + "\n")


def link_requirements(site_packages: Path, distribution: str) -> set[str]:
    """Link all transitive requirements of an installed distribution; returns their names."""
    root = next(iter(metadata.distributions(name=distribution, path=[str(site_packages)])))
    waiting = _required(root.requires, extras=set())
    seen: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        if (key := f"{requirement.name}{sorted(requirement.extras)}") not in seen:
            seen.add(key)
            found = metadata.distribution(requirement.name)
            _link(found, site_packages)
            waiting += _required(found.requires, requirement.extras)
    return {key.partition("[")[0] for key in seen}


def _required(lines: list[str] | None, extras: set[str]) -> list[Requirement]:
    """The requirements among `lines` that count on this machine, with these extras."""
    requirements = [Requirement(line) for line in lines or ()]
    return [
        requirement
        for requirement in requirements
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in {"", *extras})
    ]


def _link(distribution: metadata.Distribution, site_packages: Path) -> None:
    """Link the top-level files and folders of a distribution."""
    for top in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
        if not (site_packages / top).exists() and top != "__pycache__":
            (site_packages / top).symlink_to(Path(str(distribution.locate_file(top))))
