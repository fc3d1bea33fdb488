"""`python -m launch` is `tritonlive`."""

from launch.cli import main

if __name__ == "__main__":
    main()
