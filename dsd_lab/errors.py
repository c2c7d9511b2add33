"""Errors that a user can act on, and the exit codes of the command line.

Every message is one line that names what is wrong and what would be right. The command line
prints it without a traceback. Any exception that is not a `LabError` is a bug in dsd-lab.
"""

import errno
import os
from typing import TypeGuard

OK, UNEXPECTED, BAD_INPUT, TRIALS_FAILED, NO_RESOURCES = 0, 1, 2, 3, 4
INTERRUPTED, TERMINATED = 130, 143
_NOT_PERMITTED = (errno.EACCES, errno.EPERM, errno.EROFS)


class LabError(Exception):
    """An error with a one-line explanation for the user and an exit code."""

    exit_code = UNEXPECTED


class BadInput(LabError):
    """A spec, an option or a file that the user named is wrong."""

    exit_code = BAD_INPUT


class NoResources(LabError):
    """The machine or the cluster lacks the requested resources."""

    exit_code = NO_RESOURCES


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means a full disk, an exceeded quota or an exceeded file size limit."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_not_permitted(error: BaseException) -> TypeGuard[OSError]:
    """Whether an error means that this user may not read or write a file, whose path the error names."""
    return isinstance(error, OSError) and error.errno in _NOT_PERMITTED and error.filename is not None


def comes_from_full_disk(error: BaseException) -> bool:
    """Whether a full disk caused an error, also where a library wrapped the original error or kept only its text."""
    seen: list[BaseException] = []
    while error not in seen:
        if is_disk_full(error) or os.strerror(errno.ENOSPC) in str(error):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__ or error
    return False


class PeerLost(LabError):
    """A peer process of a distributed trial is gone; the trial resumes from its checkpoint."""

    exit_code = TRIALS_FAILED


class CorruptCheckpoint(LabError):
    """A checkpoint is incomplete, was altered, or was not written by dsd-lab."""
