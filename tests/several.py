"""Train trials with several processes of this machine, without a home folder."""

import contextlib
import tempfile

import torch
import torch.multiprocessing as multiprocessing

from dsd_lab.core.data import load_data
from dsd_lab.core.peers import ALONE, joined
from dsd_lab.core.training.events import Logged
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.specs.trial import Data

CPU = torch.device("cpu")


def train(trials, processes, folder=None, until=None):
    """Records of every step and the final weights of each trial, by name; `folder` keeps checkpoints and is resumed from."""
    with tempfile.TemporaryDirectory() as meeting:
        told = f"{meeting}/told.pt"
        if processes == 1:
            _process(0, 1, "", trials, told, folder, until)
        else:
            arguments = (processes, f"file:{meeting}/meeting", trials, told, folder, until)
            multiprocessing.start_processes(_process, arguments, nprocs=processes, start_method="fork")
        return torch.load(told, weights_only=False)


def _shares(batch, processes, parts):
    """Images that one process may have of a batch."""
    least = batch // parts // processes
    return (parts * least, parts * (least + 1)) if batch // parts % processes else (parts * least,)


def _process(rank, processes, rendezvous, trials, told, folder, until):
    torch.set_num_threads(1)
    data, found = load_data(Data()), {}
    group = joined(rendezvous, rank, processes, 60.0, CPU) if processes > 1 else contextlib.nullcontext(ALONE)
    with group as peers:
        for name, trial in trials.items():
            trainer = Trainer(trial, 0, data, CPU, folder, peers)
            # Else each could train the whole batch by itself, and all would be equal too.
            assert len(trainer.draw(0)[0]) in _shares(
                trial.training.batch_size, processes, trial.training.grad_accum_steps
            )
            if folder is not None:
                trainer.resume()
            records = [
                event.metrics for event in trainer.run(lambda t=trainer: t.step == until) if isinstance(event, Logged)
            ]
            weights = {key: value.clone() for key, value in trainer.network.state_dict().items()}
            found[name] = records, weights | {f"sum.{k}": v for k, v in trainer.auxiliaries.state_dict().items()}
    if rank == 0:
        torch.save(found, told)
