"""`python -m dsd_lab` is the `dsd-lab` command."""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the current folder, where `python -m` looks first: there may be anybody's `random.py`

from dsd_lab.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
