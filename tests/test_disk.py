"""What a sweep says that it will write is near what it writes."""

import re

from sweeping import EVALUATION, free_port, train_here, write_spec

from dsd_lab.cli.main import main
from dsd_lab.errors import NO_RESOURCES
from dsd_lab.files.atomic import size_of
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import manifest_of
from dsd_lab.store.mlflow_store import Store

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}


def test_the_disk_that_a_sweep_announces_is_what_it_writes_within_a_factor_of_two(tmp_path, capsys):
    spec, home = write_spec(tmp_path, evaluate=[EVALUATION]), Home(tmp_path / "home")
    nobody = ["--address", f"127.0.0.1:{free_port()}", "--no-tracking"]  # it announces, and then no cluster answers
    assert main(["sweep", str(spec), "--home", str(home.root), *nobody]) == NO_RESOURCES
    said = capsys.readouterr().out
    amount, unit = re.search(r"^disk: about ([0-9.]+) (B|kB|MB|GB) of ", said, re.MULTILINE).groups()
    plan = train_here(home, spec)
    Store(home).sync(manifest_of(plan))
    # The tables of an empty database, the classifier that FID uses and the report are no matter of a trial's.
    written = size_of(home.root / "trials") + size_of(home.root / "mlartifacts")
    assert written / 2 <= float(amount) * UNITS[unit] <= 2 * written
