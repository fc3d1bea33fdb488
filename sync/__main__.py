"""`python -m sync`: the commands of `tritonlive` that a trainer's machine needs."""

from tritonlive.cli.assembly import run
from tritonlive.cli.trainer_app import app

if __name__ == "__main__":
    run(app, "python -m sync")
