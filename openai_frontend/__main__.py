"""`python -m openai_frontend` is `tritonlive frontend`."""

from tritonlive.cli.frontend import app

if __name__ == "__main__":
    app(prog_name="python -m openai_frontend")
