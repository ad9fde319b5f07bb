#!/bin/sh
# sizes.sh SOURCE_DIR - files over 800 lines and functions over 80 fail: what is
# longer is several things.  A function is what stands between a { and a } in
# the first column, as .clang-format writes it.
set -u
cd "${1:-.}" || exit 2
files=$(find runtime kernels models server tests bench -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' | sort)
long=$(wc -l $files | awk '$2 != "total" && $1 > 800 {printf "  %s: %d lines\n", $2, $1}')
functions=$(awk '
    FNR == 1 {start = 0; name = ""}
    /^[A-Za-z_].*\(/ {name = $0; sub(/\(.*/, "", name); sub(/.*[ *]/, "", name)}
    /^\{/ {start = FNR}
    /^\}/ {if (start && FNR - start + 1 > 80) printf "  %s:%d: %s: %d lines\n", FILENAME, start, name, FNR - start + 1; start = 0}
' $files)
[ -n "$long" ] && printf 'sizes: files over 800 lines\n%s\n' "$long"
[ -n "$functions" ] && printf 'sizes: functions over 80 lines\n%s\n' "$functions"
[ -n "$long$functions" ] && exit 1
echo "sizes: $(echo "$files" | wc -l) files, none over 800 lines; no function over 80"
