"""`python -m sync`."""

import atexit
import gc

from .cli import app

if __name__ == "__main__":
    # The interpreter looks for garbage as it ends, for 0.4 s among torch's objects.
    atexit.register(gc.freeze)
    app(prog_name="python -m sync")
