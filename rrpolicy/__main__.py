"""``python -m rrpolicy`` is the program ``rrpolicy``."""

from rrpolicy.cli import main

if __name__ == "__main__":
    main()
