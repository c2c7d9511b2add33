"""`python -m dsd_lab` is the `dsd-lab` command."""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the current folder, whose `random.py` would shadow the standard library

from dsd_lab.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
