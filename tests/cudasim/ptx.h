/* ptx.h - what ptx.cu's lanes take and give. */
#ifndef MX_TEST_PTX_H
#define MX_TEST_PTX_H

#include "runtime/device.h"

typedef struct ptx_in {
    unsigned a[4], b[2], ta[4], tb[2];  /* fragments: 16-bit or 8-bit numbers; tf32 */
    float    c[4];
    int      ic[4];
    uint16_t row[8];                    /* row l%8 of matrix l/8 */
} ptx_in;

typedef struct ptx_out {
    float    bf16[4], tf32[4];
    int      s8[4];
    unsigned rows[4], columns[4], pair;
} ptx_out;

#ifdef __cplusplus
extern "C"
#endif
void ptx_run(mx_stream *s, const ptx_in *in, ptx_out *out);      /* device memory, 32 of each */

#endif
