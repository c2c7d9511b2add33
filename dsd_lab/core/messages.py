"""Commands from the leader of a trial's processes to the others, as one JSON text that is broadcast."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from dsd_lab.core.peers import Peers, connection


def tell(peers: Peers, message: Mapping[str, Any]) -> None:
    """Tell the others, who wait for it in `heard`.

    Raises:
        PeerLost: one of them is gone.
    """
    if peers.alone:
        return
    text = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
    with connection():
        dist.broadcast(torch.tensor(len(text)), 0)
        dist.broadcast(text, 0)


def heard(peers: Peers) -> dict[str, Any]:
    """What the leader tells, waited for as long as the trial's `patience`.

    Raises:
        PeerLost: the leader is gone.
    """
    length = torch.zeros((), dtype=torch.int64)
    with connection():
        dist.broadcast(length, 0)
        text = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(text, 0)
    found: dict[str, Any] = json.loads(text.numpy().tobytes())
    return found
