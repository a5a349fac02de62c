"""The worker process in which chat templates render; run as a script, it imports Jinja and nothing of this package.

Templates come out of model files and are hostile input: Jinja's sandbox bounds what they reach, this process bounds
what they use. One JSON value a line: first the set-up, then lists of [messages, tools, add_generation_prompt]; each
answer is {"out": [...]} or {"error": "..."}.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from typing import Any

CPU_SECONDS = 10
MEMORY_BYTES = 768 << 20
MAX_CHARS = 16 << 20  # of all renderings of a conversation
# Templates may ask for today's date. Training twice must give the same bits, so time stands still for them.
_TODAY = time.struct_time((2024, 7, 26, 12, 0, 0, 4, 208, 0))


def main() -> None:
    """Serves until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    setup = json.loads(sys.stdin.readline())
    sys.path[:] = setup["path"]
    import jinja2

    answer: dict[str, Any]
    template, problem = None, ""
    try:
        _limit_memory()
        template = _environment().from_string(setup["template"])
    except jinja2.TemplateSyntaxError as error:
        problem = f"line {error.lineno}: {error.message}"
    except Exception as error:
        problem = _describe(error)
    for line in sys.stdin:
        _limit_cpu()
        try:
            if template is None:
                raise ValueError(problem)
            answer = {"out": _render(template, setup, json.loads(line))}
        except Exception as error:
            answer = {"error": _describe(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _render(template: Any, setup: dict[str, Any], requests: list[Any]) -> list[str]:
    texts, size = [], 0
    for messages, tools, prompt in requests:
        names = {"bos_token": setup["bos"], "eos_token": setup["eos"], "tools": tools}
        parts = []
        for part in template.generate(messages=messages, add_generation_prompt=prompt, **names):
            parts.append(part)
            size += len(part)
            if size > MAX_CHARS:
                raise ValueError(f"the text grows past {MAX_CHARS} characters")
        texts.append("".join(parts))
        texts[-1].encode("utf-8")  # half a surrogate pair is no text
    return texts


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

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: time.strftime(form, _TODAY)
    return environment


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limits
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _limit_cpu() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + CPU_SECONDS, hard))


def _describe(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"it needs more than {MEMORY_BYTES >> 20} MiB of memory"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = " ".join(str(error).split())[:200]
    return "".join(c for c in text if c.isprintable()) or type(error).__name__


if __name__ == "__main__":
    main()
