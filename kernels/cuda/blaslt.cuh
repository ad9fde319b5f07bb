/* blaslt.cuh - cuBLASLt, found when the first weight is opened.
 *
 * The library is not linked: a machine without it still starts, and products are
 * then made by our own kernel.  Only linear.cu includes this. */
#ifndef MX_CUDA_BLASLT_CUH
#define MX_CUDA_BLASLT_CUH

#include "kernels/cuda/common.cuh"

#include <cublasLt.h>
#include <dlfcn.h>

/* The device's library, opened at the first call; NULL: there is none.  (linear.cu) */
struct lt_library;
struct lt_library *mx_cuda_blaslt(mx_device *d);

#define LT_CALLS(X)                                                                                                         \
    X(Create) X(Destroy) X(Matmul) X(MatmulAlgoGetHeuristic) X(MatmulDescCreate) X(MatmulDescDestroy)                       \
    X(MatmulDescSetAttribute) X(MatrixLayoutCreate) X(MatrixLayoutDestroy) X(MatmulPreferenceCreate)                        \
    X(MatmulPreferenceDestroy) X(MatmulPreferenceSetAttribute)

typedef struct lt_library {
    void            *file;              /* dlopen's; NULL: it was in the process already */
    cublasLtHandle_t handle;
    bool             gelu;              /* the fused GELU is as exact as ours            */
#define X(name) __typeof__(cublasLt##name) *name;
    LT_CALLS(X)
#undef X
} lt_library;

static inline bool lt_symbols(lt_library *l, void *from)
{
#define X(name)                                                               \
    *(void **)&l->name = dlsym(from, "cublasLt" #name);                       \
    if (!l->name) return false;
    LT_CALLS(X)
#undef X
    return true;
}

static inline void lt_close(void *p)
{
    lt_library *l = (lt_library *)p;
    if (!l) return;
    if (l->handle) l->Destroy(l->handle);
    if (l->file) dlclose(l->file);
    free(l);
}

/* NULL when there is none, or it does not start. */
static inline lt_library *lt_open(void)
{
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};
    lt_library *l = (lt_library *)calloc(1, sizeof *l);
    if (!l) return NULL;
    bool have = lt_symbols(l, RTLD_DEFAULT);
    for (size_t i = 0; !have && i < sizeof names / sizeof *names; i++) {
        l->file = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        have = l->file && lt_symbols(l, l->file);
    }
    if (have && l->Create(&l->handle) == CUBLAS_STATUS_SUCCESS) return l;
    l->handle = NULL;
    lt_close(l);
    return NULL;
}

#endif
