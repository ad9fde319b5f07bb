/* cudnn.cuh - cuDNN's fused attention: the part of its graph API that Merx uses, and
 * the plans that are made with it.
 *
 * The library is not linked and its headers are not needed: the numbers below are its
 * binary interface (tests/cudasim/test_cudnn.c holds them against the real header and
 * the real library, where they are installed).  A plan is cuDNN's way to compute one
 * class of shapes; it is host code only, so that a test can make one for a GPU that is
 * not there.  Plain C: cudnn_plan.cu, cudnn_attention.cu and the tests include this. */
#ifndef MX_CUDA_CUDNN_CUH
#define MX_CUDA_CUDNN_CUH

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef void *dn_handle;
typedef void *dn_object;                /* a descriptor */

enum {                                  /* kinds of descriptors */
    DN_POINTWISE = 0, DN_ENGINE_CONFIG = 3, DN_HEURISTICS = 4, DN_EXECUTION_PLAN = 5, DN_OP_POINTWISE = 13, DN_GRAPH = 15,
    DN_VARIANT_PACK = 16, DN_TENSOR = 17, DN_MATMUL = 18, DN_OP_MATMUL = 19, DN_REDUCTION = 21, DN_OP_REDUCTION = 22,
    DN_OP_RESHAPE = 31, DN_DEVICE = 38
};
enum { DN_FLOAT = 0, DN_INT32 = 4, DN_BF16 = 9, DN_BOOLEAN = 11 };       /* elements */
enum {                                  /* types of attributes */
    DN_AS_HANDLE = 0, DN_AS_DATA_TYPE = 1, DN_AS_BOOLEAN = 2, DN_AS_INT64 = 3, DN_AS_POINTER = 6, DN_AS_HEURISTIC = 8,
    DN_AS_POINTWISE_MODE = 14, DN_AS_DESCRIPTOR = 15, DN_AS_REDUCTION = 18, DN_AS_CHAR = 24
};
enum {                                  /* modes */
    DN_ADD = 0, DN_MUL = 1, DN_DIV = 6, DN_SUB = 9, DN_EXP = 13, DN_LOG = 15, DN_GE = 303, DN_LT = 304, DN_AND = 400,
    DN_GEN_INDEX = 501, DN_SELECT = 601, DN_REDUCE_ADD = 0, DN_REDUCE_MAX = 3, DN_HEURISTIC_A = 3
};
enum {                                  /* attributes */
    DN_A_POINTWISE_MODE = 0, DN_A_POINTWISE_PRECISION = 1, DN_A_POINTWISE_AXIS = 9,
    DN_A_HEURISTICS_MODE = 200, DN_A_HEURISTICS_GRAPH = 201, DN_A_HEURISTICS_RESULTS = 202, DN_A_HEURISTICS_DEVICE = 204,
    DN_A_PLAN_HANDLE = 400, DN_A_PLAN_CONFIG = 401, DN_A_PLAN_WORKSPACE = 402, DN_A_PLAN_DEVICE = 407,
    DN_A_OP_POINTWISE = 750, DN_A_OP_POINTWISE_X = 751, DN_A_OP_POINTWISE_B = 752, DN_A_OP_POINTWISE_Y = 753, DN_A_OP_POINTWISE_T = 758,
    DN_A_GRAPH_HANDLE = 800, DN_A_GRAPH_OPS = 801,
    DN_A_TENSOR_ALIGNMENT = 900, DN_A_TENSOR_TYPE = 901, DN_A_TENSOR_DIMENSIONS = 902, DN_A_TENSOR_STRIDES = 903, DN_A_TENSOR_ID = 906,
    DN_A_TENSOR_VIRTUAL = 907, DN_A_TENSOR_BY_VALUE = 908, DN_A_TENSOR_RAGGED = 913,
    DN_A_PACK_IDS = 1000, DN_A_PACK_POINTERS = 1001, DN_A_PACK_WORKSPACE = 1003,
    DN_A_MATMUL_PRECISION = 1500, DN_A_OP_MATMUL_A = 1520, DN_A_OP_MATMUL_B = 1521, DN_A_OP_MATMUL_C = 1522, DN_A_OP_MATMUL = 1523,
    DN_A_OP_MATMUL_M = 1525, DN_A_OP_MATMUL_N = 1526, DN_A_OP_MATMUL_K = 1527,
    DN_A_REDUCTION_MODE = 1600, DN_A_REDUCTION_PRECISION = 1601, DN_A_OP_REDUCTION_X = 1610, DN_A_OP_REDUCTION_Y = 1611, DN_A_OP_REDUCTION = 1612,
    DN_A_OP_RESHAPE_X = 2200, DN_A_OP_RESHAPE_Y = 2201, DN_A_DEVICE_JSON = 2702
};

/* result, name behind "cudnn", parameters */
#define DN_CALLS(X)                                                                                          \
    X(size_t, GetVersion, (void)) X(int, Create, (dn_handle *)) X(int, Destroy, (dn_handle))                 \
    X(int, SetStream, (dn_handle, void *)) X(void, GetLastErrorString, (char *, size_t))                     \
    X(int, BackendCreateDescriptor, (int, dn_object *)) X(int, BackendDestroyDescriptor, (dn_object))        \
    X(int, BackendFinalize, (dn_object)) X(int, BackendSetAttribute, (dn_object, int, int, int64_t, const void *)) \
    X(int, BackendGetAttribute, (dn_object, int, int, int64_t, int64_t *, void *))                           \
    X(int, BackendExecute, (dn_handle, dn_object, dn_object))

#define DN_OLDEST 91900                 /* 9.19: what the plans below were made with, and every later one */

typedef struct dn_library {
    void *file;                         /* dlopen's; NULL: it was in the process already */
#define X(result, name, args) result (*name) args;
    DN_CALLS(X)
#undef X
} dn_library;

/* file NULL: what is in the process, else libcudnn.so.9 wherever the loader finds it.  False with `why` in words. */
bool dn_open(dn_library *l, const char *file, char *why, size_t size);
void dn_close(dn_library *l);

/* A class of shapes: packed sequences, at most so many of at most so many rows each; heads of `wide` channels.  q, y and
 * their gradients are bf16 [N][heads][wide], k and v bf16 [N][kv_heads][wide], lse f32 [N][heads]. */
typedef struct dn_shape {
    int64_t spans, longest;
    int     heads, kv_heads, wide;
    bool    causal, back;
} dn_shape;

/* What a plan reads and writes.  LENGTH_*: int32 [spans], rows of each sequence.  AT_*: int32 [spans + 1], where each
 * begins, in elements of q, of k, of lse.  SCALE, LOWEST_* and ONE are floats in host memory.  DELTA is work memory, as lse. */
enum {
    DN_Q, DN_K, DN_V, DN_Y, DN_LSE, DN_LENGTH_Q, DN_LENGTH_K, DN_AT_Q, DN_AT_K, DN_AT_LSE, DN_SCALE, DN_LOWEST_PAD, DN_LOWEST_BAND,
    DN_DY, DN_DQ, DN_DK, DN_DV, DN_DELTA, DN_ONE, DN_PLACES
};

enum { DN_MADE = 192, DN_OPS = 32 };

typedef struct dn_plan {
    dn_object made[DN_MADE];            /* all descriptors, in the order they were made */
    int       n_made;
    bool      has[DN_PLACES];           /* what run() is to be given                    */
    dn_object plan;
    int64_t   workspace;                /* bytes                                        */
} dn_plan;

/* For the GPU of `handle`; or, with handle NULL, for the one that the words of `device` describe (cuDNN's JSON of a
 * device's properties).  The backward pass is the form that adds in a fixed order.  False, with `why`: no engine of
 * the library supports it. */
bool dn_plan_open(const dn_library *l, dn_plan *p, const dn_shape *s, dn_handle handle, const char *device, char *why, size_t size);
void dn_plan_close(const dn_library *l, dn_plan *p);
/* On the handle's stream.  at[place] for all that p->has; workspace of p->workspace bytes. */
bool dn_plan_run(const dn_library *l, const dn_plan *p, dn_handle handle, void *const at[DN_PLACES], void *workspace, char *why, size_t size);

#ifdef __cplusplus
}
#endif
#endif
