# shellcheck shell=bash disable=SC2013,SC2034,SC2154 # bats gives and reads some of these names
# A fake Termux for every test: its own $HOME and $PREFIX, stubs that log, a port of its own, a real tmux on its own
# socket. What a test needs otherwise it writes to files below $FAKE (see tests/fakes/termux).

REPOSITORY=$(cd "$BATS_TEST_DIRNAME/../.." && pwd)
SCRIPT="$REPOSITORY/phone_setup/phone_setup.sh"

# Once a file: what every phone has.
setup_file() {
    export FAKE_STUBS="$REPOSITORY/tests/fakes/termux/bin" FAKE="$BATS_FILE_TMPDIR"
    # How a server of tests/fakes/termux is started: KIND HOST PORT follow.
    export FAKE_SERVER="import sys; sys.path[0] = '$REPOSITORY/tests/fakes/termux'; import server; server.main(*sys.argv[1:])"
    mkdir "$FAKE/bin"
    local command
    for command in pkg dpkg getprop df ip ifconfig pm termux-wake-lock termux-wake-unlock; do have "$command"; done
    ln -s "$(command -v bash)" "$FAKE/bin/bash"
    export FAKE_PYTHON=${FAKE_PYTHON:-$(command -v python3)}
    mkdir "$FAKE/props"
    ram_gb 6
    android 11 30
    echo 20000000 >"$FAKE/df"
}

setup() {
    export FAKE="$BATS_TEST_TMPDIR/fake" HOME="$BATS_TEST_TMPDIR/data/home" PREFIX="$BATS_TEST_TMPDIR/data/usr"
    mkdir -p "$HOME" "$PREFIX/var/lib"
    cp -a "$BATS_FILE_TMPDIR" "$FAKE"
    ln -s "$FAKE/bin" "$PREFIX/bin"
    export PATH="$PREFIX/bin:/usr/bin:/bin"
    export TMUX_TMPDIR="$BATS_TEST_TMPDIR" TERMUX_VERSION=0.118.3 EXTERNAL_STORAGE="$BATS_TEST_TMPDIR/sdcard"
    export POTLUCK_MEMINFO="$FAKE/meminfo" POTLUCK_RETRY_SECONDS=0 POTLUCK_START_SECONDS=20 POTLUCK_REPORT_SECONDS=0.2
    export POTLUCK_THERMAL="$FAKE/thermal" # none, as on phones that let nobody read them
    unset TMUX POTLUCK_GATEWAY POTLUCK_TOKEN POTLUCK_MODEL SVDIR OLLAMA_HOST OLLAMA_MODELS TERMUX_APP__TARGET_SDK
    PORT=$(free_port)
    cd "$HOME" || return 1
}

teardown() {
    if [ -d "$TMUX_TMPDIR/tmux-$UID" ]; then tmux kill-server 2>/dev/null || true; fi
    local pid
    for pid in $(cat "$FAKE"/pids "$HOME/mobile-llm/server.pid" "$HOME/mobile-llm/report.pid" 2>/dev/null); do
        # One that has ended may have left its number to another test's process.
        if grep -qzF "$BATS_TEST_TMPDIR/" "/proc/$pid/environ" 2>/dev/null; then kill "$pid" 2>/dev/null || true; fi
    done
}

# have COMMAND: it is installed.
have() { ln -sf "$FAKE_STUBS/stub" "$FAKE/bin/$1"; }

# Below those that the kernel gives to clients, so that nobody takes it in between.
free_port() {
    local candidate
    while true; do
        candidate=$((12000 + RANDOM % 8000)) # neither the system's nor those of phones on cables
        if not is_open "$candidate"; then break; fi
    done
    echo "$candidate"
}

is_open() { (exec 4<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

ram_gb() { printf 'MemTotal:       %d kB\nMemFree: 1 kB\n' "$(($1 * 1048576 * 93 / 100))" >"$FAKE/meminfo"; }

android() {
    echo "$1" >"$FAKE/props/ro.build.version.release"
    echo "$2" >"$FAKE/props/ro.build.version.sdk"
    echo arm64-v8a >"$FAKE/props/ro.product.cpu.abilist64"
    echo SM8550 >"$FAKE/props/ro.soc.model"
    echo 'Pixel "5"' >"$FAKE/props/ro.product.model"
}

# The functions of the script, without bats looking at every step in them.
source_script() {
    # shellcheck source=/dev/null
    POTLUCK_SOURCED=yes . "$SCRIPT"
    set +euT
}

# set_up ARGUMENTS...: the script, as a person would run it; its words are in $output, errors too.
set_up() { run bash "$SCRIPT" --port "$PORT" "$@" 3>&- </dev/null; }

# A server beside the phone: gateway, or whoever else holds a port. serve_beside KIND PORT
serve_beside() {
    "$FAKE_PYTHON" -S -E -c "$FAKE_SERVER" "$1" 127.0.0.1 "$2" 3>&- </dev/null >/dev/null 2>&1 &
    echo "$!" >>"$FAKE/pids"
    until is_open "$2"; do sleep 0.02; done
}

gateway() {
    GATEWAY_PORT=$(free_port)
    GATEWAY="http://127.0.0.1:$GATEWAY_PORT"
    serve_beside gateway "$GATEWAY_PORT"
}

fails_with() {
    [ "$status" -ne 0 ] || { echo "it went well: $output" && return 1; }
    [ "$(grep -c '^error: ' <<<"$output")" -eq 1 ] || { echo "not one sentence: $output" && return 1; }
    says "$1"
}

says() { [[ $output == *"$1"* ]] || { echo "missing '$1' in: $output" && return 1; }; }
says_not() { [[ $output != *"$1"* ]] || { echo "unwanted '$1' in: $output" && return 1; }; }
went_well() { [ "$status" -eq 0 ] || { echo "code $status: $output" && return 1; }; }
called() { grep -qF -- "$1" "$FAKE/calls" || { cat "$FAKE/calls" && return 1; }; }
not_called() { not grep -F -- "$1" "$FAKE/calls"; }
# Where errors end the test, "! command" never does.
not() { if "$@" 2>/dev/null; then return 1; fi; }

# What the phone's Ollama says, if anything; by the shell itself, since curl takes longer to start than to ask.
answers() (
    exec 4<>"/dev/tcp/127.0.0.1/$PORT" || exit 1
    printf 'GET /api/%s HTTP/1.0\r\n\r\n' "$1" >&4
    IFS= read -r -d '' -t 20 said <&4 || true
    [[ $said == HTTP/1.?' 200 '* ]] && printf '%s\n' "$said"
) 2>/dev/null

# An ended process may still be listed, but without its command line.
is_running() { IFS= read -r -d '' _ <"/proc/$1/cmdline"; }

# until_true COMMAND...: within a minute and a half, for a machine that is busy otherwise.
until_true() {
    local deadline=$((SECONDS + 90))
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.05
    done
}

# What lies in the phone, to see that nothing changed.
everything() { (cd "$BATS_TEST_TMPDIR/data" && find . -exec stat -c '%n %s %Y' {} +) | sort; }
