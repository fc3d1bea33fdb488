"""`python -m tritonlive` is `tritonlive`."""

from tritonlive.cli.app import main

if __name__ == "__main__":
    main()
