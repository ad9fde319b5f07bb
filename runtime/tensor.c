/* tensor.c - element sizes, views, half-precision conversions. */
#include "runtime/tensor.h"

static const struct { const char *name; size_t size; } dtypes[MX_DTYPE_COUNT] = {
    [MX_F32] = {"f32", 4}, [MX_F16] = {"f16", 2}, [MX_BF16] = {"bf16", 2},
    [MX_I32] = {"i32", 4}, [MX_I8] = {"int8", 1}, [MX_F8] = {"fp8", 1},
};

size_t mx_dtype_size(mx_dtype t)
{
    return (unsigned)t < MX_DTYPE_COUNT ? dtypes[t].size : 0;
}

const char *mx_dtype_name(mx_dtype t)
{
    return (unsigned)t < MX_DTYPE_COUNT ? dtypes[t].name : "?";
}

bool mx_dtype_parse(const char *name, mx_dtype *out)
{
    for (int i = 0; i < MX_DTYPE_COUNT; i++)
        if (strcmp(name, dtypes[i].name) == 0) {
            *out = (mx_dtype)i;
            return true;
        }
    return false;
}

mx_tensor mx_tensor_of(void *data, mx_dtype t, int64_t rows, int64_t cols)
{
    return (mx_tensor){data, rows, cols, cols, t};
}

mx_tensor mx_tensor_rows(mx_tensor t, int64_t first, int64_t n)
{
    t.data = (char *)t.data + (size_t)first * (size_t)t.stride * mx_dtype_size(t.dtype);
    t.rows = n;
    return t;
}

mx_tensor mx_tensor_cols(mx_tensor t, int64_t first, int64_t n)
{
    t.data = (char *)t.data + (size_t)first * mx_dtype_size(t.dtype);
    t.cols = n;
    return t;
}

float mx_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exp = (h >> 10) & 31u, frac = h & 1023u, u;
    if (exp == 31) {
        u = sign | 0x7f800000u | frac << 13;
    } else if (exp) {
        u = sign | (exp + 112u) << 23 | frac << 13;
    } else {                                   /* subnormal: frac * 2^-24, exact in f32 */
        float f = (float)frac * 0x1p-24f;
        memcpy(&u, &f, sizeof u);
        u |= sign;
    }
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

uint16_t mx_f32_to_f16(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    uint32_t sign = (u >> 16) & 0x8000u, mag = u & 0x7fffffffu;
    if (mag > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (mag >= 0x47800000u) return (uint16_t)(sign | 0x7c00u);           /* >= 65536: infinity */
    if (mag < 0x38800000u) {                                             /* below 2^-14: subnormal */
        float m;
        memcpy(&m, &mag, sizeof m);
        m += 0.5f;                             /* the adder rounds to a multiple of 2^-24 */
        memcpy(&mag, &m, sizeof mag);
        return (uint16_t)(sign | (mag - 0x3f000000u));
    }
    mag += 0xfffu + ((mag >> 13) & 1u);
    return (uint16_t)(sign | (mag - 0x38000000u) >> 13);
}

float mx_f8_to_f32(uint8_t b)
{
    uint32_t sign = (uint32_t)(b & 0x80u) << 24, mag = b & 0x7fu, u = mag << 20;       /* the exponent is 120 too small */
    float f;
    if (mag == 0x7f) u = 0x7fc00000u;
    memcpy(&f, &u, sizeof f);
    f *= 0x1p120f;
    memcpy(&u, &f, sizeof u);
    u |= sign;
    memcpy(&f, &u, sizeof f);
    return f;
}

uint8_t mx_f32_to_f8(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    uint32_t sign = (u >> 24) & 0x80u, mag = u & 0x7fffffffu;
    if (mag > 0x7f800000u) return (uint8_t)(sign | 0x7fu);
    if (mag >= 0x43e00000u) return (uint8_t)(sign | 0x7eu);              /* >= 448 */
    if (mag < 0x3c800000u) {                                             /* below 2^-6: subnormal */
        float m;
        memcpy(&m, &mag, sizeof m);
        m += 16384.0f;                         /* the adder rounds to a multiple of 2^-9 */
        memcpy(&mag, &m, sizeof mag);
        return (uint8_t)(sign | (mag - 0x46800000u));
    }
    mag += 0x7ffffu + ((mag >> 20) & 1u);
    return (uint8_t)(sign | ((mag >> 20) - 960u));
}
