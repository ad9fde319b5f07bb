#!/bin/sh
# gpu.sh - everything that only a machine with a GPU can tell, in about ten minutes.
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
# tokens/s at batch 1, 8, 32, 64, 256 and 1024; training tokens/s and MFU; encoder texts/s; graph
# networks, Q-learning and decisions/s.  A step that fails is told and the rest goes on; the exit status says whether any did.
# Writes bench/results/gpu-NAME-DATE.txt and .json (to $OUT when it is set).
set -u
here=$(cd "$(dirname "$0")/.." && pwd)
build=${BUILD:-$here/build-gpu}
binaries="ops_cases decode learn networks gpu_decoder gpu_generate gpu_train gpu_train_encoder gpu_encoder gpu_generate_ahead gpu_fused_ops gpu_cuda_learn gpu_ptx"
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
*) sed -n '2,19p' "$0"; exit 2 ;;
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
step "PTX wrappers" 30 "$build/gpu_ptx" "$results/ptx.txt"
step "decoders against transformers" 90 "$build/gpu_decoder"
step "encoders against transformers" 60 "$build/gpu_encoder" numbers
step "generation in any company" 90 "$build/gpu_generate"
step "a turn ahead of the device changes nothing" 60 "$build/gpu_generate_ahead"
step "fused ops have the bits of their parts" 30 "$build/gpu_fused_ops"
step "graph networks and Q-learning beside the CPU" 60 "$build/gpu_cuda_learn"
step "training against PyTorch" 90 "$build/gpu_train" gpt2
step "training encoders against PyTorch" 90 "$build/gpu_train_encoder" masked
if command -v compute-sanitizer >/dev/null; then
    step "memcheck" 120 compute-sanitizer --error-exitcode 9 "$build/ops_cases" test attention --device cuda
    step "racecheck" 120 compute-sanitizer --tool racecheck --error-exitcode 9 "$build/ops_cases" test norm --device cuda
fi
step "ops" 120 "$build/ops_cases" perf --device cuda
step "decode, bf16, context 128" 60 "$build/decode" --device cuda --context 128 1 8 32 64 256 1024
step "decode, bf16, context 512" 60 "$build/decode" --device cuda --context 512 1 8 32 64 256 1024
step "decode, f32, context 512" 40 "$build/decode" --device cuda --dtype f32 --kv f32 --context 512 1 64
step "decode, int8, context 512" 40 "$build/decode" --device cuda --dtype int8 --context 512 1 64 256
step "decode, fp8, context 512" 40 "$build/decode" --device cuda --dtype fp8 --kv fp8 --context 512 1 64 256
step "train, bf16" 60 "$build/learn" train --device cuda --rows 16384
step "train, f32" 60 "$build/learn" train --device cuda --rows 8192 --dtype f32
step "encode, bf16" 60 "$build/learn" encode --device cuda --rows 65536
step "attention of training through cuDNN" 120 bench/peers/cudnn.sh "$build"
step "encode, bf16, 32 texts" 60 "$build/learn" encode --device cuda --rows 4096
step "graph networks, quotes, Q-learning" 60 "$build/networks" --device cuda
if python3 -c 'import torch; torch.zeros(1).cuda()' >/dev/null 2>&1; then
    step "PyTorch beside it" 150 python3 bench/peers/gpu.py
else
    say "" "== PyTorch beside it" "skipped: no PyTorch with a GPU here"
fi
rm -f "$base.step"

# the lines of all programs as JSON
awk -v name="$name" -v date="$(date +%F)" -v failed="${failed#, }" '
    function after(word,  i) { for (i = 1; i < NF; i++) if ($i == word) return $(i + 1); return "null" }
    function before(word,  i) { for (i = 2; i <= NF; i++) if ($i == word) return $(i - 1); return "null" }
    BEGIN { printf "{\"device\": \"%s\", \"date\": \"%s\", \"failed\": \"%s\", \"ops\": [", name, date, failed }
    / GFLOP\/s / && / GB\/s/ {
        printf "%s\n  {\"case\": \"%s\", \"us\": %s, \"tflops\": %.3f, \"gbs\": %s}", sep, $1, before("us"), before("GFLOP/s") / 1000, before("GB/s"); sep = "," }
    /^decode / { d[++n] = sprintf("\n  {\"batch\": %s, \"context\": %s, \"weights\": \"%s\", \"cache\": \"%s\", \"us\": %s, \"tokens_per_s\": %s}",
        after("batch"), after("context"), after("weights"), after("cache"), before("us"), before("tokens/s")) }
    /^train / { t[++m] = sprintf("\n  {\"rows\": %s, \"length\": %s, \"compute\": \"%s\", \"us\": %s, \"tokens_per_s\": %s, \"tflops\": %s, \"mfu\": %.3f}",
        after("rows"), after("length"), after("compute"), before("us"), before("tokens/s"), before("TFLOP/s"), before("%") / 100) }
    /^encode / { e[++k] = sprintf("\n  {\"texts\": %s, \"length\": %s, \"weights\": \"%s\", \"us\": %s, \"texts_per_s\": %s}",
        after("texts"), after("length"), after("weights"), before("us"), before("texts/s")) }
    /^(gnn|q|dqn|cartpole|acrobot) / { x[++y] = sprintf("\n  {\"what\": \"%s\", \"rate\": %s, \"unit\": \"%s\"}", $1, $(NF - 1), $NF) }
    /^torch / { p[++r] = sprintf("\n  {\"what\": \"%s\", \"us\": %s, \"rate\": %s, \"unit\": \"%s\"}", $2, before("us"), $(NF - 1), $NF) }
    function list(title, a, n,  i) { printf "],\n\"%s\": [", title; for (i = 1; i <= n; i++) printf "%s%s", a[i], i < n ? "," : "" }
    END { list("decode", d, n); list("train", t, m); list("encode", e, k); list("networks", x, y); list("peers", p, r); print "]}" }' "$log" >"$base.json"

say "" "$(grep -E '^(decode|train|encode|gnn|q|dqn|cartpole|acrobot|torch) ' "$log")" ""
if [ -n "$failed" ]; then say "failed: ${failed#, }"; else say "everything passed"; fi
echo "written: $log $base.json $results/ptx.txt"
[ -z "$failed" ]
