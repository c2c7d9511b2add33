"""Verbs for MLflow's pages, starter specs, editors and shells."""

from __future__ import annotations

from dsd_lab.cli.arguments import Verbs, add_verb, positive, takes_plugins, takes_tracking


def add(verbs: Verbs) -> None:
    """Add the verbs."""
    ui = add_verb(verbs, "ui", "open MLflow's UI on this machine", "dsd-lab ui")
    ui.add_argument(
        "--port",
        type=positive,
        default=5000,
        help="port on 127.0.0.1; the next free one if it is in use (default: 5000)",
    )
    takes_tracking(ui)

    add_verb(
        verbs,
        "specs",
        "list the shipped specs, and whether their images are present",
        "dsd-lab specs",
    )

    init = add_verb(verbs, "init", "write a commented spec to start from", "dsd-lab init my_sweep.yaml --from mnist")
    init.add_argument(
        "path", nargs="?", metavar="PATH", help="file to write (default: my_sweep.yaml, or the shipped spec's name)"
    )
    init.add_argument(
        "--from", dest="source", metavar="NAME", help="copy this shipped spec (`dsd-lab specs` lists them)"
    )

    schema = add_verb(
        verbs, "schema", "print the JSON Schema of a spec, for editors", "dsd-lab schema > experiments/spec.schema.json"
    )
    takes_plugins(schema)

    parts = add_verb(
        verbs, "parts", "list the parts that a spec can use, and where they are defined", "dsd-lab parts sampler"
    )
    parts.add_argument("kind", nargs="?", metavar="KIND", help="such as normaliser (default: all kinds)")
    takes_plugins(parts)

    completion = add_verb(
        verbs, "completion", "print a script that completes dsd-lab in a shell", "dsd-lab completion bash"
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")
