#!/usr/bin/env bats
# From a bare Termux to an answering phone, again, dry, and away again.

load termux

@test "a bare Termux becomes an answering phone" {
    set_up qwen2.5:0.5b
    went_well
    called "pkg install -y ollama"
    says "12.50 tokens/s"
    says "http://192.168.7.31:$PORT"
    says "Ollama has no password"
    [[ $(answers tags) == *'"name":"qwen2.5:0.5b"'* ]]
    grep -q "serve native 0.0.0.0:$PORT noprune=$" "$FAKE/serves"
    called termux-wake-lock
    tmux has-session -t =mobile-llm
    [ "$(stat -c %a "$HOME/mobile-llm")" = 700 ]
}

@test "a second run changes nothing but the measurement" {
    set_up qwen2.5:0.5b
    went_well
    server=$(cat "$HOME/mobile-llm/server.pid")
    set_up qwen2.5:0.5b
    went_well
    says "qwen2.5:0.5b is there"
    [ "$(cat "$HOME/mobile-llm/server.pid")" = "$server" ]
    [ "$(grep -c 'pkg install' "$FAKE/calls")" = 1 ]
    [ "$(wc -l <"$FAKE/serves")" = 1 ]
}

@test "without a model the phone gets the one for its RAM, and keeps it later" {
    ram_gb 4
    set_up
    went_well
    says "this phone gets gemma3:1b"
    [[ $(answers tags) == *gemma3:1b* ]]
    ram_gb 12
    set_up
    went_well
    says "gemma3:1b is there"
}

@test "a dry run says every step and changes nothing" {
    gateway
    before=$(everything)
    set_up qwen2.5:0.5b --dry-run --proot --gateway "$GATEWAY" --token abc
    went_well
    [ "$(everything)" = "$before" ]
    for words in "Would install Debian" "Would start Ollama on 0.0.0.0:$PORT" "Would bring the model" "Would join the fleet"; do
        says "$words"
    done
    says "Nothing was changed."
    [ ! -s "$FAKE/gateway.log" ]
    not_called "pkg install"
    not answers version
}

@test "a dry run over what is set up changes nothing either, in no byte" {
    gateway
    set_up qwen2.5:0.5b --gateway "$GATEWAY" --token abc
    went_well
    "$HOME/mobile-llm/stop_ollama.sh"
    printf 'GGUF and more' >"$HOME/tiny.gguf"
    before=$(everything) sums=$(cd "$HOME" && find . -type f -exec sha256sum {} +)
    : >"$FAKE/gateway.log"
    set_up --dry-run --bench --name other
    went_well
    set_up --dry-run --usb --model-file "$HOME/tiny.gguf" --proot
    went_well
    [ "$(everything)" = "$before" ]
    [ "$(cd "$HOME" && find . -type f -exec sha256sum {} +)" = "$sums" ]
    [ ! -s "$FAKE/gateway.log" ]
    [ "$(wc -l <"$FAKE/serves")" = 1 ]
}

@test "ended in the middle: one sentence; killed in the middle: the same command goes on" {
    gateway
    export POTLUCK_OLLAMA_DOWNLOAD="$GATEWAY/download"
    before=$(everything | cut -d ' ' -f 1)
    for call in "pkg install" "proot-distro install" "apt-get install" "dpkg-query -W -f \${Status} zstd"; do
        echo "$call" >"$FAKE/kill_at"
        set_up qwen2.5:0.5b --proot
        [ "$status" -ne 0 ]
        [ ! -e "$FAKE/kill_at" ]
    done
    touch "$FAKE/serve_hangs"
    bash "$SCRIPT" --port "$PORT" qwen2.5:0.5b --proot >"$FAKE/said" 2>&1 3>&- </dev/null &
    script=$!
    until_true test -s "$HOME/mobile-llm/server.pid"
    kill -TERM "$script"
    pkill -TERM -P "$script" || true
    status=0
    wait "$script" || status=$?
    output=$(cat "$FAKE/said")
    fails_with "the set-up stopped while it tried to start Ollama"
    rm "$FAKE/serve_hangs"
    set_up qwen2.5:0.5b --proot
    went_well
    answers version
    set_up --uninstall
    went_well
    [ "$(everything | cut -d ' ' -f 1)" = "$before" ]
    [ ! -e "$FAKE/debian" ]
}

@test "two runs at a time: the second one is refused, and what stays running holds no place" {
    touch "$FAKE/serve_hangs"
    bash "$SCRIPT" --port "$PORT" qwen2.5:0.5b >"$FAKE/said" 2>&1 3>&- </dev/null &
    script=$!
    until_true test -s "$HOME/mobile-llm/server.pid"
    set_up
    fails_with "runs on this phone already"
    set_up --uninstall
    fails_with "runs on this phone already"
    set_up --dry-run
    went_well
    [ -e "$HOME/mobile-llm/settings" ]
    kill -KILL "$script"
    pkill -KILL -P "$script" || true
    rm "$FAKE/serve_hangs"
    "$HOME/mobile-llm/stop_ollama.sh"
    set_up
    went_well
    "$HOME/mobile-llm/stop_ollama.sh"
    set_up # after one that went well, with its tmux
    went_well
}

@test "with --usb it listens on the phone itself only, also in a later run without the flag" {
    set_up qwen2.5:0.5b --usb
    went_well
    grep -q "serve native 127.0.0.1:$PORT" "$FAKE/serves"
    says "adb forward tcp:$PORT tcp:$PORT"
    says_not "Ollama has no password"
    set_up
    went_well
    [ "$(wc -l <"$FAKE/serves")" = 1 ]
    set_up --wifi
    went_well
    grep -q "serve native 0.0.0.0:$PORT" "$FAKE/serves"
}

@test "uninstalling leaves nothing" {
    before=$(everything | cut -d ' ' -f 1)
    set_up qwen2.5:0.5b
    went_well
    set_up --uninstall
    went_well
    not answers version
    not tmux has-session -t =mobile-llm
    called "pkg uninstall -y ollama"
    called termux-wake-unlock
    [ "$(everything | cut -d ' ' -f 1)" = "$before" ]
    set_up --uninstall
    went_well
    says "Nothing is set up"
}

@test "a model's files are dropped, but not those that another model names too" {
    source_script
    store="$BATS_TEST_TMPDIR/store"
    mkdir -p "$store/blobs" "$store/manifests/a" "$store/manifests/b"
    one=$(printf 1%.0s {1..64}) two=$(printf 2%.0s {1..64})
    touch "$store/blobs/sha256-$one" "$store/blobs/sha256-$two"
    printf '{"digest":"sha256:%s"},{"digest":"sha256:%s"}' "$one" "$two" >"$store/manifests/a/latest"
    printf '{"digest":"sha256:%s"}' "$two" >"$store/manifests/b/latest"
    bash -c "$(drop_model_text)" drop "$store" manifests/a/latest
    [ "$(ls "$store/blobs")" = "sha256-$two" ]
    [ ! -e "$store/manifests/a/latest" ]
    bash -c "$(drop_model_text)" drop "$store" manifests/a/latest
    bash -c "$(drop_model_text)" drop "$store" manifests/b/latest
    [ -z "$(ls "$store/blobs")" ]
}

@test "uninstalling keeps what was there before" {
    have ollama
    library="$HOME/.ollama/models/manifests/registry.ollama.ai/library"
    mkdir -p "$library/mine"
    echo '{}' >"$library/mine/latest"
    set_up qwen2.5:0.5b
    went_well
    set_up --uninstall
    went_well
    [ -e "$library/mine/latest" ]
    [ ! -e "$library/qwen2.5/0.5b" ]
    [ -e "$FAKE/bin/ollama" ]
    not_called "pkg uninstall"
}

@test "an empty folder for start scripts that was there stays" {
    mkdir -p "$HOME/.termux/boot"
    set_up qwen2.5:0.5b
    went_well
    [ -e "$HOME/.termux/boot/mobile-llm" ]
    set_up --uninstall
    went_well
    [ -d "$HOME/.termux/boot" ]
    [ ! -e "$HOME/.termux/boot/mobile-llm" ]
}

@test "a dry uninstall removes nothing" {
    set_up qwen2.5:0.5b
    before=$(everything)
    set_up --uninstall --dry-run
    went_well
    says "Would stop Ollama."
    [ "$(everything)" = "$before" ]
    answers version
}

@test "it comes by a pipe too, with its arguments" {
    touch "$FAKE/eat_stdin" # were it theirs, the rest of the script would be gone
    run bash -c 'cat "$1" | bash -s -- qwen2.5:0.5b --port "$2" 3>&-' - "$SCRIPT" "$PORT"
    went_well
    says "Done: qwen2.5:0.5b answers"
    answers version
}

@test "a script that is replaced while it runs ends as it began" {
    cp "$SCRIPT" "$HOME/join"
    printf '#!/usr/bin/env bash\nprintf "# longer\\nfalse\\n%%.0s" {1..100} >>"$HOME/join"\necho aarch64\n' >"$FAKE/bin/dpkg.new"
    chmod +x "$FAKE/bin/dpkg.new"
    mv "$FAKE/bin/dpkg.new" "$FAKE/bin/dpkg"
    run bash "$HOME/join" --port "$PORT" qwen2.5:0.5b --dry-run 3>&- </dev/null
    went_well
}

@test "half of the script does nothing" {
    before=$(everything)
    run bash -c 'head -c 30000 "$1" | bash 3>&-' - "$SCRIPT"
    [ "$(everything)" = "$before" ]
    [ ! -e "$FAKE/calls" ]
}
