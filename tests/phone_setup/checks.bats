#!/usr/bin/env bats
# What is looked at before anything is changed, and what people are told to do.

load termux

# Refused before the first change.
refused() {
    fails_with "$1"
    [ ! -e "$HOME/mobile-llm" ]
    not_called "pkg install"
}

@test "outside of Termux" {
    unset PREFIX
    set_up
    refused "This is not Termux"
}

@test "by another shell" {
    sh=$(command -v dash) || skip "dash is not installed"
    run "$sh" "$SCRIPT" qwen2.5:0.5b
    fails_with "This wants bash"
}

@test "unknown flags, values that are missing and such that cannot be" {
    touch "$FAKE/calls"
    set_up --fast
    refused "--fast is not an option"
    set_up a b
    refused "Only one model"
    run bash "$SCRIPT" --port
    refused "--port needs a value"
    run bash "$SCRIPT" --port 80
    refused "a number from 1024 to 65535"
    set_up 'a;reboot'
    refused "is not the name of a model"
    set_up --gateway potato --token x
    refused "needs an address like"
    set_up --token x
    refused "--token needs the gateway"
    set_up --bench --proot
    refused "tries both ways"
    set_up --model-file "$HOME/none.gguf"
    refused "There is no file or folder"
    mkdir -p "$EXTERNAL_STORAGE"
    set_up --model-file "$EXTERNAL_STORAGE/models/none.gguf"
    refused "termux-setup-storage"
}

@test "the help" {
    set_up --help
    went_well
    for flag in --proot --bench --usb --model-file --port --gateway --token --name --yes --dry-run --uninstall; do says "$flag"; done
}

@test "a 32-bit phone" {
    echo arm >"$FAKE/architecture"
    rm "$FAKE/props/ro.product.cpu.abilist64"
    set_up
    refused "32-bit processor (arm)"
}

@test "a 32-bit Termux on a 64-bit phone" {
    echo arm >"$FAKE/architecture"
    set_up
    refused "32-bit build on a 64-bit phone"
}

@test "the Play Store's build works, with a warning" {
    TERMUX_VERSION=googleplay.2026.06.21 set_up qwen2.5:0.5b --dry-run
    went_well
    says "Play Store's Termux"
}

@test "the Play Store's build on Android 17 has no network: refused, but not by USB" {
    android 17 37
    TERMUX_VERSION=googleplay.2026.06.21 set_up qwen2.5:0.5b
    refused "Android 17 keeps this build of Termux off the local network"
    says "GitHub or F-Droid"
    TERMUX_VERSION=googleplay.2026.06.21 set_up qwen2.5:0.5b --usb --dry-run
    went_well
    says "by USB it should work"
}

@test "other builds on Android 17 work, unless they are made for it" {
    android 17 37
    set_up qwen2.5:0.5b --dry-run
    went_well
    says_not "off the local network"
    TERMUX_APP__TARGET_SDK=37 set_up qwen2.5:0.5b
    refused "Android 17 keeps"
}

@test "the phantom process killer: words for each Android" {
    set_up --dry-run
    says_not "signal 9"
    android 12 31
    set_up --dry-run
    says "max_phantom_processes 2147483647"
    android 13 33
    set_up --dry-run
    says "settings put global settings_enable_monitor_phantom_procs false"
    says_not "Disable child process restrictions"
    android 14 34
    set_up --dry-run
    says "Disable child process restrictions"
    echo false >"$FAKE/props/persist.sys.fflag.override.settings_enable_monitor_phantom_procs"
    set_up --dry-run
    says_not "signal 9"
}

@test "battery optimisation is spoken of" {
    set_up --dry-run
    says "battery optimisation"
}

@test "a phone out of a drawer that has lost the date" {
    set_up --dry-run
    says_not "date says"
    printf '#!/usr/bin/env bash\necho 1970\n' >"$FAKE/bin/date"
    chmod +x "$FAKE/bin/date"
    set_up --dry-run
    went_well
    says "This phone's date says 1970"
}

@test "too little RAM: a table, one sentence, nothing done; --yes goes on" {
    ram_gb 4
    set_up llama3.1:8b
    refused "llama3.1:8b wants about"
    says "take gemma3:1b"
    says "qwen2.5:7b"
    set_up llama3.1:8b --dry-run --yes
    went_well
}

@test "a model between the rule of thumb and half of the RAM is only warned of" {
    ram_gb 4
    set_up qwen2.5:1.5b --dry-run
    went_well
    says "large for a phone of 4 GB"
}

@test "a full phone" {
    echo 300000 >"$FAKE/df"
    set_up qwen2.5:0.5b
    refused "292 MB free"
}

@test "Debian wants more room" {
    echo 3000000 >"$FAKE/df"
    set_up qwen2.5:0.5b --dry-run
    went_well
    set_up qwen2.5:0.5b --dry-run --proot
    fails_with "the set-up wants about"
}

@test "a disk that fills up while the scripts are written" {
    [ "$(id -u)" = 0 ] || skip "a small disk needs root"
    mkdir "$HOME/mobile-llm"
    mount -t tmpfs -o size=4k none "$HOME/mobile-llm" || skip "no tmpfs may be mounted here"
    head -c 4096 /dev/zero >"$HOME/mobile-llm/fill" || true
    set_up qwen2.5:0.5b
    umount "$HOME/mobile-llm"
    fails_with "storage full"
    says_not "No space left"
}

@test "a disk that fills up at other steps; uninstalling works on it all the same" {
    [ "$(id -u)" = 0 ] || skip "a small disk needs root"
    gateway
    for call in "dpkg --print" "pkg install" termux-wake-lock "pm path"; do # the record, scripts, the server's number, joining
        mount -t tmpfs -o size=400k none "$HOME" || skip "no tmpfs may be mounted here"
        echo "$call" >"$FAKE/full_at"
        set_up qwen2.5:0.5b --gateway "$GATEWAY" --token abc
        fails_with "is the phone's storage full?"
        says_not "No space left"
        [ ! -e "$FAKE/full_at" ]
        cat /dev/zero >"$HOME/fill" 2>/dev/null || true
        set_up --uninstall
        went_well
        [ ! -e "$HOME/mobile-llm" ]
        umount "$HOME"
    done
}

@test "packages that do not come" {
    touch "$FAKE/pkg_fails"
    set_up qwen2.5:0.5b
    fails_with "termux-change-repo"
    called "pkg update -y"
    called "dpkg --configure -a"
}

@test "packages that would ask about a file of settings" {
    touch "$FAKE/conffile"
    set_up qwen2.5:0.5b
    went_well
}

@test "a curl without its libraries" {
    printf '#!/usr/bin/env bash\nexit 127\n' >"$FAKE/bin/curl"
    chmod +x "$FAKE/bin/curl"
    set_up qwen2.5:0.5b
    fails_with "curl does not run; run pkg upgrade"
}

@test "sizes are read from names" {
    source_script
    for pair in smollm2:135m=135 qwen2.5:1.5b=1500 llama3.2=3000 gemma3:1b=1000 qwen3:30b-a3b=30000 mixtral:8x7b=56000 \
        gemma3:270m=270 hf.co/x/Llama-3.2-1B-Instruct-GGUF:Q4_K_M=1000 llama3.1:8b-instruct-q8_0=8000 mystery=0 gemma3:latest=4000 x:08b=8000 x:08x09b=72000; do
        [ "$(parameters_of "${pair%=*}")" = "${pair#*=}" ] || { echo "$pair, not $(parameters_of "${pair%=*}")" && false; }
    done
    [ "$(download_mb qwen2.5:1.5b)" -gt 900 ] && [ "$(download_mb qwen2.5:1.5b)" -lt 1200 ]
    [ "$(download_mb llama3.2:1b-instruct-fp16)" -ge 2000 ]
    [ "$(download_mb gemma3:4b)" -ge 3300 ] && [ "$(download_mb gemma3n:e4b)" -ge 7000 ]
    # These two come with 8 bits unless asked otherwise.
    [ "$(download_mb llama3.2:1b)" -ge 1100 ] && [ "$(download_mb smollm2:1.7b)" -ge 1700 ]
}

@test "every line of the table fits its own phones" {
    source_script
    while IFS='|' read -r sold _ suggested download largest _; do
        ram_gb "$sold"
        [ "$(ram_line "$(ram_mb)" | cut -d '|' -f 1)" = "$sold" ]
        check_ram "$suggested" "$(needed_ram_mb "$(parameters_of "$suggested")")" >"$FAKE/said"
        [ ! -s "$FAKE/said" ]
        guess=$(download_mb "$suggested")
        [ "$((guess * 100 / download))" -ge 75 ] && [ "$((guess * 100 / download))" -le 125 ]
    done <<<"$RAM_TABLE"
}
