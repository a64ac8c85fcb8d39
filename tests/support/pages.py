"""The Markdown pages: their code blocks, headings and links, and a folder in which a page's commands run.

The first word of a block is its language, the second says what a test does with it:

sh             run, in order, in the folder that the page's earlier commands changed to
sh parsed      not run, because it needs a cluster, a GPU or the network: every flag is parsed
sh setup       not run here: `.ci/run` runs it in a new environment
console        each line after a "$ " is run, and what it prints is compared; "..." stands for any lines
python         run; if its first line is "# NAME.py", it is written to that file instead
python unrun   not run, because a package is missing here; compiled only
toml           written to the file that its first line names
text           not a command
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from support.runs import ROOT

README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS]
KINDS = {
    "sh", "sh parsed", "sh setup", "console", "python", "python unrun", "toml", "text",
}  # fmt: skip
_FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)^```$", re.MULTILINE)
_FILE = re.compile(r"# (\w[\w./-]*\.(?:py|toml))\n")
_TURNS = re.compile(r"--turns \d+")  # a figure needs many turns, a test one
_LIMIT_S = 300
_OF_SOME_MACHINES = ("N% ", "stages ", "bottleneck ", "trees ")  # slow ones; those with a compiler
_OF_THE_OUTPUT = ("output", "overwrite", "work_dir")


class Block(NamedTuple):
    """A fenced block of a page."""

    kind: str
    text: str
    line: int

    @property
    def file(self):
        """The file that the block's first line names; empty if it names none."""
        match = _FILE.match(self.text)
        return match[1] if match and self.kind in {"python", "toml"} else ""


def blocks(page):
    """Return the fenced blocks of a page, in order."""
    return blocks_of(page.read_text("utf-8"))


def blocks_of(text):
    """Return the fenced blocks of a text, in order."""
    return [Block(m[1].strip(), m[2], text[: m.start()].count("\n") + 1) for m in _FENCE.finditer(text)]


def commands(block):
    """Return the command lines of a block; a line that ends with a backslash continues."""
    text = block.text.replace("\\\n", " ")
    if block.kind == "console":
        return re.findall(r"^\$ (.*)$", text, re.MULTILINE)
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def shown(block):
    """Return (command, what the page shows below it) of each command in a console block."""
    pieces = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
    return [(command, printed) for command, _, printed in (piece.partition("\n") for piece in pieces)]


def scorer_calls(block):
    """Return the words after `scorer` of each call in a block, up to a pipe, a redirection or another command."""
    for line in commands(block):
        words = shlex.split(line, comments=True)
        while "scorer" in words:
            words = words[words.index("scorer") + 1 :]
            end = next((i for i, w in enumerate(words) if w in {"|", "&&", ";", "&", ">", "2>&1", "||"}), len(words))
            yield words[:end]


def masked(text):
    """Return the lines of a text, with placeholders for what differs from run to run."""
    text = re.sub(r"; forecast .*", "", text)
    text = re.sub(r"\d[\d,.]* (?:scoring )?parts?\b", "N part", text)
    text = re.sub(r"(ssh -L \S+) [\w.-]+", r"\1 HOST", text)
    text = re.sub(r"/\S*/(?=\S)", "/", text)
    text = re.sub(r"\b[0-9a-f]{12,}\b", "N", text)
    text = re.sub(r"\d[\d,.]*(?:e-\d+)?(?: [kMG]?B\b)?", "N", text)
    text = re.sub(r"\bthreads\b", "thread", text)
    text = re.sub(r"-{3,}", "---", text)
    lines = (" ".join(line.split()) for line in text.splitlines())
    return [line for line in lines if line and not line.startswith(_OF_SOME_MACHINES)]


def matches(printed, expected):
    """Return whether the lines are the expected ones; an expected line "..." stands for any number of lines."""
    pattern = "".join(r"(?:.*\n)*?" if line == "..." else re.escape(line) + "\n" for line in expected)
    return re.fullmatch(pattern, "".join(line + "\n" for line in printed)) is not None


@dataclass
class Shell:
    """Runs commands one after the other, each in the folder that the one before ended in."""

    folder: Path
    environment: dict[str, str]

    def __call__(self, command):
        """Run a command; return the completed process, its stderr merged into stdout."""
        place = Path(self.environment["TMPDIR"], "folder")
        text = f"set -euo pipefail\ntrap 'pwd > {shlex.quote(str(place))}' EXIT\n{_TURNS.sub('--turns 1', command)}\n"
        done = subprocess.run(
            ["bash", "-c", text],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=_LIMIT_S,
            check=False,
            cwd=self.folder,
            env=self.environment,
        )
        self.folder = Path(place.read_text().strip())
        return done


def run_blocks(blocks, shell, name):
    """Run every block that can run; return a description of each that failed."""
    wrong = []
    for block in blocks:
        at = f"{name}:{block.line}"
        if block.file:
            (shell.folder / block.file).write_text(block.text)
        elif block.kind == "python":
            (Path(shell.environment["TMPDIR"]) / "block.py").write_text(block.text)
            done = shell('PYTHONPATH="$PWD:$PYTHONPATH" python "$TMPDIR/block.py"')
            wrong += [f"{at}\n{done.stdout}"] * bool(done.returncode)
        elif block.kind == "sh":
            done = shell(block.text)
            wrong += [f"{at}\n{done.stdout}"] * bool(done.returncode)
        elif block.kind == "console":
            wrong += _wrong_output(at, block, shell)
    return wrong


def _wrong_output(at, block, shell):
    for command, expected in shown(block):
        done = shell(command)
        fails = "\nError: " in f"\n{expected}" or "problems were found" in expected
        if bool(done.returncode) != fails or not matches(masked(done.stdout), masked(expected)):
            yield f"{at} {command}\n{done.stdout}"


def copy_of_repository(folder):
    """Copy what the pages' commands use into a folder, without what runs and prepare.py wrote."""
    made = shutil.ignore_patterns("*.scored*", "*.scorer", "__pycache__", "scores")
    for name in ("examples", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=made)
    return folder


def anchors(page):
    """Return the anchors of a page's headings, as GitHub names them."""
    text = _FENCE.sub("", page.read_text("utf-8"))
    found = []
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


def links(page):
    """Return the targets of a page's links and pictures, without those in code."""
    text = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text("utf-8")))
    return re.findall(r"\]\(([^)\s]+)\)", text)


def broken_links(page):
    """Return the links of a page to files or headings that do not exist."""
    broken = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and (file.suffix != ".md" or anchor not in anchors(file))):
            broken.append(target)
    return broken


def environment(temporary):
    """Return the environment for a page's commands: this Python's programs and this copy of scorer first."""
    import os

    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(temporary),
        "XDG_CACHE_HOME": str(temporary / "cache"),
        "COLUMNS": "200",
    }


def table(page, heading):
    """Return the rows of the first table below a heading, each a list of cells; "\\|" is a bar inside a cell."""
    text = page.read_text("utf-8").split(f"\n{heading}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()[2:]
    return [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def with_flag_tables(text):
    """Return the page of all flags with the table below the heading of each group written again."""
    from scorer.options import fields

    for kind in fields.GROUPS.values():
        heading = f"## {kind.__doc__.rstrip('.')}\n"
        assert heading in text, heading
        before, after = text.split(heading)
        start, end = re.search(r"(?:^\|.*\n)+", after, re.MULTILINE).span()
        text = before + heading + after[:start] + _flag_table(kind) + after[end:]
    return text


def _flag_table(kind):
    lines = ["| flag | what it does | may differ |", "|---|---|---|"]
    for field in dataclasses.fields(kind):
        flag, meta = f"--{field.name.replace('_', '-')}", field.metadata
        flag += f" {meta['metavar']}" if meta["metavar"] else "" if field.default is False else f", --no-{flag[2:]}"
        differs = "" if field.name in _OF_THE_OUTPUT else "no" if meta["scores"] else "yes"
        lines.append(f"| `{_cell(flag)}` | {_cell(meta['help'])} | {differs} |")
    return "\n".join(lines) + "\n"


def _cell(text):
    return text.replace("|", "\\|").replace("*", "\\*")
