"""Child process that downloads a dataset of the Hugging Face Hub and unpacks it into the library's cache.

The `datasets` library reads foreign archives and tables without limits, so the kernel limits this process. The
results are Arrow files, which the caller maps into memory. Imports nothing of dsd-lab, since torch loads slowly.
"""

from __future__ import annotations

import json
import resource
import sys


def main(name: str, memory: str, file: str) -> int:
    """Print, as JSON, the Arrow files of every split, or the reason for failure.

    Args:
        name: of the dataset.
        memory: limit on allocated bytes.
        file: limit on the bytes of one file.
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
    except Exception as error:  # the library may raise anything on foreign data
        answer = {"refused": str(error) or type(error).__name__}
    else:
        answer = {"splits": {split: [f["filename"] for f in table.cache_files] for split, table in found.items()}}
    print("\n" + json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
