#!/usr/bin/env bats
# The phone's way into a fleet, and what it reports from there.

load termux

joins() { grep 'POST /api/phones/join' "$FAKE/gateway.log"; }

@test "a phone joins with what it is" {
    gateway
    set_up qwen2.5:0.5b --gateway "$GATEWAY/" --token invite-1 --name 'Kitchen "2"'
    went_well
    says 'joined as attic "5"'
    id=$(cat "$HOME/mobile-llm/id")
    [[ $id =~ ^[0-9a-f]{32}$ ]]
    joins | head -n 1 | cut -d ' ' -f 4- >"$FAKE/body"
    "$FAKE_PYTHON" - "$FAKE/body" "$id" "$PORT" <<'PYTHON'
import json, sys
body = json.load(open(sys.argv[1]))
assert body == {
    "token": "invite-1", "id": sys.argv[2], "name": 'Kitchen "2"', "port": int(sys.argv[3]), "chip": "SM8550",
    "ram_bytes": 5713 * 1048576, "android": "11", "termux": "0.118.3", "ollama": "0.31.1", "mode": "native",
    "model": "qwen2.5:0.5b", "tokens_per_second": 12.5,
}, body
PYTHON
    [ "$(joins | head -n 1 | cut -d ' ' -f 3)" = - ]
    [ "$(cat "$HOME/mobile-llm/phone_token")" = own-secret ]
    [ "$(stat -c %a "$HOME/mobile-llm/phone_token")" = 600 ]
    [ "$(stat -c %a "$HOME/mobile-llm/join.json")" = 600 ]
    not grep -rq invite-1 "$HOME"
}

@test "as the gateway serves it: two lines in front" {
    gateway
    export http_proxy=http://127.0.0.1:1 # for downloads; the phone itself and its gateway are not reached by one
    run bash -c '{ printf "POTLUCK_GATEWAY=%s\nPOTLUCK_TOKEN=%s\n" "$2" invite-2; cat "$1"; } |
        bash -s -- qwen2.5:0.5b --port "$3" 3>&-' - "$SCRIPT" "$GATEWAY" "$PORT"
    went_well
    says "curl -fsSL '$GATEWAY/join' | bash -s -- --uninstall" # this line itself would not be let in again
    joins | grep -q '"token":"invite-2"'
    joins | grep -q '"name":"Pixel \\"5\\""'
}

@test "a second run shows the phone's own token, and uses no invitation" {
    gateway
    set_up qwen2.5:0.5b --gateway "$GATEWAY" --token invite-1
    went_well
    until_true test -s "$HOME/mobile-llm/report.pid"
    reporter=$(cat "$HOME/mobile-llm/report.pid")
    : >"$FAKE/gateway.log"
    set_up
    went_well
    joins | grep -q ' own-secret {"id"'
    not grep -q invite "$FAKE/gateway.log"
    until_true not is_running "$reporter" # they do not pile up
    until_true not grep -qx "$reporter" "$HOME/mobile-llm/report.pid"
}

@test "a phone on a cable does not join over the network, nor tells anything there; the gateway needs an invitation" {
    gateway
    set_up qwen2.5:0.5b --gateway "$GATEWAY"
    fails_with "potluck phones invite"
    set_up qwen2.5:0.5b --gateway "$GATEWAY" --token invite-1 --usb
    fails_with "leave out --usb"
    [ ! -e "$HOME/mobile-llm" ]
    set_up qwen2.5:0.5b --gateway "$GATEWAY" --token invite-1
    went_well
    until_true test -s "$HOME/mobile-llm/report.pid"
    set_up --usb
    went_well
    says_not "join the fleet"
    says "place over Wi-Fi in the fleet of $GATEWAY is silent"
    says 'potluck phones remove attic\ \"5\"' # as a shell takes it
    run "$HOME/mobile-llm/status.sh"
    says "Set up for a cable; its place in the fleet of $GATEWAY is silent"
    [ ! -e "$HOME/mobile-llm/report.pid" ]
    : >"$FAKE/gateway.log"
    set_up --wifi
    went_well
    joins | grep -q ' own-secret {"id"'
}

@test "the token of one gateway never goes to another one" {
    gateway
    first=$GATEWAY
    set_up qwen2.5:0.5b --gateway "$first" --token invite-1
    went_well
    until_true grep -q 'join own-secret' "$FAKE/gateway.log"
    : >"$FAKE/gateway.log"
    FAKE="$BATS_TEST_TMPDIR/other" && mkdir "$FAKE"
    gateway
    FAKE="$BATS_TEST_TMPDIR/fake"
    echo '{"id":"x","name":"two","phone_token":"second-secret"}' >"$BATS_TEST_TMPDIR/other/gateway_answer"
    set_up --gateway "$GATEWAY" --token invite-2 --port "$(free_port)"
    went_well
    until_true grep -q 'join second-secret' "$BATS_TEST_TMPDIR/other/gateway.log"
    not grep own-secret "$BATS_TEST_TMPDIR/other/gateway.log"
    not grep second-secret "$FAKE/gateway.log"
    [ "$(cat "$HOME/mobile-llm/phone_token")" = second-secret ]
    xargs kill <"$BATS_TEST_TMPDIR/other/pids"
}

@test "a phone that was removed comes back with a new invitation" {
    gateway
    set_up qwen2.5:0.5b --gateway "$GATEWAY" --token invite-1
    went_well
    "$HOME/mobile-llm/stop_ollama.sh"
    echo yes >"$FAKE/forgotten"
    set_up
    fails_with "let this phone in: Who are you? A new invitation lets it in again"
    set_up --gateway "$GATEWAY" --token invite-2
    went_well
    joins | grep -q invite-2
}

@test "a gateway that refuses, one that is not there, one that says nonsense" {
    gateway
    echo "403 Forbidden" >"$FAKE/gateway_status"
    echo '{"error":{"message":"This invitation has expired","code":"expired"}}' >"$FAKE/gateway_answer"
    set_up qwen2.5:0.5b --gateway "$GATEWAY" --token old
    fails_with "This invitation has expired. Ollama itself is set up and runs."
    answers version
    [ ! -e "$HOME/mobile-llm/phone_token" ]
    echo "200 OK" >"$FAKE/gateway_status"
    echo '<html>hotel Wi-Fi</html>' >"$FAKE/gateway_answer"
    set_up --gateway "$GATEWAY" --token old
    fails_with "did not answer as a Potluck gateway does"
    set_up --gateway "http://127.0.0.1:$(free_port)" --token old
    fails_with "cannot be reached from this phone"
}

@test "a gateway's words neither steer the terminal nor become words for curl" {
    gateway
    echo "{\"name\":\"a\\u001b[2Jb\\nc\",\"phone_token\":\"x\\\"\\noutput = $HOME/stolen\"}" >"$FAKE/gateway_answer"
    set_up qwen2.5:0.5b --gateway "$GATEWAY" --token invite-1
    fails_with "did not answer as a Potluck gateway does"
    [ ! -e "$HOME/mobile-llm/phone_token" ]
    echo '{"name":"a\u001b[2Jb\nc","phone_token":"sound-1"}' >"$FAKE/gateway_answer"
    set_up --gateway "$GATEWAY" --token invite-1
    went_well
    says "joined as a [2Jb c"
    echo "403 Forbidden" >"$FAKE/gateway_status"
    echo '{"error":{"message":"no\u001b]0;title\u0007"}}' >"$FAKE/gateway_answer"
    set_up --gateway "$GATEWAY" --token invite-1
    fails_with "did not let this phone in: no ]0;title"
    says_not $'\e'
    [ ! -e "$HOME/stolen" ]
}

@test "no token is seen in any list of processes" {
    gateway
    cat >"$FAKE/bin/curl" <<'STUB'
#!/usr/bin/env bash
printf 'curl %s\n' "$*" >>"$FAKE/calls"
ps -eo args >>"$FAKE/processes" 2>/dev/null || cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' ' ' >>"$FAKE/processes"
env >>"$FAKE/environments"
exec /usr/bin/curl "$@"
STUB
    chmod +x "$FAKE/bin/curl"
    echo '{"level": 71}' >"$FAKE/battery"
    have termux-battery-status
    # Only this run knows these, and what looks for them here does not hold them itself.
    invitation="inv-$RANDOM$RANDOM" own="own-$RANDOM$RANDOM"
    echo "{\"id\":\"x\",\"name\":\"y\",\"phone_token\":\"$own\"}" >"$FAKE/gateway_answer"
    set_up qwen2.5:0.5b --gateway "$GATEWAY" --token "$invitation"
    went_well
    until_true grep -q 'report own-' "$FAKE/gateway.log"
    "$HOME/mobile-llm/stop_ollama.sh"
    joins | grep -q "$invitation"
    [ -s "$FAKE/processes" ]
    for secret in "$invitation" "$own"; do
        not grep -q "$secret" "$FAKE/processes"
        not grep -q "$secret" "$FAKE/environments"
        not grep -rq "$secret" "$HOME/mobile-llm/ollama.log"
    done
}

@test "a token from stdin" {
    gateway
    run bash -c 'echo invite-3 | bash "$1" qwen2.5:0.5b --port "$2" --gateway "$3" --token - 3>&-' - "$SCRIPT" "$PORT" "$GATEWAY"
    went_well
    joins | grep -q '"token":"invite-3"'
}

@test "of the Wi-Fi the reporter tells how well it is received, and nothing else" {
    gateway
    echo '{"percentage": 71}' >"$FAKE/battery"
    printf '{\n  "bssid": "02:00:00:00:00:00",\n  "rssi": -58,\n  "ssid": "Home"\n}\n' >"$FAKE/wifi"
    have termux-battery-status
    have termux-wifi-connectioninfo
    set_up qwen2.5:0.5b --gateway "$GATEWAY" --token invite-1
    went_well
    until_true grep -q 'POST /api/phones/report own-secret {"battery":{"percentage": 71},"wifi":{"rssi":-58}}' "$FAKE/gateway.log"
    not grep -q Home "$FAKE/gateway.log"
}

# zone NUMBER TYPE TEMPERATURE: one of the kernel's.
zone() {
    mkdir -p "$POTLUCK_THERMAL/thermal_zone$1"
    printf '%s\n' "$2" >"$POTLUCK_THERMAL/thermal_zone$1/type"
    printf '%s\n' "$3" >"$POTLUCK_THERMAL/thermal_zone$1/temp"
}

reports() { grep -qF "POST /api/phones/report own-secret $1" "$FAKE/gateway.log"; }

@test "without a temperature from Termux:API the reporter tells the kernel's, of the battery only" {
    gateway
    zone 0 cpu-0-0-usr 91000
    zone 1 Battery 41000
    zone 2 bms 40500
    zone 3 battery 39800
    zone 4 battery_cycle 450 # no temperature at all
    zone 5 batt-therm 0
    zone 6 'batt","x' 1
    zone 7 batt_flash 'no such device'
    mkdir "$POTLUCK_THERMAL/thermal_zone8"
    zones='"thermal":{"zones":{"battery":41000,"bms":40500,"battery-3":39800}}'
    set_up qwen2.5:0.5b --gateway "$GATEWAY" --token invite-1
    went_well
    until_true reports "{$zones}"
    have termux-battery-status
    echo '{"percentage": 71, "temperature": 0.0}' >"$FAKE/battery"
    until_true reports "{\"battery\":{\"percentage\": 71, \"temperature\": 0.0},$zones}"
    echo '{"percentage": 71, "temperature": 30.0}' >"$FAKE/battery"
    until_true reports '{"battery":{"percentage": 71, "temperature": 30.0}}'
    rm "$FAKE/bin/termux-battery-status"
    for number in {20..40}; do zone "$number" "batt_$number" "300$number"; done
    until_true grep -q '"batt_32":30032}}}$' "$FAKE/gateway.log" # with the other three: sixteen, in the order of a shell's names
}

@test "the reporter tells battery and heat, also after a restart" {
    gateway
    printf '{\n  "percentage": 71,\n  "temperature": 31.2\n}\n' >"$FAKE/battery"
    have termux-battery-status
    set_up qwen2.5:0.5b --gateway "$GATEWAY" --token invite-1
    went_well
    until_true grep -q 'POST /api/phones/report own-secret {"battery":{ *"percentage": 71, *"temperature": 31.2 *}}' "$FAKE/gateway.log"
    "$HOME/mobile-llm/stop_ollama.sh"
    reports=$(grep -c report "$FAKE/gateway.log")
    : >"$FAKE/gateway.log"
    "$HOME/mobile-llm/start_ollama.sh" 3>&-
    until_true grep -q report "$FAKE/gateway.log"
    [ "$reports" -gt 0 ]
    grep -q 'POST /api/phones/join own-secret {"id"' "$FAKE/gateway.log"
}

@test "the reporter ends with the server" {
    gateway
    have termux-battery-status
    set_up qwen2.5:0.5b --gateway "$GATEWAY" --token invite-1
    until_true grep -q 'report own-secret' "$FAKE/gateway.log"
    reporter=$(cat "$HOME/mobile-llm/report.pid")
    is_running "$reporter"
    kill "$(cat "$HOME/mobile-llm/server.pid")"
    until_true not is_running "$reporter"
}

@test "the reporter ends when the gateway does not know the phone any more" {
    gateway
    have termux-battery-status
    set_up qwen2.5:0.5b --gateway "$GATEWAY" --token invite-1
    went_well
    until_true test -s "$HOME/mobile-llm/report.pid"
    reporter=$(cat "$HOME/mobile-llm/report.pid")
    is_running "$reporter"
    run "$HOME/mobile-llm/status.sh"
    says "Joined: $GATEWAY"
    echo yes >"$FAKE/forgotten"
    until_true not is_running "$reporter"
    answers version
    run "$HOME/mobile-llm/status.sh"
    says "Removed from the fleet of $GATEWAY"
    rm "$FAKE/forgotten"
    set_up --token invite-2
    went_well
    says "bash $SCRIPT --uninstall"
    run "$HOME/mobile-llm/status.sh"
    says "Joined: $GATEWAY"
}

@test "the reporter outlives a gateway that is away, one that restarts and one that refuses for a while" {
    gateway
    set_up qwen2.5:0.5b --gateway "$GATEWAY" --token invite-1
    went_well
    until_true grep -q 'join own-secret' "$FAKE/gateway.log"
    reporter=$(cat "$HOME/mobile-llm/report.pid")
    kill "$(cat "$FAKE/pids")"
    sleep 0.5
    is_running "$reporter"
    : >"$FAKE/gateway.log"
    echo "403 Forbidden" >"$FAKE/gateway_status"
    serve_beside gateway "$GATEWAY_PORT"
    until_true grep -q 'join own-secret' "$FAKE/gateway.log"
    rm "$FAKE/gateway_status"
    : >"$FAKE/gateway.log"
    until_true grep -q 'join own-secret' "$FAKE/gateway.log"
    is_running "$reporter"
    [ "$(cat "$HOME/mobile-llm/report.pid")" = "$reporter" ]
}

@test "the reporter waits twice as long after every failure, at most eight times, and ends after three refusals" {
    set_up qwen2.5:0.5b
    went_well
    cd "$HOME/mobile-llm" || return 1
    echo http://127.0.0.1:1 >gateway && echo own >phone_token && echo '{}' >join.json
    # Its own curl, which answers what is written and counts; its own sleep, which only tells.
    printf '#!/usr/bin/env bash\ncat >/dev/null\necho round >>"$FAKE/log"\nhead -n 1 "$FAKE/say"\nsed -i 1d "$FAKE/say"\n' >"$FAKE/bin/curl"
    printf '#!/usr/bin/env bash\necho "$1" >>"$FAKE/log"\n' >"$FAKE/bin/sleep"
    chmod +x "$FAKE/bin/curl" "$FAKE/bin/sleep"
    printf '%s\n' 000 503 403 000 200 401 401 401 >"$FAKE/say"
    run env POTLUCK_REPORT_SECONDS=30 timeout 60 ./report.sh "$BASHPID" # one that does not end would never sleep
    went_well
    says "does not know this phone any more (401)"
    # Renewed at once, then after 2, 4, 8 and again 8 pauses; the next of its own accord ten rounds later.
    [ "$(uniq -c "$FAKE/log" | awk '{print $1 ":" $2}' | tr '\n' ' ')" = \
        "1:round 2:30 1:round 4:30 1:round 8:30 1:round 8:30 1:round 10:30 1:round 1:30 1:round 1:30 1:round " ]
}

@test "without Termux:API the address is renewed all the same, and people are told" {
    gateway
    set_up qwen2.5:0.5b --gateway "$GATEWAY" --token invite-1
    went_well
    says "pkg install termux-api"
    until_true grep -q 'join own-secret' "$FAKE/gateway.log"
    not grep -q /report "$FAKE/gateway.log"
}

@test "JSON: what is escaped comes back" {
    source_script
    text=$'a "b" \\ c\td\ne\r\x01é}'
    escaped=$(json_escape "$text")
    [ "$(json_string key "{\"x\":1,\"key\" : \"$escaped\",\"y\":2}")" = $'a "b" \\ c\td\ne\ré}' ]
    "$FAKE_PYTHON" -c 'import json, sys; assert json.loads("\"" + sys.argv[1] + "\"") == "a \"b\" \\ c\td\ne\ré}"' "$escaped"
    [ "$(json_string key '{"other":"\"key\":\"wrong\"","key":"right"}')" = right ]
    [ "$(json_string key '{"key":"a\/bA\\"}')" = 'a/bA\' ]
    [ "$(json_number n '{"m":3,"n": 42.9}')" = 42 ]
    not json_string key '{"key":3}'
    not json_number key '{"key":"3"}'
}

@test "the address: ifconfig where ip is denied, else curl's own end, Wi-Fi first" {
    source_script
    [ "$(own_address)" = 192.168.7.31 ]
    [ "$(address_in <<<'3: rmnet0    inet 10.1.1.1/30 scope global
24: wlan0    inet 192.168.1.9/24 brd 192.168.1.255 scope global wlan0')" = 192.168.1.9 ]
    not address_in <<<'2: rmnet0    inet 93.184.1.1/30'
    touch "$FAKE/no_ifconfig"
    printf '#!/usr/bin/env bash\nprintf 172.20.3.4\n' >"$FAKE/bin/curl"
    chmod +x "$FAKE/bin/curl"
    [ "$(own_address)" = 172.20.3.4 ]
}
