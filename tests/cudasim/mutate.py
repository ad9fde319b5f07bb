#!/usr/bin/env python3
"""mutate.py BUILD_DIR [-o TABLE] [FILTER] - do the tests notice a bug?

Plants one bug at a time in a copy of a .cu file, compiles it as each build of the
simulator does (compile_commands.json of BUILD_DIR, where test_cuda_ops_plain,
_asan and _check are built), links, runs the tests of its ops, and says who
noticed.  The .cu files themselves are never touched.  Exits 1 when fewer than
`WANTED` of the mutants are killed, or one cannot be planted any more."""
import json
import os
import re
import shlex
import subprocess
import sys

BUILDS = ["plain", "asan", "check"]
WANTED = 30

# file, the line (once in the file, or the n-th of several), what becomes of it, what kind of bug, ops whose cases run
MUTANTS = [
    ("common", 0, "    if (vec && i + 4 <= n) return *(const float4 *)(p + i);", "    if (vec) return *(const float4 *)(p + i);", "vector read past the end of a row", "norm"),
    ("common", 0, "for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(MX_FULL, v, o);", "for (int o = 16; o > 1; o >>= 1) v += __shfl_xor_sync(MX_FULL, v, o);", "reduction one step short", "norm"),
    ("common", 0, "    __syncthreads();\n    float sum = 0;", "    float sum = 0;", "no barrier before a block's parts are read", "norm"),
    ("common", 0, "    for (unsigned w = 1; w < blockDim.x / 32; w++) most", "    for (unsigned w = 1; w < blockDim.x / 32 - 1; w++) most", "last warp forgotten in a maximum", "sample"),
    ("common", 0, "(mag + 0x7ffffu + (mag >> 20 & 1u)) >> 20", "(mag + 0x80000u) >> 20", "fp8 halves not rounded to even", "FP8"),
    ("common", 0, "mag < 0x3c800000u ? small", "mag < 0x3c000000u ? small", "small fp8 numbers", "FP8"),
    ("common", 0, "return (double)(((uint64_t)w.x << 32 | w.y) >> 11)", "return (double)(((uint64_t)w.y << 32 | w.x) >> 11)", "words of a random number in the other order", "world_step"),
    ("norm", 0, "b = i + 1 < n ? v.y - mean : 0", "b = v.y - mean", "elements past the end counted", "norm"),
    ("norm", 0, "MX_EACH_FOUR(i, y.cols) {", "MX_EACH_FOUR(i, y.cols - 1) {", "last column forgotten", "add"),
    ("norm", 0, "    for (int64_t i = 4 * (int64_t)threadIdx.x; i < n; i += 4 * (int64_t)blockDim.x) {\n        float4 p", "    for (int64_t i = 4 * (int64_t)(blockDim.x - 1 - threadIdx.x); i < n; i += 4 * (int64_t)blockDim.x) {\n        float4 p", "sums read again by other threads than wrote them", "add_norm"),
    ("norm", 0, "p.z + q.z, p.w + q.w)", "p.z + q.z, p.w)", "last of four not added", "add_norm"),
    ("norm", 0, "    gains[ty][tx] = gain;\n    biases[ty][tx] = bias;\n    __syncthreads();", "    gains[ty][tx] = gain;\n    biases[ty][tx] = bias;", "no barrier before sums are added", "norm_back"),
    ("norm", 0, "r < last && c < a.x.cols; r += 8", "r < last; r += 8", "missing bound on columns", "norm_back"),
    ("embed", 0, "if (id < 0 || id >= table.rows) {", "if (id < 0 || id > table.rows) {", "bound of a table off by one", "FAULTS"),
    ("rope", 0, "v.y * a.c + v.x * a.s", "v.y * a.c - v.x * a.s", "wrong sign", "rope"),
    ("rope", 0, "to + g * pitch + w, y.y);", "to + g * pitch + u, y.y);", "both of a pair in one place", "rope_kv_write"),
    ("rope", 0, "e < a.kv.kv_heads * fours;", "e < a.kv.kv_heads * fours - 1;", "last values of a row forgotten", "rope_kv_write"),
    ("rope", 0, "slot % a.kv.page_tokens) * d : 0;", "slot % a.kv.page_tokens + 1) * d : 0;", "next slot written", "rope_kv_write"),
    ("embed", 0, "        if (mine) same[at] = (int32_t)r;\n        __syncthreads();", "        if (mine) same[at] = (int32_t)r;", "no barrier after a list is made", "embed_back"),
    ("embed", 0, "    if (__syncthreads_or(earlier)) return;", "    if (earlier) return;", "threads leave before a barrier", "embed_back"),
    ("attention", 0, "s->place[warp][lane] = t >= lo && t < hi ?", "s->place[warp][lane] = t >= lo && t <= hi ?", "position past the end read", "attention_paged"),
    ("attention", 0, "        s->place[warp][lane] = t >= lo && t < hi ? place_of(a, seq, group, t, row) : -1;\n        __syncwarp();", "        s->place[warp][lane] = t >= lo && t < hi ? place_of(a, seq, group, t, row) : -1;", "no __syncwarp after places are written", "attention_paged"),
    ("attention", 0, "        __syncwarp();\n        take_values", "        take_values", "no __syncwarp before weights are read", "attention_paged"),
    ("attention", 0, "        __syncwarp();                   /* the keys are read", "        /* the keys are read", "no __syncwarp before keys are overwritten", "attention_paged"),
    ("attention", 0, "        __pipeline_wait_prior(0);", "        __pipeline_wait_prior(1);", "wait for cp.async too weak", "attention_paged"),
    ("attention", 0, "        __syncthreads();                /* nobody reads keys any more */", "", "no barrier before keys become parts", "attention_paged"),
    ("attention", 0, "        __syncthreads();\n        fold_warps", "        fold_warps", "no barrier before parts are folded", "attention_paged"),
    ("attention", 0, "        __syncthreads();                /* the parts are read */", "", "no barrier before parts are overwritten", "attention_paged"),
    ("attention", 0, "return SLICE * (int)sizeof(T) + 16;", "return SLICE * (int)sizeof(T) - 16;", "rows of shared memory overlap", "attention_paged"),
    ("attention", 0, "*end = position + 1;", "*end = position;", "a row does not see itself", "attention_paged"),
    ("attention", 0, "float x = t >= s->begin[i] && t < s->end[i] ?", "float x = t >= s->begin[i] ?", "mask without an end", "attention_paged"),
    ("attention", 0, "for (int split = begin / SPLIT; split * SPLIT < end; split++) {", "for (int split = begin / SPLIT; split * SPLIT <= end; split++) {", "one split too many", "attention_paged INVARIANT"),
    ("attention", 0, "int64_t from = place[t];", "int64_t from = place[lane];", "wrong index", "attention_paged"),
    ("attention", 0, "u >>= sizeof(T) == 1 ? 8 : 16;", "u >>= 16;", "second of two bytes lost", "attention_paged"),
    ("attention", 0, "bytes % 2 ? 1 : 2)", "bytes % 2 ? 2 : 2)", "an odd page copied by pairs", "kv_copy"),
    ("attention", 0, "bool apart = a.splits > 1 &&", "bool apart = a.q.rows < 2 && a.splits > 1 &&", "(equivalent: only how work is cut)", "attention_paged INVARIANT"),
    ("attention_learn", 0, "            bring(v, a.pitch, a.v, t0, min(t0 + TILE, w.y), group * a.d, a.d);\n            __syncthreads();\n            float s[4], most = m;", "            bring(v, a.pitch, a.v, t0, min(t0 + TILE, w.y), group * a.d, a.d);\n            float s[4], most = m;", "no barrier after a tile is brought", "attention"),
    ("attention_learn", 0, "            float s[4], dp[4];\n            dots(q", "            __syncwarp(0x0000ffffu);\n            float s[4], dp[4];\n            dots(q", "warp call with a mask that lacks callers", "attention_back"),
    ("attention_learn", 0, "bool sees = here && row >= side->seen[t].x && row < side->seen[t].y;", "bool sees = here && row >= side->seen[t].x;", "a key seen by queries before it", "attention_back"),
    ("attention_learn", 0, "                if (threadIdx.x < TILE) {", "                if (threadIdx.x < TILE - 1) {", "last of a tile not written", "attention_back"),
    ("attention_learn", 0, "float *q = shared, *k = q + TILE * a.pitch, *v = k + TILE * a.pitch, *p = v", "float *q = shared, *k = q + TILE * a.pitch, *v = k + (TILE - 1) * a.pitch, *p = v", "shared arrays overlap by a row", "attention"),
    ("attention_mma", 0, "mx_ldmatrix_x4(a, rows + lane % 16 *", "mx_ldmatrix_x4(a, rows + lane % 8 *", "wrong row of a fragment", "attention"),
    ("attention_mma", 0, "bool in = first + i < end;", "bool in = first + i <= end;", "row past the end of a tile read", "attention"),
    ("attention_mma", 0, "__pipeline_wait_prior(1);", "__pipeline_wait_prior(2);", "wait for cp.async too weak", "attention"),
    ("attention_mma", 0, "        __syncthreads();                /* the tile is read: another may come */", "", "no barrier before a tile is overwritten", "attention"),
    ("attention_mma", 0, "int end = min(mine[u].y, stop);", "int end = min(mine[u].y, stop + ROWS);", "keys of the next sequence's tile counted", "attention"),
    ("attention_mma", 0, "    return fmaxf(v, __shfl_xor_sync(MX_FULL, v, 2));", "    return v;", "maximum over half the lanes of a row", "attention"),
    ("attention_mma", 0, "w->t = first + (from - first) / ROWS * ROWS;", "w->t = first + (from - first) / ROWS * ROWS + 1;", "first key of a tile forgotten", "attention"),
    ("attention_mma", 0, "w->end - 1 + a.a.window);", "w->end - 2 + a.a.window);", "last query of a window forgotten", "attention_back"),
    ("attention_mma", 0, "side + (stage ^ 1));", "side + stage);", "sides of two tiles in one place", "attention_back"),
    ("cudnn_plan", 0, "strides[4] = {n * row, wide, row, 1};\n    int64_t dims_t", "strides[4] = {n * row, row, wide, 1};\n    int64_t dims_t", "strides of heads and rows swapped", "attention,attention_back"),
    ("cudnn_plan", 0, "strides_t[4] = {n * row, wide, 1, row};", "strides_t[4] = {n * row, wide, row, 1};", "keys not turned", "attention,attention_back"),
    ("cudnn_plan", 0, "strides[4] = {g->s->longest * h, 1, h, 1};", "strides[4] = {g->s->longest * h, h, 1, 1};", "sums of rows by heads", "attention,attention_back"),
    ("cudnn_plan", 0, "link_to(g, op, DN_A_OP_MATMUL_K, k);", "link_to(g, op, DN_A_OP_MATMUL_K, k ? NULL : k);", "rows that a sequence has not multiplied", "attention,attention_back"),
    ("cudnn_plan", 0, "value(g, DN_LOWEST_PAD), both, scores", "value(g, DN_LOWEST_PAD), both ? a : b, scores", "keys that a sequence has not seen", "attention,attention_back"),
    ("cudnn_plan", 0, "DN_GE, DN_BOOLEAN, -1, row, key,", "DN_GE, DN_BOOLEAN, -1, key, row,", "the future seen instead of the past", "attention,attention_back"),
    ("cudnn_plan", 0, "    ds = with(g, DN_MUL, ds, scale, scores(g, DN_FLOAT));\n", "", "gradients of scores not scaled", "attention,attention_back"),
    ("cudnn_plan", 0, "with(g, DN_SUB, dp, delta, scores(g, DN_FLOAT))", "with(g, DN_ADD, dp, delta, scores(g, DN_FLOAT))", "delta not subtracted", "attention,attention_back"),
    ("cudnn_plan", 0, "product(g, ds, k, heads(g, DN_DQ, a->heads, o.at_q, false), o.rows, NULL, o.keys);", "product(g, ds, k, heads(g, DN_DQ, a->heads, o.at_k, false), o.rows, NULL, o.keys);", "dq where keys begin", "attention,attention_back"),
    ("cudnn_plan", 0, "link_to(g, d, DN_A_TENSOR_RAGGED, ragged);", "link_to(g, d, DN_A_TENSOR_RAGGED, ragged ? NULL : ragged);", "sequences at equal distances", "attention,attention_back"),
    ("cudnn_attention", 0, "p.at_k[i] = from * k", "p.at_k[i] = from * max(q, k)", "beginnings of keys counted in heads of queries", "attention,attention_back"),
    ("cudnn_attention", 0, "p.length[i] = to - from;", "p.length[i] = to - from + 1;", "a row of the next sequence", "attention,attention_back"),
    ("cudnn_attention", 0, "from + (r * heads + h) * wide", "from + (r * heads + h) * d", "rows narrower than they are", "attention,attention_back"),
    ("cudnn_attention", 0, "p->space = piece(base, &used, (size_t)c->plan.workspace);", "p->space = p->lse;", "workspace over what is read", "attention,attention_back"),
    ("cudnn_attention", 0, "at[DN_DK] = p.dk, at[DN_DV] = p.dv", "at[DN_DK] = p.dv, at[DN_DV] = p.dk", "dk and dv exchanged", "attention,attention_back"),
    ("cudnn_attention", 0, "c->uses = theirs < ours;", "c->uses = theirs > ours;", "the slower way kept", "attention,attention_back"),
    ("attention_mma", 0, "__host__ __device__ constexpr int tile_pitch() { return DP + 8; }", "__host__ __device__ constexpr int tile_pitch() { return DP + 4; }", "rows of shared memory not aligned to 16 bytes", "attention"),
    ("linear", 0, "bool in = r0 + i < rows;", "bool in = r0 + i <= rows;", "row past the end read", "linear"),
    ("linear", 0, "        __pipeline_wait_prior(1);", "        __pipeline_wait_prior(2);", "wait for cp.async too weak", "linear"),
    ("linear", 0, "        __pipeline_wait_prior(1);\n        __syncthreads();", "        __pipeline_wait_prior(1);", "no barrier after a stage arrived", "linear"),
    ("linear", 0, "mx_mma_s8(sum[i][j], fx[i], fw[j], sum[i][j]);\n        }\n        __syncthreads();", "mx_mma_s8(sum[i][j], fx[i], fw[j], sum[i][j]);\n        }", "no barrier before a stage is overwritten", "linear"),
    ("linear", 0, "+ g + e % 2 * 8) * I8_PITCH", "+ g + e / 2 * 8) * I8_PITCH", "fragment rows mixed up", "linear"),
    ("linear", 0, "if (r < a.y.rows && o < a.y.cols) int8_finish", "if (r < a.y.rows) int8_finish", "missing bound on columns", "linear"),
    ("linear", 0, "k + t + e * 8);", "k + t + e * 4);", "wrong bytes of a fragment", "linear"),
    ("linear", 0, "        __pipeline_wait_prior(1);\n        __syncthreads();\n#pragma unroll\n        for (int k = 0; k < F8_STEP", "        __pipeline_wait_prior(1);\n#pragma unroll\n        for (int k = 0; k < F8_STEP", "no barrier after a stage of fp8 arrived", "linear"),
    ("linear", 0, "c = j % pieces;\n        bool in = r0 + i < rows;", "c = j % pieces;\n        bool in = r0 + i <= rows;", "rows of fp8 past the end read", "linear"),
    ("linear", 0, "for (int e = 0; e < LT_EPILOGUES && w->lt; e++)", "for (int e = 0; e < 1 && w->lt; e++)", "algorithms that were never chosen", "linear"),
    ("sample", 0, "            atomicAdd(&h->mass[b], mass_of(key, w.max));", "            h->mass[b] += mass_of(key, w.max);", "sum without an atomic", "sample"),
    ("sample", 0, "h->mass[b] = 0, h->count[b] = 0;\n        __syncthreads();", "h->mass[b] = 0, h->count[b] = 0;", "no barrier after clearing", "sample"),
    ("sample", 0, "at = before + (unsigned)__popc(lanes & ((2u << threadIdx.x % 32) - 1));", "at = before + (unsigned)__popc(lanes & ((1u << threadIdx.x % 32) - 1));", "off by one among equals", "sample"),
    ("sample", 0, "        if (before + own > limit) break;", "        if (before + own >= limit) break;", "limit off by one", "sample"),
    ("sample", 0, "        if (j < i) continue;\n        float sum = x[id];", "        float sum = x[id];", "two threads write one logit", "logits_process"),
    ("sample", 0, "bool fresh = !__syncthreads_or(again) && id >= 0", "bool fresh = !again && id >= 0", "a seen token counted as new by those who did not see it", "sample"),
    ("sample", 0, "    if (threadIdx.x) return;\n    if (fresh) {", "    if (fresh) {", "every thread moves the seat on", "sample"),
    ("sample", 0, "        counts[i]++;\n", "", "a token seen again not counted", "sample"),
    ("sample", 0, "n >= 0 && n < t.seen_most;", "n >= 0;", "a list longer than its room", "sample"),
    ("sample", 0, "&& id >= 0 && n >= 0", "&& n >= 0", "a choice of nothing put into the list", "sample"),
    ("sample", 0, "int64_t first = (int64_t)o.seat * t.seen_most;", "int64_t first = r * t.seen_most;", "the list of another seat", "logits_process"),
    ("seat", 0, "if (r < a.ids.rows)", "if (r <= a.ids.rows)", "a row past the end", "seat_rows"),
    ("seat", 0, "if (r < a.choices.rows)", "if (r <= a.choices.rows)", "a choice past the end", "seat_rows"),
    ("seat", 0, "q->last > 0 ? q->last : 0;", "q->last;", "a choice of nothing fed on", "seat_rows"),
    ("seat", 0, "row[2] : q->length - 1;", "row[2] : q->length;", "the newest id one place too far", "seat_rows"),
    ("seat", 0, "if (row[3] >= 0) *listed = row[3];", "", "a new page forgotten", "seat_rows"),
    ("seat", 0, "(unsigned)(q->length - q->prompt)", "(unsigned)q->length", "the random counter of another token", "seat_rows"),
    ("seat", 0, "(unsigned)pick[2], 0, 0);", "0, 0, 0);", "all candidates draw alike", "seat_rows"),
    ("seat", 0, "    bool there = seat >= 0 && seat < a.t.count;", "    bool there = seat >= 0 && seat <= a.t.count;", "a seat past the last", "FAULTS"),
    ("product", 0, "        __syncthreads();\n        for (int k = 0; k < 16; k++)", "        for (int k = 0; k < 16; k++)", "no barrier after tiles are brought", "product"),
    ("product", 0, "j0 + jb < out.cols && k0 + kb < k_all ?", "k0 + kb < k_all ?", "missing bound on columns", "product"),
    ("product", 0, "64 * p + 4 * tx + e % 4 < outs ? bias[64 * p + 4 * tx + e % 4] : 0.0f;", "bias[64 * p + 4 * tx + e % 4];", "biases past the end read", "perceptron"),
    ("product", 0, "mx_load4(mx_row(weight, o), k0 + k, ins, vec)", "mx_load4(mx_row(weight, o), k0 + k, ins + 4, vec)", "weights past the end of a row read", "perceptron"),
    ("product", 0, "        __syncthreads();\n#pragma unroll 4", "#pragma unroll 4", "no barrier after weights are brought", "perceptron"),
    ("product", 0, "                }\n        }\n        __syncthreads();\n    }\n}", "                }\n        }\n    }\n}", "no barrier before weights are overwritten", "perceptron"),
    ("product", 0, "= mx_activated(sum[p][e / 4][e % 4], act);\n        __syncthreads();", "= mx_activated(sum[p][e / 4][e % 4], act);", "no barrier between two layers", "perceptron"),
    ("product", 0, "rows[r * pitch + c] = first + r < x.rows ? mx_row(x, first + r)[c] : 0.0f;", "rows[r * pitch + c] = mx_row(x, first + r)[c];", "rows past the end read", "perceptron"),
    ("product", 0, "        if (first + r >= y.rows) break;", "", "rows past the end written", "perceptron"),
    ("product", 0, "layer + 1 < n.layers ? n.act", "layer + 2 < n.layers ? n.act", "a layer without its activation", "perceptron"),
    ("pair", 0, "for (int64_t c = threadIdx.x % 32; c < n; c += 32) sum += x[c] * y[c];", "for (int64_t c = threadIdx.x % 32; c + 1 < n; c += 32) sum += x[c] * y[c];", "last channel forgotten", "dot"),
    ("pair", 0, "p.b.rows == 1 ? 0 : r) + h * p.d, p.d);", "p.b.rows == 1 ? 0 : r), p.d);", "every head reads the first", "dot"),
    ("pair", 0, "float k = fmaxf(sqrtf(dot(x, x, p.a.cols)), p.eps);", "float k = sqrtf(dot(x, x, p.a.cols));", "a row of zeros divided by zero", "unit_rows"),
    ("pair", 0, "longer ? g / square / length : 0.0f;", "g / square / length;", "slope of a row that is too short", "unit_rows_back"),
    ("pair", 0, "last = min(first + SEGMENT, p.a.rows);", "last = first + SEGMENT;", "segment past the last row", "dot_back"),
    ("pair", 0, "bool counts = t >= 0;", "bool counts = true;", "targets that do not count counted", "logistic"),
    ("pair", 0, "if (threadIdx.x % 32 == 0) *mx_row(p.y, r) = (float)sum;", "*mx_row(p.y, r) = (float)sum;", "every lane writes the loss", "logistic"),
    ("world", 0, "    if (r >= a.state.rows) return;", "    if (r > a.state.rows) return;", "a world past the end", "world_step"),
    ("world", 0, "a.limit && step >= a.limit ? 2 : 0;", "a.limit && step > a.limit ? 2 : 0;", "cut off a step late", "world_step"),
    ("world", 0, "        episode++;\n", "", "the same beginning again", "world_step"),
    ("world", 0, "        step = 0;\n", "", "steps counted on", "world_step"),
    ("world", 0, "(unsigned)episode, 0, k);", "(unsigned)episode, 0, 0);", "one draw for all four", "world_step"),
    ("world", 0, "    mx_world_see(a.w, mx_row(a.next, r), s);\n    if (ended) {", "    if (ended) {", "what followed is not told", "world_step"),
    ("optim", 0, "last = min(first + RUN, x.cols);", "last = first + RUN;", "part past the end of a row", "sum"),
    ("loss", 0, "    __syncthreads();                    /* x[t] is read */", "", "no barrier before logits become gradients", "cross_entropy"),
    ("loss", 0, "if (t >= i && t < i + 4) e[t - i] -= scale;", "if (t > i && t < i + 4) e[t - i] -= scale;", "target in the first of four forgotten", "cross_entropy"),
]


def commands(build_dir, build, source):
    """How `source` is compiled in this build, and how test_cuda_ops of the build is linked."""
    entries = json.load(open(os.path.join(build_dir, "compile_commands.json")))
    own = [e for e in entries if e["file"].endswith(source) and f"cudasim_kernels_{build}.dir" in e["command"]]
    linked = subprocess.run(["ninja", "-C", build_dir, "-t", "commands", f"tests/cudasim/test_cuda_ops_{build}"],
                            capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1]
    return own[0]["command"], linked



def plant(root, mutant):
    """The mutated text of the file, or None when the line is not there (once)."""
    name, _, old, new, _, _ = mutant
    path = os.path.join(root, "kernels/cuda", "common.cuh" if name == "common" else name + ".cu")
    text = open(path).read()
    if text.count(old) < 1:
        return None, 0
    at = text.index(old)
    return text[:at] + new + text[at + len(old):], text.count("\n", 0, at) + 1


def verdict(r):
    text = r.stdout + r.stderr
    for pattern, word in [(r"RACE", "race"), (r"OUT OF BOUNDS", "bounds"), (r"never written", "uninitialised"), (r"AddressSanitizer: ([a-z-]+)", "asan"),
                          (r"runtime error", "ubsan"), (r"divergent", "divergent"), (r"never completes|is not in its mask|with mask", "warp"),
                          (r"HOST POINTER|host variable", "pointer"), (r"misaligned", "misaligned")]:
        if re.search(pattern, text):
            return word
    return "result" if r.returncode > 0 else "crash"


def run_build(build_dir, root, build, mutant, work):
    name, _, _, _, _, ops = mutant
    text, _ = plant(root, mutant)
    if name == "common":                                   # a header: its copy comes first, compiled into the file of the op
        source = {"norm": "norm.cu", "sample": "sample.cu", "FP8": "attention.cu", "world_step": "world.cu"}[ops]
        os.makedirs(f"{work}/kernels/cuda", exist_ok=True)
        open(f"{work}/kernels/cuda/common.cuh", "w").write(text)
        body = open(os.path.join(root, "kernels/cuda", source)).read()
    else:
        source, body = name + ".cu", text
        if os.path.exists(f"{work}/kernels/cuda/common.cuh"):
            os.remove(f"{work}/kernels/cuda/common.cuh")
    open(f"{work}/{source}", "w").write(body)
    compile_line, link_line = commands(build_dir, build, "kernels/cuda/" + source)
    args = shlex.split(compile_line)
    out = args[args.index("-o") + 1]
    args[args.index("-o") + 1] = f"{work}/mutant.o"
    args[args.index("-c") + 1] = f"{work}/{source}"
    args.insert(1, f"-I{work}")
    if subprocess.run(args, cwd=build_dir, capture_output=True).returncode:
        return "compile"
    link = link_line.replace(" " + out + " ", f" {work}/mutant.o ", 1)
    link = re.sub(r"-o tests/cudasim/test_cuda_ops_\w+", f"-o {work}/test", link)
    subprocess.run(link, shell=True, cwd=build_dir, check=True, capture_output=True)
    tests = ["cases_hold", "products_hold", "nothing_past"]
    if name.startswith("cudnn"):
        tests = ["attention_holds_through_cudnn"]
    if "INVARIANT" in ops:
        tests.append("attention_does")
    if ops == "FAULTS":
        tests = ["outside"]
    if ops == "FP8":
        tests = ["fp8_rounds"]
    env = dict(os.environ, MX_TEST_CASES=ops, UBSAN_OPTIONS="halt_on_error=1")
    for t in tests:
        try:
            r = subprocess.run([f"{work}/test", t], capture_output=True, text=True, env=env, timeout=120, errors="replace")
        except subprocess.TimeoutExpired:
            return "timeout"
        if r.returncode and ", 0 failed" not in r.stdout:
            return verdict(r)
    return "-"


def main():
    args = sys.argv[1:]
    table = args[args.index("-o") + 1] if "-o" in args else None
    if table:
        del args[args.index("-o"):args.index("-o") + 2]
    build_dir, wanted = os.path.abspath(args[0]), args[1] if len(args) > 1 else ""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    work = os.path.join(build_dir, "mutants")
    os.makedirs(work, exist_ok=True)
    rows, killed, lost = [], {b: 0 for b in BUILDS}, 0
    equivalent = 0
    for m in MUTANTS:
        if wanted and wanted not in m[0] + m[4]:
            continue
        text, line = plant(root, m)
        if text is None:
            print(f"{m[0]}: \"{m[2][:60]}\" is not there any more", flush=True)
            lost += 1
            continue
        found = {b: run_build(build_dir, root, b, m, work) for b in BUILDS}
        dead = any(v not in ("-", "compile") for v in found.values())
        equivalent += m[4].startswith("(equivalent")
        for b in BUILDS:
            killed[b] += found[b] not in ("-", "compile")
        file = "common.cuh" if m[0] == "common" else m[0] + ".cu"
        rows.append((f"{file}:{line}", m[4], found, dead))
        print(f"{file}:{line}".ljust(26), m[4].ljust(50), *(found[b].ljust(14) for b in BUILDS), "" if dead else "SURVIVES", flush=True)
    dead = sum(r[3] for r in rows)
    summary = f"{dead} of {len(rows)} mutants killed ({equivalent} are equivalent); by build: " + ", ".join(f"{b} {killed[b]}" for b in BUILDS)
    print(summary)
    if table:
        with open(table, "w") as f:
            f.write("# Planted bugs in the CUDA kernels, and who notices\n\n`tests/cudasim/mutate.py BUILD_DIR -o FILE` wrote this table.\n\n" + summary + ".\n\n")
            f.write("| where | bug | plain | ASan + UBSan | checker |\n|---|---|---|---|---|\n")
            for where, what, found, ok in rows:
                f.write(f"| {where} | {what} | " + " | ".join(found[b] for b in BUILDS) + " |" + ("" if ok else " survives") + "\n")
    return lost > 0 or (not wanted and dead < WANTED)


if __name__ == "__main__":
    sys.exit(main())
