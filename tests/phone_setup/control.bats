#!/usr/bin/env bats
# The scripts that stay: start, stop, status; services and boot; ports that are taken and servers that die.

load termux

@test "status, stop and start" {
    set_up qwen2.5:0.5b
    went_well
    run "$HOME/mobile-llm/status.sh"
    went_well
    says "Ollama 0.31.1 answers on 0.0.0.0:$PORT"
    says "qwen2.5:0.5b"
    run "$HOME/mobile-llm/stop_ollama.sh"
    went_well
    not answers version
    not tmux has-session -t =mobile-llm
    run "$HOME/mobile-llm/status.sh"
    [ "$status" -eq 1 ]
    says "does not answer"
    run "$HOME/mobile-llm/stop_ollama.sh"
    went_well
    run "$HOME/mobile-llm/start_ollama.sh" 3>&-
    went_well
    answers version
    run "$HOME/mobile-llm/start_ollama.sh" 3>&-
    went_well
    says "already"
    [ "$(wc -l <"$FAKE/serves")" = 2 ]
}

@test "killed from outside, the next start works" {
    set_up qwen2.5:0.5b
    tmux kill-server
    kill -9 "$(cat "$HOME/mobile-llm/server.pid")" 2>/dev/null || true
    until_true not answers version
    run "$HOME/mobile-llm/start_ollama.sh" 3>&-
    went_well
    answers version
}

@test "a port that another program holds" {
    serve_beside gateway "$PORT"
    set_up qwen2.5:0.5b
    # This gateway answers every path; as a phone's Ollama it has no version.
    fails_with "Port $PORT is taken by a program that is not Ollama"
    [ ! -e "$FAKE/serves" ]
    [ ! -e "$HOME/mobile-llm" ]
}

@test "an Ollama of somebody else is neither used nor ended" {
    serve_beside ollama "$PORT"
    set_up qwen2.5:0.5b
    fails_with "An Ollama that this script did not start"
    answers version
}

@test "after a reboot the number of the server is another program's: neither taken for it nor ended" {
    set_up qwen2.5:0.5b
    went_well
    "$HOME/mobile-llm/stop_ollama.sh"
    sleep 60 3>&- &
    other=$!
    echo "$other" | tee "$HOME/mobile-llm/server.pid" >"$HOME/mobile-llm/report.pid"
    serve_beside ollama "$PORT"
    set_up
    fails_with "An Ollama that this script did not start"
    "$HOME/mobile-llm/stop_ollama.sh"
    is_running "$other"
    kill "$other"
}

@test "the models are where they are told to be, whatever else the shell says" {
    OLLAMA_MODELS="$HOME/elsewhere" set_up qwen2.5:0.5b
    went_well
    [ -e "$HOME/.ollama/models/manifests/registry.ollama.ai/library/qwen2.5/0.5b" ]
    [ ! -e "$HOME/elsewhere" ]
}

@test "a start script that finds the port taken" {
    set_up qwen2.5:0.5b
    "$HOME/mobile-llm/stop_ollama.sh"
    serve_beside gateway "$PORT"
    run "$HOME/mobile-llm/start_ollama.sh" 3>&-
    fails_with "is taken by a program that is not Ollama"
}

@test "a server that ends at once: its last words" {
    touch "$FAKE/serve_dies"
    set_up qwen2.5:0.5b
    fails_with "something is broken"
}

@test "a server that never answers" {
    touch "$FAKE/serve_hangs"
    POTLUCK_START_SECONDS=1 set_up qwen2.5:0.5b
    fails_with "does not answer on port $PORT"
}

@test "Termux:Boot, when it is there" {
    set_up qwen2.5:0.5b
    says "install Termux:Boot"
    [ ! -e "$HOME/.termux" ]
    echo package:/data/app/boot.apk >"$FAKE/packages"
    set_up
    went_well
    boot="$HOME/.termux/boot/mobile-llm"
    [ -x "$boot" ]
    "$HOME/mobile-llm/stop_ollama.sh"
    bash "$boot" 3>&- </dev/null >/dev/null 2>&1 &
    echo "$!" >>"$FAKE/pids"
    until_true answers version
    set_up --uninstall
    [ ! -e "$HOME/.termux/boot" ]
}

@test "termux-services, when they are there" {
    mkdir -p "$PREFIX/var/service"
    have sv-enable
    have sv
    mkdir -p "$HOME/.termux/boot"
    set_up qwen2.5:0.5b
    went_well
    service="$PREFIX/var/service/mobile-llm"
    [ -x "$service/run" ]
    [ "$(readlink "$service/log/run")" = "$PREFIX/share/termux-services/svlogger" ]
    grep -q 'etc/profile' "$HOME/.termux/boot/mobile-llm"
    "$HOME/mobile-llm/stop_ollama.sh"
    called "sv down mobile-llm"
    # As runsvdir would: the start script asks it, and waits.
    touch "$FAKE/runsvdir"
    "$service/run" 3>&- </dev/null >/dev/null 2>&1 &
    echo "$!" >>"$FAKE/pids"
    run "$HOME/mobile-llm/start_ollama.sh" 3>&-
    went_well
    not tmux has-session -t =mobile-llm
    set_up --uninstall
    [ ! -e "$service" ]
}

@test "what is written on the phone is sound bash" {
    set_up qwen2.5:0.5b
    for file in "$HOME"/mobile-llm/*.sh; do
        bash -n "$file"
        [ -x "$file" ]
        not grep -q com.termux "$file"
    done
    # Termux:Boot and runsv start them where nothing translates /usr/bin/env.
    mkdir -p "$PREFIX/var/service" "$HOME/.termux/boot"
    have sv-enable
    set_up
    went_well
    for file in "$HOME"/mobile-llm/*.sh "$HOME/.termux/boot/mobile-llm" "$PREFIX/var/service/mobile-llm/run"; do
        [ "$(head -n 1 "$file")" = "#!$PREFIX/bin/bash" ]
    done
    shellcheck=${SHELLCHECK:-$(command -v shellcheck)} || skip "shellcheck is not installed"
    "$shellcheck" -s bash "$HOME"/mobile-llm/*.sh
    command -v shfmt >/dev/null || skip "shfmt is not installed"
    shfmt -i 4 -ci -d "$HOME"/mobile-llm/*.sh
}
