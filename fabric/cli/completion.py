"""`fabric completion`: what a shell completes, from the definitions of the commands; no process is started for it."""

from __future__ import annotations

import re
import sys
from typing import Annotated, Literal, NamedTuple

import click

from fabric.cli.app import COMMANDS, load
from fabric.cli.flags import joined, setting_of
from fabric.settings import Setting


def command(
    shell: Annotated[
        Literal["bash", "zsh", "fish", "powershell"], Setting("shell to print it for", "SHELL", operand=True)
    ],
) -> None:
    """Prints the completion script of a shell. Packages install it already; use this in other shells.

    It completes commands, flags, values and files.
    """
    sys.stdout.write({"bash": bash, "zsh": zsh, "fish": fish, "powershell": powershell}[shell]())


HELP_OPTION = click.Option(["-h", "--help"], is_flag=True, help="show how to use it")


def options(name: str) -> list[click.Option]:
    """A command's options, --help last."""
    return [*(p for p in load(name).params if isinstance(p, click.Option)), HELP_OPTION]


def operands(name: str) -> Offer:
    """What a command's operands may be: those of all of them, for no command has operands of two kinds."""
    found = [offer(p) for p in load(name).params if isinstance(p, click.Argument)]
    words = tuple(dict.fromkeys(word for one in found for word in one.words))
    return found[0]._replace(words=words) if found else Offer("nothing")


class Offer(NamedTuple):
    """What is completed: `words`, a list of them joined by commas (`list`), one of them after `NAME=` (`pair`), or
    `files` whose names match patterns (any where there are none). Of patterns, those that end in `/` are folders."""

    kind: Literal["nothing", "words", "list", "pair", "files"]
    words: tuple[str, ...] = ()


def offer(param: click.Parameter) -> Offer:
    """What a parameter's values may be."""
    setting = setting_of(param)
    if isinstance(param.type, click.Choice):
        return Offer("words", tuple(map(str, param.type.choices)))
    if setting.path:
        return Offer("files", setting.offers)
    if setting.completes:
        kind: Literal["list", "pair", "words"] = "words"
        kind = "list" if joined(param) else "pair" if "=" in (setting.metavar or "") else kind
        return Offer(kind, setting.completes)
    return Offer("nothing")


def metavar(option: click.Option) -> str:
    """What stands behind the flag: FILE, a|b|c, or nothing for a switch."""
    choices = option.type.choices if isinstance(option.type, click.Choice) else ()
    return "" if option.is_flag else option.metavar or "|".join(map(str, choices)) or "X"


def flags(option: click.Option) -> list[str]:
    """Every spelling, the negative ones too."""
    return [*option.opts, *option.secondary_opts]


def _calls(found: Offer) -> str:
    """The function of the script that completes this, with its words quoted."""
    return " ".join([f"_fabric_{found.kind}", *(f"'{word}'" for word in found.words)])


BASH_HELPERS = """\
# bash completion for fabric; written by tools/pages.py
_fabric_add() { # lines become words, spaces and all
    local line
    while IFS= read -r line; do COMPREPLY+=("$line"); done
}
_fabric_nothing() { return; }
_fabric_words() { _fabric_add < <(compgen -W "$*" -- "$cur"); }
_fabric_list() {
    local before=""
    case $cur in *,*) before=${cur%,*}, ;; esac
    _fabric_add < <(compgen -P "$before" -W "$*" -- "${cur##*,}")
}
_fabric_pair() { # NAME=word; bash takes it apart at the sign where it is not quoted
    case $pair$cur in *=*) ;; *) return ;; esac
    local before=""
    case $cur in *=*) before=${cur%=*}= ;; esac
    _fabric_add < <(compgen -P "$before" -W "$*" -- "${cur##*=}")
}
_fabric_files() { # patterns; without one all files. A pattern that ends in a slash is of folders
    local pattern
    [ $# -gt 0 ] || { _fabric_add < <(compgen -f -- "$cur"); return; }
    for pattern; do
        case $cur$pattern in
            .*/) _fabric_add < <(compgen -G "$pattern" | sed 's:/$::') ;;
            */) ;;
            *) _fabric_add < <(compgen -f -X "!$pattern" -- "$cur") ;;
        esac
    done
    [ ${#COMPREPLY[@]} -gt 0 ] && [ -z "$cur" ] && return
    _fabric_add < <(compgen -d -- "$cur")
}"""


def bash() -> str:
    """Completion for bash, also that of macOS (3.2): plain case tables, no process of ours is started."""
    cases, value_cases = [], []
    for name in COMMANDS:
        words = " ".join(flag for option in options(name) for flag in flags(option))
        cases.append(f"        {name})")
        cases.append(f'            case $cur in -*) _fabric_words "{words}" ;; *) {_calls(operands(name))} ;; esac ;;')
        for option in options(name):
            if not option.is_flag:
                spelled = "|".join(f"{name}:{flag}" for flag in option.opts)
                value_cases.append(f"        {spelled}) {_calls(offer(option))}; return ;;")
    names = " ".join(COMMANDS)
    return "\n".join(
        [
            BASH_HELPERS,
            "_fabric() {",
            "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]}",
            "    COMPREPLY=()",
            '    if [ "$COMP_CWORD" -eq 1 ]; then',
            f'        _fabric_words "{names} help --help --version"; return',
            "    fi",
            "    # bash takes --flag=value apart at the sign",
            "    local at=$COMP_CWORD pair=",
            '    if [ "$cur" = "=" ]; then cur=""; at=$((at+1)); fi',
            '    if [ "${COMP_WORDS[at-1]}" = "=" ]; then',
            "        at=$((at-2)) prev=${COMP_WORDS[at]}",
            '        case $prev in -*) ;; *) pair="=" prev=${COMP_WORDS[at-1]} ;; esac',
            '        if [ "$prev" = "=" ]; then prev=${COMP_WORDS[at-2]}; fi',
            "    fi",
            '    case "$command:$prev" in',
            *value_cases,
            "    esac",
            '    case "$command" in',
            *cases,
            f'        help) _fabric_words "{names}" ;;',
            "    esac",
            "}",
            "complete -o filenames -F _fabric fabric",
            "",
        ]
    )


ZSH_HELPERS = """\
#compdef fabric
# zsh completion for fabric; written by tools/pages.py
_fabric_nothing() { return 1 }
_fabric_words() { compadd -- "$@" }
_fabric_list() { _sequence compadd - "$@" }
_fabric_pair() { compset -P '*=' && compadd -- "$@" } # NAME=word
_fabric_files() { # patterns; without one all files. A pattern that ends in a slash is of folders
  local pattern
  local -a runs
  (( $# )) || { _files; return }
  for pattern; do
    case $pattern in
      '*/') _files -/ ;;
      */) runs=($~pattern(N)); compadd -f -- ${runs%/} || _files -/ ;;
      *) _files -g $pattern ;;
    esac
  done
}"""


def zsh() -> str:
    """Completion for zsh."""

    def clean(text: str) -> str:
        return re.sub(r"([\[\]:\\])", r"\\\1", text).replace("'", "'\\''")

    def action(found: Offer) -> str:
        call = _calls(found).replace("'", "'\\''")
        return f" {call}" if found.kind != "nothing" else ""  # the space: with these words alone

    lines = [ZSH_HELPERS, "_fabric() {", "  local -a commands", "  commands=("]
    lines += [f"    '{name}:{clean(what)}'" for name, what in COMMANDS.items()]
    lines += ["    'help:how to use a command'", "  )"]
    lines += ["  if (( CURRENT == 2 )); then", "    _describe command commands; return", "  fi"]
    lines += ["  local command=$words[2]", "  shift words; (( CURRENT-- ))", '  case "$command" in']
    for name in COMMANDS:
        lines.append(f"    {name}) _arguments -s \\")
        for option in options(name):
            value = "" if option.is_flag else f":{clean(metavar(option))}:{action(offer(option))}"
            many = "*" if option.multiple else ""
            for flag in flags(option):
                equals = "=" if flag.startswith("--") and not option.is_flag else ""
                lines.append(f"      '{many}{flag}{equals}[{clean(option.help or '')}]{value}' \\")
        lines.append(f"      '*:operand:{action(operands(name))}' ;;")
    lines += ["    help) _describe command commands ;;", "  esac", "}", '_fabric "$@"', ""]
    return "\n".join(lines)


FISH_HELPERS = r"""# fish completion for fabric; written by tools/pages.py
function _fabric_list # words joined by commas
    set -l before (commandline -ct | string match -r '^.*,')
    printf '%s\n' "$before"$argv
end
function _fabric_pair # NAME=word
    set -l before (commandline -ct | string match -r '^.*=')
    and printf '%s\n' "$before"$argv
end
function _fabric_files # patterns; a pattern that ends in a slash is of folders
    for pattern in $argv
        switch $pattern
            case '\*/'
                __fish_complete_directories
            case '*/'
                eval set -l runs (string trim -r -c / -- $pattern)
                # after nothing, fish hides what begins with a dot
                if test -n (commandline -ct)"" -o (count $runs) -eq 0
                    printf '%s\n' $runs
                    __fish_complete_directories
                else
                    printf '%s\n' $PWD/$runs
                end
            case '*'
                __fish_complete_path (commandline -ct) |
                    string match -er -- '(/|'(string escape --style=regex -- (string sub -s 2 -- $pattern))')(\t.*)?$'
        end
    end
end
complete -c fabric -n __fish_use_subcommand -f"""


def fish() -> str:
    """Completion for fish."""

    def quote(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    def values(found: Offer) -> str:
        if found.kind == "words":
            return f" -x -a {quote(' '.join(found.words))}"
        if found.kind == "nothing":
            return " -x"
        return f" -x -a {quote(f'({_calls(found)})')}" if found.words else " -r -F"

    names = " ".join([*COMMANDS, "help"])
    lines = [FISH_HELPERS]
    for name, what in {**COMMANDS, "help": "how to use a command"}.items():
        lines.append(f"complete -c fabric -n __fish_use_subcommand -a {name} -d {quote(what)}")
    for name in COMMANDS:
        seen = f"'__fish_seen_subcommand_from {name}'"
        for option in options(name):
            spelled = " ".join(f"-l {f[2:]}" if f.startswith("--") else f"-s {f[1:]}" for f in flags(option))
            value = "" if option.is_flag else values(offer(option))
            lines.append(f"complete -c fabric -n {seen} {spelled}{value} -d {quote(option.help or '')}")
        found = operands(name)
        if found.kind != "files" or found.words:
            lines.append(f"complete -c fabric -n {seen}{values(found).replace(' -x', ' -f', 1)}")
    lines.append(f"complete -c fabric -n '__fish_seen_subcommand_from help' -f -a {quote(names)}")
    return "\n".join([*lines, ""])


POWERSHELL_HELPERS = r"""# PowerShell completion for fabric; written by tools/pages.py
# fabric completion powershell | Out-String | Invoke-Expression
function _fabric_result($text, $kind, $help) {
    $quoted = if ($text -match "[\s']") { "'" + $text.Replace("'", "''") + "'" } else { $text }
    [System.Management.Automation.CompletionResult]::new($quoted, $text, $kind, $(if ($help) { $help } else { $text }))
}
function _fabric_files($word, $patterns) { # without a pattern all files; one that ends in a slash is of folders
    $found = Get-ChildItem -Path "$word*" -Force -ErrorAction SilentlyContinue
    foreach ($pattern in $patterns | Where-Object { $_ -match '^\..*/$' }) {
        $found = @(Get-ChildItem -Path $pattern -Directory -ErrorAction SilentlyContinue) + @($found)
    }
    $names = $patterns | Where-Object { $_ -notmatch '/$' }
    foreach ($one in $found) {
        $fits = -not $patterns -or $one.PSIsContainer -or ($names | Where-Object { $one.Name -like $_ })
        $path = Resolve-Path -LiteralPath $one.FullName -Relative
        if ($fits) { _fabric_result ($path -replace '^\.[\\/]', '') 'ProviderItem' }
    }
}
function _fabric_values($word, $kind, $values) {
    if ($kind -eq 'files') { return _fabric_files $word $values }
    $before = if ($kind -eq 'list' -and $word -match '^(.*,)') { $Matches[1] } else { '' }
    foreach ($one in $values) {
        if ("$before$one".StartsWith($word)) { _fabric_result "$before$one" 'ParameterValue' }
    }
}"""


def powershell() -> str:
    """Completion for PowerShell, from Windows' own (5.1) on."""

    def quote(text: str) -> str:
        return "'" + text.replace("'", "''") + "'"

    def values(found: Offer) -> str:
        return f"@({quote(found.kind)}, @({', '.join(map(quote, found.words))}))"

    lines = [POWERSHELL_HELPERS, "Register-ArgumentCompleter -Native -CommandName fabric -ScriptBlock {"]
    lines += ["    param($word, $ast, $cursor)", "    $commands = [ordered]@{"]
    lines += [f"        {quote(name)} = {quote(what)}" for name, what in COMMANDS.items()]
    lines += ["        'help' = 'how to use a command'", "    }", "    $operands = @{"]
    lines += [f"        {quote(name)} = {values(operands(name))}" for name in COMMANDS]
    lines += [f"        'help' = @('words', @({', '.join(map(quote, COMMANDS))}))", "    }", "    $options = @{"]
    for name in COMMANDS:
        lines.append(f"        {quote(name)} = @(")
        for option in options(name):
            taken = "$null" if option.is_flag else values(offer(option))
            spelled = ", ".join(map(quote, flags(option)))
            lines.append(f"            , @(@({spelled}), {taken}, {quote(option.help or '')})")
        lines.append("        )")
    lines += [
        "    }",
        "    $typed = $ast.CommandElements | Where-Object { $_.Extent.EndOffset -lt $cursor }",
        '    $before = @($typed | ForEach-Object { "$_" })',
        "    if ($before.Count -lt 2) {",
        "        foreach ($name in $commands.Keys) {",
        "            if ($name.StartsWith($word)) { _fabric_result $name 'Command' $commands[$name] }",
        "        }",
        "        return",
        "    }",
        "    $command, $last = $before[1], $before[-1]",
        "    if (-not $operands.ContainsKey($command)) { return }",
        "    foreach ($option in $options[$command]) {",
        "        if ($option[1] -and $option[0] -ccontains $last) {",
        "            return _fabric_values $word $option[1][0] $option[1][1]",
        "        }",
        "    }",
        "    if ($word -notlike '-*') { return _fabric_values $word $operands[$command][0] $operands[$command][1] }",
        "    foreach ($option in $options[$command]) {",
        "        foreach ($flag in $option[0]) {",
        "            if ($flag.StartsWith($word)) { _fabric_result $flag 'ParameterName' $option[2] }",
        "        }",
        "    }",
        "}",
        "",
    ]
    return "\n".join(lines)
