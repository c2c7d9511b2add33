"""`dsd-lab completion`: a script that completes verbs, options and their values in a shell, made from the parser itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from dsd_lab.cli.options import print_json
from dsd_lab.cli.parser import build_parser
from dsd_lab.errors import OK


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    script = SCRIPTS[arguments.shell](_verbs())
    if arguments.json:
        print_json({"shell": arguments.shell, "script": script})
    else:
        print(script, end="")
    return OK


def _verbs() -> dict[str, tuple[str, list[argparse.Action]]]:
    """What each verb does and its options and positional arguments."""
    choice = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    told = {action.dest: str(action.help) for action in choice._choices_actions}
    return {name: (told[name], parser._actions) for name, parser in choice.choices.items()}


Verbs = dict[str, tuple[str, list[argparse.Action]]]


def _options(actions: list[argparse.Action]) -> list[tuple[str, argparse.Action]]:
    return [(name, a) for a in actions for name in a.option_strings if name.startswith("--")]


def _choices(action: argparse.Action) -> list[str]:
    return [str(c) for c in action.choices or ()]


def bash(verbs: Verbs) -> str:
    """For bash 3.2 and later; where nothing is known, bash completes file names."""
    values, options = [], []
    for verb, (_, actions) in verbs.items():
        options.append(f"    {verb}) words='{' '.join(name for name, _ in _options(actions))}' ;;")
        for name, action in _options(actions):
            if action.choices:
                values.append(f"    {verb}:{name}) words='{' '.join(_choices(action))}' ;;")
            elif action.nargs != 0:
                values.append(f"    {verb}:{name}) return ;;")
        wanted = [c for a in actions if not a.option_strings for c in _choices(a)]
        if wanted:
            values.append(f"    {verb}:{verb}) words='{' '.join(wanted)}' ;;")
    return f"""# dsd-lab completion for bash: source <(dsd-lab completion bash)
_dsd_lab() {{
  local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}" words=''
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    words='{" ".join([*verbs, "--help", "--version"])}'
  else
    case "${{COMP_WORDS[1]}}:$prev" in
{chr(10).join(values)}
    esac
    if [ -z "$words" ]; then
      case "$cur" in -*) ;; *) return ;; esac
      case "${{COMP_WORDS[1]}}" in
{chr(10).join(options)}
      esac
    fi
  fi
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o default -F _dsd_lab dsd-lab
"""


def zsh(verbs: Verbs) -> str:
    """For zsh with compinit."""
    cases = []
    for verb, (_, actions) in verbs.items():
        specs = []
        for name, action in _options(actions):
            repeat = "*" if isinstance(action, argparse._AppendAction) else ""
            value = "" if action.nargs == 0 else f":{_metavar(action)}:{_zsh_values(action)}"
            specs.append(f"'{repeat}{name}[{_zsh(action.help or '')}]{value}'")
        for action in (a for a in actions if not a.option_strings):
            specs.append(f"'{'*' if action.nargs == '*' else ''}:{_metavar(action)}:{_zsh_values(action)}'")
        cases.append(f"    {verb}) _arguments {' '.join(specs)} ;;")
    told = "\n".join(f"    '{verb}:{_zsh(what)}'" for verb, (what, _) in verbs.items())
    return f"""#compdef dsd-lab
# dsd-lab completion for zsh: source <(dsd-lab completion zsh), or as _dsd-lab in a folder of $fpath
_dsd_lab() {{
  local -a verbs
  verbs=(
{told}
  )
  if (( CURRENT == 2 )); then
    _describe verb verbs
    return
  fi
  shift words
  (( CURRENT-- ))
  case $words[1] in
{chr(10).join(cases)}
  esac
}}
if [ "$funcstack[1]" = "_dsd-lab" ]; then _dsd_lab "$@"; else compdef _dsd_lab dsd-lab; fi
"""


def _metavar(action: argparse.Action) -> str:
    return str(action.metavar or action.dest).replace(":", " ")


def _zsh_values(action: argparse.Action) -> str:
    if action.choices:
        return f"({' '.join(_choices(action))})"
    return "_files -/" if action.metavar == "DIR" else "_files"


def _zsh(text: str) -> str:
    """Text inside single quotes, where `_arguments` and `_describe` give `:`, `[` and `]` a meaning."""
    for sign in ("\\", ":", "[", "]"):
        text = text.replace(sign, f"\\{sign}")
    return text.replace("'", "'\\''")


def fish(verbs: Verbs) -> str:
    """For fish 3."""
    lines = ["# dsd-lab completion for fish: dsd-lab completion fish | source"]
    for verb, (what, actions) in verbs.items():
        lines.append(f"complete -c dsd-lab -n __fish_use_subcommand -f -a {verb} -d {_fish(what)}")
        seen = f"-n '__fish_seen_subcommand_from {verb}'"
        for name, action in _options(actions):
            value = (
                f" -x -a {_fish(' '.join(_choices(action)))}" if action.choices else "" if action.nargs == 0 else " -r"
            )
            lines.append(f"complete -c dsd-lab {seen} -l {name[2:]}{value} -d {_fish(action.help or '')}")
        for action in (a for a in actions if not a.option_strings and a.choices):
            lines.append(f"complete -c dsd-lab {seen} -f -a {_fish(' '.join(_choices(action)))}")
    return "\n".join(lines) + "\n"


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS: dict[str, Callable[[Verbs], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
"""By shell."""
