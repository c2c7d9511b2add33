"""`python -m dsd_lab` is the `dsd-lab` command."""

import sys

from dsd_lab.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
