"""A process of its own that fetches a set of the Hugging Face Hub and unpacks it into its library's cache, within bounds.

The library reads archives and tables of others without a bound of its own. Here the kernel sets one. What comes out are
the library's own Arrow files, which the caller maps into memory. Imports nothing of dsd-lab: torch would take its time.
"""

from __future__ import annotations

import json
import resource
import sys


def main(name: str, memory: str, file: str) -> int:
    """Print, as JSON, the Arrow files of every split, or the reason why there are none.

    Args:
        name: of the set.
        memory: bytes that may be allocated.
        file: bytes that a file may have.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory), int(memory)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(file), int(file)))
    import datasets

    try:
        found = datasets.load_dataset(name)
    except ConnectionError as error:
        answer: dict[str, object] = {"unreachable": str(error)}
    except MemoryError:
        return 1
    except Exception as error:  # whatever a library says of what others wrote
        answer = {"refused": str(error) or type(error).__name__}
    else:
        answer = {"splits": {split: [f["filename"] for f in table.cache_files] for split, table in found.items()}}
    print("\n" + json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
