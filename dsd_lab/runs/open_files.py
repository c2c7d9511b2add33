"""Limit of open files: Ray's processes need more than some machines allow by default."""

from __future__ import annotations

import resource

from dsd_lab.errors import NoResources

_TARGET, _MIN = 4096, 256
"""Open files to request, and the minimum below which Ray's processes fail one by one."""


def allow_open_files() -> None:
    """Raise this process's limit, which child processes inherit, as far as the machine allows.

    Raises:
        NoResources: the limit stays too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _TARGET if hard == resource.RLIM_INFINITY else min(_TARGET, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < _MIN:
        raise NoResources(
            f"this machine allows {most} open files per process, but a sweep needs {_MIN}; "
            f"raise the limit first, for example with `ulimit -n {_TARGET}`"
        )
