#!/bin/sh
# install.sh [MORE...] - the packages that building and testing Merx needs, and
# those that a target needs beside them, on Debian and Ubuntu.  Does nothing when they are all there; without root or sudo it says
# what is missing.
set -u
packages="gcc g++ cmake ninja-build make pkg-config git libdnnl-dev libhwloc-dev libjansson-dev libpcre2-dev libutf8proc-dev libssl-dev libmicrohttpd-dev libsqlite3-dev
libopenmpi-dev openmpi-bin
libgrpc-dev protobuf-compiler libprotobuf-c-dev protobuf-c-compiler libprotobuf-dev python3 python3-grpcio python3-protobuf
clang libclang-rt-dev python3-pip"
missing=""
for p in $packages "$@"; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $p"
done
[ -z "$missing" ] && exit 0
root=""
if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null 2>&1; then root="sudo"
    else echo "merx: please install:$missing" >&2; exit 1
    fi
fi
echo "merx: installing$missing"
$root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $root apt-get install -y -qq --no-install-recommends $missing
