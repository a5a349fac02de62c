"""The `fabric` command itself: the table of subcommands, and what becomes of an error.

Every failure ends here as one sentence on stderr and an exit code; below cli/ nothing prints or exits.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import click
import typer
import typer.core

from fabric import __version__, system
from fabric.cli import config, console, flags, foreign
from fabric.errors import FabricError
from fabric.printable import one_line, printable

COMMANDS = {
    "prepare": "turn raw rows (JSONL, CSV, plain text) into training records",
    "template": "render chat records with a model's own template",
    "train": "fine-tune a GGUF model on records: writes a LoRA adapter or a model",
    "resume": "continue a run that was stopped",
    "runs": "list, compare and remove training runs",
    "merge": "fold adapters into their base model",
    "quantize": "write a model in a smaller block format",
    "eval": "measure perplexity and accuracy, and compare answers",
    "generate": "answer prompts with a model and adapters",
    "devices": "list what this machine can train on",
    "convert": "Hugging Face checkpoints and PEFT adapters to GGUF, and back",
    "inspect": "show what is inside a GGUF file",
    "bench": "measure training speed and share of the machine's peak",
    "plot": "draw the metrics of training runs",
    "report": "put runs and evaluations on one page",
    "completion": "print the completion script of a shell",
}

EPILOG = """Commands are filters: `-` is stdin or stdout, results go to stdout or -o, everything else to stderr.
Defaults come from flags, then FABRIC_<FLAG>, then --config, then ./fabric.toml, then ~/.config/fabric/config.toml,
then the device's profile."""


class Command(typer.core.TyperCommand):
    """A subcommand: adds the flags that all of them share, and the defaults of environment and files."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            click.Option(["-q", "--quiet"], is_flag=True, expose_value=False, callback=_remember, help="errors only"),
            click.Option(
                ["--json"], is_flag=True, expose_value=False, callback=_remember, help="report as one JSON object"
            ),
            click.Option(
                ["--strict"],
                is_flag=True,
                expose_value=False,
                callback=_remember,
                help="refuse input that would be ignored in part",
            ),
            click.Option(
                ["--debug"], is_flag=True, expose_value=False, callback=_remember, help="show a traceback on errors"
            ),
        ]

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Parses the arguments; what they leave open is looked up in environment and configuration files."""
        given = list(args)
        try:
            defaults, notes = config.defaults(self, args)
        except FabricError:
            if not {"-h", "--help"}.intersection(args):
                raise
            defaults, notes = {}, []
        try:
            ctx = super().make_context(info_name, args, parent, default_map=defaults, **extra)
            for param in self.params:
                config.bounded(ctx, param, ctx.params.get(param.name or ""))
        except click.MissingParameter:
            raise
        except click.NoSuchOption as error:
            behind = iter(given[i + 1] for i, arg in enumerate(given[:-1]) if arg == error.option_name)
            typed = [arg.partition("=")[2] for arg in given if arg.startswith(f"{error.option_name}=")]
            value = next(iter(typed), next(behind, None))
            told = foreign.hint(error.option_name, [max(param.opts, key=len)[2:] for param in self.params], value)
            if told is None:
                raise
            raise click.UsageError(told, error.ctx) from None
        except click.BadParameter as error:
            if error.param is None:
                raise
            message = config.explained(error, error.param.type, [arg.split("=")[-1] for arg in given])
            raise click.BadParameter(message, error.ctx, error.param) from None
        ctx.meta["fabric.notes"] = notes
        return ctx

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; what is below it finds the user's profiles and compiler, and keeps built kernels."""
        from fabric import notices
        from fabric.cli import ranks, signals
        from fabric.devices.places import places

        launch = ranks.launch()

        signals.listen()
        if launch.size > 1:
            ranks.check(self.name or "")
            ctx.meta["fabric.quiet"] = ctx.meta.get("fabric.quiet") or launch.rank > 0
        notices.listen(console.note, console.flag("strict"))
        for text in ctx.meta["fabric.notes"]:
            console.note(text)
        notices.speaker = ("\r\x1b[K" if console.wants_bar() else "") + ctx.command_path
        places.kernel_cache, places.profiles = config.kernel_cache(), config.user_profiles()
        places.cuda_toolkit, places.oneapi = config.cuda_toolkit(), config.oneapi()
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Operands, then options, in sections where they are many."""
        operands = [param for param in self.params if isinstance(param, click.Argument)]
        own_help = self.get_help_option(ctx)
        groups: list[tuple[str, Sequence[click.Parameter]]] = [("Arguments", operands), *flags.sections(self)]
        for title, params in groups:
            last = [own_help] if own_help and title == groups[-1][0] else []
            records = [record for param in (*params, *last) if (record := param.get_help_record(ctx))]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples, each on a line of its own."""
        from fabric.cli.examples import EXAMPLES

        formatter.write("\nExamples:\n")
        for what, line in EXAMPLES[self.name or ""]:
            formatter.write(f"  # {what}\n  {line}\n")


class Commands(typer.core.TyperGroup):
    """All subcommands by name; a module is imported when its command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of a pipeline."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        return load(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command, or refuses with the nearest name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            close = get_close_matches(args[0], COMMANDS, 1)
            ctx.fail(f"there is no command {args[0]!r}; " + (f"did you mean {close[0]!r}?" if close else "see --help"))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the table of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def load(name: str) -> click.Command:
    """Imports fabric.cli.<name> and makes a command of its function `command`."""
    module = importlib.import_module(f"fabric.cli.{name}")
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    command = flags.with_flags(module.command)
    app.command(name, cls=Command, short_help=COMMANDS[name], context_settings=HELP)(command)
    return flags.attach(typer.main.get_command(app), module.command)


HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def group() -> Commands:
    """The top command."""
    version = click.Option(
        ["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_version, help="show the version"
    )
    return Commands(
        name="fabric",
        help="Fine-tune GGUF language models on the device they will run on.",
        epilog=EPILOG.replace("\n", " "),
        params=[version],
        no_args_is_help=True,
        rich_markup_mode=None,
        context_settings=HELP,
    )


def run(argv: Sequence[str]) -> int:
    """Runs one command line and returns its exit code."""
    if "--debug" not in argv and not sys.warnoptions:  # what is wrong ends in a sentence of ours
        warnings.simplefilter("ignore")
        sys.unraisablehook = lambda error: None
    top: click.Context | None = None
    try:
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # until a command listens
        if argv[:1] == ["help"]:
            argv = [*argv[1:2], "--help"]
        command = group()
        with command.make_context("fabric", list(argv)) as top:
            command.invoke(top)
        sys.stdout.flush()
        return 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return 2
    except click.ClickException as error:
        ctx = getattr(error, "ctx", None)
        where = ctx.command_path if ctx else "fabric"
        return _fail(where, error.format_message(), error.exit_code)
    except (BrokenPipeError, KeyboardInterrupt, Exception) as error:
        if "--debug" in argv or (top and top.meta.get("fabric.debug")):  # or configured
            import traceback

            print(printable(traceback.format_exc()), file=sys.stderr)
        name = f"fabric {argv[0]}" if argv and argv[0] in COMMANDS else "fabric"
        return _explain(name, error)


def _explain(where: str, error: BaseException) -> int:
    """Says what went wrong and returns the exit code that belongs to it."""
    if system.is_closed_pipe(error):
        _silence_stdout()
        return system.BROKEN_PIPE
    if isinstance(error, FabricError):
        return _fail(where, str(error), error.exit_code)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        from fabric.cli.signals import exit_code

        return _fail(where, "interrupted", exit_code())
    if isinstance(error, MemoryError):
        return _fail(where, "this machine's memory ran out; try a smaller --ctx, --batch or model", 69)
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
        return _fail(where, f"{error.filename}: {error.strerror}", 66)
    if isinstance(error, OSError):
        file = f"{error.filename}: " if error.filename else "reading or writing failed: "
        hint = "; make room and run it again" if error.errno == errno.ENOSPC else ""
        return _fail(where, f"{file}{(error.strerror or str(error)).lower()}{hint}", 74)
    kind = type(error).__name__
    return _fail(where, f"internal error, {kind}: {error}; --debug shows where, please report it", 70)


def _fail(where: str, message: str, code: int) -> int:
    from fabric.cli import ranks

    message = ranks.named(message)
    _silence_stdout(flush=True)
    print(one_line(f"{where}: {message}"), file=sys.stderr)
    return code


def _silence_stdout(flush: bool = False) -> None:
    """After this, Python's own flush at exit finds nothing to complain about."""
    try:
        if flush:
            sys.stdout.flush()
            return
    except OSError:
        pass
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta[f"fabric.{param.name}"] = value


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        print(f"fabric {__version__}")
        ctx.exit()
