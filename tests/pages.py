"""The pages that a user reads, and the commands in them.

A fence names what it holds: `bash` commands, `console` commands after `$ ` with what they print,
`text` what is no command; `python`, `yaml`, `diff` and `mermaid` what they say.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A line that a user types, and what the page shows of its output, if anything."""

    page: str
    line: str
    output: str = ""

    def parts(self):
        """The words of each program that the line calls, without settings before it."""
        lexer = shlex.shlex(self.line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words, calls = list(lexer), [[]]
        for word in words:
            if set(word) <= set("();<>|&"):
                calls.append([])
            elif calls[-1] or not re.fullmatch(r"[A-Z_]+=.*", word):
                calls[-1].append(word)
        # What a redirection names is a file, no program.
        return [call for call in calls if call and not is_file_name(call)]


def is_file_name(call):
    return len(call) == 1 and re.search(r"[./]", call[0]) is not None


def fences(page):
    """Language and text of each fence of a page."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def commands(page):
    """The commands of a page, in its order."""
    found = []
    for language, text in fences(page):
        if language == "bash":
            found += [Command(page.name, line) for line in logical_lines(text)]
        if language == "console":
            for shown in re.split(r"(?m)^\$ ", text)[1:]:
                line, *rest = re.split(r"(?<!\\)\n", shown, maxsplit=1)
                typed = logical_lines(line)[0]
                found.append(Command(page.name, typed, "".join(rest).strip("\n")))
    return found


def logical_lines(text):
    """Lines as a shell takes them: continued, in quotes over several, without comments."""
    lines, begun = [], ""
    for line in text.splitlines():
        begun += line
        if begun.endswith("\\") or begun.endswith("|"):
            begun = begun.removesuffix("\\") + " "
        elif begun.count("'") % 2 or begun.count('"') % 2:
            begun += "\n"
        elif command := re.sub(r"(^|\s+)#\s.*$", "", begun).strip():
            lines.append(command)
            begun = ""
        else:
            begun = ""
    return lines
