#!/usr/bin/env bats
# Ollama in Debian under proot-distro, and the choice between both ways.

load termux

with_downloads() {
    gateway
    export POTLUCK_OLLAMA_DOWNLOAD="$GATEWAY/download"
}

@test "--proot runs Ollama in Debian, with its scripts there" {
    with_downloads
    set_up qwen2.5:0.5b --proot
    went_well
    called "pkg install -y proot-distro"
    called "proot-distro install debian"
    called "apt-get install"
    called "tar -C /usr/local -x -f - --zstd"
    [ "$(wc -c <"$FAKE/unpacked")" = 800 ]
    grep -q "serve debian 0.0.0.0:$PORT" "$FAKE/serves"
    debian="$FAKE/debian/home"
    [ -e "$debian/.ollama/models/manifests/registry.ollama.ai/library/qwen2.5/0.5b" ]
    [ ! -e "$HOME/.ollama" ]
    for file in start_ollama.sh stop_ollama.sh status.sh; do [ -x "$debian/mobile-llm/$file" ]; done
    run "$HOME/mobile-llm/stop_ollama.sh"
    not answers version
    set_up
    went_well
    [ "$(grep -c 'serve debian' "$FAKE/serves")" = 2 ]
    [ "$(grep -c 'proot-distro install' "$FAKE/calls")" = 1 ]
    set_up --uninstall
    went_well
    [ ! -e "$FAKE/debian" ]
}

@test "the download of Ollama goes on where it broke off" {
    with_downloads
    touch "$FAKE/cut"
    echo yes >"$FAKE/cut"
    set_up qwen2.5:0.5b --proot
    went_well
    [ "$(tr '\n' ' ' <"$FAKE/downloads.log")" = "from 0 from 400 " ]
    [ "$(cat "$FAKE/unpacked")" = "$(printf 'archive!%.0s' {1..100})" ]
}

@test "releases that are packed with gzip, archives that are broken" {
    with_downloads
    echo yes >"$FAKE/no_zst"
    touch "$FAKE/tar_fails"
    set_up qwen2.5:0.5b --proot
    fails_with "is broken and was removed"
    set_up qwen2.5:0.5b --proot
    went_well
    called "--gzip"
}

@test "no Debian" {
    touch "$FAKE/debian_fails"
    set_up qwen2.5:0.5b --proot
    fails_with "Debian could not be installed"
}

@test "a Debian that was there stays" {
    with_downloads
    have proot-distro
    proot-distro install debian
    set_up qwen2.5:0.5b --proot
    went_well
    set_up --uninstall
    went_well
    [ -d "$FAKE/debian" ]
    [ ! -e "$FAKE/debian/home/mobile-llm" ]
    [ ! -e "$FAKE/debian/home/.ollama" ]
}

@test "a side-loaded file goes into Debian" {
    with_downloads
    printf 'GGUF and more' >"$HOME/tiny.gguf"
    set_up --model-file "$HOME/tiny.gguf" --proot
    went_well
    called "proot-distro login --bind $HOME:$HOME debian"
    [ -e "$FAKE/debian/home/.ollama/models/manifests/registry.ollama.ai/library/tiny/latest" ]
}

@test "--bench keeps Debian when that is faster" {
    with_downloads
    echo 4 >"$FAKE/speed_native"
    echo 9 >"$FAKE/speed_debian"
    set_up qwen2.5:0.5b --bench
    went_well
    says "Native 4.00 tokens/s, Debian 9.00 tokens/s."
    grep -qx MODE=proot "$HOME/mobile-llm/settings"
    tail -n 1 "$FAKE/serves" | grep -q debian
    [ "$(wc -l <"$FAKE/pulls.log")" = 1 ]
    [ ! -e "$HOME/.ollama/models" ]
}

@test "--bench keeps Termux's own when that is faster, and takes Debian away again" {
    with_downloads
    echo 9 >"$FAKE/speed_native"
    echo 4 >"$FAKE/speed_debian"
    set_up qwen2.5:0.5b --bench
    went_well
    grep -qx MODE=native "$HOME/mobile-llm/settings"
    tail -n 1 "$FAKE/serves" | grep -q native
    [ ! -e "$FAKE/debian" ]
    [[ $(answers tags) == *qwen2.5:0.5b* ]]
    [ "$(wc -l <"$FAKE/pulls.log")" = 1 ]
    says "(9.00 tokens/s)"
}
