"""`python -m specpipe` is the `specpipe` command."""

from specpipe.cli import main

if __name__ == "__main__":
    main()
