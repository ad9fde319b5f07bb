/* replay.c - priorities of transitions, as a tree of sums. */
#include "kernels/cpu/cpu.h"

#include <math.h>

static bool ids_exist(mx_stream *s, mx_tensor ids, int64_t leaves)
{
    for (int64_t r = 0; r < ids.rows; r++) {
        int32_t id = *mx_row_i32(ids, r);
        if (id >= 0 && id < leaves) continue;
        mx_stream_fail(s, MX_ERR_ARG, "priority_set: id %d of row %lld is outside the %lld transitions", id, (long long)r, (long long)leaves);
        return false;
    }
    return true;
}

/* A parent is added up from both of its children, so that no error grows. */
void mx_cpu_priority_set(mx_stream *s, mx_tensor tree, mx_tensor ids, mx_tensor error, float exponent)
{
    float *t = tree.data, most = t[0];
    int64_t leaves = tree.cols / 2;
    if (!ids_exist(s, ids, leaves)) return;
    for (int64_t r = 0; r < ids.rows; r++) {
        float p = error.data ? powf(*mx_row(error, r) + 1e-6f, exponent) : t[0] > 0 ? t[0] : 1;
        if (p > most) most = p;
        int64_t node = leaves + *mx_row_i32(ids, r);
        t[node] = p;
        for (node /= 2; node; node /= 2) t[node] = t[2 * node] + t[2 * node + 1];
    }
    t[0] = most;
}

/* Down the tree; never to where nothing is. */
void mx_cpu_priority_sample(mx_stream *s, mx_tensor ids, mx_tensor weight, mx_tensor tree, mx_tensor uniform, float beta)
{
    const float *t = tree.data;
    int64_t n = ids.rows, leaves = tree.cols / 2;
    float least = INFINITY;
    if (!(t[1] > 0)) {
        mx_stream_fail(s, MX_ERR_ARG, "priority_sample: the tree is empty");
        return;
    }
    for (int64_t r = 0; r < n; r++) {
        float at = ((float)r + *mx_row(uniform, r)) / (float)n * t[1];
        int64_t node = 1;
        while (node < leaves) {
            float left = t[2 * node];
            node *= 2;
            if (at < left || !(t[node + 1] > 0)) continue;
            at -= left;
            node++;
        }
        *mx_row_i32(ids, r) = (int32_t)(node - leaves);
        *mx_row(weight, r) = t[node];
        least = t[node] < least ? t[node] : least;
    }
    for (int64_t r = 0; r < n; r++) *mx_row(weight, r) = powf(least / *mx_row(weight, r), beta);
}
