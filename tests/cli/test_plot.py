"""Pictures of runs: read back as pictures, and looked at cell by cell."""

from __future__ import annotations

import itertools
import json
import math
import signal
import struct
import subprocess
import time
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from fabric.plotting.runs import Series
from fabric.plotting.scales import nice_axis, smoothed, tick_label
from tests.cli.shell import FABRIC, environment, fabric, on_terminal, one_sentence


def write_run(path: Path, losses: list[float], val: dict[int, float] | None = None) -> Path:
    records = []
    for step, loss in enumerate(losses, 1):
        record = {"step": step, "loss": loss, "lr": 1e-4 * step}
        if val and step in val:
            record["val_loss"] = val[step]
        records.append(json.dumps(record))
    path.write_text("\n".join(records) + "\n")
    return path


def pixels(png: bytes) -> npt.NDArray[np.uint8]:
    """Reads a PNG back, every checksum checked."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, data, size = 8, b"", (0, 0)
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        body = png[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack(">I", png[at + 8 + length : at + 12 + length])[0]
        if kind == b"IHDR":
            size = struct.unpack(">II", body[:8])
        data += body if kind == b"IDAT" else b""
        at += 12 + length
    rows = np.frombuffer(zlib.decompress(data), np.uint8).reshape(size[1], 1 + 3 * size[0])
    return rows[:, 1:].reshape(size[1], size[0], 3)


def test_a_falling_loss_falls_in_the_picture(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a.jsonl", [4.0 - 0.03 * i for i in range(100)], {50: 3.0, 100: 2.0})
    target = tmp_path / "loss.png"
    assert fabric("plot", run, "-o", target, "--title", "a run", "--width", "800", "--height", "480").code == 0
    picture = pixels(target.read_bytes()).astype(int)
    assert picture.shape == (480, 800, 3)
    blue = np.abs(picture - (0, 114, 178)).sum(axis=2) < 30
    blue[:60] = False  # what says which line is which
    heights = [np.flatnonzero(blue[:, x]).mean() for x in range(120, 580) if blue[:, x].any()]
    assert len(heights) > 400
    assert all(later >= earlier - 1 for earlier, later in itertools.pairwise(heights))
    assert (np.abs(picture - (213, 94, 0)).sum(axis=2) < 30).sum() > 60


def test_the_terminal_gets_braille_and_a_dumb_one_plain_characters(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a.jsonl", [3 - 0.01 * i for i in range(60)], {60: 2.2})
    smart = fabric("plot", run, env={"TERM": "xterm", "PYTHONIOENCODING": "utf-8"}).out.decode()
    assert any(0x2800 < ord(c) < 0x2900 for c in smart) and "●" in smart
    dumb = fabric("plot", run, env={"TERM": "dumb"}).out
    assert dumb.isascii() and b"*" in dumb
    edges = smart.splitlines()[1:-2]
    ticks = [n for n, line in enumerate(edges) if "┤" in line]
    assert len({b - a for a, b in itertools.pairwise(ticks)}) == 1 and (ticks[0], ticks[-1]) == (0, len(edges) - 1)
    assert smart.splitlines()[-1].split() == ["0", "step", "60"]


def test_no_color_is_honoured_on_a_terminal(tmp_path: Path) -> None:
    write_run(tmp_path / "a.jsonl", [3, 2, 1])
    write_run(tmp_path / "b.jsonl", [3, 2.5, 2])
    runs = (tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert "\x1b[" in on_terminal("plot", *runs, stream="stdout")[1]
    plain = on_terminal("plot", *runs, stream="stdout", env={"NO_COLOR": "1"})[1]
    assert "\x1b[" not in plain and "* a   + b" in plain and plain.count("+") > 10


def test_an_svg_shows_the_runs_as_lines_and_says_what_they_are(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a<b.jsonl", [4.0 - 0.03 * i for i in range(100)], {50: 3.0, 100: 2.0})
    second = write_run(tmp_path / "b.jsonl", [4.0 - 0.02 * i for i in range(100)])
    target = tmp_path / "runs.svg"
    done = fabric("plot", first, second, "-c", "loss,lr", "-o", target, "--width", "800", "--title", "x & y")
    assert done.code == 0, done.err
    root = ElementTree.fromstring(target.read_bytes())
    assert root.get("viewBox") == "0 0 800 720"
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"x & y", "a<b", "b", "validation", "optimizer step", "learning rate"} <= texts
    lines = [element.get("points", "").split() for element in root.iter("{http://www.w3.org/2000/svg}polyline")]
    long = [[float(point.split(",")[1]) for point in line] for line in lines if len(line) == 100]
    assert len(long) == 6  # raw and smoothed losses, two rates
    assert all(b >= a for a, b in itertools.pairwise(long[0]))  # y grows downwards
    assert fabric("plot", first, "-o", "-", "--svg").out.startswith(b"<svg")


def append(path: Path, step: int, loss: float) -> None:
    with path.open("a") as file:
        file.write(json.dumps({"step": step, "loss": loss}) + "\n")


def test_a_followed_run_is_drawn_again_as_it_grows_until_ctrl_c(tmp_path: Path) -> None:
    metrics, picture = tmp_path / "m.jsonl", tmp_path / "m.svg"
    process = subprocess.Popen(
        [*FABRIC, "plot", str(metrics), "--follow", "-o", str(picture)], env=environment(), stderr=subprocess.PIPE
    )
    drawn = b""
    for step in (1, 2, 3):
        append(metrics, step, 4.0 - step)
        if step == 2:
            with metrics.open("a") as file:
                file.write('{"step": 9, "lo')  # a line that is not whole yet
        deadline = time.monotonic() + 60
        while not picture.exists() or picture.read_bytes() == drawn:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        drawn = picture.read_bytes()
        if step == 2:
            metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:2]))
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0 and told == b""


def test_a_followed_pipe_is_drawn_on_a_terminal_and_ends_with_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a.jsonl", [3 - 0.01 * i for i in range(60)])
    assert fabric("plot", "--follow", "-o", tmp_path / "a.png", stdin=run.read_bytes()).code == 0
    assert pixels((tmp_path / "a.png").read_bytes()).shape == (720, 1200, 3)
    one_sentence(fabric("plot", run, "--follow"), 2, "terminal")
    one_sentence(fabric("plot", run, "--follow", "--json"), 2, "--follow")
    one_sentence(fabric("plot", "--follow", "-o", tmp_path / "b.png"), 65, "no metrics")


def test_numbers_of_runs_come_as_json(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a.jsonl", [3, 1, 2], {3: 2.5})
    told = json.loads(fabric("plot", run, "--json").out)
    assert told["runs"][0]["loss"] == {"first": 3, "last": 2, "least": 1}
    assert told["runs"][0]["val_loss"]["last"] == 2.5


def test_one_step_and_equal_values_still_make_a_picture(tmp_path: Path) -> None:
    for losses in ([2.0], [2.0] * 30, [1.0, 1.0000000000000002]):
        run = write_run(tmp_path / "a.jsonl", losses)
        assert fabric("plot", run).code == 0
        assert pixels(fabric("plot", run, "-o", "-").out).shape == (720, 1200, 3)


def test_what_is_no_metrics_file_is_named_with_its_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    for content, words in (
        ('{"step": 1, "loss": 2}\nnonsense\n', ("bad.jsonl:2", "not a JSON object")),
        ('{"loss": 2}\n', ("bad.jsonl:1", "step")),
        ("", ("bad.jsonl", "no metrics")),
        ('{"step": 1, "loss": NaN}\n', ("bad.jsonl", "no metrics")),
    ):
        bad.write_text(content)
        one_sentence(fabric("plot", bad), 65, *words)
    one_sentence(fabric("plot", write_run(tmp_path / "a.jsonl", [1, 2]), "-c", "lsos"), 65, "'lsos'", "loss")


def test_ticks_are_round_and_told_apart() -> None:
    for low, high in ((0, 1), (1.3, 4.2), (0, 2e-4), (-3, 1e7), (2.41, 2.43), (5, 5)):
        axis = nice_axis(low, high, 5)
        assert axis.low <= low and axis.high >= high
        labels = [tick_label(tick, axis) for tick in axis.ticks]
        assert 2 <= len(labels) <= 13 and len(set(labels)) == len(labels)


def test_a_long_run_is_drawn_in_a_time_that_grows_with_its_steps(tmp_path: Path) -> None:
    run = tmp_path / "long.jsonl"
    losses = (2 + math.sin(i / 9000) + (i % 7 - 3) / 3 for i in range(100_000))
    run.write_text("".join(f'{{"step":{i},"loss":{loss},"val_loss":0.2}}\n' for i, loss in enumerate(losses)))
    target = tmp_path / "long.png"
    assert fabric("plot", run, "-o", target, timeout=45).code == 0
    blue = np.abs(pixels(target.read_bytes()).astype(int) - (0, 114, 178)).sum(axis=2) < 30
    blue[:60] = False
    heights = np.array([np.flatnonzero(blue[:, x]).mean() for x in range(200, 1000)])
    place = np.corrcoef(heights, [math.sin((x - 99) / 1076 * 100_000 / 9000) for x in range(200, 1000)])[0, 1]
    assert place < -0.99


def test_smoothing_is_a_gaussian(tmp_path: Path) -> None:
    steps = [float(i * i) for i in range(60)]
    values = [math.sin(i) for i in range(60)]
    for width in (0.5, 30.0, 400.0):
        line = smoothed(Series(steps, values), width)
        for step, value in zip(line.steps, line.values, strict=True):
            weights = [math.exp(-0.5 * ((s - step) / width) ** 2) for s in steps]
            want = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
            assert abs(value - want) < 0.02
    assert smoothed(Series(steps, values), 0.0).values == values


def test_any_finite_numbers_can_be_drawn(tmp_path: Path) -> None:
    rows = [(1, 0.0), (2, 5e-324), (3, 1e299), (1e299, -1e299), (-1e299, 1e-300), (5, 7.0)]
    for count, more in ((1, []), (2, []), (4, []), (6, []), (6, ["-o", tmp_path / "x.png"])):
        run = tmp_path / f"{count}.jsonl"
        run.write_text("".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in rows[:count]))
        told = fabric("plot", run, *more)
        assert (told.code, told.err) == (0, "")


def test_a_pipe_is_followed_under_any_name(tmp_path: Path) -> None:
    line = f"{' '.join(FABRIC)} plot --follow /dev/stdin -o {tmp_path / 'x.svg'}"
    run = write_run(tmp_path / "a.jsonl", [3.0, 2.0, 1.0])
    done = subprocess.run(["bash", "-c", f"cat {run} | {line}"], env=environment(), timeout=30, check=False)
    assert done.returncode == 0 and b"<svg" in (tmp_path / "x.svg").read_bytes()
