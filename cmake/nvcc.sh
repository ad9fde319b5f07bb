#!/bin/sh
# nvcc.sh LOG ACCEPTED NVCC ARGUMENTS... - compile, keep what ptxas says in LOG, and fail when a
# kernel spills registers to memory more than ACCEPTED allows by name (lines: target kernel bytes reason).
log=$1 accepted=$2
shift 2
"$@" -Xptxas -v >"$log" 2>&1
status=$?
grep -vE "^ptxas info|^ +[0-9]+ bytes stack frame|^$" "$log" >&2
[ $status = 0 ] || exit $status
c++filt -p <"$log" | awk -v list="$accepted" '
    BEGIN { while ((getline line < list) > 0) { split(line, f, " "); if (line !~ /^#/) most[f[1] " " f[2]] = f[3] } }
    /Compiling entry function/ { split($0, q, "\x27"); name = q[2]; target = q[4]; sub(/^void /, "", name); gsub(/ /, "", name) }
    /bytes spill stores/ {
        spilled = 0
        for (i = 1; i <= NF; i++) if ($i == "spill") spilled += $(i - 2)
        if (name != "" && spilled > most[target " " name] + 0) {
            printf "%s %s spills %d bytes; %s allows %d\n", target, name, spilled, list, most[target " " name] > "/dev/stderr"
            bad = 1
        }
    }
    END { exit bad }'
