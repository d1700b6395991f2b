# shellcheck shell=bash
# The virtual environment that every script here shares. Sourced, never run; works in the bash 3.2 of macOS.
# Afterwards `ROOT` is the repository, `python` the environment's interpreter. It installs only what changed, repairs
# what an interrupted install left behind, and lets one install run at a time.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
VENV="$ROOT/.venv"
python="$VENV/bin/python"
OLDEST_PYTHON="3.11"

trap 'exit 130' INT  # a program that is stopped by Ctrl-C may look like one that failed, and is no reason to go on

# For what takes a moment: Ctrl-C counts when it is over, instead of a traceback.
uninterrupted() (
    trap '' INT
    "$@"
)

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "error: $1"
    shift
    for line in "$@"; do say "       $line"; done
    exit 1
}

# True for an interpreter that is new enough and can make virtual environments with pip.
is_fit_python() {
    uninterrupted "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 && is_fit_python "$candidate"; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

explain_missing_python() {
    local found="none" version
    if command -v python3 >/dev/null 2>&1; then
        version=$(python3 -c 'import platform; print(platform.python_version())' 2>/dev/null || echo "unknown")
        found="$(command -v python3), version $version"
        if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            fail "this Python cannot make virtual environments: $found" \
                "Debian, Ubuntu and WSL keep that part in a package of its own: apt install python3-venv"
        fi
    fi
    fail "Python $OLDEST_PYTHON or newer is needed; found: $found" \
        "macOS: brew install python@3.13" \
        "Debian, Ubuntu, WSL: apt install python3 python3-venv" \
        "Fedora: dnf install python3" \
        "Or name one yourself: PYTHON=/path/to/python3 scripts/run"
}

# Held until release_lock or the end of the process. A lock on a descriptor dies with its process, so it is never stale.
take_lock() {
    local interpreter=$1
    exec 9<"$ROOT/requirements.txt"
    "$interpreter" - <<'PYTHON'
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("Another install runs in this folder; waiting for it.", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)
except OSError:
    pass  # some network file systems have no such locks; two installs at once are then the user's risk
PYTHON
}

release_lock() { exec 9<&-; }

# The environment's interpreter runs, is new enough and has pip.
is_whole_environment() {
    [ -x "$python" ] && uninterrupted "$python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# What is installed is remembered as the very text of the requirements, written after everything went well.
wanted_text() {
    local file
    printf '%s\n' "$ROOT"  # a moved folder has to be linked anew
    for file in "$@"; do cat "$ROOT/$file"; done
    cat "$ROOT/pyproject.toml"
}

is_installed() {
    local stamp=$1
    shift
    is_whole_environment && [ -f "$stamp" ] && wanted_text "$@" | cmp -s - "$stamp"
}

make_environment() {
    local interpreter=$1
    if is_whole_environment; then return 0; fi
    if [ -e "$VENV" ]; then say "The environment in .venv is incomplete: making it anew."; fi
    say "Making a virtual environment in .venv with $interpreter"
    "$interpreter" -m venv --clear "$VENV" || fail "no virtual environment could be made in $VENV"
}

stamp_of() { printf '%s/.installed-%s' "$VENV" "$(printf '%s' "$*" | tr -c 'a-z0-9' '-')"; }

# ensure_environment requirements.txt [more.txt]: afterwards all of them are installed.
ensure_environment() {
    local stamp interpreter
    stamp=$(stamp_of "$@")
    if is_installed "$stamp" "$@"; then return 0; fi
    interpreter=$(find_python) || explain_missing_python
    take_lock "$interpreter"
    if ! is_installed "$stamp" "$@"; then  # the one we waited for may have done it
        make_environment "$interpreter"
        install_requirements "$@"
        wanted_text "$@" >"$stamp.new"
        mv -f "$stamp.new" "$stamp"
    fi
    release_lock
}

install_requirements() {
    local file
    local paths=() arguments=()
    for file in "$@"; do
        paths+=("$ROOT/$file")
        arguments+=(-r "$ROOT/$file")
    done
    if ! uninterrupted "$python" "$ROOT/scripts/lib/pins_met.py" "${paths[@]}"; then
        say "Installing $* (the first time this takes minutes, mostly for torch)"
        "$python" -m pip install --disable-pip-version-check --no-input "${arguments[@]}" >&2 ||
            fail "the packages could not be installed; the lines above say why" \
                "What arrived is kept: run the same command again and it goes on."
    fi
    # The command `potluck` itself, as a link to this folder; everything it needs is there by now.
    "$python" -m pip install --disable-pip-version-check --no-input --quiet --no-deps --no-build-isolation \
        --no-index -e "$ROOT" >&2 || fail "the command potluck could not be installed"
}
