/* kv.h - where the KV cache has a head's part of a position, and how it is written. */
#ifndef MX_CPU_KV_H
#define MX_CPU_KV_H

#include "kernels/cpu/cpu.h"

#define MX_HEAD_MAX 512       /* channels of a head */

static inline void *mx_kv_at(const mx_kv *kv, void *base, int64_t page, int64_t head, int64_t offset)
{
    int64_t index = ((page * kv->kv_heads + head) * kv->page_tokens + offset) * kv->head_dim;
    return (char *)base + (size_t)index * mx_dtype_size(kv->dtype);
}

static inline void mx_kv_store(void *dst, const float *src, mx_dtype type, int64_t n)
{
    uint16_t *h = dst;
    uint8_t *b = dst;
    if (type == MX_F32) memcpy(dst, src, (size_t)n * sizeof *src);
    else if (type == MX_F8)
        for (int64_t i = 0; i < n; i++) b[i] = mx_f32_to_f8(src[i]);
    else if (type == MX_BF16)
        for (int64_t i = 0; i < n; i++) h[i] = mx_f32_to_bf16(src[i]);
    else
        for (int64_t i = 0; i < n; i++) h[i] = mx_f32_to_f16(src[i]);
}

/* Every slot lies inside the cache; otherwise the stream says which does not. */
static inline bool mx_kv_slots_sound(mx_stream *s, const char *op, const mx_kv *kv, mx_tensor slots)
{
    int64_t end = (int64_t)kv->pages * kv->page_tokens;
    for (int64_t r = 0; r < slots.rows; r++) {
        int32_t slot = *mx_row_i32(slots, r);
        if (slot >= 0 && slot < end) continue;
        mx_stream_fail(s, MX_ERR_ARG, "%s: slot %d of row %lld is outside the cache's %lld", op, slot, (long long)r, (long long)end);
        return false;
    }
    return true;
}

#endif
