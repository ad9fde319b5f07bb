#!/bin/sh
# gpu.sh - everything that only a machine with a GPU can tell, in about ten minutes.
#
#     bench/gpu.sh                  builds with nvcc (make it once: make deps), then measures
#     bench/gpu.sh --pack DIR       builds here and puts what is needed into DIR: binaries, their
#                                   libraries, goldens; no GPU needed, no network there
#     bench/gpu.sh --use DIR        measures with what --pack made
#
# In order: every op case on the device against the reference; the models end to end (logits and
# greedy texts against transformers, generation in any company, training against PyTorch);
# compute-sanitizer where there is one; op GB/s and TFLOP/s; decode tokens/s at batch 1, 8, 64, 256
# and 1024.  A step that fails is told and the rest goes on; the exit status says whether any did.
# Writes bench/results/gpu-NAME-DATE.txt and .json (to $OUT when it is set).
set -u
here=$(cd "$(dirname "$0")/.." && pwd)
build=${BUILD:-$here/build-gpu}
mode=run
case "${1:-}" in
--pack) mode=pack; pack=${2:?gpu.sh: --pack DIR} ;;
--use) mode=use; build=$(cd "${2:?gpu.sh: --use DIR}" && pwd) ;;
"") ;;
*) sed -n '2,16p' "$0"; exit 2 ;;
esac

if [ $mode != use ]; then
    cmake -G Ninja -S "$here" -B "$build" -DCMAKE_BUILD_TYPE=Release -DMERX_CUDA=on -DMERX_ARCH="${MERX_ARCH:-x86-64-v3}" >/dev/null &&
        cmake --build "$build" --target gpu || exit 1
fi
if [ $mode = pack ]; then
    mkdir -p "$pack/lib" "$pack/tests" || exit 1
    for f in ops_cases decode gpu_decoder gpu_generate gpu_train; do
        cp "$build/$f" "$pack/" || exit 1
        # everything but the C library and the compiler's own, which every machine has
        ldd "$build/$f" | awk '$3 ~ /^\// { print $3 }' | grep -vE '/(libc|libm|libpthread|libdl|librt|libstdc\+\+|libgcc_s)\.so' |
            while read -r l; do cp -Lu "$l" "$pack/lib/"; done
    done
    cp -r "$here/tests/golden" "$pack/tests/" && du -sh "$pack"
    exit
fi

[ $mode = use ] && LD_LIBRARY_PATH=$build/lib:${LD_LIBRARY_PATH:-} && export LD_LIBRARY_PATH
root=$here
[ $mode = use ] && root=$build
cd "$root" && mkdir -p gpu-scratch || exit 1
name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1 | tr -cs 'A-Za-z0-9' '-' | sed 's/^-//; s/-$//')
if [ -z "$name" ]; then
    echo "gpu.sh: no GPU here (nvidia-smi names none); nothing was run" >&2
    exit 3
fi
results=${OUT:-$here/bench/results}
mkdir -p "$results"
base=$results/gpu-$name-$(date +%Y-%m-%d)
log=$base.txt
failed=""
: >"$log"
say() { printf '%s\n' "$*" | tee -a "$log"; }
step() { # title, limit in seconds, command...
    title=$1 limit=$2
    shift 2
    say "" "== $title"
    timeout "$limit" "$@" >"$base.step" 2>&1
    status=$?
    tee -a "$log" <"$base.step"
    [ $status = 0 ] && return
    say "FAILED ($status): $title"
    failed="$failed, $title"
}

say "Merx on $name, $(date -u +%Y-%m-%dT%H:%MZ), $(git -C "$here" rev-parse --short HEAD 2>/dev/null || echo packed)"
nvidia-smi --query-gpu=driver_version,memory.total,clocks.max.sm,clocks.max.memory --format=csv 2>/dev/null | tee -a "$log"
step "every op against the reference" 120 "$build/ops_cases" test --device cuda
MX_TEST_SEED=20260212 step "the same, other numbers" 120 "$build/ops_cases" test --device cuda
step "decoders against transformers" 120 "$build/gpu_decoder"
step "generation in any company" 120 "$build/gpu_generate"
step "training against PyTorch" 180 "$build/gpu_train"
if command -v compute-sanitizer >/dev/null; then
    step "memcheck" 180 compute-sanitizer --error-exitcode 9 "$build/ops_cases" test attention --device cuda
    step "racecheck" 180 compute-sanitizer --tool racecheck --error-exitcode 9 "$build/ops_cases" test norm --device cuda
fi
step "ops" 180 "$build/ops_cases" perf --device cuda
step "decode, bf16, context 128" 90 "$build/decode" --device cuda --context 128 1 8 64 256 1024
step "decode, bf16, context 512" 90 "$build/decode" --device cuda --context 512 1 8 64 256 1024
step "decode, f32, context 512" 60 "$build/decode" --device cuda --dtype f32 --kv f32 --context 512 1 64
step "decode, int8, context 512" 60 "$build/decode" --device cuda --dtype int8 --context 512 1 64 256
rm -f "$base.step"

# the lines of both programs as JSON
awk -v name="$name" -v date="$(date +%F)" -v failed="${failed#, }" '
    BEGIN { printf "{\"device\": \"%s\", \"date\": \"%s\", \"failed\": \"%s\", \"ops\": [", name, date, failed }
    / GFLOP\/s / && / GB\/s/ {
        for (i = 1; i <= NF; i++) { if ($i == "us") us = $(i-1); if ($i == "GFLOP/s") f = $(i-1); if ($i == "GB/s") b = $(i-1) }
        printf "%s\n  {\"case\": \"%s\", \"us\": %s, \"tflops\": %.3f, \"gbs\": %s}", sep, $1, us, f / 1000, b; sep = "," }
    /^decode / { d[++n] = sprintf("\n  {\"batch\": %s, \"context\": %s, \"weights\": \"%s\", \"cache\": \"%s\", \"us\": %s, \"tokens_per_s\": %s}", $3, $5, $7, $9, $10, $14) }
    END { printf "],\n\"decode\": ["; for (i = 1; i <= n; i++) printf "%s%s", d[i], i < n ? "," : ""; print "]}" }' "$log" >"$base.json"

say "" "$(grep -E '^decode ' "$log")" ""
if [ -n "$failed" ]; then say "failed: ${failed#, }"; else say "everything passed"; fi
echo "written: $log $base.json"
[ -z "$failed" ]
