#!/usr/bin/env bash
# Makes an Android phone answer for Potluck: Ollama in Termux with one model, scripts that start and stop it, and, when
# a gateway invited the phone, its place in that fleet. One file that needs nothing beside it.
#
# Checks come before the first change; every step can be repeated, so the same command goes on where it broke off.
# A failure is one plain sentence on stderr and exit code 1. No path of Termux is written out: $PREFIX and $HOME are.
# Secrets (the invitation's token, the phone's own one) reach other programs by stdin or in files of mode 0600 only.
#
# To be read from the top: `main` is the story, and the sections after it come in the order in which it needs them.
# Saying and failing, arguments, checks, the model, what was brought, packages, Debian, the scripts that stay, server
# and model, the better of two ways, starting by itself, joining, the end; uninstalling; JSON and HTTP.
[ -n "${BASH_VERSION:-}" ] || { echo "error: This wants bash, not sh: start it with bash in front." >&2 && exit 1; }
set -euo pipefail

readonly FOLDER="${HOME:?HOME is not set}/mobile-llm"
readonly SESSION=mobile-llm
readonly BOOT_SCRIPT="$HOME/.termux/boot/mobile-llm"
readonly RECORD="$FOLDER/installed" # what this script brought, so that --uninstall takes that away and nothing else
readonly TABLE_FORMAT='%-9s %-15s %-10s %s\n'

# What a mirror, a slow phone or a test may want otherwise.
readonly MEMINFO=${POTLUCK_MEMINFO:-/proc/meminfo}
readonly OLLAMA_DOWNLOAD=${POTLUCK_OLLAMA_DOWNLOAD:-https://ollama.com/download}
readonly RETRY_SECONDS=${POTLUCK_RETRY_SECONDS:-5}
export POTLUCK_START_SECONDS=${POTLUCK_START_SECONDS:-60} # start_ollama.sh reads it too
# Nobody is there to be asked about files of settings that a newer package brings too: those that are there stay.
export DEBIAN_FRONTEND=noninteractive DPKG_FORCE=confdef,confold
# A proxy is for downloads; this phone itself is not reached by one.
export no_proxy="127.0.0.1,${no_proxy:-${NO_PROXY:-}}"

# The phones' RAM that a model fits, smallest first: RAM as sold in GB, MemTotal below which the line applies (phones
# report less than is printed on the box), the model that is taken when none is named, its download, the largest size
# in millions of parameters at 4 bits, others that fit. Rule of thumb: 4 GB up to 1B, 6 GB 2B, 8 GB 3 to 4B, 12 GB 8B.
readonly RAM_TABLE='2|2600|smollm2:135m|271|360|smollm2:360m
3|3300|qwen2.5:0.5b|398|600|smollm2:360m, qwen3:0.6b
4|5000|gemma3:1b|815|1000|qwen3:0.6b, tinyllama
6|7000|qwen2.5:1.5b|986|2000|llama3.2:1b, smollm2:1.7b
8|10500|llama3.2:3b|2019|4000|qwen2.5:3b, gemma3:4b
12|999999|qwen2.5:7b|4683|8000|llama3.1:8b, qwen3:8b'

usage() {
    cat <<'TEXT'
Usage: bash phone_setup.sh [MODEL] [options]          in Termux, on the phone

Installs Ollama, brings MODEL (a name of Ollama's library, or of a file you copied to the phone), starts it and measures
its speed. Without MODEL it takes the one model that lies in models/, else one that fits the phone's RAM.

  --proot             run Ollama in Debian under proot-distro; --native: in Termux itself (that is where it begins)
  --bench             try both ways and keep the faster one
  --usb               listen on the phone itself only, the gateway comes by USB (adb forward); --wifi: for the network
  --model-file PATH   take this GGUF file, folder of safetensors, or copied Ollama store (blobs/ and manifests/)
  --port PORT         where Ollama listens (11434)
  --gateway URL       join this gateway, with the token of its invitation:
  --token TOKEN       "-" reads it from the keyboard or a pipe, so that it appears in no list of processes
  --name NAME         what the fleet calls this phone (its product name)
  --yes               answer yes to every question
  --dry-run           check, say every step, change nothing
  --uninstall         remove what this script brought
  --help              this text

A later run keeps what an earlier one was told, where it is not told otherwise.
TEXT
}

# --- The whole of it ------------------------------------------------------------------------------------------------

main() {
    trap at_exit EXIT
    trap 'exit 130' INT TERM HUP
    hide_token "$@"
    parse_arguments "$@"
    check_arguments
    exec 9<&- # what is started from here on, tmux among it, must not keep it
    if [ "$uninstalling" = yes ]; then
        check_termux
        uninstall
        return 0
    fi
    check_everything
    act "make $FOLDER" make_folder
    if [ "$bench" = yes ]; then measure_both; else set_up_mode; fi
    start_by_itself
    if [ -n "$gateway" ]; then
        act "join the fleet of $gateway" join_fleet
        act "start the reporter" start_reporter
    fi
    if [ "$dry_run" = yes ]; then say "Nothing was changed."; else say_result; fi
}

check_everything() {
    check_termux
    check_processor
    check_build
    check_phantom_killer
    check_clock
    if [ "$reach" = wifi ]; then say_battery_hint; fi
    choose_model
    check_room
    check_port
}

set_up_mode() {
    act "install what is missing from Termux's packages ($(missing_packages | tr '\n' ' ' | sed 's/ $//'))" install_packages
    if [ "$mode" = proot ]; then
        act "install Debian with proot-distro" install_debian
        act "install Ollama in Debian" install_ollama_in_debian
    fi
    act "write start_ollama.sh, stop_ollama.sh, status.sh and report.sh" write_scripts
    act "start Ollama on $(listening_words)" start_server
    act "bring the model $model ($source_kind)" provide_model
    act "warm $model up and measure its speed" warm_up
}

# --- Saying and failing ---------------------------------------------------------------------------------------------

say() { printf '%s\n' "$*"; }
note() { printf '  ! %s\n' "$*"; }

# plain TEXT: what another machine said, without what would steer the terminal.
plain() { printf '%s' "${1//[[:cntrl:]]/ }"; }

readonly TOLD=97 # how a subshell ends that has said why already
failure_told=no
fail() {
    failure_told=yes
    printf 'error: %s\n' "$*" >&2
    if [ "$BASHPID" != "$$" ]; then exit "$TOLD"; fi
    exit 1
}

# However the script ends: no failure without a sentence.
at_exit() {
    local code=$?
    [ "$BASHPID" = "$$" ] || return 0
    if [ "$code" -eq "$TOLD" ]; then exit 1; fi
    if [ "$code" -ne 0 ] && [ "$failure_told" = no ]; then
        printf 'error: the set-up stopped while it tried to %s; run the same command again and it goes on.\n' "$doing" >&2
    fi
}

# act "words for people" COMMAND...: does a step, or in a dry run only says it.
doing="begin"
act() {
    doing=$1
    shift
    if [ "$dry_run" = yes ]; then
        say "Would $doing."
        return 0
    fi
    say "==> ${doing^}"
    "$@"
}

# True for yes. Without a person at the other end the answer is no, unless --yes was given.
confirm() {
    local answer
    [ "$assume_yes" = no ] || return 0
    [ -t 1 ] && { : </dev/tty; } 2>/dev/null || return 1
    printf '%s [y/N] ' "$1" >/dev/tty
    read -r answer </dev/tty || return 1
    [[ $answer == [yY]* ]]
}

has() { command -v "$1" >/dev/null 2>&1; }

# --- Arguments ------------------------------------------------------------------------------------------------------

model="" model_file="" mode="" bench=no reach="" port="" name="" gateway="" token=""
dry_run=no assume_yes=no uninstalling=no arch=""

value_of() {
    [ "$2" -ge 2 ] || fail "$1 needs a value."
}

parse_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
            --model-file | --port | --gateway | --token | --name) value_of "$1" "$#" ;;
        esac
        case $1 in
            --proot) mode=proot ;;
            --native) mode=native ;;
            --wifi) reach=wifi ;;
            --bench) bench=yes ;;
            --usb) reach=usb ;;
            --dry-run) dry_run=yes ;;
            --yes) assume_yes=yes ;;
            --uninstall) uninstalling=yes ;;
            -h | --help) usage && exit 0 ;;
            --model-file) model_file=$2 && shift ;;
            --port) port=$2 && shift ;;
            --gateway) gateway=$2 && shift ;;
            --token) token=$2 && shift ;;
            --name) name=$2 && shift ;;
            -*) fail "$1 is not an option of this script; --help lists them." ;;
            *)
                [ -z "$model" ] || fail "Only one model can be set up at a time, not '$model' and '$1'."
                model=$1
                ;;
        esac
        shift
    done
}

check_arguments() {
    # The gateway puts the first two in front of this script when a phone fetches it by an invitation.
    gateway=${gateway:-${POTLUCK_GATEWAY:-}} token=${token:-${POTLUCK_TOKEN:-}} model=${model:-${POTLUCK_MODEL:-}}
    export -n POTLUCK_TOKEN 2>/dev/null || true
    gateway=${gateway%/}
    [ "$bench" = no ] || [ -z "$mode" ] || fail "--bench tries both ways; leave --proot and --native out."
    remember_settings
    if [ "$token" = - ]; then IFS= read -r token <&9 || fail "No token could be read."; fi
    [ -z "$token" ] || [ -n "$gateway" ] || fail "--token needs the gateway that gave it: --gateway URL."
    [[ $token =~ ^[A-Za-z0-9._~-]*$ ]] || fail "The token is not one that a gateway gives."
    if [ "$reach" = usb ]; then
        [ -z "$token" ] || fail "A phone for a cable joins by the cable and not over the network; leave out --usb, or take" \
            "the script without the invitation: curl -fsSLO '$gateway/join' && bash join --usb"
        gateway=""
    fi
    [ -z "$gateway" ] || [ -n "$token" ] || has_joined ||
        fail "--gateway needs the token of an invitation, which 'potluck phones invite' shows there: --token TOKEN."
    [ -z "$gateway" ] || [[ $gateway =~ ^https?://[^[:space:]\"\'\\]+$ ]] ||
        fail "--gateway needs an address like http://192.168.1.5:8000, not '$gateway'."
    if [[ ! $port =~ ^[1-9][0-9]{3,4}$ ]] || [ "$port" -lt 1024 ] || [ "$port" -gt 65535 ]; then
        fail "--port needs a number from 1024 to 65535, not '$port'."
    fi
    [ -z "$model" ] || { [[ $model =~ ^[A-Za-z0-9][A-Za-z0-9._:/-]*$ ]] && [[ $model != *..* ]]; } ||
        fail "'${model//[$'\n\r']/ }' is not the name of a model."
    [ -z "$model_file" ] || [ -e "$model_file" ] || fail "$(missing_file_words "$model_file")"
}

# What the gateway called this phone last, as a word for a shell.
fleet_name() {
    local called
    called=$(cat "$FOLDER/fleet_name" 2>/dev/null) || called=NAME
    printf '%q' "$called"
}

has_joined() { [ -s "$FOLDER/phone_token" ] && [ -s "$FOLDER/gateway" ]; }

# What an earlier run set up holds until something else is asked for: its way of running, its model, its gateway.
remember_settings() {
    local MODE=native HOST=0.0.0.0 PORT=11434 MODEL=""
    # shellcheck source=/dev/null
    if [ -r "$FOLDER/settings" ]; then . "$FOLDER/settings"; fi
    mode=${mode:-$MODE} port=${port:-$PORT}
    if [ -z "$gateway" ] && has_joined; then gateway=$(cat "$FOLDER/gateway"); fi
    if [ -z "$model" ] && [ -z "$model_file" ]; then model=$MODEL; fi
    if [ -z "$reach" ] && [ "$HOST" = 127.0.0.1 ]; then reach=usb; fi
    reach=${reach:-wifi}
}

missing_file_words() {
    if [ -n "${EXTERNAL_STORAGE:-}" ] && [ ! -d "$HOME/storage" ] && [[ $1 == "$EXTERNAL_STORAGE"* ]]; then
        say "Termux may not read the shared storage yet; run termux-setup-storage, tap Allow, and start again."
    else
        say "There is no file or folder $1."
    fi
}

# A token in the arguments would be seen in the list of processes for as long as a download takes: start over with it
# in the environment instead, which only this user can read.
hide_token() {
    local argument arguments=() next=no
    [ -f "$0" ] && [[ " $* " == *" --token "* ]] || return 0
    for argument in "$@"; do
        if [ "$next" = yes ]; then
            [ "$argument" != - ] || return 0
            next=no
            export POTLUCK_TOKEN=$argument
        elif [ "$argument" = --token ]; then
            next=yes
        else
            arguments+=("$argument")
        fi
    done
    [ "$next" = no ] || fail "--token needs a value."
    exec bash "$0" "${arguments[@]}" <&9
}

# --- Checks, before anything is changed -----------------------------------------------------------------------------

property() { if has getprop; then getprop "$1" 2>/dev/null || true; fi; }

android_sdk() {
    local sdk
    sdk=$(property ro.build.version.sdk)
    [[ $sdk =~ ^[0-9]+$ ]] && printf '%s' "$sdk" || printf '0'
}

check_termux() {
    if [ -z "${PREFIX:-}" ] || [ ! -d "$PREFIX" ] || ! has pkg; then
        fail "This is not Termux; install Termux from F-Droid or GitHub on the phone, open it, and run this there."
    fi
}

# Ollama is packaged for 64-bit processors only; a 32-bit Termux on a 64-bit phone has the same trouble.
check_processor() {
    arch=$(if has dpkg; then dpkg --print-architecture; else uname -m; fi)
    case $arch in
        aarch64 | arm64) arch=arm64 ;;
        x86_64 | amd64) arch=amd64 ;;
        *)
            if [ -n "$(property ro.product.cpu.abilist64)" ]; then
                fail "This Termux is a 32-bit build on a 64-bit phone; install the arm64-v8a or universal build instead."
            fi
            fail "This phone has a 32-bit processor ($arch), for which there is no Ollama; it cannot serve models."
            ;;
    esac
}

# From Android 17 on, apps made for it need a permission for the local network that Termux does not ask for.
check_build() {
    local sdk target=${TERMUX_APP__TARGET_SDK:-0} is_play=no
    sdk=$(android_sdk)
    [[ $target =~ ^[0-9]+$ ]] || target=0
    if [[ ${TERMUX_VERSION:-} == googleplay.* ]]; then is_play=yes; fi
    if [ "$sdk" -ge 37 ] && { [ "$is_play" = yes ] || [ "$target" -ge 37 ]; }; then
        [ "$reach" = usb ] || fail "Android 17 keeps this build of Termux off the local network and there is no" \
            "setting for it; install Termux from GitHub or F-Droid instead, or use a cable and --usb."
        note "Android 17 keeps this build of Termux off the local network; by USB it should work all the same."
    elif [ "$is_play" = yes ]; then
        note "This is the Play Store's Termux: from Android 17 on it is cut off from the local network, and Termux:API"
        note "and Termux:Boot must come from the Play Store too. The builds of F-Droid and GitHub have no such limits."
    fi
}

# Android 12 and later kill children of apps in the background, with "signal 9" as the only word.
check_phantom_killer() {
    local sdk
    sdk=$(android_sdk)
    [ "$sdk" -ge 31 ] || return 0
    [ "$(property persist.sys.fflag.override.settings_enable_monitor_phantom_procs)" != false ] || return 0
    note "Android may kill Ollama in the background (\"signal 9\"). Switch that off once, from a computer (potluck adb setup does it):"
    if [ "$sdk" -eq 31 ]; then
        say "      adb shell device_config set_sync_disabled_for_tests persistent"
        say "      adb shell device_config put activity_manager max_phantom_processes 2147483647"
        return 0
    fi
    say "      adb shell settings put global settings_enable_monitor_phantom_procs false"
    [ "$sdk" -lt 34 ] || say "      or here: Developer options, Disable child process restrictions"
}

# A phone out of a drawer may have lost the date, and then trusts no server that it would download from.
check_clock() {
    local year
    year=$(date +%Y 2>/dev/null) || return 0
    [[ $year =~ ^[0-9]+$ ]] && [ "$year" -lt 2026 ] || return 0
    note "This phone's date says $year. Downloads fail with that: set it (Settings, System, Date and time), if it is wrong."
}

say_battery_hint() {
    note "Exempt Termux from battery optimisation (Settings, Apps, Termux, Battery, Unrestricted), or it sleeps."
}

ram_mb() {
    local key value rest
    while read -r key value rest; do
        if [ "$key" = MemTotal: ]; then
            printf '%s' "$((value / 1024))"
            return 0
        fi
    done <"$MEMINFO"
    printf '0'
}

# ram_line MEMORY_MB: the line of the table for a phone with so much.
ram_line() {
    local line below
    while IFS= read -r line; do
        below=${line#*|}
        if [ "$1" -lt "${below%%|*}" ]; then
            say "$line"
            return 0
        fi
    done <<<"$RAM_TABLE"
}

print_ram_table() {
    local sold suggested download others
    # shellcheck disable=SC2059 # the format is a constant
    printf "$TABLE_FORMAT" "RAM" "model" "download" "others that fit"
    while IFS='|' read -r sold _ suggested download _ others; do
        # shellcheck disable=SC2059
        printf "$TABLE_FORMAT" "$sold GB" "$suggested" "$download MB" "$others"
    done <<<"$RAM_TABLE"
}

# parameters_of MODEL: its millions of parameters, from its tag or the tag that Ollama takes without one; 0: unknown.
parameters_of() {
    local tagged=${1,,} experts=1 size
    case ${tagged%:latest} in
        gemma3n | gemma3n:e4b) tagged=x:7b ;;
        gemma3n:e2b) tagged=x:5b ;;
        tinyllama) tagged=x:1.1b ;;
        smollm2) tagged=x:1.7b ;;
        llama3.2) tagged=x:3b ;;
        phi3 | phi3.5 | phi4-mini) tagged=x:3.8b ;;
        gemma3) tagged=x:4b ;;
        mistral | qwen2.5 | deepseek-r1 | llama2) tagged=x:7b ;;
        qwen3 | llama3 | llama3.1) tagged=x:8b ;;
        gemma2) tagged=x:9b ;;
        phi4) tagged=x:14b ;;
        gpt-oss) tagged=x:20b ;;
    esac
    [[ $tagged =~ (^|[:_-])(([0-9]+)x)?([0-9]+)(\.([0-9]))?[0-9]*(b|m)($|[^a-z0-9]) ]] || {
        printf '0'
        return 0
    }
    experts=$((10#${BASH_REMATCH[3]:-1})) # 08 is no octal number
    if [ "${BASH_REMATCH[7]}" = m ]; then size=$((10#${BASH_REMATCH[4]})); else
        size=$((10#${BASH_REMATCH[4]} * 1000 + ${BASH_REMATCH[6]:-0} * 100))
    fi
    printf '%s' "$((experts * size))"
}

# download_mb MODEL: about what the library's file has; 4 bits unless the tag says otherwise. 0: unknown.
download_mb() {
    local millions
    millions=$(parameters_of "$1")
    [ "$millions" -gt 0 ] || {
        printf '0'
        return 0
    }
    case ${1,,} in
        *fp16* | *[:-]f16* | *bf16* | smollm2:135m | smollm2:360m) printf '%s' "$((millions * 2))" ;;
        gemma3 | gemma3:latest | gemma3:4b) printf '3340' ;; # with what it sees by
        gemma3n:e2b*) printf '5600' ;;                       # both hold more than they think with
        gemma3n*) printf '7500' ;;
        *q8_0* | llama3.2:1b | smollm2 | smollm2:latest | smollm2:1.7b | gemma3:270m) printf '%s' "$((millions * 11 / 10))" ;;
        *) printf '%s' "$((millions * 66 / 100 + 60))" ;;
    esac
}

# RAM that a model of 4 bits wants, a line through three measured totals: 0.8B 1.2 GB, 1.7B 1.7 GB, 3.8B 3.4 GB.
needed_ram_mb() { printf '%s' "$((610 + $1 * 733 / 1000))"; }

# check_ram WHAT NEEDED_MB: half of the RAM is what Termux can count on, or what the table gives such phones.
check_ram() {
    local memory sold suggested largest allowed
    memory=$(ram_mb)
    if [ "$memory" -eq 0 ] || [ "$2" -eq 0 ]; then return 0; fi
    IFS='|' read -r sold _ suggested _ largest _ < <(ram_line "$memory")
    allowed=$(needed_ram_mb "$largest")
    if [ "$2" -le "$allowed" ]; then return 0; fi
    if [ "$2" -le "$((memory / 2))" ]; then
        note "$1 is large for a phone of $sold GB; if Android kills it, take $suggested."
        return 0
    fi
    print_ram_table
    confirm "$1 wants about $2 MB of this phone's $memory MB. Go on all the same?" ||
        fail "$1 wants about $2 MB of RAM, more than this phone of $sold GB can give it; take $suggested" \
            "(or go on at your own risk with --yes)."
}

free_mb() {
    local line
    line=$(df -Pk "$HOME" 2>/dev/null | tail -n 1)
    [[ $line =~ [[:space:]]([0-9]+)[[:space:]]+[0-9]+%[[:space:]] ]] || return 1
    printf '%s' "$((BASH_REMATCH[1] / 1024))"
}

# check_space MODEL_MB: what is still to be brought, with a tenth of the model and 200 MB to breathe.
check_space() {
    local wanted free
    wanted=$(($1 + $1 / 10 + 200))
    has ollama || wanted=$((wanted + 300))
    if [ "$bench" = yes ]; then wanted=$((wanted + $1)); fi
    if { [ "$mode" = proot ] || [ "$bench" = yes ]; } && ! has_debian; then wanted=$((wanted + 3500)); fi
    free=$(free_mb) || return 0
    [ "$free" -ge "$wanted" ] ||
        fail "There are $free MB free on this phone and the set-up wants about $wanted MB; remove something, or take" \
            "a smaller model."
}

# --- Which model, from where ----------------------------------------------------------------------------------------

source_kind=pull # pull, gguf, safetensors or store

# Where people copy models to: beside this script, in Termux's home, and where a cable reaches.
models_folders() {
    local shared=${EXTERNAL_STORAGE:-$HOME/storage/shared} folder
    [ ! -f "$0" ] || say "$(cd "$(dirname "$0")" && pwd)/models"
    for folder in "$PWD" "$HOME" "$shared" "$shared/Download" "$shared/potluck"; do say "$folder/models"; done
}

# The kind of a file or folder, or nothing.
kind_of() {
    if [ -f "$1" ] && [[ ${1,,} == *.gguf ]]; then
        printf 'gguf'
    elif [ -d "$1/blobs" ] && [ -d "$1/manifests" ]; then
        printf 'store'
    elif [ -f "$1/config.json" ] && compgen -G "$1/*.safetensors" >/dev/null; then
        printf 'safetensors'
    fi
}

# own_name PATH: what a side-loaded model is called when nobody names it.
own_name() {
    local base
    base=${1%/}
    base=${base##*/}
    base=${base,,}
    base=${base%.gguf}
    base=${base//[^a-z0-9._-]/-}
    base=${base#"${base%%[a-z0-9]*}"} # names begin with a letter or figure
    printf '%s' "${base:-model}"
}

# The manifest of MODEL within a store; names without a host are of Ollama's library.
manifest_path() {
    local full=$1 tag=latest
    if [[ ${full##*/} == *:* ]]; then tag=${full##*:} full=${full%:*}; fi
    case $full in
        */*/*) ;;
        */*) full=registry.ollama.ai/$full ;;
        *) full=registry.ollama.ai/library/$full ;;
    esac
    printf 'manifests/%s/%s' "$full" "$tag"
}

# Every model of a store, as people call it.
store_models() {
    local path
    (cd "$1/manifests" && find . -type f ! -name '.*') | sort | while IFS= read -r path; do
        path=${path#./}
        path=${path#registry.ollama.ai/}
        path=${path#library/}
        say "${path%/*}:${path##*/}"
    done
}

# True if what lies at PATH is the model that was asked for, or any model when none was.
is_wanted() {
    [ -n "$model" ] || return 0
    if [ "$(kind_of "$1")" = store ]; then
        [ -f "$1/$(manifest_path "$model")" ]
    else
        [ "$(own_name "$1")" = "$(own_name "$model")" ]
    fi
}

# Side-loaded models that fit what was asked for: paths, each ended by a NUL, since names may hold all else.
find_side_loaded() {
    local folder path
    models_folders | sort -u | while IFS= read -r folder; do
        for path in "$folder" "$folder"/*; do
            if [ -n "$(kind_of "$path")" ] && is_wanted "$path"; then printf '%s\0' "$path"; fi
        done
    done
}

choose_side_loaded() {
    local found=()
    mapfile -d '' -t found < <(find_side_loaded)
    if [ "${#found[@]}" -eq 1 ] || { [ "${#found[@]}" -gt 1 ] && [ -n "$model" ]; }; then
        model_file=${found[0]}
    elif [ "${#found[@]}" -gt 1 ]; then
        fail "Several models lie in models/ (${found[*]##*/}); name the one that this phone shall serve."
    fi
}

name_from_store() {
    local listed=()
    mapfile -t listed < <(store_models "$model_file")
    if [ -z "$model" ]; then
        [ "${#listed[@]}" -gt 0 ] || fail "The Ollama store $model_file lists no model."
        [ "${#listed[@]}" -eq 1 ] || fail "The Ollama store has several models (${listed[*]}); name one of them."
        model=${listed[0]}
    fi
    [ -f "$model_file/$(manifest_path "$model")" ] ||
        fail "The Ollama store $model_file does not hold $model; it has: ${listed[*]:-nothing}."
}

# Afterwards model, model_file and source_kind say what is brought from where.
choose_model() {
    local given
    [ -n "$model_file" ] || choose_side_loaded
    if [ -n "$model_file" ]; then
        [[ $model_file != *$'\n'* ]] || fail "The name of that model's file has a line break in it; rename it."
        given=$model_file
        model_file=$(realpath -- "$model_file") || fail "$given cannot be read."
        [[ $mode != proot || ${model_file%/*} != *:* ]] ||
            fail "Debian cannot be shown a folder with a colon in its name; move $model_file elsewhere."
        source_kind=$(kind_of "$model_file")
        [ -n "$source_kind" ] || fail "$model_file is neither a GGUF file, nor a folder of safetensors with its" \
            "config.json, nor an Ollama store with blobs and manifests."
        if [ "$source_kind" = store ]; then name_from_store; fi
        model=${model:-$(own_name "$given")}
        say "Model: $model, from $model_file"
        return 0
    fi
    if [ -z "$model" ]; then
        local memory
        memory=$(ram_mb)
        IFS='|' read -r _ _ model _ < <(ram_line "$memory")
        print_ram_table
        say "No model was named; with $memory MB of RAM this phone gets $model."
    fi
    say "Model: $model"
}

size_mb() { du -skL --apparent-size "$1" | { read -r size _ && printf '%s' "$((size / 1024 + 1))"; }; }

# The blobs that a manifest names, as files of the store.
blobs_of() { grep -o 'sha256:[0-9a-f]\{64\}' "$1" | sort -u | sed 's/^sha256:/sha256-/'; }

stored_model_mb() {
    local blob total=0
    while IFS= read -r blob; do
        [ -f "$model_file/blobs/$blob" ] || fail "The Ollama store lacks $blob; copy its folder again, whole."
        total=$((total + $(size_mb "$model_file/blobs/$blob")))
    done < <(blobs_of "$model_file/$(manifest_path "$model")")
    printf '%s' "$total"
}

check_gguf() {
    local magic
    magic=$(head -c 4 "$model_file")
    [ "$magic" = GGUF ] || fail "$model_file is not a GGUF file; it may have been cut off while it was copied."
    [[ ! $model_file =~ -[0-9]{5}-of-[0-9]{5}\.gguf$ ]] ||
        fail "$model_file is one part of several; make one file of them on a computer (llama-gguf-split --merge) and copy that."
}

# Large models are several files, which their index names.
check_safetensors() {
    local index="$model_file/model.safetensors.index.json" file
    [ -f "$index" ] || return 0
    while IFS= read -r file; do
        [ -s "$model_file/$file" ] || fail "$model_file lacks $file; copy the folder again, whole."
    done < <(grep -o '[^"/]*\.safetensors"' "$index" | tr -d '"' | sort -u)
}

# Space and RAM for what is to be brought. `ollama create` copies a GGUF, and writes safetensors twice.
check_room() {
    local size copies=1
    case $source_kind in
        pull) size=$(download_mb "$model") ;;
        store) size=$(stored_model_mb) ;;
        *) size=$(size_mb "$model_file") ;;
    esac
    if [ "$source_kind" = gguf ]; then check_gguf; fi
    if [ "$source_kind" = safetensors ]; then
        check_safetensors
        copies=2
    fi
    if [ "$source_kind" = pull ]; then
        if [ "$size" -gt 0 ]; then check_ram "$model" "$(pulled_ram_mb "$size")"; fi
    else
        check_ram "$model" "$((size * 115 / 100 + 400))"
    fi
    if ! is_model_here; then check_space "$((size * copies))"; fi
}

pulled_ram_mb() {
    local by_parameters by_size=$(($1 * 11 / 10 + 300))
    by_parameters=$(needed_ram_mb "$(parameters_of "$model")")
    if [[ $model == *f16* || $model == *fp16* || $model == *q8_0* ]] && [ "$by_size" -gt "$by_parameters" ]; then
        by_parameters=$by_size
    fi
    printf '%s' "$by_parameters"
}

# Asked of the files, since no server may run yet; Debian's are asked once it is there.
is_model_here() {
    if [ "$mode" = proot ]; then
        has_debian && debian_has "$(manifest_path "$model")"
    else
        [ -f "$HOME/.ollama/models/$(manifest_path "$model")" ]
    fi
}

# --- What was brought -----------------------------------------------------------------------------------------------

# record WORDS: what is about to be brought, told before it is, so that a run that is killed can be taken away as well:
# store, package NAME, model NAME, boot-folder in Termux; debian (debian-whole once it is), debian-store, debian-ollama,
# debian-package NAME, debian-model NAME. What was there before is never recorded.
record() {
    if grep -qxF "$*" "$RECORD" 2>/dev/null; then return 0; fi
    { printf '%s\n' "$*" >>"$RECORD"; } 2>/dev/null || fail_full
}

is_recorded() { grep -qxF "$*" "$RECORD" 2>/dev/null; }

# recorded KIND: the names of that kind, one a line.
recorded() { sed -n "s/^$1 //p" "$RECORD" 2>/dev/null; }

# forget PATTERN: whole lines. On a full disk they stay, which does no harm: what is gone can be removed again.
forget() {
    local code=0
    { grep -vx -- "$1" "$RECORD" >"$RECORD.new"; } 2>/dev/null || code=$?
    if [ "$code" -le 1 ]; then mv -f "$RECORD.new" "$RECORD"; else rm -f "$RECORD.new"; fi
}

# One run at a time: two would write into the same downloads. The kernel lets go of it when this run ends, however it
# does; nothing that stays, tmux above all, may hold it (8).
take_turn() {
    has flock || return 0
    { : >"$FOLDER/lock"; } 2>/dev/null || return 0 # what is written next says why
    exec 8>"$FOLDER/lock"
    flock -n 8 || fail "The set-up runs on this phone already; wait until that run has ended."
}

fail_full() { fail "Nothing can be written to $FOLDER; is the phone's storage full?"; }

make_folder() {
    mkdir -p "$FOLDER" 2>/dev/null || fail_full
    chmod 700 "$FOLDER"
    take_turn
    if [ ! -e "$RECORD" ]; then
        { : >"$RECORD"; } 2>/dev/null || fail_full
        [ -e "$HOME/.ollama" ] || record store
    fi
}

# --- Termux's packages ----------------------------------------------------------------------------------------------

missing_packages() {
    has tmux || say tmux
    has curl || say curl
    if [ "$mode" = proot ]; then
        has proot-distro || say proot-distro
    else
        has ollama || say ollama
    fi
}

# After an installation that was killed, or with lists that are old.
mend_packages() {
    if has dpkg; then dpkg --configure -a || true; fi
    pkg update -y
}

install_packages() {
    local wanted=() package
    mapfile -t wanted < <(missing_packages)
    if [ "${#wanted[@]}" -eq 0 ]; then
        say "    everything is there"
        check_curl
        return 0
    fi
    for package in "${wanted[@]}"; do record "package $package"; done
    pkg install -y "${wanted[@]}" ||
        { mend_packages && pkg install -y "${wanted[@]}"; } ||
        fail "Termux could not install ${wanted[*]}; check the network, run termux-change-repo, and start again."
    for package in "${wanted[@]}"; do
        has "$package" || fail "Termux installed $package but it is not there; run pkg upgrade and start again."
    done
    check_curl
}

# Half of an upgrade leaves programs behind that miss their libraries.
check_curl() { curl --version >/dev/null 2>&1 || fail "Termux's curl does not run; run pkg upgrade and start again."; }

# --- Debian, for --proot and --bench --------------------------------------------------------------------------------

# in_debian [--bind FOLDER] SCRIPT [ARGUMENTS...]: a bash script inside Debian, as its root. stdin is passed on. Termux's
# own programs are in Debian's PATH as well, where they would be taken for Debian's: off it.
# shellcheck disable=SC2016
in_debian() {
    local options=() own_path
    if [ "$1" = --bind ]; then
        options=(--bind "$2:$2")
        shift 2
    fi
    printf -v own_path 'termux=%q PATH=:$PATH:\nPATH=${PATH//":$termux:"/:} PATH=${PATH#:} PATH=${PATH%%:}\n' "$PREFIX/bin"
    proot-distro login "${options[@]}" debian -- bash -c "$own_path$1" set-up "${@:2}"
}

has_debian() { has proot-distro && in_debian true </dev/null >/dev/null 2>&1; }

# debian_has PATH: a file below Debian's own ~/.ollama/models.
# shellcheck disable=SC2016 # the variables are those of the shell inside
debian_has() { in_debian '[ -f "$HOME/.ollama/models/$1" ]' "$1" </dev/null; }

# A half of Debian that an earlier run left behind is taken away first; one that is not ours never.
install_debian() {
    if is_recorded debian && ! is_recorded debian-whole; then
        proot-distro remove debian </dev/null >/dev/null 2>&1 || true
    fi
    if has_debian; then
        say "    it is there"
        return 0
    fi
    if is_recorded debian; then
        proot-distro remove debian </dev/null >/dev/null 2>&1 || true
    elif compgen -G "$PREFIX/var/lib/proot-distro/*/debian" >/dev/null; then
        fail "There is a Debian that this script did not bring and that does not start; remove it (proot-distro remove" \
            "debian), or run without --proot."
    fi
    record debian
    proot-distro install debian </dev/null ||
        fail "Debian could not be installed by proot-distro; check the network and the free space, and start again."
    record debian-whole
}

# shellcheck disable=SC2016
missing_in_debian() {
    in_debian 'for package in ca-certificates curl tmux zstd; do
        [[ $(dpkg-query -W -f "\${Status}" "$package" 2>/dev/null) == *"ok installed" ]] || echo "$package"
    done' </dev/null
}

# shellcheck disable=SC2016
install_debian_packages() {
    local wanted=() package
    mapfile -t wanted < <(missing_in_debian)
    if [ "${#wanted[@]}" -eq 0 ]; then return 0; fi
    for package in "${wanted[@]}"; do record "debian-package $package"; done
    in_debian 'export DEBIAN_FRONTEND=noninteractive
        apt-get update -q && apt-get install -q -y --no-install-recommends "$@"' "${wanted[@]}" </dev/null ||
        fail "Debian could not install its packages; check the network and start again."
}

has_archive() { compgen -G "$FOLDER/ollama-linux-*" >/dev/null; }

# An archive that is still there was not unpacked to its end.
# shellcheck disable=SC2016
install_ollama_in_debian() {
    local words
    install_debian_packages
    if ! has_archive; then
        if in_debian 'command -v ollama' </dev/null >/dev/null 2>&1; then
            say "    it is there"
            return 0
        fi
        if ! is_recorded debian-ollama && ! in_debian '[ -e ~/.ollama ]' </dev/null; then record debian-store; fi
        record debian-ollama
    fi
    fetch_ollama
    # The libraries for graphics cards are most of the archive and of no use to a phone.
    words=$(in_debian 'tar -C /usr/local -x -f - --"$1" --no-same-owner --exclude="*/ollama/cuda*" --exclude="*/ollama/mlx*"' \
        "$compression" <"$archive" 2>&1) || {
        [[ $words != *"No space left"* ]] || fail "The phone's storage ran full while Ollama was unpacked; make room and" \
            "start again."
        rm -f "$archive"
        fail "The downloaded archive of Ollama is broken and was removed; run the same command again."
    }
    rm -f "$archive"
}

# Leaves the name of the archive in `archive` and how it is packed in `compression`. A part that is there is gone on
# with (416: there is nothing more to come); older releases are packed with gzip.
archive="" compression=""
fetch_ollama() {
    local suffix url attempt code error
    for suffix in tar.zst tgz; do
        archive="$FOLDER/ollama-linux-$arch.$suffix"
        if [ "$suffix" = tgz ]; then compression=gzip; else compression=zstd; fi
        url="$OLLAMA_DOWNLOAD/ollama-linux-$arch.$suffix"
        code=$(curl -sSL -o /dev/null --head --connect-timeout 15 --max-time 60 --write-out '%{http_code}' "$url" 2>/dev/null) || code=000
        if [ "$code" = 404 ]; then continue; fi
        for attempt in 1 2 3 4 5; do
            code=$(curl -fL -C - --connect-timeout 15 --speed-limit 100 --speed-time 60 --write-out '%{http_code}' \
                -o "$archive" "$url") && return 0
            error=$?
            if [ "$code" = 416 ]; then return 0; fi
            [ "$error" -ne 23 ] || fail "The phone's storage ran full while Ollama was downloaded; make room and start again."
            say "    the download broke off (try $attempt of 5); it goes on where it stopped"
            sleep "$RETRY_SECONDS"
        done
        fail "Ollama could not be downloaded; what arrived is kept: run the same command again and it goes on."
    done
    fail "Ollama's archive for Linux was not found at $OLLAMA_DOWNLOAD."
}

# --- Scripts that stay on the phone ---------------------------------------------------------------------------------

start_text() {
    cat <<'TEXT'
# Starts Ollama on this phone and waits until it answers. With --foreground it becomes the server (services, boot).
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=/dev/null
. "$HERE/settings"
SESSION=mobile-llm

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null; }
answers() { is_taken && [[ $(curl -fsS --noproxy '*' --max-time 3 "http://127.0.0.1:$PORT/api/version" 2>/dev/null) == *'"version"'* ]]; }
last_words() { tail -n 1 "$HERE/ollama.log" 2>/dev/null | grep . || echo "none (is the phone's storage full?)"; }

shorten_log() {
    if [ -f "$HERE/ollama.log" ] && [ "$(wc -c <"$HERE/ollama.log")" -gt 1000000 ]; then
        tail -c 200000 "$HERE/ollama.log" >"$HERE/ollama.log.new"
        mv -f "$HERE/ollama.log.new" "$HERE/ollama.log"
    fi
}

# The server takes this process over. While another one answers it waits, so that a service never fights with tmux.
serve() {
    while answers; do sleep 30; done
    shorten_log
    exec >>"$HERE/ollama.log" 2>&1 # stdin stays: tmux ends a session whose terminal nobody holds any more
    if command -v termux-wake-lock >/dev/null 2>&1; then termux-wake-lock || true; fi
    printf '%s\n' "$$" >"$HERE/server.pid"
    # A phone for a cable is followed by adb.
    if [ "$HOST" != 127.0.0.1 ] && [ -s "$HERE/phone_token" ]; then "$HERE/report.sh" "$$" >"$HERE/report.log" 2>&1 & fi
    unset OLLAMA_MODELS # the models are where this set-up brings them: in ~/.ollama/models
    # One request at a time: phones are limited by memory bandwidth, and a second context costs RAM.
    export OLLAMA_HOST="$HOST:$PORT" OLLAMA_NUM_PARALLEL=1 OLLAMA_MAX_LOADED_MODELS=1 OLLAMA_KEEP_ALIVE=1h
    # At its start Ollama throws half-loaded downloads away; not before the model is complete.
    if [ -e "$HERE/pulling" ]; then export OLLAMA_NOPRUNE=1; fi
    if [ "$MODE" = proot ]; then
        # shellcheck disable=SC2016 # the home is that of Debian
        exec proot-distro login debian -- bash -c 'exec "$HOME/mobile-llm/start_ollama.sh" --foreground'
    fi
    exec ollama serve
}

start_service() {
    export SVDIR=${SVDIR:-${PREFIX:-}/var/service}
    [ -d "$SVDIR/$SESSION" ] && command -v sv >/dev/null 2>&1 && sv up "$SESSION" >/dev/null 2>&1
}

start_session() {
    tmux kill-session -t "=$SESSION" 2>/dev/null || true
    tmux new-session -d -s "$SESSION" "$HERE/start_ollama.sh" --foreground ||
        fail "tmux could not start a session."
}

wait_for_answer() {
    local deadline=$((SECONDS + ${POTLUCK_START_SECONDS:-60}))
    until answers; do
        if [ "$1" = session ] && ! tmux has-session -t "=$SESSION" 2>/dev/null; then
            fail "Ollama stopped right after its start; its last words: $(last_words)"
        fi
        [ "$SECONDS" -lt "$deadline" ] ||
            fail "Ollama does not answer on port $PORT; see $HERE/ollama.log: $(last_words)"
        sleep 0.05
    done
}

if [ "${1:-}" = --foreground ]; then serve; fi
if answers; then
    echo "Ollama answers on port $PORT already."
    exit 0
fi
if is_taken; then fail "Port $PORT is taken by a program that is not Ollama; stop it, or set up another --port."; fi
if start_service; then wait_for_answer service; else
    start_session
    wait_for_answer session
fi
echo "Ollama answers on port $PORT (tail -f $HERE/ollama.log shows what it does)."
TEXT
}

stop_text() {
    cat <<'TEXT'
# Stops Ollama on this phone and lets the phone sleep again.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=/dev/null
. "$HERE/settings"
SESSION=mobile-llm

# The number may have gone to another program since: only ours is ended.
is_ours() {
    [ -r "/proc/$1/cmdline" ] && tr '\0' ' ' <"/proc/$1/cmdline" | grep -Eq 'ollama|proot'
}

export SVDIR=${SVDIR:-${PREFIX:-}/var/service}
if [ -d "$SVDIR/$SESSION" ] && command -v sv >/dev/null 2>&1; then sv down "$SESSION" >/dev/null 2>&1 || true; fi
pid=$(cat "$HERE/server.pid" 2>/dev/null || true)
if [[ $pid =~ ^[0-9]+$ ]] && is_ours "$pid"; then
    kill -TERM "$pid" 2>/dev/null || true
    for _ in {1..100}; do
        is_ours "$pid" || break
        sleep 0.05
    done
    if is_ours "$pid"; then kill -KILL "$pid" 2>/dev/null || true; fi
fi
reporter=$(cat "$HERE/report.pid" 2>/dev/null || true)
if [[ $reporter =~ ^[0-9]+$ ]] && grep -qs report.sh "/proc/$reporter/cmdline"; then kill "$reporter" 2>/dev/null || true; fi
if command -v tmux >/dev/null 2>&1; then
    tmux kill-session -t "=$SESSION" 2>/dev/null || true
    tmux kill-session -t "=$SESSION-report" 2>/dev/null || true
fi
rm -f "$HERE/server.pid" "$HERE/report.pid"
if command -v termux-wake-unlock >/dev/null 2>&1; then termux-wake-unlock || true; fi
echo "Ollama is stopped."
TEXT
}

status_text() {
    cat <<'TEXT'
# Says whether Ollama answers on this phone, where, and with which models; exit code 1 if it does not.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=/dev/null
. "$HERE/settings"

names() { grep -o '"name":"[^"]*"' | cut -d '"' -f 4 | tr '\n' ' '; }

if version=$(curl -fsS --noproxy '*' --max-time 3 "http://127.0.0.1:$PORT/api/version" 2>/dev/null); then
    echo "Ollama $(printf '%s' "$version" | cut -d '"' -f 4) answers on $HOST:$PORT (set up: $MODE)."
    echo "Models: $(curl -fsS --noproxy '*' --max-time 3 "http://127.0.0.1:$PORT/api/tags" 2>/dev/null | names)"
    echo "In memory: $(curl -fsS --noproxy '*' --max-time 3 "http://127.0.0.1:$PORT/api/ps" 2>/dev/null | names)"
else
    echo "Ollama does not answer on port $PORT; $HERE/start_ollama.sh starts it."
    tail -n 3 "$HERE/ollama.log" 2>/dev/null || true
    exit 1
fi
if [ -e "$HERE/refused" ]; then
    echo "Removed from the fleet of $(cat "$HERE/gateway"); 'potluck phones invite' there lets this phone in again."
elif [ -s "$HERE/gateway" ] && [ "$HOST" = 127.0.0.1 ]; then
    echo "Set up for a cable; its place in the fleet of $(cat "$HERE/gateway") is silent ('potluck phones remove' there takes it out)."
elif [ -s "$HERE/gateway" ]; then
    echo "Joined: $(cat "$HERE/gateway")"
fi
TEXT
}

report_text() {
    cat <<'TEXT'
# report.sh PID: tells the gateway this phone's address and battery for as long as the server with that number lives.
# One at a time: the newest goes on, older ones end by themselves.
# The phone's own token goes to that gateway only, and by stdin.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Both read once: when another gateway is joined, neither gets the other one's token.
GATEWAY=$(cat "$HERE/gateway")
TOKEN=$(cat "$HERE/phone_token")
SERVER=$1
PAUSE=${POTLUCK_REPORT_SECONDS:-30}
THERMAL=${POTLUCK_THERMAL:-/sys/class/thermal}

quote() {
    local text=${1//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}

# post PATH BODY: prints the status of the answer, 000 if there was none.
post() {
    printf 'header = "Content-Type: application/json"\nheader = %s\ndata = %s\n' \
        "$(quote "Authorization: Bearer $TOKEN")" "$(quote "$2")" |
        curl -s -o /dev/null --noproxy '*' --config - --connect-timeout 5 --max-time 15 --write-out '%{http_code}' \
            "$GATEWAY/api/phones/$1" || true
}

# heed STATUS: what an answer means for the next rounds. A phone that was removed there is told so by 401, and ends when it
# was told three times: once may come from whoever else has that address in another Wi-Fi. Every other trouble passes.
refusals=0 failures=0
heed() {
    case $1 in
        2*) refusals=0 failures=0 ;;
        401 | 410)
            refusals=$((refusals + 1))
            if [ "$refusals" -ge 3 ]; then
                echo "The gateway does not know this phone any more ($1)."
                : >"$HERE/refused"
                exit 0
            fi
            ;;
        *) failures=$((failures + 1)) ;;
    esac
}

# Twice as long after every failure, up to eight pauses: a gateway that comes back is not met by all its phones at once.
rest() {
    local pauses=1
    if [ "$failures" -gt 0 ]; then pauses=$((1 << (failures < 3 ? failures : 3))); fi
    while [ "$pauses" -gt 0 ] && is_running "$SERVER" && is_newest; do
        sleep "$PAUSE"
        pauses=$((pauses - 1))
    done
}

# How well the Wi-Fi is received, and nothing else of what that command tells.
signal() {
    local told
    command -v termux-wifi-connectioninfo >/dev/null 2>&1 || return 0
    told=$(timeout 10 termux-wifi-connectioninfo 2>/dev/null | tr '\n' ' ') || return 0
    if [[ $told =~ \"rssi\":\ *(-[0-9]{1,3}) ]]; then printf ',"wifi":{"rssi":%s}' "${BASH_REMATCH[1]}"; fi
}

# Termux:API's command waits for its app for ever if that is not installed.
battery() {
    local told
    command -v termux-battery-status >/dev/null 2>&1 || return 1
    told=$(timeout 10 termux-battery-status 2>/dev/null | tr '\n\t\r' '   ') || return 1
    told=${told%"${told##*[! ]}"}
    [[ $told == '{'*'}' ]] || return 1
    printf '%s' "$told"
}

# The battery's warmth as the kernel tells it, on phones that let Termux read it, in thousandths of a degree; sixteen zones
# at most. No other zones, since a processor at work is hot and well; and no battery's figures that are no temperature.
zones() {
    local zone type value told="" count=0
    for zone in "$THERMAL"/thermal_zone*; do
        { IFS= read -r type <"$zone/type"; } 2>/dev/null || continue
        type=${type,,}
        [[ $type == bms || $type =~ ^[a-z0-9_.-]*batt[a-z0-9_.-]*$ ]] || continue
        [[ ! $type =~ cycle|soc|level|lvl|volt|curr|capacity|percent|power|_id$|-id$ ]] || continue
        { IFS= read -r value <"$zone/temp"; } 2>/dev/null || continue
        [[ $value =~ ^-?[1-9][0-9]{0,6}$ ]] || continue # 0: a sensor that is not there
        if [[ $told == *"\"$type\""* ]]; then type+="-${zone##*thermal_zone}"; fi
        told+=",\"$type\":$value"
        count=$((count + 1))
        if [ "$count" -eq 16 ]; then break; fi
    done
    [ -n "$told" ] && printf '{%s}' "${told#,}"
}

# What is reported: the battery as Termux:API tells it, its warmth from the kernel where that tells none. False: nothing is known.
condition() {
    local told body=""
    if told=$(battery); then body=",\"battery\":$told$(signal)"; else told=""; fi
    if [[ ! $told =~ \"temperature\":\ *-?[0-9.]*[1-9] ]] && told=$(zones); then body+=",\"thermal\":{\"zones\":$told}"; fi
    [ -n "$body" ] && printf '{%s}' "${body#,}"
}

printf '%s\n' "$$" >"$HERE/report.pid"
# An ended process that nobody has asked after yet has no command line any more.
is_running() { IFS= read -r -d '' _ <"/proc/$1/cmdline"; } 2>/dev/null
is_newest() { [ "$(cat "$HERE/report.pid" 2>/dev/null)" = "$$" ]; }

# The address may have changed since the last start; later the reports themselves renew it.
rounds=0
while is_running "$SERVER" && is_newest; do
    if [ $((rounds % 10)) -eq 0 ]; then
        heed "$(post join "$(cat "$HERE/join.json")")"
    fi
    if [ "$failures" -eq 0 ] && body=$(condition); then heed "$(post report "$body")"; fi
    # After a failure, or a refusal, the next round renews the address as well.
    if [ $((failures + refusals)) -gt 0 ]; then rounds=0; else rounds=$((rounds + 1)); fi
    rest
done
TEXT
}

# write_file PATH MODE: from stdin, whole or not at all.
write_file() {
    (umask 077 && cat >"$1.new" && chmod "$2" "$1.new" && mv -f "$1.new" "$1") 2>/dev/null || {
        rm -f "$1.new"
        fail_full
    }
}

# with_bash COMMAND...: what it prints, as a script. Android has no /usr/bin/env, and what helps shells over that is not
# there when Termux:Boot starts something.
with_bash() {
    printf '#!%s/bin/bash\n' "$PREFIX"
    "$@"
}

# The settings that every script reads. settings_text MODE
settings_text() {
    local host=0.0.0.0
    if [ "$reach" = usb ]; then host=127.0.0.1; fi
    printf 'MODE=%q\nHOST=%q\nPORT=%q\nMODEL=%q\n' "$1" "$host" "$port" "$model"
}

# True if what runs listens as these settings want it.
settings_same() { [ -f "$FOLDER/settings" ] && [ "$(settings_text "$mode")" = "$(cat "$FOLDER/settings")" ]; }

write_scripts() {
    if [ -f "$FOLDER/stop_ollama.sh" ] && ! settings_same; then stop_server; fi
    with_bash start_text | write_file "$FOLDER/start_ollama.sh" 700
    with_bash stop_text | write_file "$FOLDER/stop_ollama.sh" 700
    with_bash status_text | write_file "$FOLDER/status.sh" 700
    with_bash report_text | write_file "$FOLDER/report.sh" 700
    settings_text "$mode" | write_file "$FOLDER/settings" 600
    if [ "$mode" = proot ]; then write_debian_scripts; fi
}

# The same three in Debian, where they run Ollama itself.
# shellcheck disable=SC2016
write_debian_scripts() {
    local file
    for file in start_ollama.sh stop_ollama.sh status.sh settings; do
        { if [ "$file" = settings ]; then settings_text native; else sed '1s/.*/#!\/bin\/bash/' "$FOLDER/$file"; fi; } |
            in_debian 'umask 077 && mkdir -p ~/mobile-llm && cat >~/mobile-llm/"$1" && chmod 700 ~/mobile-llm/"$1"' "$file" ||
            fail "The scripts could not be written into Debian."
    done
}

# --- The server and the model ---------------------------------------------------------------------------------------

stop_server() {
    if [ -f "$FOLDER/settings" ] && [ -x "$FOLDER/stop_ollama.sh" ]; then "$FOLDER/stop_ollama.sh" >/dev/null || true; fi
}

# The number may have gone to another program since, after a reboot above all.
is_server_ours() {
    local pid
    pid=$(cat "$FOLDER/server.pid" 2>/dev/null) && [[ $pid =~ ^[0-9]+$ ]] &&
        { tr '\0' ' ' <"/proc/$pid/cmdline" | grep -Eq 'ollama|proot'; } 2>/dev/null
}

# Somebody else's Ollama may listen on loopback only or belong to another set-up: it is neither used nor ended.
check_port() {
    if is_server_ours; then return 0; fi
    if is_answering; then
        fail "An Ollama that this script did not start answers on port $port; stop it (pkill ollama), or use --port."
    fi
    if is_port_taken; then
        fail "Port $port is taken by a program that is not Ollama; stop it, or use another --port."
    fi
}

start_server() {
    "$FOLDER/start_ollama.sh" 8>&- || {
        failure_told=yes # start_ollama.sh said it
        exit 1
    }
}

# Ollama throws half-loaded downloads away at its start unless this file is there.
mark_pulling() {
    : >"$FOLDER/pulling"
    if [ "$mode" = proot ]; then in_debian ': >~/mobile-llm/pulling' </dev/null || true; fi
}

unmark_pulling() {
    [ -e "$FOLDER/pulling" ] || return 0
    if [ "$mode" = proot ]; then in_debian 'rm -f ~/mobile-llm/pulling' </dev/null || true; fi
    rm -f "$FOLDER/pulling"
}

is_model_listed() {
    local full=$model listed
    if [[ ${full##*/} != *:* ]]; then full=$full:latest; fi
    listed=$(curl -fsS --max-time 10 "$(api tags)" 2>/dev/null) && grep -qiF "\"name\":\"$full\"" <<<"$listed"
}

# Reads what /api/pull streams and shows it; leaves an error, if there was one, in pull_error. True at its success.
follow_pull() {
    local line total completed percent last=-1 error outcome=1
    while IFS= read -r line || [ -n "$line" ]; do # to the end, or curl would miss its reader
        if error=$(json_string error "$line"); then printf '%s\n' "$error" >"$FOLDER/pull_error"; fi
        if [[ $line == *'"status":"success"'* ]]; then outcome=0; fi
        if ! total=$(json_number total "$line") || ! completed=$(json_number completed "$line"); then continue; fi
        [ "$total" -gt 1000000 ] || continue
        percent=$((completed * 100 / total))
        if [ "$percent" -ne "$last" ] && { [ -t 1 ] || [ $((percent % 10)) -eq 0 ]; }; then
            if [ -t 1 ]; then printf '\r    %3d %% of %d MB' "$percent" "$((total / 1000000))"; else say "    $percent %"; fi
            last=$percent
        fi
    done
    if [ -t 1 ] && [ "$last" -ge 0 ]; then printf '\n'; fi
    return "$outcome"
}

pull_once() {
    local body
    body="{\"model\":\"$(json_escape "$model")\",\"stream\":true}"
    rm -f "$FOLDER/pull_error"
    # Five minutes without a word are an end too; large files are checked in silence for shorter than that.
    curl -sSN --speed-limit 1 --speed-time 300 -d "$body" "$(api pull)" 2>/dev/null | follow_pull
}

pull_model() {
    local attempt error=""
    mark_pulling
    for attempt in 1 2 3 4 5; do
        if pull_once; then
            unmark_pulling
            return 0
        fi
        error=$(cat "$FOLDER/pull_error" 2>/dev/null || true)
        case $error in
            *"file does not exist"* | *"not found"*)
                unmark_pulling
                fail "Ollama's library has no model called $model; look at ollama.com/library, or side-load a file."
                ;;
            *"no space left"*) fail "The phone's storage ran full while $model was downloaded; make room and start again." ;;
        esac
        say "    the download broke off (try $attempt of 5); it goes on where it stopped"
        sleep "$((attempt * RETRY_SECONDS))"
        if ! is_answering; then start_server; fi
    done
    error=$(plain "$error")
    fail "The download of $model did not finish${error:+ ($error)}; what arrived is kept: run the same command again" \
        "and it goes on."
}

# `ollama create` by the side that serves; the folder of the file is seen inside Debian under its own path.
# shellcheck disable=SC2016
create_model() {
    local file="$FOLDER/Modelfile" host="127.0.0.1:$port"
    printf 'FROM %s\n' "$model_file" | write_file "$file" 600
    if [ "$mode" = proot ]; then
        in_debian --bind "$(dirname "$model_file")" 'cat >~/mobile-llm/Modelfile &&
            OLLAMA_HOST=$2 ollama create "$1" -f ~/mobile-llm/Modelfile' "$model" "$host" <"$file"
    else
        OLLAMA_HOST=$host ollama create "$model" -f "$file" </dev/null
    fi || fail "Ollama could not make a model of $model_file; is it whole, and is its architecture one that Ollama knows?"
    rm -f "$file"
}

# copy_store FROM TO MANIFEST: the blobs that the manifest names, each checked, the manifest last. Text of a bash
# program, because it runs inside Debian as well; goes on after a copy that broke off. Ends with 3 where the disk is full.
copy_store_text() {
    cat <<'TEXT'
set -euo pipefail
from=${1:-$HOME/.ollama/models} to=${2:-$HOME/.ollama/models} manifest=$3
copy() {
    cp "$1" "$2.new" && return 0
    rm -f "$2.new"
    [ "$(df -Pk "$to" | sed -n '2s/.* \([0-9]*\) *[0-9]*%.*/\1/p')" -gt 1024 ] || exit 3
    exit 1
}
mkdir -p "$to/blobs" "$to/$(dirname "$manifest")" || exit 3
for blob in $(grep -o 'sha256:[0-9a-f]\{64\}' "$from/$manifest" | sort -u | sed 's/^sha256:/sha256-/'); do
    if [ -f "$to/blobs/$blob" ]; then continue; fi
    copy "$from/blobs/$blob" "$to/blobs/$blob"
    printf '%s  %s\n' "${blob#sha256-}" "$to/blobs/$blob.new" | sha256sum -c - >/dev/null 2>&1 || {
        rm -f "$to/blobs/$blob.new"
        echo "$blob is damaged" >&2
        exit 1
    }
    mv -f "$to/blobs/$blob.new" "$to/blobs/$blob"
done
copy "$from/$manifest" "$to/$manifest"
mv -f "$to/$manifest.new" "$to/$manifest"
TEXT
}

# copy_store FROM: out of a store that somebody copied to the phone.
copy_store() {
    local manifest code=0
    manifest=$(manifest_path "$model")
    if [ "$mode" = proot ]; then
        in_debian --bind "$1" "$(copy_store_text)" "$1" "" "$manifest" </dev/null || code=$?
    else
        bash -c "$(copy_store_text)" copy "$1" "" "$manifest" </dev/null || code=$?
    fi
    [ "$code" -ne 3 ] || fail "The phone's storage ran full while $model was copied; make room and start again."
    [ "$code" -eq 0 ] || fail "The Ollama store could not be copied from $1; copy it to the phone again, whole."
}

# What the other way of running it has is copied, not brought twice. False if it has nothing.
carry_over() {
    local manifest own="$HOME/.ollama/models"
    manifest=$(manifest_path "$model")
    if [ "$mode" = proot ]; then
        [ -f "$own/$manifest" ] || return 1
        copy_store "$own"
    else
        has_debian && debian_has "$manifest" || return 1
        mkdir -p "$own" || fail_full
        in_debian --bind "$own" "$(copy_store_text)" "" "$own" "$manifest" </dev/null ||
            fail "The model could not be copied out of Debian; is the phone's storage full?"
    fi
}

# drop_model_text STORE MANIFEST: a model's manifest, and the blobs that no other one names. Needs no server.
drop_model_text() {
    cat <<'TEXT'
set -euo pipefail
store=${1:-$HOME/.ollama/models} manifest=$2
[ -f "$store/$manifest" ] || exit 0
blobs=$(grep -o 'sha256:[0-9a-f]\{64\}' "$store/$manifest" | sort -u) || blobs=""
rm -f "$store/$manifest"
for blob in $blobs; do
    grep -rqF "$blob" "$store/manifests" || rm -f "$store/blobs/sha256-${blob#sha256:}"
done
TEXT
}

provide_model() {
    if is_model_listed; then
        say "    $model is there"
        unmark_pulling
        return 0
    fi
    if [ "$mode" = proot ]; then record "debian-model $model"; else record "model $model"; fi
    if ! carry_over; then
        case $source_kind in
            pull) pull_model ;;
            store) copy_store "$model_file" ;;
            *) create_model ;;
        esac
    fi
    is_model_listed || fail "Ollama does not list $model although it was brought; see $FOLDER/ollama.log."
}

# One short answer: loads the model, proves that it works, and leaves hundredths of tokens per second in `speed`.
speed=0
warm_up() {
    local answer status count duration
    answer=$(post_json "$(api generate)" "{\"model\":\"$(json_escape "$model")\",\"stream\":false,\
\"prompt\":\"Tell me in two sentences why the sea is salty.\",\"options\":{\"num_predict\":48,\"temperature\":0}}" "" 900)
    status=${answer##*$'\n'}
    if [ "$status" != 200 ]; then
        fail "$model is there but does not answer: $(plain "$(json_string error "$answer" || printf 'status %s' "$status")");" \
            "a smaller model may fit."
    fi
    count=$(json_number eval_count "$answer") || count=0
    duration=$(json_number eval_duration "$answer") || duration=0
    if [ "$count" -le 0 ] || [ "$duration" -le 0 ]; then
        fail "$model answered without a single token; try another model."
    fi
    speed=$((count * 100000 * 1000000 / duration))
    say "    $count tokens at $(speed_words "$speed") tokens/s"
}

speed_words() { printf '%d.%02d' "$(($1 / 100))" "$(($1 % 100))"; }

# --- Two ways to run it ---------------------------------------------------------------------------------------------

listening_words() {
    if [ "$reach" = usb ]; then printf '127.0.0.1:%s' "$port"; else printf '0.0.0.0:%s' "$port"; fi
}

measure_both() {
    local native
    mode=native
    set_up_mode
    native=$speed
    act "stop it, to try Debian" stop_server
    mode=proot
    set_up_mode
    if [ "$dry_run" = yes ]; then
        say "Would keep the faster of the two."
        return 0
    fi
    say "Native $(speed_words "$native") tokens/s, Debian $(speed_words "$speed") tokens/s."
    if [ "$speed" -gt "$native" ]; then
        say "Debian is faster and stays."
        act "take Termux's own Ollama away again" remove_native
        return 0
    fi
    say "Native is as fast or faster and stays."
    act "go back to Termux's own Ollama" keep_native
    speed=$native
}

keep_native() {
    stop_server
    remove_from_debian
    mode=native
    write_scripts
    start_server
}

# --- Starting by itself ---------------------------------------------------------------------------------------------

has_boot_app() {
    [ -d "${BOOT_SCRIPT%/*}" ] || { has pm && [[ $(pm path com.termux.boot 2>/dev/null) == package:* ]]; }
}

has_services() { has sv-enable && [ -d "$PREFIX/var/service" ]; }

install_service() {
    local service="$PREFIX/var/service/$SESSION"
    mkdir -p "$service/log"
    with_bash printf 'exec "%s/start_ollama.sh" --foreground\n' "$FOLDER" | write_file "$service/run" 700
    ln -sf "$PREFIX/share/termux-services/svlogger" "$service/log/run"
    rm -f "$service/down"
}

install_boot_script() {
    if [ ! -d "${BOOT_SCRIPT%/*}" ]; then
        record boot-folder
        mkdir -p "${BOOT_SCRIPT%/*}"
    fi
    # In the foreground: what forks away may be ended together with the boot script.
    if has_services; then
        # shellcheck disable=SC2016
        with_bash printf 'termux-wake-lock\n. "$PREFIX/etc/profile"\n'
    else
        with_bash printf 'termux-wake-lock\nexec "%s/start_ollama.sh" --foreground\n' "$FOLDER"
    fi | write_file "$BOOT_SCRIPT" 700
}

start_by_itself() {
    if has_services; then act "install a service of termux-services" install_service; fi
    if has_boot_app; then
        act "install a start script for Termux:Boot" install_boot_script
    else
        note "To start Ollama after a reboot, install Termux:Boot from where Termux came from, open it once,"
        note "and run the set-up again: $(again_words)"
    fi
}

# --- Joining a fleet ------------------------------------------------------------------------------------------------

# Made once: by it the gateway knows the phone again, whatever its address.
make_id() {
    if [ ! -s "$FOLDER/id" ]; then od -An -tx1 -N16 /dev/urandom | tr -d ' \n' | write_file "$FOLDER/id" 600; fi
}

chip() {
    local key value
    for key in ro.soc.model ro.board.platform ro.hardware; do
        value=$(property "$key")
        if [ -n "$value" ]; then
            printf '%s' "$value"
            return 0
        fi
    done
}

member() { printf '"%s":"%s"' "$1" "$(json_escape "$2")"; }

# What the gateway learns of this phone, but for the token. The address is no part of it: the gateway sees that itself.
join_body() {
    local product
    product=$(property ro.product.model)
    printf '{%s,%s,"port":%s,%s,"ram_bytes":%s,%s,%s,%s,%s,%s,"tokens_per_second":%s}' \
        "$(member id "$(cat "$FOLDER/id")")" "$(member name "${name:-${product:-phone}}")" "$port" "$(member chip "$(chip)")" \
        "$(($(ram_mb) * 1048576))" "$(member android "$(property ro.build.version.release)")" \
        "$(member termux "${TERMUX_VERSION:-}")" "$(member ollama "$(ollama_version || true)")" \
        "$(member mode "$mode")" "$(member model "$model")" "$(speed_words "$speed")"
}

# A phone that was here before shows its own token; a new one the invitation's. Prints as post_json does.
ask_to_join() {
    local body=$1 own answer
    if has_joined && [ "$(cat "$FOLDER/gateway")" = "$gateway" ]; then
        own=$(cat "$FOLDER/phone_token")
        answer=$(post_json "$gateway/api/phones/join" "$body" "$own" 60)
        case ${answer##*$'\n'} in
            401 | 403 | 404 | 410) [ -n "$token" ] || { printf '%s' "$answer" && return 0; } ;;
            *) printf '%s' "$answer" && return 0 ;;
        esac
    fi
    post_json "$gateway/api/phones/join" "{\"token\":\"$token\",${body#\{}" "" 60
}

# Why, as a sentence with its stop.
refusal_words() {
    local why
    why=$(json_string message "$1" || json_string error "$1" || json_string detail "$1" || printf 'status %s' "${1##*$'\n'}")
    why=$(plain "$why")
    if [[ $why == *[.?!] ]]; then printf '%s' "$why"; else printf '%s.' "$why"; fi
    if [[ $1 == *$'\n'401 ]] && [ -z "$token" ]; then
        printf " A new invitation lets it in again: 'potluck phones invite' at the gateway."
    fi
}

join_fleet() {
    local body answer own fleet_name
    make_id
    body=$(join_body)
    printf '%s' "$body" | write_file "$FOLDER/join.json" 600
    answer=$(ask_to_join "$body")
    case ${answer##*$'\n'} in
        2*) ;;
        000) fail "The gateway $gateway cannot be reached from this phone; is it on the same Wi-Fi, and does the gateway" \
            "listen for the network? Ollama itself is set up and runs." ;;
        *) fail "The gateway did not let this phone in: $(refusal_words "$answer") Ollama itself is set up and runs." ;;
    esac
    # With other characters in it, it could be words for curl's configuration.
    if own=$(json_string phone_token "$answer") && [[ $own =~ ^[A-Za-z0-9._~-]+$ ]]; then
        rm -f "$FOLDER/phone_token" # never beside the name of a gateway that did not give it
        printf '%s' "$gateway" | write_file "$FOLDER/gateway" 600
        printf '%s' "$own" | write_file "$FOLDER/phone_token" 600
    elif ! has_joined || [ "$(cat "$FOLDER/gateway")" != "$gateway" ]; then
        fail "The gateway $gateway did not answer as a Potluck gateway does. Ollama itself is set up and runs."
    fi
    rm -f "$FOLDER/refused"
    fleet_name=$(json_string name "$answer" || printf 'this phone')
    plain "$fleet_name" | write_file "$FOLDER/fleet_name" 600
    say "    joined as $(plain "$fleet_name")"
}

# It starts with the server; a server that runs already gets one now, which takes over from an older one.
start_reporter() {
    local pid
    pid=$(cat "$FOLDER/server.pid" 2>/dev/null) || return 0
    tmux kill-session -t "=$SESSION-report" 2>/dev/null || true
    tmux new-session -d -s "$SESSION-report" "$FOLDER/report.sh" "$pid" 8>&- || note "The reporter starts with the next start."
    if ! has termux-battery-status; then
        note "For battery and heat on the gateway's page: pkg install termux-api, and the Termux:API app."
    fi
}

# --- The end --------------------------------------------------------------------------------------------------------

is_private() { [[ $1 =~ ^(10\.|192\.168\.|172\.(1[6-9]|2[0-9]|3[01])\.|100\.(6[4-9]|[7-9][0-9]|1[01][0-9]|12[0-7])\.) ]]; }

# The first private address in a listing of interfaces, those of Wi-Fi before others.
address_in() {
    local line address interface="" first="" pattern='inet (addr:)?([0-9]+\.[0-9]+\.[0-9]+\.[0-9]+)'
    while IFS= read -r line; do
        if [[ $line =~ ^([0-9]+:\ )?([a-z][a-z0-9_.-]*) ]]; then interface=${BASH_REMATCH[2]}; fi
        [[ $line =~ $pattern ]] || continue
        address=${BASH_REMATCH[2]}
        is_private "$address" || continue
        first=${first:-$address}
        if [[ $interface == wlan* ]]; then
            first=$address
            break
        fi
    done
    [ -n "$first" ] && printf '%s' "$first"
}

# Android 13 and later deny `ip`; `ifconfig` asks the kernel another way, and curl knows the end of its own connection.
own_address() {
    local address
    address_in < <(ip -4 -o addr 2>/dev/null) && return 0
    address_in < <(ifconfig 2>/dev/null) && return 0
    address=$(curl -s -o /dev/null --connect-timeout 3 --max-time 5 --write-out '%{local_ip}' \
        "${gateway:-$OLLAMA_DOWNLOAD}" 2>/dev/null) || true
    is_private "$address" && printf '%s' "$address"
}

say_result() {
    local address
    say ""
    if [ "$reach" = usb ]; then
        say "Done: $model answers on this phone's port $port, for a cable only; a gateway finds it there" \
            "(by hand: adb forward tcp:$port tcp:$port)."
        if has_joined; then
            note "Its place over Wi-Fi in the fleet of $(cat "$FOLDER/gateway") is silent from now on. To take it out, there:"
            say "      potluck phones remove $(fleet_name)"
        fi
    elif address=$(own_address); then
        say "Done: $model answers at http://$address:$port ($(speed_words "$speed") tokens/s)."
    else
        say "Done: $model answers on port $port; Android hides this phone's address, see Settings, Wi-Fi."
    fi
    if [ "$reach" = wifi ]; then
        note "Ollama has no password: everybody in this network can use it. Not for public Wi-Fi; --usb keeps it to a cable."
    fi
    say "Later: ~/mobile-llm/start_ollama.sh, stop_ollama.sh, status.sh. To remove everything: $(again_words --uninstall)"
}

# again_words [OPTION]: how a person starts this script once more. The line of an invitation serves once.
again_words() {
    if [ -f "$0" ]; then
        printf 'bash %s%s' "$0" "${1:+ $1}"
    elif [ -n "$gateway" ]; then
        printf "curl -fsSL '%s/join' | bash%s" "$gateway" "${1:+ -s -- $1}"
    else
        printf 'this script%s' "${1:+ with $1}"
    fi
}

# --- Uninstalling ---------------------------------------------------------------------------------------------------

remove_service_and_boot() {
    rm -rf "${PREFIX:?}/var/service/$SESSION" "${PREFIX:?}/var/log/sv/$SESSION"
    rm -f "$BOOT_SCRIPT"
    if is_recorded boot-folder; then rmdir "${BOOT_SCRIPT%/*}" 2>/dev/null || true; fi
}

# What was there before the first set-up stays: a Debian, packages, other models.
remove_native() {
    local one
    if is_recorded store; then
        rm -rf "$HOME/.ollama"
    else
        while IFS= read -r one; do
            bash -c "$(drop_model_text)" drop "" "$(manifest_path "$one")" </dev/null
        done < <(recorded model)
    fi
    if is_recorded "package ollama"; then remove_package ollama; fi
    forget "model .*"
}

remove_package() {
    if pkg uninstall -y "$1" </dev/null; then forget "package $1"; else note "Termux could not remove its package $1."; fi
}

# shellcheck disable=SC2016
remove_from_debian() {
    local one packages=()
    if is_recorded debian; then
        proot-distro remove debian </dev/null || note "Debian could not be removed: proot-distro remove debian"
    elif has_debian; then
        in_debian 'rm -rf ~/mobile-llm' </dev/null || true
        while IFS= read -r one; do
            in_debian "$(drop_model_text)" "" "$(manifest_path "$one")" </dev/null || note "$one could not be removed."
        done < <(recorded debian-model)
        if is_recorded debian-store; then in_debian 'rm -rf ~/.ollama' </dev/null || true; fi
        if is_recorded debian-ollama; then
            in_debian 'rm -rf /usr/local/bin/ollama /usr/local/lib/ollama' </dev/null || true
        fi
        mapfile -t packages < <(recorded debian-package)
        if [ "${#packages[@]}" -gt 0 ]; then
            in_debian 'DEBIAN_FRONTEND=noninteractive apt-get purge -q -y "$@"' "${packages[@]}" </dev/null ||
                note "Debian could not remove its packages ${packages[*]}."
        fi
    fi
    forget "debian.*"
}

remove_packages() {
    local package
    # The images that it keeps beside what it installs.
    if is_recorded "package proot-distro"; then proot-distro clear-cache </dev/null >/dev/null 2>&1 || true; fi
    while IFS= read -r package; do remove_package "$package"; done < <(recorded package)
}

uninstall() {
    if [ ! -d "$FOLDER" ]; then
        say "Nothing is set up on this phone."
        return 0
    fi
    if [ "$dry_run" = no ]; then
        take_turn
        [ -e "$RECORD" ] || : >"$RECORD"
    fi
    say "Brought by this script: $(tr '\n' ',' <"$RECORD" 2>/dev/null | sed 's/,$//; s/,/, /g')"
    act "stop Ollama" stop_server
    act "remove the service and the start script" remove_service_and_boot
    act "remove what this script brought into Debian" remove_from_debian
    act "remove the models and Ollama as far as this script brought them" remove_native
    act "remove the other packages that this script brought" remove_packages
    act "remove $FOLDER" rm -rf "$FOLDER"
    [ "$dry_run" = yes ] || say "Everything is removed (what packages had brought with them goes with: apt autoremove)." \
        "At the gateway: potluck phones remove NAME."
}

# --- JSON and HTTP, with what Termux surely has ---------------------------------------------------------------------

# json_escape TEXT: TEXT as it stands between the quotes of a JSON string. Control characters other than the usual
# three are dropped: no name of a phone needs them.
json_escape() {
    local text=$1
    text=${text//\\/\\\\}
    text=${text//\"/\\\"}
    text=${text//$'\n'/\\n}
    text=${text//$'\r'/\\r}
    text=${text//$'\t'/\\t}
    printf '%s' "${text//[$'\x01'-$'\x1f'$'\x7f']/}"
}

# json_string KEY JSON: the value of the first member KEY that is a string; false if there is none.
json_string() {
    local pattern="\"$1\"[[:space:]]*:[[:space:]]*\"(([^\"\\\\]|\\\\.)*)\""
    [[ $2 =~ $pattern ]] || return 1
    json_unescape "${BASH_REMATCH[1]}"
}

# json_number KEY JSON: the whole part of the first member KEY that is a number; false if there is none.
json_number() {
    local pattern="\"$1\"[[:space:]]*:[[:space:]]*(-?[0-9]+)"
    [[ $2 =~ $pattern ]] || return 1
    printf '%s' "${BASH_REMATCH[1]}"
}

json_unescape() {
    local rest=$1 result="" character
    while [[ $rest == *\\* ]]; do
        result+=${rest%%\\*}
        rest=${rest#*\\}
        character=${rest:0:1}
        rest=${rest:1}
        case $character in
            n) result+=$'\n' ;;
            t) result+=$'\t' ;;
            r) result+=$'\r' ;;
            b | f) ;;
            u)
                [[ ${rest:0:4} =~ ^[0-9a-fA-F]{4}$ ]] || return 1
                printf -v character '%b' "\\u${rest:0:4}"
                result+=$character
                rest=${rest:4}
                ;;
            *) result+=$character ;;
        esac
    done
    printf '%s' "$result$rest"
}

# The body or header of a request as a value of curl's configuration, which is read from stdin: never in its arguments.
curl_quote() {
    local text=${1//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}

# post_json URL BODY TOKEN SECONDS: prints the answer's body and, on a last line of its own, its status (000: none).
post_json() {
    {
        printf 'header = "Content-Type: application/json"\n'
        [ -z "$3" ] || printf 'header = %s\n' "$(curl_quote "Authorization: Bearer $3")"
        printf 'data = %s\n' "$(curl_quote "$2")"
    } | curl -sS --noproxy '*' --config - --connect-timeout 10 --max-time "$4" --write-out '\n%{http_code}' "$1" 2>/dev/null ||
        printf '\n000'
}

api() { printf 'http://127.0.0.1:%s/api/%s' "$port" "$1"; }
is_port_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; }
ollama_version() { json_string version "$(curl -fsS --max-time 3 "$(api version)" 2>/dev/null)"; }
is_answering() { is_port_taken && ollama_version >/dev/null; }

# --------------------------------------------------------------------------------------------------------------------

# Read whole before the first step, and deaf to its own text on stdin when it comes by a pipe; 9 is the real stdin. The end
# stands here, so that nothing is read on in a file that was replaced meanwhile by a newer one.
if [ "${POTLUCK_SOURCED:-no}" = no ]; then
    main "$@" 9<&0 </dev/null
    exit
fi
