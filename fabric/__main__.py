"""`python -m fabric` is the `fabric` command."""

from fabric.cli import main

main()
