"""Completion as someone at a terminal gets it: real shells, a Tab, and what the command then receives."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import subprocess
import termios
import time
from pathlib import Path

import pytest

from fabric.cli.app import COMMANDS, load
from fabric.cli.completion import offer
from fabric.cli.flags import sections, setting_of
from fabric.weights.mix import encodable, type_names
from fabric.weights.settings import TYPES
from tests.cli.shell import fabric
from tests.support.paths import REPOSITORY

FILES = REPOSITORY / "completions"
NAMES = ["my model.gguf", "my model.txt", "my rows.jsonl", "my rows.csv", "only.toml", "only.txt"]
TYPED = [
    ("qu", ["quantize"]),
    ("help tr", ["help", "train"]),
    ("train -m my", ["train", "-m", "my model.gguf"]),
    ("train -a my", ["train", "-a", "my model.gguf"]),
    ("train my", ["train", "my rows.jsonl"]),
    ("inspect my", ["inspect", "my model.gguf"]),
    ("eval --judge my", ["eval", "--judge", "my model.gguf"]),
    ("quantize --calibrate my", ["quantize", "--calibrate", "my rows.jsonl"]),
    ("train --config on", ["train", "--config", "only.toml"]),
    ("train --device vu", ["train", "--device", "vulkan"]),
    ("train --schedule cos", ["train", "--schedule", "cosine"]),
    ("train --modules attn_q,ffn_u", ["train", "--modules", "attn_q,ffn_up"]),
    ("quantize --type q8", ["quantize", "--type", "q8_0"]),
    ("quantize --tensor blk.0.x=q8", ["quantize", "--tensor", "blk.0.x=q8_0"]),
    ("train --track tensorboard,wa", ["train", "--track", "tensorboard,wandb"]),
    ("eval --measures exact,ch", ["eval", "--measures", "exact,chrf"]),
    ("train --dropo", ["train", "--dropout"]),
    ("completion zs", ["completion", "zsh"]),
    ("resume .fabric/runs/har", ["resume", ".fabric/runs/harbour"]),
    ("resume ", ["resume", ".fabric/runs/harbour"]),
]
PRINTS = "printf 'ARGS'; printf '<%s>' \"$@\"; printf 'END\\n'"
STARTS = {
    "bash": ["bash", "--noprofile", "--rcfile", "start", "-i"],
    "zsh": ["zsh", "-i"],
    "fish": ["fish", "--no-config", "-i", "-C", "source start"],
}


@pytest.mark.parametrize("shell", STARTS)
def test_a_tab_completes_files_values_and_flags(shell: str, tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    for name in NAMES:
        (tmp_path / name).touch()
    (tmp_path / ".fabric/runs/harbour").mkdir(parents=True)
    start = {
        "bash": f"source '{FILES}/fabric.bash'\nfabric() {{ {PRINTS}; }}\nbind 'set bell-style none'\n",
        "zsh": f"fpath=('{FILES}' $fpath)\nautoload -U compinit\ncompinit -u -D\nfabric() {{ {PRINTS}; }}\n",
        "fish": f"source '{FILES}/fabric.fish'\nfunction fabric; printf ARGS; printf '<%s>' $argv; echo END; end\n",
    }[shell]
    (tmp_path / (".zshrc" if shell == "zsh" else "start")).write_text(start)
    master, slave = pty.openpty()
    home = {"HOME": str(tmp_path), "ZDOTDIR": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / ".config")}
    process = subprocess.Popen(
        STARTS[shell], stdin=slave, stdout=slave, stderr=slave, cwd=tmp_path, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        env={"PATH": os.environ["PATH"], "TERM": "xterm", "LC_ALL": "C.UTF-8", **home},
    )  # fmt: skip
    os.close(slave)
    try:
        received = []
        for line, _ in TYPED:
            os.write(master, f"fabric {line}\t\n".encode())
            received.append(_arguments(master))
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert [[word.removeprefix(f"{tmp_path}/") for word in words] for words in received] == [
        words for _, words in TYPED
    ]


def _arguments(terminal: int) -> list[str]:
    """What the command was started with, once the terminal has shown it."""
    seen, end = b"", time.monotonic() + 20
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 65536)
        if found := re.search(rb"ARGS(<.*>)END", seen):
            return [word.rstrip("/") for word in re.findall(r"<([^>]*)>", found[1].decode())]
    return [f"nothing came: {seen.decode(errors='replace')[-300:]}"]


def test_bash_takes_a_flag_apart_at_its_sign() -> None:
    script = (
        "source completions/fabric.bash; cd tests/cli; COMP_WORDS=(fabric train --device = vu); COMP_CWORD=4; _fabric; "
        "printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "-c", script], cwd=REPOSITORY, capture_output=True, check=True)
    assert done.stdout.decode().split() == ["vulkan"]


def test_what_is_offered_is_what_is_taken() -> None:
    assert set(TYPES) <= set(type_names())
    for name in COMMANDS:
        for param in load(name).params:
            setting, found = setting_of(param), offer(param)
            if setting.path == "in" and (setting.metavar or "").startswith("GGUF"):
                assert found.words == ("*.gguf",), (name, param.name)
            if (setting.metavar or "") in ("DATA", "PROMPTS", "FILE|FRACTION"):
                assert found.words == ("*.jsonl",), (name, param.name)
            if setting.parse is not None and found.kind in ("words", "list"):
                for word in found.words:
                    setting.parse(word)
            if found.kind == "pair" or param.name == "output_type":
                assert set(found.words) == {row.name.lower() for row in encodable()}, (name, param.name)


def test_long_helps_have_sections_and_short_ones_do_not() -> None:
    titles = {name: [title for title, _ in sections(load(name))] for name in COMMANDS}
    assert titles["train"] == [
        "Basics", "LoRA", "Schedule", "Memory and device", "Data", "Output", "All commands",
    ]  # fmt: skip
    assert titles["merge"] == ["Options"]
    shown = fabric("train", "--help").out.decode()
    places = [shown.index(f"\n{title}:\n") for title in titles["train"]]
    assert places == sorted(places) and places[1] < shown.index("--rank") < places[2] < shown.index("--schedule")
    for name in COMMANDS:
        options = [option for _, group in sections(load(name)) for option in group]
        assert len(options) == len({option.name for option in options}), name


def test_examples_of_man_pages_stay_on_one_line() -> None:
    from fabric.cli.examples import EXAMPLES

    if not shutil.which("groff"):
        pytest.skip("groff is not installed")
    for name, examples in EXAMPLES.items():
        page = REPOSITORY / f"man/fabric-{name}.1"
        shown = subprocess.run(["groff", "-man", "-Tascii", "-P-cbou", str(page)], capture_output=True, check=True)
        lines = [line.strip() for line in shown.stdout.decode().splitlines()]
        assert [line for _, line in examples if line not in lines] == []
