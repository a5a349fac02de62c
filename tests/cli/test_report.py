"""`fabric report`: what the page says, and that it says it to everybody: in a browser, on a phone, without scripts, and
to nobody else."""

from __future__ import annotations

import http.client
import json
import math
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.cli.shell import FABRIC, environment, fabric, one_sentence
from tests.support.browser import Page, browser, found

HOSTILE = "<img src=x onerror=document.title='owned'></script><script>document.title='owned'</script>"
STEPS = 60


def metrics(path: Path, start: float = 4.0, steps: int = STEPS) -> Path:
    lines = []
    for i in range(1, steps + 1):
        loss = start * math.exp(-i / 30) + 0.3 + 0.05 * math.sin(7 * i)
        row = {"step": i, "epoch": i / 20, "loss": loss, "lr": 1e-4 * (1 - i / 100), "grad_norm": 1 + 0.3 * math.sin(i)}
        row |= {"tokens": 500, "trained_tokens": 200, "seconds": 0.5, "tokens_per_s": 1000.0, "peak_bytes": 3 << 20}
        lines.append(row | ({"val_loss": loss + 0.1} if i % 20 == 0 else {}))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def trained(tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, `first` and `second`, and what eval says of them in scores.json."""
    folder = tmp_path_factory.mktemp("trained")
    for name, rank in (("first", "4"), ("second", "2")):
        run = ("--run-dir", folder / name, "--rank", rank, "--steps", "8", "--ctx", "64", "--batch", "4")
        done = fabric(
            "train", rows, "-m", tiny, *map(str, run), "--val", "0.2", "--eval-every", "4", "--sample", rows, "-q"
        )
        assert done.code == 0, done.err
        samples = [
            {"step": step, "prompt": prompt, "answer": f"{name} at {step} {HOSTILE}", "expected": "Odd: 3."}
            for step in (0, 4, 8) for prompt in ("Is 33 odd?", HOSTILE)
        ]  # fmt: skip
        own = (folder / name / "samples.jsonl").read_text()
        (folder / name / "samples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in samples) + own)
    adapters = [part for name in ("first", "second") for part in ("-a", folder / name / "adapter.gguf")]
    done = fabric("eval", rows, "-m", tiny, *adapters, "--compare", "--json", "-q")
    assert done.code == 0, done.err
    (folder / "scores.json").write_bytes(done.out)
    return folder


@pytest.fixture(scope="module")
def pages(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one.html, of a run, and two.html, of both and their scores."""
    folder, hostile = tmp_path_factory.mktemp("pages"), trained / "x<b>&amp;\"'x"
    shutil.copytree(trained / "second", hostile)
    both = (trained / "first", hostile, "--eval", trained / "scores.json", "--title", HOSTILE)
    for name, of in (("one.html", (trained / "first",)), ("two.html", both)):
        done = fabric("report", *of, "-o", folder / name)
        assert (done.code, done.out) == (0, b""), done.err
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = found()
    if program is None:
        pytest.skip("no headless browser is installed")
    with browser(program, tmp_path_factory.mktemp("profile")) as tab:
        yield tab


class Text(HTMLParser):
    """What a reader of the page's source sees: rows of tables by their ids, and elements that could act."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.scripts = 0
        self.acting: list[str] = []
        self.rows: list[list[str]] | None = None
        self.inside = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.scripts += tag == "script"
        loads = {"src", "srcset", "data", "style"} & given.keys() or any(name.startswith("on") for name in given)
        if tag in ("img", "iframe", "link", "object", "b") or loads:
            self.acting.append(tag)
        if tag == "a" and not (given["href"] or "").startswith("#"):
            self.acting.append(tag)
        if tag == "tbody":
            self.rows = self.tables[given["id"] or ""] = []
        if tag == "tr" and self.rows is not None:
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")
        if tag == "tbody":
            self.rows = None

    def handle_data(self, data: str) -> None:
        if self.rows and self.inside:
            self.rows[-1][-1] += data

    def row(self, table: str, name: str) -> list[str]:
        return next(row[1:] for row in self.tables[table] if row[0] == name)


def test_the_page_says_how_a_run_was_made_and_what_it_came_to(trained: Path, pages: Path) -> None:
    text, told = Text(pages / "one.html"), json.loads((trained / "first/run.json").read_text())
    assert text.row("overview", "steps") == ["8 of 8"] and text.row("overview", "state")[0].startswith("finished")
    last = [json.loads(line) for line in (trained / "first/metrics.jsonl").read_text().splitlines()][-1]
    assert text.row("overview", "loss, last step") == [f"{last['loss']:.6g}"]
    assert text.row("overview", "last validation loss") == [f"{last['val_loss']:.6g}"]
    assert text.row("settings-chosen", "--rank") == ["4"] and text.row("settings-chosen", "--lr") == ["0.001"]
    assert text.row("settings-default", "--schedule") == ["cosine"]
    for name, key in (("base model", "model"), ("rows", "data")):
        assert text.row("provenance", name) == [Path(told["settings"][key]).name]
        assert text.row("provenance", f"{name}, SHA-256") == [told[f"{key}_sha256"]]
    assert text.row("provenance", "fabric") == [told["about"]["version"]]
    assert text.row("machine", "device") == [told["about"]["device"]["name"]]
    assert text.tables["history-0"][0][0] == "train"
    assert str(trained) not in (pages / "one.html").read_text()  # whose machine it was is nobody's business


def test_several_runs_stand_beside_each_other_with_their_scores(trained: Path, pages: Path) -> None:
    text, scores = Text(pages / "two.html"), json.loads((trained / "scores.json").read_text())
    assert text.tables["settings-differ"] == [["--rank", "4", "2"]]
    assert [row[0] for row in text.tables["eval-0-scores"]][:2] == ["loss per trained token", "perplexity"]
    assert text.row("eval-0-scores", "loss per trained token")[0] == f"{scores['base']['loss']:.6g}"
    low, high = scores["adapters"][1]["accuracy_interval"]
    interval = f"{100 * low:.1f} % to {100 * high:.1f} %"
    assert text.row("eval-0-scores", "95 % interval of the accuracy")[2] == interval
    paired = scores["adapters"][0]["against_base"]
    assert text.tables["eval-0-paired"][0][-1] == f"{paired['accuracy_p']:.2g}"
    answers = text.tables["sample-0"]
    assert answers[:2] == [["prompt", "Is 33 odd?"], ["expected", "Odd: 3."]]
    assert answers[2] == ["first, before training", f"first at 0 {HOSTILE}"] and len(answers) == 8
    answers = text.tables["sample-2"]  # of the runs themselves
    assert answers[0] == ["prompt", "Is 0 odd?"]
    assert [name for name, _ in answers if name.endswith("before training")] == [
        f"{name}, before training" for name in ("first", "x<b>&amp;\"'x")
    ]


def test_measures_near_ties_and_judgements_of_eval_are_tables(tmp_path: Path) -> None:
    measure = {"mean": 41.25, "interval": [38.0, 44.5], "rows": 30}
    paired = {"difference": 3.5, "interval": [1.0, 6.0], "better": 20, "worse": 5, "p": 0.004}
    ties = {"noise": 0.05, "measured_rows": 8, "rows": 3, "right": 2, "accuracy_range": [0.5, 0.6]}
    contest = {"name": "/a/tuned.gguf", "against": "base", "rows": 30, "wins": 18, "losses": 6, "ties": 6, "same": 1}
    contest |= {"win_rate": 0.7, "interval": [0.55, 0.83], "p": 0.02, "first_shown": 0.52}
    one = {"loss": 1.5, "measures": {"chrf": measure}, "near_ties": ties}
    adapter = {"name": "/a/tuned.gguf", **one, "against_base": {"loss_difference": -1.0, "measures": {"chrf": paired}}}
    judged = {"judge": "/m/judge.gguf", "contests": [contest]}
    (tmp_path / "s.json").write_text(json.dumps({**one, "base": one, "adapters": [adapter], "judged": judged}))
    (tmp_path / "j.json").write_text(json.dumps(judged))
    run, page = metrics(tmp_path / "a.jsonl"), tmp_path / "p.html"
    done = fabric("report", run, "--eval", tmp_path / "s.json", "--eval", tmp_path / "j.json", "-o", page)
    assert done.code == 0, done.err
    text = Text(page)
    assert text.row("eval-0-scores", "chrf, of 100") == ["41.2", "41.2"]
    assert text.row("eval-0-scores", "accuracy by how they end") == ["50.0 % to 60.0 %"] * 2
    assert text.tables["eval-0-measures"] == [["tuned.gguf", "chrf", "+3.5", "1.0 to 6.0", "20", "5", "0.004"]]
    row = ["tuned.gguf", "base", "18", "6", "6", "70.0 %", "55.0 % to 83.0 %", "0.02", "52.0 %"]
    assert text.tables["eval-0-judged"] == text.tables["eval-1-judged"] == [row] and "eval-1-scores" not in text.tables


def test_no_text_of_a_stranger_becomes_markup(pages: Path) -> None:
    for name in ("one.html", "two.html"):
        text, source = Text(pages / name), (pages / name).read_text(encoding="utf-8")
        assert (text.acting, text.scripts) == ([], 2)
        assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in source.replace("&#39;", "'")
        assert "http://" not in source.replace("http://www.w3.org/2000/svg", "") and "https://" not in source


def test_columns_labels_and_names_of_strangers_are_escaped_too(tmp_path: Path) -> None:
    run = tmp_path / "run.jsonl"
    run.write_text(
        "".join(json.dumps({"step": i, HOSTILE: i, f"val_{HOSTILE}": i, "\ud800\u202e": 1}) + "\n" for i in (1, 2))
    )
    scores = {
        "loss": 1.0,
        HOSTILE: {HOSTILE: [1, HOSTILE]},
        "confusion": {HOSTILE: {HOSTILE: 1}},
        "labels": {HOSTILE: {}},
    }
    (tmp_path / "s.json").write_text(json.dumps(scores | {"adapters": [{"name": HOSTILE, "against_base": 3}]}))
    done = fabric("report", run, "--eval", tmp_path / "s.json", "-o", tmp_path / "p.html")
    assert done.code == 0, done.err
    text = Text(tmp_path / "p.html")
    assert (text.acting, text.scripts) == ([], 2)
    assert "\u202e" not in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_the_page_is_whole_without_scripts(page: Page, trained: Path, pages: Path) -> None:
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open((pages / "two.html").as_uri())
        root = page.call("DOM.getDocument", depth=-1)["root"]["nodeId"]

        def count(selector: str) -> int:
            return len(page.call("DOM.querySelectorAll", nodeId=root, selector=selector)["nodeIds"])

        assert count("figure svg[role=img][aria-label]") == count("figure") >= 5
        assert count("figure#chart-0 polyline.line") == 2 and count("figure#chart-0 circle.dots") == 4
        assert count("#chart-0-table tr") == 8 and count(".script:not([hidden])") == 0
        assert count("figure svg text") > 20
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)
    assert page.console == [] and page.requests == [(pages / "two.html").as_uri()]


def shot(page: Page, path: Path) -> int:
    """How many bytes the picture of a page has: more than those of an empty one."""
    page.screenshot(path)
    return path.stat().st_size


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_drawn_in_a_browser_that_fetches_nothing(
    page: Page, pages: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    page.size(width, phone=width < 500)
    page.dark(dark)
    page.open((pages / "two.html").as_uri())
    assert page.value("document.title").startswith("<img src=x")
    assert page.value("document.querySelectorAll('figure').length") >= 5
    for figure in ("chart-0", "chart-1"):
        box = f"document.querySelector('#{figure} polyline.line').getBoundingClientRect()"
        assert page.value(f"{box}.width") > width / 4 and page.value(f"{box}.height") > 60
    assert page.value("document.documentElement.scrollWidth") <= width  # nothing is cut on a phone
    ink, back = (page.value(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    assert contrast(ink, back) > 7 and (luminance(back) < 0.1) == dark
    for name in ("--faint", "--link", *(f"--c{i}" for i in range(6))):
        color = page.value(f"getComputedStyle(document.documentElement).getPropertyValue('{name}')")
        assert contrast(color, back) >= 4.5, name
    assert shot(page, tmp_path / "page.png") > 20_000
    assert page.console == [] and page.requests == [(pages / "two.html").as_uri()]


def luminance(color: str) -> float:
    """WCAG's, of #rrggbb or rgb(r, g, b)."""
    parts = re.findall(r"\d+", color) if color.startswith("rgb") else [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (int(p) / 255 for p in parts[:3])]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_curves_can_be_read_zoomed_and_laid_out_anew(page: Page, tmp_path: Path) -> None:
    both = (metrics(tmp_path / "a.jsonl"), metrics(tmp_path / "b.jsonl", 3.0))
    assert fabric("report", *both, "-o", tmp_path / "p.html").code == 0
    page.size(1000, 2000)
    page.dark(False)
    page.open((tmp_path / "p.html").as_uri())
    said, labels = (
        "document.querySelector('#chart-0 .values').textContent",
        "[...document.querySelectorAll('#chart-0 .label text')].map(t => t.textContent)",
    )
    box: dict[str, float] = page.value("document.querySelector('#chart-0 svg').getBoundingClientRect().toJSON()")
    middle = box["y"] + box["height"] / 2
    at = lambda part: box["x"] + 64 + (box["width"] - 76) * part  # noqa: E731
    page.mouse("Moved", at(0.5), middle)
    assert re.search(r"optimizer step (29|30|31)", page.value(said)) and page.value(said).count("mean") == 2
    assert page.value("document.querySelectorAll('#chart-0 .cursor').length") == 1
    page.mouse("Moved", at(0.25), middle)
    page.mouse("Pressed", at(0.25), middle)
    page.mouse("Moved", at(0.4), middle)
    page.mouse("Moved", at(0.5), middle)
    page.mouse("Released", at(0.5), middle)
    assert {"20", "25"} <= set(page.value(labels)) and not {"0", "40", "60"} & set(page.value(labels))
    assert "20" in page.value(labels.replace("chart-0", "chart-1"))  # all curves zoom together
    page.value("document.getElementById('all').click()")
    assert {"20", "60"} <= set(page.value(labels))
    page.value("document.querySelector('#chart-0 .plot').focus()")
    for key, where in (("Home", 1), ("ArrowRight", 2), ("ArrowRight", 3), ("End", STEPS), ("ArrowLeft", STEPS - 1)):
        page.key(key)
        assert page.value(said).startswith(f"optimizer step {where}:"), key
    before = page.value(labels)
    page.key("+")
    assert page.value(labels) != before
    page.key("0")
    assert page.value(labels) == before
    page.value("document.querySelector('#chart-0 .log').click()")
    assert {"1", "2"} <= set(page.value(labels)) and "3" not in page.value(labels)
    for axis, last in (("epoch", "3"), ("tokens", "30000"), ("seconds", "30"), ("step", "60")):
        page.value(f"document.getElementById('axis').value = '{axis}'")
        page.value("document.getElementById('axis').dispatchEvent(new Event('change'))")
        assert last in page.value(labels), axis
    assert page.console == []


def test_a_reader_of_the_screen_finds_names_heads_and_tables(page: Page, pages: Path) -> None:
    page.open((pages / "two.html").as_uri())
    assert page.value("document.documentElement.lang") == "en"
    levels = page.value("[...document.querySelectorAll('h1,h2')].map(h => h.tagName)")
    assert levels[0] == "H1" and levels.count("H1") == 1
    assert page.value("[...document.querySelectorAll('table')].every(t => t.caption?.textContent.trim())")
    assert page.value("[...document.querySelectorAll('tbody tr')].every(r => r.cells[0].scope === 'row')")
    ids = page.value("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(set(ids)) == len(ids)
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    for role in ("application", "combobox", "checkbox", "button", "navigation", "main", "table"):
        named = [n for n in tree if n.get("role", {}).get("value") == role]
        assert named, role
        if role not in ("navigation", "main"):
            assert all(n.get("name", {}).get("value") for n in named), role
    page.value("document.activeElement.blur(), scrollTo(0, 0)")
    reached = set()
    for _ in range(40):
        page.key("Tab")
        reached.add(
            page.value(
                "document.activeElement.className || document.activeElement.id || document.activeElement.tagName"
            )
        )
    assert {"A", "axis", "all", "plot", "log", "SUMMARY"} <= reached


def test_what_is_no_run_is_named(tmp_path: Path, trained: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jsonl").write_text('{"step": 1, "loss": 2}\nnonsense\n{"step": 2}\n')
    (tmp_path / "bad.json").write_text("[]")
    run = trained / "first"
    one_sentence(fabric("report", tmp_path / "none", "-o", tmp_path / "x.html"), 66, "none", "nothing there")
    one_sentence(fabric("report", tmp_path / "empty", "-o", tmp_path / "x.html"), 66, "metrics.jsonl")
    one_sentence(fabric("report", tmp_path / "bad.jsonl", "-o", tmp_path / "x.html"), 65, "bad.jsonl:2")
    one_sentence(fabric("report", run, "--eval", tmp_path / "bad.json", "-o", tmp_path / "x.html"), 65, "eval --json")
    one_sentence(fabric("report", run, "--follow"), 2, "does not go on", "-o report.html")
    assert not (tmp_path / "x.html").exists()


def test_what_is_not_whole_yet_is_passed_over(tmp_path: Path, trained: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained / "first", run)
    for name in ("run.json", "adapter.gguf", "samples.jsonl"):
        (run / name).unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    done = fabric("report", run, stdin=b"")
    assert done.code == 0 and done.out.startswith(b"<!DOCTYPE html>") and b"first" not in done.err.encode()
    (run / "samples.jsonl").write_text('{"step": 1}\n')
    one_sentence(fabric("report", run, "-o", tmp_path / "x.html"), 65, "samples.jsonl:1")
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to(trained / "first/metrics.jsonl")
    one_sentence(fabric("report", run, "-o", tmp_path / "x.html"), 65, "symbolic link")


def test_a_long_run_makes_a_page_of_bounded_size(tmp_path: Path) -> None:
    run = tmp_path / "long.jsonl"
    run.write_text(
        "".join(f'{{"step":{i},"loss":{2 + math.sin(i / 9000)},"tokens":9,"seconds":0.1}}\n' for i in range(1, 40_001))
    )
    done = fabric("report", run, "-o", tmp_path / "p.html")
    assert done.code == 0 and (tmp_path / "p.html").stat().st_size < 400_000
    assert "40,000 steps" in (tmp_path / "p.html").read_text(encoding="utf-8")


def get(address: str, path: str | None = None, host: str | None = None) -> tuple[int, bytes, dict[str, str]]:
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.hostname or "", place.port or 0, timeout=30)
    connection.request("GET", place.path if path is None else path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    return answer.status, answer.read(), dict(answer.getheaders())


@pytest.fixture
def followed(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str], str]]:
    """A run directory that is held as by a run, the command that follows it, and its address."""
    run = tmp_path / "run"
    run.mkdir()
    metrics(run / "metrics.jsonl", steps=3)
    (run / "run.json").write_text(json.dumps({"settings": {"rank": 3}, "about": {"steps": 60}}))
    hold = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, run / "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert holder.stdout is not None and holder.stdout.readline()
    process = subprocess.Popen(
        [*FABRIC, "report", "--follow", str(run)], env=environment(), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    process.holder = holder  # type: ignore[attr-defined]
    yield run, process, address
    for one in (process, holder):
        one.kill()
        one.communicate()


def test_a_followed_run_is_served_to_this_user_alone_until_ctrl_c(
    followed: tuple[Path, subprocess.Popen[str], str],
) -> None:
    _, process, address = followed
    port = urlsplit(address).port
    code, body, headers = get(address)
    assert code == 200 and b"<!DOCTYPE html>" in body and "connect-src 'self'" in headers["Content-Security-Policy"]
    code, body, headers = get(address, urlsplit(address).path + "data.json")
    told: dict[str, Any] = json.loads(body)
    assert code == 200 and told["data"]["charts"][0]["curves"][0]["x"]["step"] == [1, 2, 3] and not told["over"]
    assert get(address, "/")[0] == get(address, "/guessed/")[0] == get(address, "/../run.json")[0] == 404
    assert get(address, host=f"evil.example:{port}")[0] == get(address, host="127.0.0.1")[0] == 421
    assert get(address, host=f"localhost:{port}")[0] == 200
    listening = Path("/proc/net/tcp").read_text() if Path("/proc/net/tcp").exists() else ""
    assert not listening or (f"0100007F:{port:04X}" in listening and f"00000000:{port:04X}" not in listening)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130


def test_a_followed_page_renews_itself_and_ends_with_its_run(
    page: Page, followed: tuple[Path, subprocess.Popen[str], str]
) -> None:
    run, process, address = followed
    page.size(1000)
    page.open(address)
    page.value("window.same = true; document.querySelector('#chart-0-table-fold').open = true")
    (run / "samples.jsonl").write_text("")
    metrics(run / "metrics.jsonl", steps=15)
    page.until("document.querySelector('#overview').textContent.includes('15 of 60')")
    page.until("document.querySelectorAll('#chart-0-table tr').length === 15")
    assert page.value("window.same && document.querySelector('#chart-0-table-fold').open")
    (run / "samples.jsonl").write_text(json.dumps({"step": 15, "prompt": HOSTILE, "answer": "yes"}) + "\n")
    page.until("document.querySelector('#sample-0')?.textContent.includes('yes')")
    assert page.value("window.same && !document.querySelector('#axis').closest('.script').hidden")
    assert page.value("document.title") != "owned"
    process.holder.communicate("")  # type: ignore[attr-defined]
    page.until("document.getElementById('follow').textContent === 'the run is over'")
    assert page.console == [] and {urlsplit(one).netloc for one in page.requests} == {urlsplit(address).netloc}
    assert process.wait(30) == 0
