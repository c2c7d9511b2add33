"""Open the images of a plan before anything runs: describe them in a line, and refuse unusable ones.

Results are cached in the home folder (`home.data_facts`) while no file of the data changes its size or time. A later
call then decodes nothing and does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from dsd_lab.errors import BadInput
from dsd_lab.home.data_facts import facts_at_hand, list_files, remember_images
from dsd_lab.home.data_records import DataFacts
from dsd_lab.specs.evaluation import without_classes
from dsd_lab.specs.identity import data_name
from dsd_lab.specs.objective import Labels
from dsd_lab.specs.per_seed import once_for_seeds
from dsd_lab.specs.trial import Data, Generation, Trial, unfit_images

if TYPE_CHECKING:
    from dsd_lab.core.data import DataSet
    from dsd_lab.home.home import Home
    from dsd_lab.specs.sweep import PlannedTrial

Decode = Literal["all", "small", "none"]
_MAX_NAMED = 10
"""Classes that the line lists by name."""


def check_data(
    home: Home,
    trials: Iterable[PlannedTrial],
    evaluations: Sequence[Generation],
    *,
    opened: Callable[[Data], DataSet] | None = None,
    decode: Decode = "all",
) -> list[str]:
    """Check that the images of all trials can be read and trained on.

    Args:
        home: whose cache stores the results.
        trials: whose datasets are opened, each once.
        evaluations: planned evaluations.
        opened: returns a dataset that the caller keeps using; None loads it here and drops it.
        decode: what to decode if the cache does not know it: `all` images; `small`: all images of sets that fit in
            memory, of larger ones the first image; `none`: nothing, and such a set is left out.

    Returns:
        Lines that describe the data.

    Raises:
        BadInput: an image is damaged, the layout is unknown, or a trial cannot use the images.
    """
    known: dict[str, DataFacts | None] = {}
    lines: dict[str, list[str]] = {}
    check = once_for_seeds(lambda fields: _check(fields, known[_key(fields.data)], evaluations))
    for trial in trials:
        key = _key(trial.fields.data)
        if key not in known:
            known[key] = facts = _facts(home, trial.fields.data, opened, decode)
            lines.setdefault(data_name(trial.fields), []).extend(described(facts) if facts else [])
        check(trial.fields)
        facts = known[key]
        if facts is not None and facts.classes <= 1:
            _refuse_label_drop(home, trial)
    one = sum(map(bool, lines.values())) == 1
    return [
        f"data{'' if one else f' {name}'}: {line}" for name, found in lines.items() for line in dict.fromkeys(found)
    ]


def described(facts: DataFacts) -> list[str]:
    """A line on what was read, and a line for each thing that is not used."""
    height, width = facts.shape[1:]
    names, classes = facts.class_names, facts.classes
    listed = ", ".join(names[:_MAX_NAMED]) + (f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else "")
    if classes > 1:
        labels = f"{classes} classes" + (f": {listed}" if listed else "")
    else:
        labels = f"1 class: {listed} (trains unconditionally)" if listed else "no labels (trains unconditionally)"
    counts = f"{facts.train:,} training and {facts.holdout:,} held-out images of {height} x {width}"
    origin = f"; held out: {facts.holdout_from}" if facts.holdout_from else ""
    left_out = [f"{facts.damaged} damaged images are left out"] if facts.damaged else []
    return [f"{counts}, {labels}{origin}", *left_out, *facts.notes]


def facts_of(made: DataSet) -> DataFacts:
    """What was read from the images of a loaded data set."""
    return DataFacts.model_validate(made.facts | {"fingerprint": made.fingerprint})


def open_data(home: Home, data: Data) -> DataSet:
    """Load a dataset, and cache its facts if the home folder exists."""
    from dsd_lab.core.data import load_data  # imports torch

    there = home.root.is_dir()
    before = list_files(data) if there else None
    made = load_data(data, home.cache / "data" if there else None)
    if there:
        remember_images(home, data, before, facts_of(made), made.files)
    return made


def _facts(home: Home, data: Data, opened: Callable[[Data], DataSet] | None, decode: str) -> DataFacts | None:
    if not data.is_there:
        return None  # `plan` continues without the images
    if opened is None and (found := facts_at_hand(home, data)) is not None:
        return found
    if data.source == "digits":
        return digits_facts(data)  # shipped with scikit-learn, so never damaged
    if decode == "none":
        return None
    if decode == "small":
        if data.source == "datasets":
            return None  # a plan does not use the network
        from dsd_lab.core.data import glance

        if (seen := glance(data)) is not None:
            later = "not decoded yet: the sweep checks every image before it starts"
            return DataFacts.model_validate(seen | {"notes": [*seen["notes"], later]})
    return facts_of(open_data(home, data) if opened is None else opened(data))


_DIGITS, _DIGITS_SIZE = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180), 8
"""Images per digit in scikit-learn's set, and their side in pixels."""


def digits_facts(data: Data) -> DataFacts:
    """Facts of scikit-learn's digits without reading them: as `DataSet.facts`, without levels."""
    held = [min(max(1, round(data.holdout * count)), count - 1) for count in _DIGITS]
    size = data.size or _DIGITS_SIZE
    return DataFacts(
        train=sum(_DIGITS) - sum(held),
        holdout=sum(held),
        classes=len(_DIGITS),
        shape=[1, size, size],
        train_by_class=[count - out for count, out in zip(_DIGITS, held, strict=True)],
        holdout_by_class=held,
        class_names=[str(digit) for digit in range(len(_DIGITS))],
        holdout_from=f"{100 * data.holdout:g} % of every class",
        notes=[],
        resident=True,
        damaged=0,
        damaged_named=[],
    )


def _check(trial: Trial, facts: DataFacts | None, evaluations: Sequence[Generation]) -> None:
    if facts is None:
        return
    if problem := unfit_images(trial, facts.shape):
        raise BadInput(problem)
    if facts.classes > 1:
        return
    name = data_name(trial)
    if trial.auxiliary.classification > 0:
        raise BadInput(f"auxiliary.classification: the data {name!r} has no classes; remove it")
    for evaluation in evaluations:
        if reason := without_classes(evaluation):
            raise BadInput(f"evaluate: the data {name!r} has no classes: {reason}")


def _refuse_label_drop(home: Home, trial: PlannedTrial) -> None:
    """Refuse `labels.drop` on data without classes, where it has no effect but changes the trial's id.

    A trial that was trained with such a value keeps it.

    Raises:
        BadInput: the value differs from the default.
    """
    if trial.fields.labels.drop != Labels().drop and not home.trial(trial.id).root.exists():
        raise BadInput(
            f"labels.drop: {trial.fields.labels.drop:g} has no effect on the data {data_name(trial.fields)!r}, which has no classes; remove labels.drop"
        )


def _key(data: Data) -> str:
    return data.model_dump_json(exclude={"name", "revision", "memory", "workers"})
