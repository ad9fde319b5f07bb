/* random.h - random numbers without a state: Philox4x32-10 (Salmon et al. 2011,
 * "Parallel random numbers: as easy as 1, 2, 3").
 *
 * A draw is a function of a key (a seed) and a counter (who draws, and which of
 * its draws), so it depends neither on who else draws nor on the order, and a
 * run that goes on needs no generator's state. */
#ifndef MX_RANDOM_H
#define MX_RANDOM_H

#include <stdint.h>
#include <string.h>

/* The four words of a counter become four random ones. */
static inline void mx_philox(uint32_t c[4], uint64_t key)
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int i = 0; i < 10; i++, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u) {
        uint64_t a = (uint64_t)c[0] * 0xd2511f53u, b = (uint64_t)c[2] * 0xcd9e8d57u;
        uint32_t n[4] = {(uint32_t)(b >> 32) ^ c[1] ^ k0, (uint32_t)b, (uint32_t)(a >> 32) ^ c[3] ^ k1, (uint32_t)a};
        memcpy(c, n, sizeof n);
    }
}

/* Uniform on [0,1) with 53 bits, of the counter (a, b, c, d). */
static inline double mx_uniform(uint64_t key, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    uint32_t w[4] = {a, b, c, d};
    mx_philox(w, key);
    return (double)(((uint64_t)w[0] << 32 | w[1]) >> 11) * 0x1p-53;
}

#endif
