"""`python -m vbc.codec` is the command `codec`."""

from vbc.codec.cli import main

if __name__ == "__main__":
    main()
