# Sourced from the repository root: makes .venv with this checkout built into it, anew only when something it is made of
# has changed. Arguments: extras of pyproject.toml, such as test.
set -eu
stamp=.venv/stamp-${1:-base}
if [ ! -e "$stamp" ] || [ -n "$(find native pyproject.toml setup.py fabric/core/build.py -newer "$stamp" | head -n 1)" ]; then
    echo "building fabric into .venv ..." >&2
    [ -x .venv/bin/python ] || python3 -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${1:+[$1]}"
    touch "$stamp"
fi
