#!/bin/sh
# scheduler_faults.sh SOURCE_DIR LIBRARY CC - plants faults in copies of the scheduler, one at a
# time, and wants test_scheduler_share to fail on each: its promises are not words only.
set -u
src=$1 lib=$2 cc=${3:-cc} cudart=${4:-}
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
missed=0 n=0
flags="-std=gnu17 -O1 -w -D_GNU_SOURCE -I$src"
for f in tests/test_scheduler_share runtime/scheduler runtime/scheduler_turn runtime/scheduler_share; do
    $cc $flags -c "$src/$f.c" -o "$work/$(basename $f).o" || exit 2
done
link() { $cc "$work/test_scheduler_share.o" "$@" "$lib" $cudart -lhwloc -lpthread -lm ${cudart:+-lstdc++ -lrt -ldl} -o "$work/program"; }
runs() { MX_TEST_WORLDS=400 timeout 60 "$work/program" >/dev/null 2>&1; }
link "$work"/scheduler*.o && runs || { echo "faults: the test fails without a fault"; exit 2; }

fault() { # file, what stands there, what is put there
    n=$((n + 1))
    FROM=$2 TO=$3 awk 'BEGIN { from = ENVIRON["FROM"]; to = ENVIRON["TO"] }
        { i = index($0, from); if (i) { $0 = substr($0, 1, i - 1) to substr($0, i + length(from)); hits++ } print }
        END { exit hits != 1 }' "$src/runtime/$1.c" >"$work/faulty.c" || { echo "faults: \"$2\" does not stand once in $1"; exit 2; }
    $cc $flags -c "$work/faulty.c" -o "$work/faulty.o" 2>"$work/log" || { cat "$work/log"; exit 2; }
    others=$(ls "$work"/scheduler*.o | grep -v "/$1\.o")
    link "$work/faulty.o" $others || exit 2
    if runs; then
        echo "faults: nobody noticed in $1: \"$2\" -> \"$3\""
        missed=$((missed + 1))
    fi
}

fault scheduler_share '+= j->granted / weight_of(t)' '+= j->granted'
fault scheduler_share 'l->passed[p] >= MX_PATIENCE' 'l->passed[p] >= 9 * MX_PATIENCE'
fault scheduler_share 'if (g->vtime[t] < least) g->vtime[t] = least;' ';'
fault scheduler_share 'most - most / 4' 'most'
fault scheduler_share 'j->prepaid -= paid;' ';'
fault scheduler_share 'if (t->level > burst_of(t)) t->level = burst_of(t);' ';'
fault scheduler_turn 'return due ? due : best;' 'return best;'
fault scheduler_turn 'l->ready_ns + MX_LEAST_SHARE * turn' 'l->ready_ns + 2 * MX_LEAST_SHARE * turn'
fault scheduler_turn 'grant_missed(f, most);' ';'
fault scheduler_turn 'next->turn_ns / 5' 'next->turn_ns'
fault scheduler_turn 'l->done++;' 'if (j->priority != MX_PRIORITY_LOW) l->done++;'
fault scheduler_turn 'mx_share_leave(l, j);' 'if (!j->error.code) mx_share_leave(l, j);'
fault scheduler 'load_of(l, *paced) < load_of(best, *paced)' 'load_of(l, *paced) > load_of(best, *paced)'
fault scheduler 'paced ? (jobs + 1) * l->job_ns : jobs' 'jobs'
fault scheduler 'before += l->waiting.of[p];' 'before = 0;'
fault scheduler 'return was;' 'return best;'
if [ $missed = 0 ]; then echo "faults: each of $n was noticed"; fi
exit $missed
