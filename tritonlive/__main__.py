"""`python -m tritonlive` is `tritonlive`."""

from tritonlive.launch.cli import main

if __name__ == "__main__":
    main()
