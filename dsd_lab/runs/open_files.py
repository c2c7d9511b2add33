"""How many files a sweep's processes may hold open: Ray's need more than some machines allow by themselves."""

from __future__ import annotations

import resource

from dsd_lab.errors import NoResources

_WANTED, _LEAST = 4096, 256
"""Open files that are asked for, and below which Ray's processes fail one by one."""


def allow_open_files() -> None:
    """Raise this process's limit, which its children inherit, as far as the machine allows.

    Raises:
        NoResources: that is too few.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _WANTED if hard == resource.RLIM_INFINITY else min(_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < _LEAST:
        raise NoResources(
            f"this machine allows {most} open files a process, and a sweep needs {_LEAST}; "
            f"raise its limit first, such as by `ulimit -n {_WANTED}`"
        )
