#!/bin/sh
# fetch_bayesm.sh FOLDER - orange_juice.csv and margarine.csv (tools/bayesm.py says what they are) into FOLDER.
set -eu
cache=$1
echo "demo: fetching the panels of orange juice and margarine (Debian package r-cran-bayesm, GPL-2+, 2 MB) ..."
mkdir -p "$cache/deb"
(cd "$cache/deb" && apt-get download -qq r-cran-bayesm 2>/dev/null)
[ -d "$cache/rdata" ] || { python3 -m venv "$cache/rdata" && "$cache/rdata/bin/pip" install -q rdata; }
"$cache/rdata/bin/python" "$(dirname "$0")/bayesm.py" "$cache"/deb/r-cran-bayesm_*.deb "$cache"
rm -r "$cache/deb"
