/* decoder_config_rope.c - inverse frequencies of the rotary embedding.
 *
 * Su et al. 2021, with the scalings as transformers' modeling_rope_utils.py
 * computes them: in f32, each operation rounded in its order, a quotient by a
 * tensor as the reciprocal times the numerator.  Powers are taken in double and
 * rounded, which is within an ulp of PyTorch's and nearly always equal. */
#include "models/decoder_config_internal.h"

#include <math.h>

#define TWO_PI 6.283185307179586

static void plain(mx_decoder_config *c)
{
    const float base = (float)c->rope_theta, dim = (float)c->head_dim;
    for (int j = 0; j < c->head_dim / 2; j++) {
        c->rope_freq[j] = 1.0f / (float)pow(base, (float)(2 * j) / dim);
    }
}

/* Chen et al. 2023: positions shrink by the factor. */
static void linear(mx_decoder_config *c)
{
    const float factor = (float)c->rope_factor;
    plain(c);
    for (int j = 0; j < c->head_dim / 2; j++) c->rope_freq[j] /= factor;
}

/* Llama 3.1: long waves shrink, short ones stay, those between are blended. */
static void llama3(mx_decoder_config *c)
{
    const double original = c->rope_original_positions;
    const float factor = (float)c->rope_factor, low = (float)c->rope_low_freq;
    const float longest = (float)(original / c->rope_low_freq), shortest = (float)(original / c->rope_high_freq);
    const float width = (float)(c->rope_high_freq - c->rope_low_freq);
    plain(c);
    for (int j = 0; j < c->head_dim / 2; j++) {
        const float f = c->rope_freq[j], wave = (1.0f / f) * (float)TWO_PI;
        if (wave > longest) {
            c->rope_freq[j] = f / factor;
        } else if (wave >= shortest) {
            const float smooth = ((1.0f / wave) * (float)original - low) / width;
            c->rope_freq[j] = (1.0f - smooth) * f / factor + smooth * f;
        }
    }
}

static double yarn_scale(double factor, double mscale)
{
    return factor <= 1 ? 1.0 : 0.1 * mscale * log(factor) + 1.0;
}

/* The dim whose wave turns `rotations` times in the original context. */
static double yarn_dim(const mx_decoder_config *c, double rotations)
{
    return c->head_dim * log(c->rope_original_positions / (rotations * TWO_PI)) / (2 * log(c->rope_theta));
}

/* Peng et al. 2023 */
static void yarn(mx_decoder_config *c, const mx_rope_extra *extra)
{
    double low = yarn_dim(c, c->rope_beta_fast), high = yarn_dim(c, c->rope_beta_slow);
    if (extra->round_range) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, c->head_dim - 1);
    if (low == high) high += 0.001;
    const float first = (float)low, width = (float)(high - low), factor = (float)c->rope_factor;
    for (int j = 0; j < c->head_dim / 2; j++) {
        const float power = (float)pow((float)c->rope_theta, (float)(2 * j) / (float)c->head_dim);
        const float ramp = fminf(fmaxf(((float)j - first) / width, 0.0f), 1.0f), keep = 1.0f - ramp;
        c->rope_freq[j] = 1.0f / (factor * power) * (1.0f - keep) + 1.0f / power * keep;
    }
    if (extra->given_attention_factor) return;
    c->rope_attention_factor =
        extra->mscale != 0 && extra->mscale_all_dim != 0
            ? yarn_scale(c->rope_factor, extra->mscale) / yarn_scale(c->rope_factor, extra->mscale_all_dim)
            : yarn_scale(c->rope_factor, 1);
}

/* Ding et al. 2024, with the factors for texts within the original context: one
 * set of frequencies serves the whole life of a KV cache, so the context is
 * held to what the short factors were made for. */
static void longrope(mx_decoder_config *c, const mx_rope_extra *extra)
{
    for (int j = 0; j < c->head_dim / 2; j++) {
        const float power = (float)pow((float)c->rope_theta, (float)(2 * j) / (float)c->head_dim);
        c->rope_freq[j] = 1.0f / (extra->divide[j] * power);
    }
    if (c->max_positions > c->rope_original_positions) c->max_positions = c->rope_original_positions;
    if (extra->given_attention_factor) return;
    c->rope_attention_factor =
        c->rope_factor <= 1 ? 1.0 : sqrt(1 + log(c->rope_factor) / log(c->rope_original_positions));
}

mx_status mx_rope_frequencies(mx_decoder_config *c, const mx_rope_extra *extra, const char *file, mx_error *err)
{
    const int pairs = c->head_dim / 2;
    if (extra->n_divide && extra->n_divide != pairs) {
        return mx_fail(err, MX_ERR_FORMAT, "%s: rope: %d frequency factors for %d pairs of channels", file,
                       extra->n_divide, pairs);
    }
    switch (c->rope_scaling) {
    case MX_ROPE_LINEAR: linear(c); break;
    case MX_ROPE_YARN: yarn(c, extra); break;
    case MX_ROPE_LONGROPE: longrope(c, extra); break;
    case MX_ROPE_LLAMA3:
        if (extra->n_divide) {
            plain(c); /* GGUF holds the outcome as divisors */
        } else {
            llama3(c);
        }
        break;
    case MX_ROPE_NONE:
    case MX_ROPE_DYNAMIC: /* NTK scaling changes nothing up to max_positions, and no context is longer */
        plain(c);
        break;
    }
    if (c->rope_scaling != MX_ROPE_LONGROPE) {
        for (int j = 0; j < extra->n_divide; j++) c->rope_freq[j] /= extra->divide[j];
    }
    c->rope_magnitude = (float)c->rope_attention_factor;
    for (int j = 0; j < pairs; j++) {
        if (!isfinite(c->rope_freq[j]) || !(c->rope_freq[j] >= 0)) {
            return mx_fail(err, MX_ERR_FORMAT, "%s: rope: frequency %d is not a number from 0 up", file, j);
        }
    }
    if (!isfinite(c->rope_magnitude))
        return mx_fail(err, MX_ERR_FORMAT, "%s: rope: attention_factor is not finite", file);
    return MX_OK;
}
