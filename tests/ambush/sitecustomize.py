"""Strikes a trial's own process at one exact moment of writing a checkpoint; Python imports it at its start.

It is found through `PYTHONPATH`, and `DSD_LAB_AMBUSH` names a folder of orders, empty files `<trial>.<step>.<moment>`.
The process that comes to a moment takes its order away, so that each is carried out once, and leaves `<order>.done`
with its number and the names of what lies among the trial's checkpoints then.
"""

import os
import signal
from pathlib import Path

_ORDERS = Path(os.environ["DSD_LAB_AMBUSH"])
_mkdir, _rename = Path.mkdir, Path.rename


def _come_to(moment: str, writing: Path) -> None:
    if not writing.name.startswith(".writing-"):
        return
    checkpoints, step = writing.parent, int(writing.name.removeprefix(".writing-"))
    order = _ORDERS / f"{checkpoints.parent.name}.{step}.{moment}"
    try:
        order.unlink()
    except FileNotFoundError:
        return
    there = sorted(path.name for path in checkpoints.iterdir())
    (_ORDERS / f"{order.name}.done").write_text("\n".join([str(os.getpid()), *there]))
    if moment == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            signal.pause()
    os.kill(os.getpid(), signal.SIGKILL)


def _watched_mkdir(self: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
    for moment in ("before", "deaf"):
        _come_to(moment, self)
    _mkdir(self, mode, parents, exist_ok)


def _watched_rename(self: Path, target: Path) -> Path:
    _come_to("during", self)
    renamed = _rename(self, target)
    _come_to("after", self)
    return renamed


Path.mkdir, Path.rename = _watched_mkdir, _watched_rename
