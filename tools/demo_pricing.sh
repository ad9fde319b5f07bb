#!/bin/sh
# demo_pricing.sh - a price policy learned in a market fitted to real scanner data (orange
# juice, Dominick's), compared with the yardsticks on stores it has not seen, and quotes
# served with their reasons.  Fetches Debian's r-cran-bayesm once, and the PyPI package
# rdata to read it.  PANEL=file.csv takes a panel that is there.
set -eu
cache=${XDG_CACHE_HOME:-$HOME/.cache}/merx
panel=${PANEL:-$cache/orange_juice.csv}
port=${MERX_DEMO_PORT:-20951}
unset MERX_DEMO_PORT
run=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill $server 2>/dev/null || true; rm -rf "$run"' EXIT INT TERM

[ -f "$panel" ] || tools/fetch_bayesm.sh "$cache"

printf '\n> a policy learns to price 11 brands in 42 stores (600,000 weeks, simulated); 20 others say which checkpoint is best\n'
build/merx train dqn --env "market:$panel" --eval-env "market:$panel,choose" --run "$run/market"
policy=$run/market/best
printf '\n> 21 stores that neither has seen, half a year, eight times each\n'
build/merx evaluate --model "$policy" --env "market:$panel,held-out"

printf '\n> the same policy behind gRPC: items, half a year of sales, a guardrail, a quote and its reasons\n'
build/merx serve --pricing "$run/prices.db" --price-policy "market=$policy" --listen "127.0.0.1:$port" &
server=$!
PYTHONPATH=build/tests/python /usr/bin/python3 tools/demo_quotes.py "127.0.0.1:$port" "$panel"
kill -TERM $server
wait $server
server=
