"""README and docs/: links, sizes, generated pages, and every code block that names a spec, a command or Python."""

import importlib.util
import re
import shlex
import unicodedata
from pathlib import Path

import pytest
import yaml

from dsd_lab.cli.parser import build_parser
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.trial import Trial

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
BLOCK = re.compile(r"^(?P<mark><!-- run -->\n)?```(?P<language>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
OTHER_PROGRAMS = {"cd", "export", "git", "make", "pip", "ray", "sbatch", "source", "python", "torchrun"}


def blocks(page, language):
    return [m for m in BLOCK.finditer(page.read_text()) if m["language"] == language]


def prose(page):
    """The text without code: blocks and spans are blank."""
    text = re.sub(r"<!--.*?-->", "", BLOCK.sub("", page.read_text()), flags=re.DOTALL)
    return re.sub(r"(?<!\[)`[^`\n]*`(?!\])", "", text)


def anchors(page):
    """Names of a page's headings, as code hosts and as mkdocs make them; only those on which both agree."""
    text = BLOCK.sub("", page.read_text())
    titles = [re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", t) for t in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    hosts = {re.sub(r"[^\w\- ]", "", t.lower()).strip().replace(" ", "-") for t in titles}
    plain = (unicodedata.normalize("NFKD", t).encode("ascii", "ignore").decode() for t in titles)
    built = {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", t).strip().lower()) for t in plain}
    return hosts & built


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_leads_somewhere(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for target in targets:
        path, _, anchor = target.partition("#")
        if re.match(r"https?://", target):
            continue
        file = page.parent / path if path else page
        assert file.is_file(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_a_field_that_is_named_is_there(page):
    named = re.findall(r"`([a-z]+)\.([a-z_]+)[`=:]", page.read_text())
    sections = {name: field.annotation.model_fields for name, field in Trial.model_fields.items()}
    gone = [f"{section}.{key}" for section, key in named if section in sections and key not in sections[section]]
    assert not gone


def test_links_are_found_at_all():
    assert sum(prose(page).count("](") for page in PAGES) > 100


def test_the_glossary_keeps_the_names_that_others_link_to():
    terms = {"verdict", "control", "latent-std", "effective-rank", "capacity", "rank-gap", "interference"}
    assert terms | {"in-domain-fid", "real-against-real-floor", "scale-gradient"} <= anchors(DOCS / "metrics.md")


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_bytes()
    assert len(text) <= 10_000
    assert max(map(len, text.decode().splitlines())) <= 120


def test_the_readme_names_the_commands_that_test_the_project():
    assert {"make test", "make test-all", "make sweep"} <= set(
        re.findall(r"make [a-z-]+", (ROOT / "README.md").read_text())
    )


def test_every_page_is_in_the_navigation():
    pages = re.findall(r"([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(pages) == sorted(p.name for p in DOCS.glob("*.md"))


def test_pages_that_are_made_from_the_code_are_up_to_date():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for name, text in generate.pages().items():
        assert (DOCS / name).read_text() == text, f"run `python docs/generate.py`: {name} is out of date"


def test_every_yaml_block_is_a_spec_or_a_part_of_one(tmp_path):
    for name in ("collapse_ablation.yaml", "mnist.yaml"):
        (tmp_path / name).write_bytes((ROOT / "experiments" / name).read_bytes())
    checked = 0
    for page in PAGES:
        if page.name == "own-parts.md":  # `tests/test_parts.py` trains its spec with its plug-in
            continue
        for number, block in enumerate(blocks(page, "yaml")):
            content, path = yaml.safe_load(block["body"]), tmp_path / f"{page.stem}-{number}.yaml"
            path.write_text(block["body"] if "name" in content else yaml.safe_dump(completed(content)))
            assert load_sweep(path).trials, f"{page.name}: {block['body']}"
            checked += 1
    assert checked > 10


def completed(part):
    """A spec around a part: sections of a trial, or keys of a file."""
    part = {"base": part} if part.keys() <= Trial.model_fields.keys() else part
    return {"name": "part", "variants": {"dsd": {}}} | part


def test_every_command_exists():
    parser = build_parser()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    checked = 0
    for page in PAGES:
        lines = [line for block in blocks(page, "console") for line in block["body"].splitlines()]
        assert all(line.startswith("$ ") for line in lines if line), page.name
        for line in filter(None, lines):
            for command in re.split(r" && | > | \| ", line.removeprefix("$ ").split(" #")[0].strip()):
                words = shlex.split(re.sub(r"[<>]", "", command))
                program = Path(words[0]).name
                if program == "dsd-lab":
                    parser.parse_args(words[1:])  # exits where it does not fit
                    checked += 1
                elif program == "make":
                    assert {w for w in words[1:] if "=" not in w} <= targets, f"{page.name}: {line}"
                elif program not in OTHER_PROGRAMS:
                    assert "." in words[0], f"{page.name}: {line}"  # a file that the command before it wrote to
    assert checked > 40


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_blocks_compile_and_the_marked_ones_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks(page, "python"):
        code = compile(block["body"], page.name, "exec")
        if block["mark"]:
            exec(code, names)


def test_messages_that_the_page_explains_are_the_programs_own():
    """Every quoted message of troubleshooting.md, piece by piece, stands in the code or in the catalogue."""
    known = " ".join(p.read_text() for p in (ROOT / "dsd_lab").rglob("*.py"))
    known = re.sub(r'"\s*\n?\s*f?"', "", known) + (ROOT / "tests/fixtures/messages.md").read_text()
    lost = []
    for row in re.findall(r"^\| (.*) \| .* \|$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE):
        for message in re.findall(r"`([^`]+)`", row):
            lost += [part for part in message.split("...") if len(part) > 3 and part.strip("'?;, ") not in known]
    assert not lost


def test_no_page_speaks_of_this_machine():
    for page in [*PAGES, ROOT / "mkdocs.yml", DOCS / "generate.py", DOCS / "hooks.py"]:
        assert not re.search(r"/(?:work|root)/|issue #?\d", page.read_text()), page.name
