"""`python -m bench`: the command stitchbench, where it is not installed."""

from bench.cli import main

if __name__ == "__main__":
    main()
