#!/bin/sh
# gpu.sh - everything that only a machine with a GPU can tell, in ten minutes at most (LIMIT=seconds: 570).
#
#     bench/gpu.sh                  builds with nvcc (make it once: make deps), then measures
#     bench/gpu.sh --pack DIR       builds here and puts what is needed into DIR: binaries, their
#                                   libraries, goldens; no GPU needed, no network there
#     bench/gpu.sh --use DIR        measures with what --pack made
#
# In order: every op case on the device against the reference; the PTX wrappers (their vectors are
# written for tests/golden/ptx.txt); the models end to end (logits, vectors and greedy texts against
# transformers, generation in any company, training against PyTorch); compute-sanitizer where there
# is one; op GB/s and TFLOP/s, beside cuBLAS and attention of PyTorch where it is installed; decode
# tokens/s at batch 1, 8, 32, 64, 256 and 1024, of bf16, f32, int8 and fp8, with and without penalties; training
# tokens/s and MFU; encoder texts/s; graph networks, Q-learning, decisions/s, and what a stream of higher
# priority waits.  A step that fails, or that the time does not reach, is told and the rest goes on; the exit
# status says whether any did.  Fractions are of the peaks of the card that is found (PEAK_TFLOPS bf16
# without sparsity, PEAK_GBS: given, they go before).
# Writes bench/results/gpu-NAME-DATE.txt and .json (to $OUT when it is set).
set -u
here=$(cd "$(dirname "$0")/.." && pwd)
build=${BUILD:-$here/build-gpu}
binaries="ops_cases decode learn networks gpu_decoder gpu_generate gpu_train gpu_train_encoder gpu_encoder gpu_generate_ahead gpu_fused_ops gpu_cuda_learn gpu_dqn gpu_ptx"
mode=run
case "${1:-}" in
--pack) mode=pack; pack=${2:?gpu.sh: --pack DIR} ;;
--use)
    mode=use
    build=$(cd "${2:?gpu.sh: --use DIR}" && pwd)
    [ -f "$build/ops_cases" ] || tar -C "$build" -xJf "$build/merx-gpu.tar.xz" 2>/dev/null ||
        (cd "$build" && python3 -m tarfile -e merx-gpu.tar.xz) || exit 1
    ;;
"") ;;
*) sed -n '2,22p' "$0"; exit 2 ;;
esac

if [ $mode != use ]; then
    cmake -G Ninja -S "$here" -B "$build" -DCMAKE_BUILD_TYPE=Release -DMERX_CUDA=on -DMERX_ARCH="${MERX_ARCH:-x86-64-v3}" >/dev/null &&
        cmake --build "$build" --target gpu || exit 1
fi
if [ $mode = pack ]; then
    out=$pack pack=$(mktemp -d) && mkdir -p "$out" || exit 1
    mkdir -p "$pack/lib" "$pack/tests" "$pack/bench/peers" || exit 1
    cp "$here/bench/peers/cudnn.sh" "$pack/bench/peers/" || exit 1
    for f in $binaries; do
        strip -g -o "$pack/$f" "$build/$f" || exit 1
        # everything but the C library and the compiler's own, which every machine has
        ldd "$build/$f" | awk '$3 ~ /^\// { print $3 }' | grep -vE '/(libc|libm|libpthread|libdl|librt|libstdc\+\+|libgcc_s)\.so' |
            while read -r l; do cp -Lu "$l" "$pack/lib/"; done
    done
    cp -r "$here/tests/golden" "$pack/tests/" && cp "$here/bench/peers/gpu.py" "$pack/bench/peers/" && cp "$here/bench/gpu.sh" "$pack/bench/" || exit 1
    git -C "$here" rev-parse --short HEAD >"$pack/commit" 2>/dev/null
    # it must start where there is no driver, and then use the CPU
    (cd "$pack" && LD_LIBRARY_PATH=$PWD/lib ./ops_cases test norm --device auto >/dev/null 2>&1) ||
        { echo "gpu.sh: what was packed does not run here" >&2; exit 1; }
    # the binaries hold the same kernels: with a window wide enough they are stored once
    tar -C "$pack" -c . | xz -T1 --lzma2=preset=3,dict=64MiB >"$out/merx-gpu.tar.xz" && cp "$here/bench/gpu.sh" "$out/" && rm -rf "$pack" || exit 1
    du -sm "$out/merx-gpu.tar.xz" | awk '{ print $1 " MiB packed"; exit $1 > 64 }' || { echo "gpu.sh: more than 64 MiB" >&2; exit 1; }
    exit
fi

[ $mode = use ] && LD_LIBRARY_PATH=$build/lib:${LD_LIBRARY_PATH:-} && export LD_LIBRARY_PATH
root=$here
[ $mode = use ] && root=$build
cd "$root" && mkdir -p gpu-scratch || exit 1
name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1 | tr -cs 'A-Za-z0-9' '-' | sed 's/^-//; s/-$//')
if [ -z "$name" ]; then
    # what can be told: the binaries start without a driver, and their CPU half is right
    "$build/ops_cases" test --device cpu >/dev/null 2>&1 && cpu="every op case passes on the CPU" || cpu="op cases FAIL on the CPU"
    "$build/ops_cases" test norm --device cuda 2>&1 | tail -1 >&2
    echo "gpu.sh: no GPU here (nvidia-smi names none): $cpu, nothing else was run" >&2
    exit 3
fi
results=${OUT:-$here/bench/results}
mkdir -p "$results"
base=$results/gpu-$name-$(date +%Y-%m-%d)
log=$base.txt
failed=""
case "$name" in                          # bf16 TFLOP/s without sparsity, GB/s: NVIDIA's data sheets
*H200-NVL*) tflops=835 gbs=4800 ;;
*H200*) tflops=989 gbs=4800 ;;
*H100-NVL*) tflops=835 gbs=3900 ;;
*H100-PCIe*) tflops=756 gbs=2000 ;;
*H100*) tflops=989 gbs=3350 ;;
*A100*40GB*) tflops=312 gbs=1555 ;;
*A100*) tflops=312 gbs=2039 ;;
*) tflops=0 gbs=0 ;;
esac
tflops=${PEAK_TFLOPS:-$tflops} gbs=${PEAK_GBS:-$gbs}
peak="" ; [ "$tflops" = 0 ] || { peak="--peak $tflops"; export GPU_PEAK_TFLOPS="$tflops"; }
end=$(($(date +%s) + ${LIMIT:-570}))
: >"$log"
say() { printf '%s\n' "$*" | tee -a "$log"; }
step() { # title, limit in seconds, command...
    title=$1 limit=$2
    shift 2
    say "" "== $title"
    left=$((end - $(date +%s)))
    [ "$limit" -gt "$left" ] && limit=$left
    if [ "$limit" -lt 5 ]; then
        say "FAILED: no time is left for: $title"
        failed="$failed, $title (no time)"
        return
    fi
    timeout "$limit" "$@" >"$base.step" 2>&1
    status=$?
    tee -a "$log" <"$base.step"
    [ $status = 0 ] && return
    say "FAILED ($status): $title"
    failed="$failed, $title"
}

say "Merx on $name, $(date -u +%Y-%m-%dT%H:%MZ), commit $(cat "$build/commit" 2>/dev/null || git -C "$here" rev-parse --short HEAD 2>/dev/null)"
say "peaks: $tflops TFLOP/s, $gbs GB/s (0: not known)"
nvidia-smi --query-gpu=driver_version,memory.total,clocks.max.sm,clocks.max.memory --format=csv 2>/dev/null | tee -a "$log"
step "every op against the reference" 120 "$build/ops_cases" test --device cuda
MX_TEST_SEED=20260212 step "the same, other numbers" 120 "$build/ops_cases" test --device cuda
step "PTX wrappers" 30 "$build/gpu_ptx" "$results/ptx.txt"
step "decoders against transformers" 90 "$build/gpu_decoder"
step "encoders against transformers" 60 "$build/gpu_encoder" numbers
step "generation in any company" 90 "$build/gpu_generate"
step "a turn ahead of the device changes nothing" 60 "$build/gpu_generate_ahead"
step "fused ops have the bits of their parts" 30 "$build/gpu_fused_ops"
step "graph networks and Q-learning beside the CPU" 60 "$build/gpu_cuda_learn"
step "learning to act goes on from a checkpoint to the bit" 60 "$build/gpu_dqn" goes_on_to_the_bit
step "training against PyTorch" 90 "$build/gpu_train" gpt2
step "training encoders against PyTorch" 90 "$build/gpu_train_encoder" masked
if command -v compute-sanitizer >/dev/null; then
    step "memcheck" 120 compute-sanitizer --error-exitcode 9 "$build/ops_cases" test attention --device cuda
    step "racecheck" 120 compute-sanitizer --tool racecheck --error-exitcode 9 "$build/ops_cases" test norm --device cuda
fi
step "ops" 120 "$build/ops_cases" perf --device cuda
step "decode, bf16, context 128" 60 "$build/decode" --device cuda --context 128 1 8 32 64 256 1024
step "decode, bf16, context 512" 60 "$build/decode" --device cuda --context 512 1 8 32 64 256 1024
step "decode, bf16, penalties, context 512" 40 "$build/decode" --device cuda --penalties --context 512 1 64 256
step "decode, f32, context 512" 40 "$build/decode" --device cuda --dtype f32 --kv f32 --context 512 1 64
step "decode, int8, context 512" 40 "$build/decode" --device cuda --dtype int8 --context 512 1 64 256
step "decode, fp8, context 512" 40 "$build/decode" --device cuda --dtype fp8 --kv fp8 --context 512 1 64 256
step "train, bf16" 60 "$build/learn" train --device cuda --rows 16384 $peak
step "train, f32" 60 "$build/learn" train --device cuda --rows 8192 --dtype f32 $peak
step "encode, bf16" 60 "$build/learn" encode --device cuda --rows 65536
step "attention of training through cuDNN" 120 bench/peers/cudnn.sh "$build"
step "encode, bf16, 32 texts" 60 "$build/learn" encode --device cuda --rows 4096
step "graph networks, quotes, priorities, Q-learning" 60 "$build/networks" --device cuda
if python3 -c 'import torch; torch.zeros(1).cuda()' >/dev/null 2>&1; then
    step "PyTorch beside it" 150 python3 bench/peers/gpu.py
else
    say "" "== PyTorch beside it" "skipped: no PyTorch with a GPU here"
fi
rm -f "$base.step"

# the lines of all programs as JSON
# of_peak: the nearer of bf16 products and memory; of a decode turn, of the time that weights, cache and products take at least
awk -v name="$name" -v date="$(date +%F)" -v failed="${failed#, }" -v tflops="$tflops" -v gbs="$gbs" '
    function after(word,  i) { for (i = 1; i < NF; i++) if ($i == word) return $(i + 1); return "null" }
    function before(word,  i) { for (i = 2; i <= NF; i++) if ($i == word) return $(i - 1); return "null" }
    function part(tf, gb,  a, b) { if (!tflops || !gbs) return "null"; a = tf / tflops; b = gb / gbs; return sprintf("%.3f", a > b ? a : b) }
    function roof(batch, context, weights, cache, us,  w, k, a, b) {
        if (!tflops || !gbs) return "null"
        w = weights == "f32" ? 4 : weights == "bf16" ? 2 : weights == "int8" ? 1.0625 : 1
        k = cache == "f32" ? 4 : cache == "fp8" ? 1 : 2
        a = (123532032 * w + batch * context * 18432 * k) / gbs * 1e-3
        b = 2 * 123532032 * batch / tflops * 1e-6
        return sprintf("%.3f", (a > b ? a : b) / us)
    }
    BEGIN { printf "{\"device\": \"%s\", \"date\": \"%s\", \"peak_tflops\": %s, \"peak_gbs\": %s, \"failed\": \"%s\", \"ops\": [", name, date, tflops, gbs, failed }
    / GFLOP\/s / && / GB\/s/ {
        printf "%s\n  {\"case\": \"%s\", \"us\": %s, \"tflops\": %.3f, \"gbs\": %s, \"of_peak\": %s}", sep, $1, before("us"), before("GFLOP/s") / 1000, before("GB/s"),
            part(before("GFLOP/s") / 1000, before("GB/s")); sep = "," }
    /^decode / { d[++n] = sprintf("\n  {\"batch\": %s, \"context\": %s, \"weights\": \"%s\", \"cache\": \"%s\", \"penalties\": \"%s\", \"us\": %s, \"tokens_per_s\": %s, \"of_peak\": %s}",
        after("batch"), after("context"), after("weights"), after("cache"), after("penalties"), before("us"), before("tokens/s"),
        roof(after("batch"), after("context"), after("weights"), after("cache"), before("us"))) }
    /^train / { t[++m] = sprintf("\n  {\"rows\": %s, \"length\": %s, \"compute\": \"%s\", \"us\": %s, \"tokens_per_s\": %s, \"tflops\": %s, \"mfu\": %.3f}",
        after("rows"), after("length"), after("compute"), before("us"), before("tokens/s"), before("TFLOP/s"), before("%") / 100) }
    /^encode / { e[++k] = sprintf("\n  {\"texts\": %s, \"length\": %s, \"weights\": \"%s\", \"us\": %s, \"texts_per_s\": %s}",
        after("texts"), after("length"), after("weights"), before("us"), before("texts/s")) }
    /^(gnn|q|dqn|cartpole|acrobot|quote-[a-z]+) / { x[++y] = sprintf("\n  {\"what\": \"%s\", \"rate\": %s, \"unit\": \"%s\"}", $1, $(NF - 1), $NF) }
    /^torch / { p[++r] = sprintf("\n  {\"what\": \"%s\", \"us\": %s, \"rate\": %s, \"unit\": \"%s\"}", $2, before("us"), $(NF - 1), $NF) }
    function list(title, a, n,  i) { printf "],\n\"%s\": [", title; for (i = 1; i <= n; i++) printf "%s%s", a[i], i < n ? "," : "" }
    END { list("decode", d, n); list("train", t, m); list("encode", e, k); list("networks", x, y); list("peers", p, r); print "]}" }' "$log" >"$base.json"

say "" "$(grep -E '^(decode|train|encode|gnn|q|dqn|cartpole|acrobot|quote-[a-z]+|torch) ' "$log")" ""
if [ -n "$failed" ]; then say "failed: ${failed#, }"; else say "everything passed"; fi
echo "written: $log $base.json $results/ptx.txt"
[ -z "$failed" ]
