"""The worker process in which chat templates render; run as a script, it imports Jinja and nothing of this package.

Templates come out of model files and are hostile input: Jinja's sandbox bounds what they reach, this process bounds
what they use. One JSON object a line: first the set-up, then requests. A request holds conversations and what to
render of them; each answer is {"out": [...]} or {"error": "..."}. When stdin ends, so does the process, at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
from typing import Any

CPU_SECONDS = 10
MEMORY_BYTES = 768 << 20
MAX_CHARS = 64 << 20  # of all renderings of a conversation
MAX_TEXT_CHARS = 16 << 20  # of one of them
# Templates may ask for today's date. Training twice must give the same bits, so time stands still for them.
_TODAY = time.struct_time((2024, 7, 26, 12, 0, 0, 4, 208, 0))


def main() -> None:
    """Serves until stdin ends."""
    for number in (signal.SIGINT, getattr(signal, "SIGBREAK", signal.SIGINT)):  # meant for who asks
        signal.signal(number, signal.SIG_IGN)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    setup = json.loads(lines.get())
    sys.path[:] = setup["path"]
    import jinja2  # noqa: F401  (before memory is limited)

    _limit_memory()
    _limit_cpu()
    environment, template, problem = _environment(), None, ""
    try:
        template = environment.from_string(setup["template"])
    except Exception as error:
        problem = _describe(error)
    while True:
        line = lines.get()
        _limit_cpu()
        answer: dict[str, Any]
        try:
            request = json.loads(line)
            if template is None:
                answer = {"error": problem}
            elif "variables" in request:
                answer = {"out": sorted(_variables(environment, setup["template"]))}
            else:
                answer = {"out": _render_all(template, setup["names"], **request)}
        except Exception as error:
            answer = {"error": _describe(error)}
        sys.stdout.buffer.write(json.dumps(answer, ensure_ascii=False).encode() + b"\n")
        sys.stdout.buffer.flush()


def _read(lines: queue.SimpleQueue[bytes]) -> None:
    """Takes requests as they come, whatever else is going on; their end is the end of the process that asks."""
    try:
        for line in sys.stdin.buffer:
            lines.put(line)
    finally:
        os._exit(0)


def _render_all(template: Any, names: dict[str, str], conversations: list[Any], asks: list[Any]) -> list[Any]:
    texts: list[str] = []
    out: list[dict[str, Any]] = []
    size = 0
    for number, upto, prompt, more, base in asks:
        messages, tools, *others = conversations[number]
        try:
            text = _render(template, {**names, **dict(*others)}, messages[:upto] + more, tools, prompt)
            size += len(text)
            if size > MAX_CHARS:
                raise ValueError(f"the text grows past {MAX_CHARS} characters")
            text.encode("utf-8")  # half a surrogate pair is no text
        except Exception as error:
            texts.append("")
            out.append({"error": _describe(error)})
            continue
        texts.append(text)
        same = 0 if base is None else _shared(texts[base], text)
        out.append({"same": same, "text": text[same:]})
    return out


def _render(template: Any, names: dict[str, Any], messages: Any, tools: Any, prompt: bool) -> str:
    parts, size = [], 0
    given = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": prompt}
    for part in template.generate(**names, **given):
        parts.append(part)
        size += len(part)
        if size > MAX_TEXT_CHARS:
            raise ValueError(f"the text grows past {MAX_TEXT_CHARS} characters")
    return "".join(parts)


def _shared(a: str, b: str) -> int:
    """The length of the beginning that two texts have in common."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _variables(environment: Any, source: str) -> set[str]:
    from jinja2 import meta

    return set(meta.find_undeclared_variables(environment.parse(source)))


def _environment() -> Any:
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks trained text for others; here it is as good as its contents."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return body

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: time.strftime(form, _TODAY)
    return environment


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:
        _limit_memory_of_job()
        return
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _limit_memory_of_job() -> None:
    """On Windows: puts this process into a job that limits memory. Time is limited by who asks."""
    import ctypes

    size, word = ctypes.c_size_t, ctypes.c_uint32

    class Limits(ctypes.Structure):  # JOBOBJECT_EXTENDED_LIMIT_INFORMATION
        _fields_ = (
            ("times", ctypes.c_int64 * 2), ("flags", word), ("working_set", size * 2), ("processes", word),
            ("affinity", size), ("classes", word * 2), ("counters", ctypes.c_uint64 * 6), ("process_memory", size),
            ("job_memory", size), ("peaks", size * 2),
        )  # fmt: skip

    extended, process_memory = 9, 0x100
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
    kernel.CreateJobObjectW.restype = kernel.GetCurrentProcess.restype = ctypes.c_void_p
    job = ctypes.c_void_p(kernel.CreateJobObjectW(None, None))
    limits = Limits(flags=process_memory, process_memory=MEMORY_BYTES)
    kernel.SetInformationJobObject(job, extended, ctypes.byref(limits), word(ctypes.sizeof(limits)))
    kernel.AssignProcessToJobObject(job, ctypes.c_void_p(kernel.GetCurrentProcess()))


def _limit_cpu() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + CPU_SECONDS, hard))


def _describe(error: Exception) -> str:
    import jinja2

    if isinstance(error, MemoryError):
        return f"it needs more than {MEMORY_BYTES >> 20} MiB of memory"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    text = " ".join(str(error).split())[:200]
    return "".join(c for c in text if c.isprintable()) or type(error).__name__


if __name__ == "__main__":
    main()
