"""README, docs/ and examples/: their links lead somewhere, and their commands exist."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric import __version__
from fabric.cli.app import COMMANDS, load
from tests.support.paths import REPOSITORY

PAGES = sorted(
    [REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md"]
    + [path for folder in ("docs", "examples") for path in (REPOSITORY / folder).rglob("*.md")]
)
FENCE = re.compile(r"(?ms)^```(\w*)\n(.*?)^```$")
GROUP_FLAGS = {"--help", "-h", "--version"}


def named(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def prose(path: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """The fragments that a page's headings answer to, as GitHub and mkdocs make them."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"(?m)^#{1,6} +(.+?) *$", prose(path)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(slug if not seen[slug] else f"{slug}-{seen[slug]}")
        seen[slug] += 1
    return found


def links(path: Path) -> list[str]:
    """The targets of a page's links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(path)))


def broken(path: Path) -> Iterator[str]:
    for link in links(path):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, fragment = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        if not file.exists():
            yield f"{link}: there is no such file"
        elif fragment and fragment not in anchors(file):
            yield f"{link}: {named(file)} has no such heading"


def shell_lines(path: Path) -> Iterator[str]:
    """Lines of shell in a page: blocks of sh, indented blocks, and code within a paragraph."""
    text = re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8")).replace("\\|", "|")
    blocks = [body for language, body in FENCE.findall(text) if language in ("sh", "console")]
    blocks += re.findall(r"(?m)^    (\S.*)$", FENCE.sub("", text))
    blocks += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCE.sub("", text))]
    for block in blocks:
        yield from block.splitlines()


def calls(line: str) -> Iterator[list[str]]:
    """The `fabric` commands of a line of shell, as words; also those within quotes, as ssh takes them."""
    words = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;()<>")
    words.whitespace_split = True
    found: list[str] = []
    for word in [*words, ";"]:
        if set(word) <= set("|&;()<>"):
            while found and re.match(r"[A-Z_]+=", found[0]):
                found.pop(0)
            if found[:1] == ["fabric"]:
                yield found[1:]
            found = []
        elif word.startswith("fabric ") or " | fabric " in word:
            yield from calls(word)
        else:
            found.append(word)


def wrong(words: list[str]) -> Iterator[str]:
    """What a command has not: the command itself, or a flag."""
    name = words[0] if words else ""
    if not words or name.isupper() or name in GROUP_FLAGS or name == "COMMAND":
        return
    if name not in COMMANDS:
        yield f"fabric {name}: there is no such command"
        return
    flags = {flag for param in load(name).params for flag in [*param.opts, *param.secondary_opts]} | {"-h", "--help"}
    for word in words[1:]:
        if re.match(r"--?[a-zA-Z]", word) and word.partition("=")[0] not in flags:
            yield f"fabric {name} {word}: there is no such flag"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_and_anchor_leads_somewhere(page: Path) -> None:
    assert list(broken(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_and_flag_exists(page: Path) -> None:
    found = []
    for line in shell_lines(page):
        if "fabric " in line:
            found += [fault for words in calls(line) for fault in wrong(words)]
    assert found == []


def test_the_checks_find_what_they_look_for(tmp_path: Path) -> None:
    page = REPOSITORY / "docs" / "index.md"
    assert "what-it-trains" in anchors(REPOSITORY / "README.md")
    assert page.exists() and links(page)
    lines = [
        "fabric tain x -m y",
        "cat x | fabric train - --rnk 8 > y",
        "ssh a 'fabric evil -m x'",
        "X=1 fabric plot --no",
    ]
    assert len([fault for line in lines for words in calls(line) for fault in wrong(words)]) == len(lines)
    assert [fault for words in calls("fabric train r -m b --no-shuffle --lr=1 -o -") for fault in wrong(words)] == []


def test_the_index_and_the_site_name_every_page() -> None:
    pages = {path.name for path in (REPOSITORY / "docs").glob("*.md")} - {"index.md"}
    assert pages == {link for link in links(REPOSITORY / "docs" / "index.md") if link.endswith(".md")}
    site = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    assert pages == set(re.findall(r": (\S+\.md)$", site, re.MULTILINE)) - {"index.md"}


def test_pages_of_the_site_link_to_pages_of_the_site() -> None:
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert [link for link in links(page) if link.startswith("../")] == [], page


def test_the_changelog_begins_with_this_version() -> None:
    text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"(?m)^## (\S+)", text)[1] == __version__  # type: ignore[index]
