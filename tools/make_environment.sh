#!/usr/bin/env bash
# Make the virtual environment that `make run` and `make test` use.
# usage: tools/make_environment.sh VENV [PYTHON [REQUIREMENTS]]
set -euo pipefail
venv=$1
wanted=${2:-}
requirements=${3:-requirements.txt}

fits() {  # Python 3.11 or 3.12 that can make an environment
    command -v "$1" >/dev/null 2>&1 &&
        "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

if [ ! -x "$venv/bin/python" ]; then
    python=""
    for candidate in ${wanted:+"$wanted"} $([ -n "$wanted" ] || echo python3 python3.12 python3.11 python); do
        if fits "$candidate"; then python=$candidate; break; fi
    done
    if [ -z "$python" ]; then
        echo "make: no usable Python 3.11 or 3.12 with venv${wanted:+ at $wanted}." >&2
        echo "      Install one (Debian, Ubuntu: apt install python3-venv), or say where it is: make run PYTHON=/path/to/python3.12" >&2
        exit 1
    fi
    echo "Making $venv with $("$python" --version), $(command -v "$python")"
    "$python" -m venv "$venv"
fi

# The copy of the requirements inside the environment tells whether anything changed since the last install.
if ! cmp -s "$requirements" "$venv/requirements.txt"; then
    echo "Installing $requirements into $venv (about 6 GB on Linux, a few minutes the first time)"
    # The bars are worth seeing at a terminal and only noise in a log.
    [ -t 1 ] && quiet="" || quiet="-qq"
    "$venv/bin/python" -m pip install $quiet --disable-pip-version-check -r "$requirements"
    cp "$requirements" "$venv/requirements.txt"
fi
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-deps --editable .
touch "$venv/.installed"
