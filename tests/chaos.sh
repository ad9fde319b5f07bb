#!/bin/sh
# chaos.sh [--long [SECONDS]] [BUILD_DIR] - a server under load while everything goes wrong around it; see chaos/chaos.py.
# 20 seconds, or with --long 20 minutes, which is the soak too: its figures go to bench/results/soak.json.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
seconds=20 result=
if [ "${1:-}" = --long ]; then
    seconds=1200 result="--result $here/../bench/results/soak.json"
    shift
    case ${1:-} in [0-9]*) seconds=$1; shift ;; esac
fi
build=${1:-$here/../build}
exec /usr/bin/python3 "$here/chaos/chaos.py" "$build/merx" "$build/tests/python" "$here/.." --seconds "$seconds" $result
