/* cases_table.c - the lines.  Prime sizes: nothing divides them, so every tail runs. */
#include "tests/cases.h"

#define LINEAR(N, C, O, ...) {.op = "linear", .n = N, .c = C, .o = O, __VA_ARGS__}
#define ATTENTION(N, H, G, D, PAGE, CONTEXT, ...) \
    {.op = "attention_paged", .n = N, .heads = H, .groups = G, .c = D, .page = PAGE, .context = CONTEXT, __VA_ARGS__}
#define PRODUCT(N, C, O, ...) {.op = "product", .n = N, .c = C, .o = O, __VA_ARGS__}
#define PRODUCT_BACK(N, C, O, ...) {.op = "product_back", .n = N, .c = C, .o = O, __VA_ARGS__}
/* rows in all, heads, KV heads, channels of a head, longest sequence */
#define PACKED(OP, N, H, G, D, LONGEST, ...) \
    {.op = OP, .n = N, .heads = H, .groups = G, .c = D, .context = LONGEST, __VA_ARGS__}
#define PACKED_CASES(OP)                                                                                   \
    PACKED(OP, 1, 1, 1, 1, 1, .flag = true), PACKED(OP, 23, 3, 3, 13, 11), PACKED(OP, 29, 4, 2, 17, 13, .flag = true), \
    PACKED(OP, 149, 6, 2, 32, 131, .flag = true), PACKED(OP, 139, 2, 1, 64, 67), \
    PACKED(OP, 197, 2, 2, 24, 197, .flag = true, .window = 29), PACKED(OP, 71, 1, 1, 67, 71), \
    PACKED(OP, 131, 3, 1, 130, 130, .flag = true), PACKED(OP, 83, 4, 4, 64, 5, .flag = true), \
    PACKED(OP, 73, 2, 1, 16, 41, .window = 7),                                                              \
    PACKED(OP, 23, 3, 3, 13, 11, .type = MX_BF16), PACKED(OP, 149, 6, 2, 32, 131, .flag = true, .type = MX_BF16), \
    PACKED(OP, 139, 2, 1, 64, 67, .type = MX_BF16), PACKED(OP, 197, 2, 2, 24, 197, .flag = true, .window = 29, .type = MX_BF16), \
    PACKED(OP, 131, 4, 2, 100, 130, .flag = true, .type = MX_BF16), PACKED(OP, 83, 4, 4, 64, 5, .flag = true, .type = MX_BF16), \
    PACKED(OP, 67, 1, 1, 130, 41, .type = MX_BF16), PACKED(OP, 270, 2, 1, 64, 203, .window = 70, .type = MX_BF16)
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
    {.op = "activate", .n = 5, .c = 131, .act = MX_ACT_TANH},
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

    /* ---- learning ---- */
    PRODUCT(1, 1, 1), PRODUCT(7, 67, 131, .bias = true), PRODUCT(13, 129, 64, .add = true, .bias = true),
    PRODUCT(101, 257, 193), PRODUCT(53, 131, 521, .add = true), PRODUCT(11, 67, 71, .type = MX_BF16, .bias = true),
    PRODUCT(59, 139, 83, .type = MX_BF16, .flag = true), PRODUCT(17, 31, 67, .flag = true),
    PRODUCT_BACK(1, 1, 1, .bias = true), PRODUCT_BACK(7, 67, 131, .bias = true), PRODUCT_BACK(13, 129, 64, .add = true),
    PRODUCT_BACK(137, 71, 193, .bias = true), PRODUCT_BACK(259, 131, 67, .add = true, .bias = true),
    PRODUCT_BACK(11, 67, 71, .type = MX_BF16, .bias = true), PRODUCT_BACK(59, 139, 83, .type = MX_BF16, .flag = true, .add = true),
    PRODUCT_BACK(17, 31, 67, .flag = true),
    {.op = "cast", .n = 3, .c = 67}, {.op = "cast", .n = 5, .c = 131, .type = MX_BF16}, {.op = "cast", .n = 1, .c = 7, .type = MX_F16},
    {.op = "scale", .n = 7, .c = 71}, {.op = "scale", .n = 131, .c = 257, .flag = true},
    {.op = "aggregate", .n = 13, .c = 67, .o = 31, .context = 7, .page = MX_REDUCE_SUM},
    {.op = "aggregate", .n = 1, .c = 5, .o = 2, .context = 3, .page = MX_REDUCE_MEAN},
    {.op = "aggregate", .n = 17, .c = 64, .o = 11, .context = 29, .page = MX_REDUCE_MEAN, .flag = true},
    {.op = "aggregate", .n = 59, .c = 131, .o = 97, .context = 5, .page = MX_REDUCE_SUM, .flag = true},
    {.op = "aggregate", .n = 31, .c = 129, .o = 23, .context = 13, .page = MX_REDUCE_MAX},
    {.op = "aggregate", .n = 19, .c = 384, .o = 1, .context = 37, .page = MX_REDUCE_MEAN, .bias = true},
    {.op = "aggregate", .n = 7, .c = 33, .o = 1, .context = 11, .page = MX_REDUCE_MAX, .bias = true},
    {.op = "embed_back", .n = 13, .c = 67, .o = 5}, {.op = "embed_back", .n = 1, .c = 7, .o = 2},
    {.op = "embed_back", .n = 211, .c = 193, .o = 31},
    {.op = "norm_back", .n = 5, .c = 67, .bias = true}, {.op = "norm_back", .n = 1, .c = 5, .bias = true},
    {.op = "norm_back", .n = 97, .c = 257, .add = true, .bias = true}, {.op = "norm_back", .n = 3, .c = 1031},
    {.op = "rms_norm_back", .n = 5, .c = 67}, {.op = "rms_norm_back", .n = 1, .c = 3},
    {.op = "rms_norm_back", .n = 101, .c = 131, .add = true},
    {.op = "activate_back", .n = 7, .c = 71, .act = MX_ACT_NONE}, {.op = "activate_back", .n = 7, .c = 71, .act = MX_ACT_GELU_TANH},
    {.op = "activate_back", .n = 11, .c = 257, .act = MX_ACT_GELU_ERF, .flag = true},
    {.op = "activate_back", .n = 3, .c = 1031, .act = MX_ACT_SILU}, {.op = "activate_back", .n = 5, .c = 17, .act = MX_ACT_RELU},
    {.op = "activate_back", .n = 3, .c = 67, .act = MX_ACT_TANH},
    {.op = "gated_back", .n = 7, .c = 71, .act = MX_ACT_SILU}, {.op = "gated_back", .n = 37, .c = 577, .act = MX_ACT_SILU},
    {.op = "gated_back", .n = 1, .c = 5, .act = MX_ACT_GELU_TANH}, {.op = "gated_back", .n = 3, .c = 37, .act = MX_ACT_GELU_ERF},
    {.op = "rope_back", .n = 7, .heads = 3, .c = 64}, {.op = "rope_back", .n = 1, .heads = 1, .c = 2},
    {.op = "rope_back", .n = 11, .heads = 5, .c = 22, .flag = true}, {.op = "rope_back", .n = 5, .heads = 2, .c = 258, .add = true},
    {.op = "dropout", .n = 7, .c = 71, .o = 10}, {.op = "dropout", .n = 67, .c = 259, .o = 50, .flag = true},
    {.op = "dropout", .n = 3, .c = 5}, {.op = "dropout", .n = 1, .c = 1031, .o = 99},
    PACKED_CASES("attention"), PACKED_CASES("attention_back"),
    {.op = "cross_entropy", .n = 7, .o = 131, .flag = true}, {.op = "cross_entropy", .n = 1, .o = 1, .flag = true},
    {.op = "cross_entropy", .n = 5, .o = 10007}, {.op = "cross_entropy", .n = 3, .o = 50257, .flag = true},
    {.op = "sum", .n = 1, .c = 1}, {.op = "sum", .n = 3, .c = 16411}, {.op = "sum", .n = 67, .c = 1031, .flag = true},
    {.op = "sum", .n = 1, .c = 100003, .flag = true},
    {.op = "adamw", .c = 1}, {.op = "adamw", .c = 131, .flag = true}, {.op = "adamw", .c = 50021, .flag = true},

    /* ---- Q-learning: transitions, actions, atoms ---- */
    {.op = "argmax", .n = 131, .c = 7}, {.op = "argmax", .n = 53, .c = 67, .bias = true, .flag = true}, {.op = "argmax", .n = 1, .c = 1, .bias = true},
    {.op = "argmax", .n = 37, .c = 3, .bias = true, .flag = true},
    {.op = "dueling", .n = 13, .c = 7, .o = 1}, {.op = "dueling", .n = 5, .c = 3, .o = 51}, {.op = "dueling", .n = 1, .c = 1, .o = 1},
    {.op = "dueling_back", .n = 13, .c = 7, .o = 1}, {.op = "dueling_back", .n = 5, .c = 3, .o = 51},
    {.op = "td_loss", .n = 67, .c = 7, .flag = true, .bias = true}, {.op = "td_loss", .n = 131, .c = 2}, {.op = "td_loss", .n = 17, .c = 41, .flag = true},
    {.op = "td_loss", .n = 1, .c = 1, .bias = true},
    {.op = "atoms_value", .n = 13, .c = 3, .o = 51}, {.op = "atoms_value", .n = 1, .c = 1, .o = 2}, {.op = "atoms_value", .n = 3, .c = 37, .o = 67},
    {.op = "atoms_loss", .n = 19, .c = 3, .o = 51, .bias = true}, {.op = "atoms_loss", .n = 7, .c = 5, .o = 2}, {.op = "atoms_loss", .n = 5, .c = 2, .o = 131, .bias = true},
    {.op = "noisy", .o = 7, .c = 67}, {.op = "noisy", .o = 1, .c = 1}, {.op = "noisy_back", .o = 31, .c = 17}, {.op = "noisy_back", .o = 5, .c = 131},
    {.op = "priority_set", .n = 67, .c = 1024}, {.op = "priority_set", .n = 311, .c = 64}, {.op = "priority_set", .n = 5, .c = 2, .flag = true},
    {.op = "priority_set", .n = 13, .c = 128, .flag = true, .add = true},
    {.op = "priority_sample", .n = 67, .c = 1024}, {.op = "priority_sample", .n = 311, .c = 64}, {.op = "priority_sample", .n = 1, .c = 2},

    /* ---- graphs ---- */
    {.op = "activate", .n = 7, .c = 131, .act = MX_ACT_ELU}, {.op = "activate_back", .n = 5, .c = 67, .act = MX_ACT_ELU},
    {.op = "aggregate", .n = 41, .c = 203, .o = 53, .context = 19, .page = MX_REDUCE_MEAN},
    {.op = "aggregate", .n = 37, .c = 149, .o = 53, .context = 17, .page = MX_REDUCE_MAX},
    {.op = "aggregate_max_back", .n = 1, .c = 1, .o = 1, .context = 1}, {.op = "aggregate_max_back", .n = 17, .c = 67, .o = 11, .context = 7},
    {.op = "aggregate_max_back", .n = 31, .c = 131, .o = 23, .context = 13, .flag = true},
    {.op = "graph_attention", .n = 1, .heads = 1, .c = 1, .o = 1, .context = 1}, {.op = "graph_attention", .n = 13, .heads = 8, .c = 8, .o = 17, .context = 7},
    {.op = "graph_attention", .n = 11, .heads = 3, .c = 37, .o = 29, .context = 41, .page = 60},
    {.op = "graph_attention", .n = 7, .heads = 19, .c = 5, .o = 13, .context = 11, .page = 30},
    {.op = "graph_attention_back", .n = 1, .heads = 1, .c = 1, .o = 1, .context = 1},
    {.op = "graph_attention_back", .n = 13, .heads = 8, .c = 8, .o = 17, .context = 7},
    {.op = "graph_attention_back", .n = 11, .heads = 3, .c = 37, .o = 29, .context = 41, .page = 60},
    {.op = "graph_attention_back", .n = 7, .heads = 19, .c = 5, .o = 13, .context = 11, .page = 30},
    {.op = "sample_neighbours", .n = 1, .c = 1, .o = 1, .context = 3}, {.op = "sample_neighbours", .n = 131, .c = 7, .o = 37, .context = 41},
    {.op = "sample_neighbours", .n = 67, .c = 25, .o = 13, .context = 1009}, {.op = "sample_neighbours", .n = 29, .c = 97, .o = 11, .context = 101},
    {.op = "unit_rows", .n = 7, .c = 71}, {.op = "unit_rows", .n = 1, .c = 1, .flag = true}, {.op = "unit_rows", .n = 67, .c = 259, .flag = true},
    {.op = "unit_rows", .n = 5, .c = 13, .page = 300},
    {.op = "unit_rows_back", .n = 7, .c = 71}, {.op = "unit_rows_back", .n = 67, .c = 259, .flag = true}, {.op = "unit_rows_back", .n = 5, .c = 13, .page = 300},
    {.op = "dot", .n = 1, .heads = 1, .c = 1}, {.op = "dot", .n = 13, .heads = 1, .c = 131}, {.op = "dot", .n = 29, .heads = 8, .c = 8, .flag = true},
    {.op = "dot_back", .n = 1, .heads = 1, .c = 1, .bias = true}, {.op = "dot_back", .n = 13, .heads = 1, .c = 131},
    {.op = "dot_back", .n = 29, .heads = 3, .c = 23, .add = true}, {.op = "dot_back", .n = 613, .heads = 8, .c = 8, .flag = true},
    {.op = "dot_back", .n = 31, .heads = 2, .c = 37, .add = true, .flag = true},
    {.op = "logistic", .n = 1, .c = 1, .flag = true}, {.op = "logistic", .n = 13, .c = 67}, {.op = "logistic", .n = 131, .c = 1, .flag = true},
    {.op = "logistic", .n = 11, .c = 121, .flag = true},

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

    /* ---- measured: a training step of GPT-2 124M over 1024 tokens; BERT's shorter sequences ---- */
    PRODUCT(1024, 768, 2304, .perf = true, .bias = true), PRODUCT(1024, 768, 768, .perf = true, .bias = true),
    PRODUCT(1024, 768, 3072, .perf = true, .bias = true), PRODUCT(1024, 3072, 768, .perf = true, .bias = true),
    PRODUCT(256, 768, 50257, .perf = true), PRODUCT(1024, 768, 3072, .perf = true, .bias = true, .type = MX_BF16),
    PRODUCT_BACK(1024, 768, 2304, .perf = true, .bias = true), PRODUCT_BACK(1024, 768, 768, .perf = true, .bias = true),
    PRODUCT_BACK(1024, 768, 3072, .perf = true, .bias = true), PRODUCT_BACK(1024, 3072, 768, .perf = true, .bias = true),
    PRODUCT_BACK(256, 768, 50257, .perf = true), PRODUCT_BACK(1024, 768, 3072, .perf = true, .bias = true, .type = MX_BF16),
    PACKED("attention", 1024, 12, 12, 64, 1024, .perf = true, .flag = true),
    PACKED("attention", 8192, 12, 12, 64, 1024, .perf = true, .flag = true, .type = MX_BF16),
    PACKED("attention", 8192, 12, 12, 64, 128, .perf = true, .type = MX_BF16),
    PACKED("attention", 1024, 12, 12, 64, 128, .perf = true), PACKED("attention", 1024, 9, 3, 64, 1024, .perf = true, .flag = true),
    PACKED("attention_back", 1024, 12, 12, 64, 1024, .perf = true, .flag = true),
    PACKED("attention_back", 8192, 12, 12, 64, 1024, .perf = true, .flag = true, .type = MX_BF16),
    PACKED("attention_back", 8192, 12, 12, 64, 128, .perf = true, .type = MX_BF16),
    PACKED("attention_back", 1024, 12, 12, 64, 128, .perf = true),
    PACKED("attention_back", 1024, 9, 3, 64, 1024, .perf = true, .flag = true),
    {.op = "aggregate", .n = 8192, .c = 64, .o = 100003, .context = 10, .page = MX_REDUCE_MEAN, .perf = true},
    {.op = "aggregate", .n = 8192, .c = 256, .o = 100003, .context = 10, .page = MX_REDUCE_SUM, .flag = true, .perf = true},
    {.op = "graph_attention", .n = 8192, .heads = 8, .c = 8, .o = 100003, .context = 10, .perf = true},
    {.op = "sample_neighbours", .n = 8192, .c = 10, .o = 100003, .context = 25, .perf = true},
    {.op = "norm", .n = 1024, .c = 768, .bias = true, .perf = true},
    {.op = "norm_back", .n = 1024, .c = 768, .add = true, .bias = true, .perf = true},
    {.op = "rms_norm_back", .n = 1024, .c = 576, .add = true, .perf = true},
    {.op = "activate", .n = 1024, .c = 3072, .act = MX_ACT_GELU_TANH, .perf = true},
    {.op = "activate", .n = 1024, .c = 3072, .act = MX_ACT_GELU_ERF, .perf = true},
    {.op = "activate_back", .n = 1024, .c = 3072, .act = MX_ACT_GELU_TANH, .perf = true},
    {.op = "activate_back", .n = 1024, .c = 3072, .act = MX_ACT_GELU_ERF, .perf = true},
    {.op = "gated_back", .n = 1024, .c = 1536, .act = MX_ACT_SILU, .perf = true},
    {.op = "embed_back", .n = 1024, .c = 768, .o = 50257, .perf = true},
    {.op = "dropout", .n = 1024, .c = 768, .o = 10, .perf = true},
    {.op = "cross_entropy", .n = 512, .o = 50257, .flag = true, .perf = true},
    {.op = "sum", .n = 1, .c = 38597376, .flag = true, .perf = true},
    {.op = "adamw", .c = 38597376, .flag = true, .perf = true},
};

const int mx_cases_count = sizeof mx_cases / sizeof *mx_cases;
