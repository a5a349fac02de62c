# Shortcuts; `just` lists them. Everything here also runs without just.

# list the targets
default:
    @just --list

# build fabric into .venv
build:
    tools/venv test

# all tests; arguments go to pytest
test *arguments:
    tests/run {{arguments}}

# the tests of a few minutes: no real model, no torch
quick:
    tests/run tests/cli tests/core tests/weights tests/text tests/data tests/training

# what must be clean before a commit
lint: build
    .venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy
    .venv/bin/python tools/pages.py --check

# completions, man pages and docs/commands.md from the command definitions
docs: build
    .venv/bin/python tools/pages.py

# look for bytes that crash a reader, until stopped: gguf, models, rows, toml, checkpoints, folders, adapters, template
fuzz target: build
    .venv/bin/python -m tests.fuzz.fuzz {{target}}

# training speed of a model on this machine
bench model: build
    .venv/bin/fabric bench -m {{model}}

# fine-tune SmolLM2-135M on the harbour log
quickstart:
    examples/quickstart/run
