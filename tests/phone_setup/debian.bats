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
    for file in start_ollama.sh stop_ollama.sh status.sh; do
        [ -x "$debian/mobile-llm/$file" ]
        [ "$(head -n 1 "$debian/mobile-llm/$file")" = "#!/bin/bash" ]
    done
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

@test "a download that was whole when the run was killed is unpacked by the next one" {
    with_downloads
    echo "tar -C" >"$FAKE/kill_at"
    set_up qwen2.5:0.5b --proot
    [ "$status" -ne 0 ]
    [ -s "$HOME/mobile-llm/ollama-linux-arm64.tar.zst" ]
    set_up qwen2.5:0.5b --proot
    went_well
    [ "$(tr '\n' ' ' <"$FAKE/downloads.log")" = "from 0 from 800 " ]
    [ ! -e "$HOME/mobile-llm/ollama-linux-arm64.tar.zst" ]
    answers version
}

@test "a phone that runs full while Ollama is unpacked keeps the download" {
    with_downloads
    touch "$FAKE/tar_full"
    set_up qwen2.5:0.5b --proot
    fails_with "storage ran full while Ollama was unpacked"
    set_up
    went_well
    [ "$(head -n 1 "$FAKE/downloads.log")" = "from 0" ]
}

@test "whatever is asked of the network has an end" {
    with_downloads
    cat >"$FAKE/bin/curl" <<'STUB'
#!/usr/bin/env bash
printf '%s\n' "$*" >>"$FAKE/curls"
exec /usr/bin/curl "$@"
STUB
    chmod +x "$FAKE/bin/curl"
    set_up qwen2.5:0.5b --proot --gateway "$GATEWAY" --token invite-1
    went_well
    [ "$(wc -l <"$FAKE/curls")" -gt 8 ]
    not grep -Ev -e '--max-time|--speed-time|^--version$' "$FAKE/curls"
}

@test "a phone that runs full while Ollama is downloaded" {
    with_downloads
    cat >"$FAKE/bin/curl" <<'STUB'
#!/usr/bin/env bash
if [[ " $* " == *" -C - "* ]]; then exit 23; fi
exec /usr/bin/curl "$@"
STUB
    chmod +x "$FAKE/bin/curl"
    set_up qwen2.5:0.5b --proot
    fails_with "storage ran full while Ollama was downloaded"
}

@test "Termux's own Ollama is not taken for Debian's, though it is in the PATH there" {
    with_downloads
    have ollama
    have proot-distro
    set_up qwen2.5:0.5b --proot
    went_well
    [ -s "$FAKE/unpacked" ]
    [ -e "$FAKE/debian/bin/ollama" ]
}

@test "half a Debian of ours is taken away first, one of somebody else never" {
    with_downloads
    touch "$FAKE/debian_breaks"
    set_up qwen2.5:0.5b --proot
    fails_with "Debian could not be installed"
    rm "$FAKE/debian_breaks"
    set_up qwen2.5:0.5b --proot
    went_well
    called "proot-distro remove debian"
    set_up --uninstall
    went_well
    have proot-distro
    mkdir -p "$PREFIX/var/lib/proot-distro/installed-rootfs/debian"
    : >"$FAKE/calls"
    for _ in once again; do
        set_up qwen2.5:0.5b --proot
        fails_with "There is a Debian that this script did not bring"
    done
    set_up --uninstall
    went_well
    not_called "proot-distro remove"
}

@test "what was in somebody's Debian stays: its Ollama, its models, its packages" {
    with_downloads
    have proot-distro
    proot-distro install debian
    ln -s "$FAKE_STUBS/stub" "$FAKE/debian/bin/ollama"
    printf 'curl\nca-certificates\n' >"$FAKE/debian/packages"
    library="$FAKE/debian/home/.ollama/models/manifests/registry.ollama.ai/library"
    mkdir -p "$library/mine"
    echo '{}' >"$library/mine/latest"
    set_up qwen2.5:0.5b --proot
    went_well
    [ ! -e "$FAKE/downloads.log" ]
    [ -e "$library/qwen2.5/0.5b" ]
    called "apt-get install -q -y --no-install-recommends tmux zstd"
    set_up --uninstall
    went_well
    [ -e "$library/mine/latest" ]
    [ ! -e "$library/qwen2.5/0.5b" ]
    [ -e "$FAKE/debian/bin/ollama" ]
    called "apt-get purge -q -y tmux zstd"
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

@test "a folder of safetensors and a copied store go into Debian too; a store's model is taken along from there" {
    with_downloads
    mkdir "$HOME/hf"
    touch "$HOME/hf/config.json" "$HOME/hf/model.safetensors"
    set_up pocket --model-file "$HOME/hf" --proot
    went_well
    debian="$FAKE/debian/home/.ollama/models"
    [ -e "$debian/manifests/registry.ollama.ai/library/pocket/latest" ]
    digest=$(printf weights | sha256sum | cut -d ' ' -f 1)
    mkdir -p "$HOME/my store/blobs" "$HOME/my store/manifests/registry.ollama.ai/library/small"
    printf weights >"$HOME/my store/blobs/sha256-$digest"
    printf '{"digest":"sha256:%s"}' "$digest" >"$HOME/my store/manifests/registry.ollama.ai/library/small/1b"
    set_up small:1b --model-file "$HOME/my store"
    went_well
    [ "$(cat "$debian/blobs/sha256-$digest")" = weights ]
    [ ! -e "$HOME/.ollama" ]
    rm -r "$HOME/my store"
    set_up small:1b --native
    went_well
    [ "$(cat "$HOME/.ollama/models/blobs/sha256-$digest")" = weights ]
    [ ! -e "$FAKE/pulls.log" ]
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
    [ ! -e "$HOME/.ollama" ]
    called "pkg uninstall -y ollama"
    # Tried again: nothing is downloaded a second time.
    set_up --bench
    went_well
    grep -qx MODE=proot "$HOME/mobile-llm/settings"
    [ "$(wc -l <"$FAKE/pulls.log")" = 1 ]
}

@test "--bench leaves somebody's own models where they are, whichever is faster" {
    with_downloads
    have ollama
    library="$HOME/.ollama/models/manifests/registry.ollama.ai/library"
    mkdir -p "$library/mine"
    echo '{}' >"$library/mine/latest"
    echo 4 >"$FAKE/speed_native"
    echo 9 >"$FAKE/speed_debian"
    set_up qwen2.5:0.5b --bench
    went_well
    [ -e "$library/mine/latest" ]
    [ ! -e "$library/qwen2.5/0.5b" ]
    [ ! -e "$FAKE/debian/home/.ollama/models/manifests/registry.ollama.ai/library/mine" ]
    set_up --uninstall
    went_well
    [ -e "$library/mine/latest" ]
    [ -e "$FAKE/bin/ollama" ]
    [ ! -e "$FAKE/debian" ]
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
