/* cases_table.c - the lines.  Prime sizes: nothing divides them, so every tail runs. */
#include "tests/cases.h"

#define LINEAR(N, C, O, ...) {.op = "linear", .n = N, .c = C, .o = O, __VA_ARGS__}
#define ATTENTION(N, H, G, D, PAGE, CONTEXT, ...) \
    {.op = "attention_paged", .n = N, .heads = H, .groups = G, .c = D, .page = PAGE, .context = CONTEXT, __VA_ARGS__}
/* one shape, decode and prefill batches, three kinds of weights */
#define LINEAR_PERF(C, O)                                                                       \
    LINEAR(1, C, O, .perf = true), LINEAR(8, C, O, .perf = true), LINEAR(32, C, O, .perf = true), \
    LINEAR(256, C, O, .perf = true),                                                            \
    LINEAR(1, C, O, .perf = true, .type = MX_BF16), LINEAR(8, C, O, .perf = true, .type = MX_BF16), \
    LINEAR(32, C, O, .perf = true, .type = MX_BF16), LINEAR(256, C, O, .perf = true, .type = MX_BF16), \
    LINEAR(1, C, O, .perf = true, .type = MX_I8), LINEAR(8, C, O, .perf = true, .type = MX_I8), \
    LINEAR(32, C, O, .perf = true, .type = MX_I8), LINEAR(256, C, O, .perf = true, .type = MX_I8)

const mx_case mx_cases[] = {
    {.op = "embed", .n = 13, .c = 67, .o = 31},
    {.op = "embed", .n = 1, .c = 7, .o = 2, .add = true},
    {.op = "embed", .n = 17, .c = 64, .o = 5, .type = MX_F16, .add = true},
    {.op = "embed", .n = 7, .c = 129, .o = 11, .type = MX_BF16},

    LINEAR(1, 1, 1),
    LINEAR(1, 67, 131, .bias = true),
    LINEAR(2, 768, 193),
    LINEAR(3, 17, 67, .add = true, .bias = true),
    LINEAR(5, 129, 257, .act = MX_ACT_GELU_TANH, .bias = true),
    LINEAR(7, 64, 64, .act = MX_ACT_SILU),
    LINEAR(13, 31, 521, .act = MX_ACT_GELU_ERF),
    LINEAR(53, 577, 67, .act = MX_ACT_RELU, .bias = true),
    LINEAR(101, 211, 307, .add = true),
    LINEAR(1, 67, 131, .type = MX_BF16, .bias = true),
    LINEAR(4, 1031, 71, .type = MX_BF16, .add = true),
    LINEAR(7, 5, 64, .type = MX_BF16, .act = MX_ACT_SILU),
    LINEAR(59, 331, 193, .type = MX_BF16),
    LINEAR(1, 67, 131, .type = MX_I8, .bias = true),
    LINEAR(6, 3, 67, .type = MX_I8),
    LINEAR(11, 1031, 71, .type = MX_I8, .add = true),
    LINEAR(61, 331, 193, .type = MX_I8, .act = MX_ACT_GELU_TANH),

    {.op = "norm", .n = 5, .c = 67, .bias = true},
    {.op = "norm", .n = 1, .c = 1, .bias = true},
    {.op = "norm", .n = 19, .c = 768},
    {.op = "norm", .n = 3, .c = 1031, .flag = true, .bias = true},
    {.op = "rms_norm", .n = 5, .c = 67},
    {.op = "rms_norm", .n = 1, .c = 3},
    {.op = "rms_norm", .n = 23, .c = 577, .flag = true},
    {.op = "add", .n = 7, .c = 71},
    {.op = "add", .n = 131, .c = 768, .flag = true},
    {.op = "activate", .n = 7, .c = 71, .act = MX_ACT_NONE},
    {.op = "activate", .n = 7, .c = 71, .act = MX_ACT_GELU_TANH},
    {.op = "activate", .n = 11, .c = 257, .act = MX_ACT_GELU_ERF, .flag = true},
    {.op = "activate", .n = 3, .c = 1031, .act = MX_ACT_SILU},
    {.op = "activate", .n = 1, .c = 17, .act = MX_ACT_RELU},
    {.op = "gated", .n = 7, .c = 71, .act = MX_ACT_SILU},
    {.op = "gated", .n = 37, .c = 1536, .act = MX_ACT_SILU},
    {.op = "gated", .n = 1, .c = 5, .act = MX_ACT_GELU_TANH},

    {.op = "rope", .n = 7, .heads = 3, .c = 64},
    {.op = "rope", .n = 1, .heads = 1, .c = 2},
    {.op = "rope", .n = 11, .heads = 5, .c = 22, .flag = true},
    {.op = "rope", .n = 5, .heads = 2, .c = 258, .add = true},

    {.op = "kv_write", .n = 7, .groups = 3, .c = 13, .page = 5},
    {.op = "kv_write", .n = 31, .groups = 2, .c = 64, .page = 16, .type = MX_F16},
    {.op = "kv_write", .n = 1, .groups = 1, .c = 7, .page = 1, .type = MX_BF16},
    {.op = "kv_copy", .n = 3, .groups = 3, .c = 13, .page = 5},
    {.op = "kv_copy", .n = 1, .groups = 2, .c = 64, .page = 16, .type = MX_F16},
    {.op = "kv_copy", .n = 2, .groups = 1, .c = 5, .page = 3, .type = MX_BF16},

    ATTENTION(1, 1, 1, 1, 1, 1),
    ATTENTION(5, 3, 3, 13, 7, 23),
    ATTENTION(7, 9, 3, 64, 16, 131),
    ATTENTION(3, 4, 1, 67, 5, 61, .window = 11),
    ATTENTION(41, 6, 2, 64, 16, 53, .flag = true),
    ATTENTION(67, 2, 2, 80, 16, 67, .flag = true, .window = 29),
    ATTENTION(5, 4, 2, 128, 130, 307),
    ATTENTION(7, 6, 2, 64, 16, 97, .type = MX_F16),
    ATTENTION(37, 3, 1, 33, 16, 41, .type = MX_F16, .flag = true),
    ATTENTION(7, 6, 2, 64, 16, 97, .type = MX_BF16, .window = 33),
    ATTENTION(3, 2, 1, 17, 3, 29, .type = MX_BF16),

    {.op = "logits_process", .n = 5, .o = 131},
    {.op = "logits_process", .n = 1, .o = 7},
    {.op = "sample", .n = 67, .o = 521},
    {.op = "sample", .n = 41, .o = 7},
    {.op = "sample", .n = 31, .o = 10007},
    {.op = "logprobs", .n = 5, .o = 131, .c = 7},
    {.op = "logprobs", .n = 3, .o = 7, .c = 7},
    {.op = "logprobs", .n = 2, .o = 10007, .c = 20},

    /* ---- measured: GPT-2 124M, then SmolLM2-135M ---- */
    LINEAR_PERF(768, 2304), LINEAR_PERF(768, 3072), LINEAR_PERF(3072, 768), LINEAR_PERF(768, 50257),
    LINEAR_PERF(576, 960), LINEAR_PERF(576, 3072), LINEAR_PERF(1536, 576), LINEAR_PERF(576, 49152),
    ATTENTION(1, 12, 12, 64, 16, 128, .perf = true), ATTENTION(1, 12, 12, 64, 16, 512, .perf = true),
    ATTENTION(1, 12, 12, 64, 16, 2048, .perf = true), ATTENTION(8, 12, 12, 64, 16, 512, .perf = true),
    ATTENTION(32, 12, 12, 64, 16, 512, .perf = true), ATTENTION(256, 12, 12, 64, 16, 512, .perf = true, .flag = true),
    ATTENTION(1, 9, 3, 64, 16, 128, .perf = true), ATTENTION(1, 9, 3, 64, 16, 512, .perf = true),
    ATTENTION(1, 9, 3, 64, 16, 2048, .perf = true), ATTENTION(8, 9, 3, 64, 16, 2048, .perf = true),
    ATTENTION(8, 9, 3, 64, 16, 2048, .perf = true, .type = MX_F16),
    ATTENTION(8, 9, 3, 64, 16, 2048, .perf = true, .type = MX_BF16),
    ATTENTION(32, 9, 3, 64, 16, 512, .perf = true), ATTENTION(256, 9, 3, 64, 16, 2048, .perf = true, .flag = true),
    {.op = "norm", .n = 32, .c = 768, .bias = true, .perf = true},
    {.op = "rms_norm", .n = 32, .c = 576, .perf = true},
    {.op = "rms_norm", .n = 256, .c = 576, .perf = true},
    {.op = "gated", .n = 32, .c = 1536, .act = MX_ACT_SILU, .perf = true},
    {.op = "gated", .n = 256, .c = 1536, .act = MX_ACT_SILU, .perf = true},
    {.op = "activate", .n = 256, .c = 3072, .act = MX_ACT_GELU_TANH, .perf = true},
    {.op = "rope", .n = 256, .heads = 9, .c = 64, .perf = true},
    {.op = "sample", .n = 8, .o = 49152, .perf = true},
    {.op = "sample", .n = 8, .o = 49152, .c = 1, .perf = true},
    {.op = "sample", .n = 8, .o = 49152, .c = 2, .perf = true},
    {.op = "sample", .n = 8, .o = 49152, .c = 3, .perf = true},
    {.op = "logprobs", .n = 8, .o = 49152, .c = 5, .perf = true},
};

const int mx_cases_count = sizeof mx_cases / sizeof *mx_cases;
