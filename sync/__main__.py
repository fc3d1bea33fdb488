"""`python -m sync`: the commands of `tritonlive` that a trainer's machine needs."""

from tritonlive.cli.app import run, trainer_app

if __name__ == "__main__":
    run(trainer_app, "python -m sync")
