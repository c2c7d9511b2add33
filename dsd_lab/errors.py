"""Errors that a user can act on, and the exit codes of the command line.

Every message is one line that names what is wrong and what would be right. The command line
prints the message without a traceback; anything that is not a `LabError` is a bug of ours.
"""

import errno
import os

OK, UNEXPECTED, BAD_INPUT, TRIALS_FAILED, NO_RESOURCES = 0, 1, 2, 3, 4
INTERRUPTED, TERMINATED = 130, 143


class LabError(Exception):
    """A fault with a one-line explanation for the user and an exit code."""

    exit_code = UNEXPECTED


class BadInput(LabError):
    """The spec, an option or a file that the user named is wrong."""

    exit_code = BAD_INPUT


class NoResources(LabError):
    """The machine or the cluster cannot hold what was asked for."""

    exit_code = NO_RESOURCES


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that a disk, a quota or the largest size of a file is used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def comes_from_full_disk(error: BaseException) -> bool:
    """Whether a full disk is behind an error of a library, which may hold the first one as its cause or as text only."""
    seen: list[BaseException] = []
    while error not in seen:
        if is_disk_full(error) or os.strerror(errno.ENOSPC) in str(error):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__ or error
    return False


class PeerLost(LabError):
    """A process that trained a trial together with this one is gone; the trial goes on from its checkpoint."""

    exit_code = TRIALS_FAILED


class CorruptCheckpoint(LabError):
    """A checkpoint that is incomplete, altered, or not written by this program."""
