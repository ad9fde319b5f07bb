/* blaslt.c - cublasLtMatmul on the CPU: column major, bias and activation epilogues.
 *
 * The heuristic gives another "algorithm" for another number of columns, and an
 * algorithm is the block length in which the products are summed: code that asks
 * anew for every batch size breaks the invariance rule here as it would on a card. */
#include "include/cublasLt.h"
#include "internal.h"

#include <math.h>

struct cublasLtContext { int unused; };
struct cublasLtMatmulDesc {
    int   transpose_a, transpose_b, epilogue;
    const float *bias;
};
struct cublasLtMatrixLayout {
    cudaDataType type;
    uint64_t rows, cols;
    int64_t  ld;
};
struct cublasLtMatmulPreference { uint32_t align[4], reductions; };

static int coarse_gelu, absent;
void cudasim_set_coarse_gelu(int on) { coarse_gelu = on; }
void cudasim_set_blaslt(int on) { absent = !on; }

#define OPEN(name, type)                                                                  \
    *name = sim_injected() ? NULL : calloc(1, sizeof(type));                              \
    if (!*name) return CUBLAS_STATUS_ALLOC_FAILED;

cublasStatus_t cublasLtCreate(cublasLtHandle_t *h)
{
    if (absent) return CUBLAS_STATUS_NOT_INITIALIZED;
    OPEN(h, struct cublasLtContext)
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t h)
{
    free(h);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t compute, cudaDataType_t scale)
{
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
    OPEN(d, struct cublasLtMatmulDesc)
    (*d)->epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d)
{
    free(d);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t a, const void *v, size_t n)
{
    if (n != (a == CUBLASLT_MATMUL_DESC_BIAS_POINTER ? sizeof(void *) : sizeof(int))) return CUBLAS_STATUS_INVALID_VALUE;
    switch (a) {
    case CUBLASLT_MATMUL_DESC_TRANSA: memcpy(&d->transpose_a, v, n); break;
    case CUBLASLT_MATMUL_DESC_TRANSB: memcpy(&d->transpose_b, v, n); break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE: memcpy(&d->epilogue, v, n); break;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: memcpy(&d->bias, v, n); break;
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType t, uint64_t rows, uint64_t cols, int64_t ld)
{
    if (!rows || !cols || ld < (int64_t)rows) return CUBLAS_STATUS_INVALID_VALUE;
    OPEN(l, struct cublasLtMatrixLayout)
    **l = (struct cublasLtMatrixLayout){t, rows, cols, ld};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l)
{
    free(l);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p)
{
    OPEN(p, struct cublasLtMatmulPreference)
    **p = (struct cublasLtMatmulPreference){{256, 256, 256, 256}, ~0u};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p)
{
    free(p);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t a,
                                                    const void *v, size_t n)
{
    uint64_t value = 0;
    memcpy(&value, v, n);
    if (a >= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES) p->align[a - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES] = (uint32_t)value;
    if (a == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) p->reductions = (uint32_t)value;
    return CUBLAS_STATUS_SUCCESS;
}

/* data[0]: block of the sum; [1..4]: alignments it relies on. */
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t o,
                                              cublasLtMatmulPreference_t p, int requested,
                                              cublasLtMatmulHeuristicResult_t *results, int *found)
{
    (void)h, (void)d, (void)a, (void)b, (void)c;
    *found = 0;
    if (requested < 1 || sim_injected()) return CUBLAS_STATUS_NOT_SUPPORTED;
    memset(results, 0, sizeof *results);
    results[0].algo.data[0] = 4 + o->cols % 29;
    for (int i = 0; i < 4; i++) results[0].algo.data[1 + i] = p->align[i];
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

typedef struct matmul {
    struct cublasLtMatmulDesc d;
    struct cublasLtMatrixLayout a, b, c, o;
    const char *A, *B, *C;
    char       *D;
    float       alpha, beta;
    uint64_t    block;
} matmul;

static float load(const char *p, size_t i, cudaDataType t)
{
    float f;
    uint16_t h;
    if (t == CUDA_R_32F) {
        memcpy(&f, p + 4 * i, sizeof f);
        return f;
    }
    memcpy(&h, p + 2 * i, sizeof h);
    uint32_t u = (uint32_t)h << 16;
    memcpy(&f, &u, sizeof f);
    return f;
}

static float epilogue(const matmul *g, float v, uint64_t row)
{
    int e = g->d.epilogue;
    if (e & CUBLASLT_EPILOGUE_BIAS) v += g->d.bias[row];
    if (e & CUBLASLT_EPILOGUE_RELU) v = v > 0 ? v : 0;
    if (e & CUBLASLT_EPILOGUE_GELU) {
        double x = (double)v, t = tanh(0.7978845608028654 * (x + 0.044715 * x * x * x));
        if (coarse_gelu) t = nearbyint(t * 1024) / 1024;
        v = (float)(0.5 * x * (1 + t));
    }
    return v;
}

static size_t bytes_of(const struct cublasLtMatrixLayout *l)
{
    return ((size_t)l->ld * (l->cols - 1) + l->rows) * (l->type == CUDA_R_32F ? 4 : 2);
}

static void matmul_run(void *arg)
{
    const matmul *g = arg;
    uint64_t k = g->d.transpose_a ? g->a.rows : g->a.cols;
    cudasim_stats.matmuls++;
    if (sim_device_range(g->A, bytes_of(&g->a)) < 1 || sim_device_range(g->B, bytes_of(&g->b)) < 1 ||
        sim_device_range(g->D, bytes_of(&g->o)) < 1 ||
        ((g->d.epilogue & CUBLASLT_EPILOGUE_BIAS) && sim_device_range(g->d.bias, 4 * g->o.rows) < 1)) {
        sim_error("cublasLtMatmul: a matrix outside of device memory");
        return;
    }
    sim_guard(0);
    for (uint64_t j = 0; j < g->o.cols; j++) {
        for (uint64_t i = 0; i < g->o.rows; i++) {
            float sum = 0;
            for (uint64_t k0 = 0; k0 < k; k0 += g->block) {
                float part = 0;
                for (uint64_t l = k0; l < k && l < k0 + g->block; l++) {
                    float a = load(g->A, g->d.transpose_a ? i * (uint64_t)g->a.ld + l : l * (uint64_t)g->a.ld + i, g->a.type);
                    float b = load(g->B, g->d.transpose_b ? l * (uint64_t)g->b.ld + j : j * (uint64_t)g->b.ld + l, g->b.type);
                    part += a * b;
                }
                sum += part;
            }
            sum *= g->alpha;
            if (g->beta != 0) sum += g->beta * load(g->C, j * (uint64_t)g->c.ld + i, CUDA_R_32F);
            sum = epilogue(g, sum, i);
            memcpy(g->D + 4 * (j * (uint64_t)g->o.ld + i), &sum, sizeof sum);
        }
        HOOK(host_write, g->D + 4 * j * (uint64_t)g->o.ld, 4 * g->o.rows);
    }
    sim_guard(1);
}

static int aligned(const void *p, const struct cublasLtMatrixLayout *l, uint64_t to)
{
    uint64_t pitch = (uint64_t)l->ld * (l->type == CUDA_R_32F ? 4 : 2);
    return (uintptr_t)p % to == 0 && (l->cols == 1 || pitch % (to < 16 ? to : 16) == 0);
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t d, const void *alpha, const void *A,
                              cublasLtMatrixLayout_t a, const void *B, cublasLtMatrixLayout_t b, const void *beta,
                              const void *C, cublasLtMatrixLayout_t c, void *D, cublasLtMatrixLayout_t o,
                              const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_size, cudaStream_t stream)
{
    (void)workspace, (void)workspace_size;
    uint64_t m = d->transpose_a ? a->cols : a->rows, k = d->transpose_a ? a->rows : a->cols;
    uint64_t n = d->transpose_b ? b->rows : b->cols, kb = d->transpose_b ? b->cols : b->rows;
    if (!h || m != o->rows || n != o->cols || k != kb || a->type != b->type || o->type != CUDA_R_32F || !algo)
        return CUBLAS_STATUS_INVALID_VALUE;
    if ((d->epilogue & CUBLASLT_EPILOGUE_BIAS) && (!d->bias || (uintptr_t)d->bias % 16)) return CUBLAS_STATUS_INVALID_VALUE;
    if (!aligned(A, a, algo->data[1]) || !aligned(B, b, algo->data[2]) || !aligned(C, c, algo->data[3]) || !aligned(D, o, algo->data[4])) {
        sim_error("cublasLtMatmul: the algorithm was chosen for better aligned matrices");
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    sim_lock();
    matmul *g = malloc(sizeof *g);
    if (!g) abort();
    *g = (matmul){*d, *a, *b, *c, *o, A, B, C, D, *(const float *)alpha, *(const float *)beta, algo->data[0]};
    sim_enqueue(stream, matmul_run, g, free);
    sim_unlock();
    return CUBLAS_STATUS_SUCCESS;
}
