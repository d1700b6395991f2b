#!/usr/bin/env bats
# The whole set-up script on a fake Termux, invited by a real gateway across a network. Run by test_joining_networks.py
# within the phone's network namespace, with LINK, GATEWAY, OLD, NEW, DEVICE and IP in the environment.

load ../phone_setup/termux

phones() { curl -fsS --max-time 5 "$GATEWAY/api/phones"; }
phones_say() { phones | grep -qF -- "$1"; }

@test "the line of an invitation brings a phone in, and it stays through a new address" {
    echo '{"percentage": 71, "status": "DISCHARGING", "temperature": 31.2}' >"$FAKE/battery"
    have termux-battery-status
    run bash -c "curl -sSL '$LINK' | bash -s -- qwen2.5:0.5b --port $PORT" 3>&- </dev/null
    went_well
    says 'joined as Pixel "5"'
    not grep -rqF "${LINK##*/}" "$HOME"
    phones_say "\"address\":\"$OLD:$PORT\""
    phones_say '"status":"ready"'
    phones_say '"models":["qwen2.5:0.5b"]'
    phones_say '"tokens_per_second":12.5'
    until_true phones_say '"battery_percent":71.0'

    "$IP" addr del "$OLD/24" dev "$DEVICE"
    "$IP" addr add "$NEW/24" dev "$DEVICE"
    until_true phones_say "\"address\":\"$NEW:$PORT\""

    phone=$(cat "$HOME/mobile-llm/id")
    reporter=$(cat "$HOME/mobile-llm/report.pid")
    is_running "$reporter"
    curl -fsS -X DELETE "$GATEWAY/api/phones/$phone" >/dev/null
    until_true not is_running "$reporter"
    until_true not phones_say "$phone"
}
