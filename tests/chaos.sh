#!/bin/sh
# chaos.sh [--long] [BUILD_DIR] - a server under load while everything goes wrong around it; see chaos/chaos.py.
# 20 seconds, or with --long 20 minutes, which is the soak too.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
seconds=20
if [ "${1:-}" = --long ]; then seconds=1200; shift; fi
build=${1:-$here/../build}
exec /usr/bin/python3 "$here/chaos/chaos.py" "$build/merx" "$build/tests/python" "$here/.." --seconds "$seconds"
