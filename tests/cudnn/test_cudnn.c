/* test_cudnn.c - our attention graphs before the real cuDNN, which plans for a GPU that is not there.
 *
 * cuDNN can be told a device's properties and then finds engines, writes a kernel and
 * compiles it without one; driver.c is the driver that takes the finished kernel.  So this
 * tells that the library understands the graphs as attention, with sequences packed, groups
 * of heads and a backward pass in a fixed order - not that its kernels compute what they
 * should, nor how fast.  Skipped where libcudnn.so.9 is not installed. */
#include "kernels/cuda/cudnn.cuh"
#include "tests/test.h"

#if __has_include(<cudnn_graph.h>)
#include <cudnn_graph.h>
#define SAME(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #ours)
SAME(DN_POINTWISE, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
SAME(DN_ENGINE_CONFIG, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
SAME(DN_HEURISTICS, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
SAME(DN_EXECUTION_PLAN, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
SAME(DN_OP_POINTWISE, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
SAME(DN_GRAPH, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
SAME(DN_VARIANT_PACK, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
SAME(DN_TENSOR, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
SAME(DN_MATMUL, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
SAME(DN_OP_MATMUL, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
SAME(DN_REDUCTION, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
SAME(DN_OP_REDUCTION, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
SAME(DN_OP_RESHAPE, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
SAME(DN_DEVICE, CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
SAME(DN_BF16, CUDNN_DATA_BFLOAT16);
SAME(DN_INT32, CUDNN_DATA_INT32);
SAME(DN_BOOLEAN, CUDNN_DATA_BOOLEAN);
SAME(DN_FLOAT, CUDNN_DATA_FLOAT);
SAME(DN_AS_HANDLE, CUDNN_TYPE_HANDLE);
SAME(DN_AS_DATA_TYPE, CUDNN_TYPE_DATA_TYPE);
SAME(DN_AS_BOOLEAN, CUDNN_TYPE_BOOLEAN);
SAME(DN_AS_INT64, CUDNN_TYPE_INT64);
SAME(DN_AS_POINTER, CUDNN_TYPE_VOID_PTR);
SAME(DN_AS_HEURISTIC, CUDNN_TYPE_HEUR_MODE);
SAME(DN_AS_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE);
SAME(DN_AS_DESCRIPTOR, CUDNN_TYPE_BACKEND_DESCRIPTOR);
SAME(DN_AS_REDUCTION, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE);
SAME(DN_AS_CHAR, CUDNN_TYPE_CHAR);
SAME(DN_ADD, CUDNN_POINTWISE_ADD);
SAME(DN_MUL, CUDNN_POINTWISE_MUL);
SAME(DN_DIV, CUDNN_POINTWISE_DIV);
SAME(DN_SUB, CUDNN_POINTWISE_SUB);
SAME(DN_EXP, CUDNN_POINTWISE_EXP);
SAME(DN_LOG, CUDNN_POINTWISE_LOG);
SAME(DN_GE, CUDNN_POINTWISE_CMP_GE);
SAME(DN_LT, CUDNN_POINTWISE_CMP_LT);
SAME(DN_AND, CUDNN_POINTWISE_LOGICAL_AND);
SAME(DN_GEN_INDEX, CUDNN_POINTWISE_GEN_INDEX);
SAME(DN_SELECT, CUDNN_POINTWISE_BINARY_SELECT);
SAME(DN_REDUCE_ADD, CUDNN_REDUCE_TENSOR_ADD);
SAME(DN_REDUCE_MAX, CUDNN_REDUCE_TENSOR_MAX);
SAME(DN_HEURISTIC_A, CUDNN_HEUR_MODE_A);
SAME(DN_A_POINTWISE_MODE, CUDNN_ATTR_POINTWISE_MODE);
SAME(DN_A_POINTWISE_PRECISION, CUDNN_ATTR_POINTWISE_MATH_PREC);
SAME(DN_A_POINTWISE_AXIS, CUDNN_ATTR_POINTWISE_AXIS);
SAME(DN_A_HEURISTICS_MODE, CUDNN_ATTR_ENGINEHEUR_MODE);
SAME(DN_A_HEURISTICS_GRAPH, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
SAME(DN_A_HEURISTICS_RESULTS, CUDNN_ATTR_ENGINEHEUR_RESULTS);
SAME(DN_A_HEURISTICS_DEVICE, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP);
SAME(DN_A_PLAN_HANDLE, CUDNN_ATTR_EXECUTION_PLAN_HANDLE);
SAME(DN_A_PLAN_CONFIG, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
SAME(DN_A_PLAN_WORKSPACE, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE);
SAME(DN_A_PLAN_DEVICE, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP);
SAME(DN_A_OP_POINTWISE, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
SAME(DN_A_OP_POINTWISE_X, CUDNN_ATTR_OPERATION_POINTWISE_XDESC);
SAME(DN_A_OP_POINTWISE_B, CUDNN_ATTR_OPERATION_POINTWISE_BDESC);
SAME(DN_A_OP_POINTWISE_Y, CUDNN_ATTR_OPERATION_POINTWISE_YDESC);
SAME(DN_A_OP_POINTWISE_T, CUDNN_ATTR_OPERATION_POINTWISE_TDESC);
SAME(DN_A_GRAPH_HANDLE, CUDNN_ATTR_OPERATIONGRAPH_HANDLE);
SAME(DN_A_GRAPH_OPS, CUDNN_ATTR_OPERATIONGRAPH_OPS);
SAME(DN_A_TENSOR_ALIGNMENT, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT);
SAME(DN_A_TENSOR_TYPE, CUDNN_ATTR_TENSOR_DATA_TYPE);
SAME(DN_A_TENSOR_DIMENSIONS, CUDNN_ATTR_TENSOR_DIMENSIONS);
SAME(DN_A_TENSOR_STRIDES, CUDNN_ATTR_TENSOR_STRIDES);
SAME(DN_A_TENSOR_ID, CUDNN_ATTR_TENSOR_UNIQUE_ID);
SAME(DN_A_TENSOR_VIRTUAL, CUDNN_ATTR_TENSOR_IS_VIRTUAL);
SAME(DN_A_TENSOR_BY_VALUE, CUDNN_ATTR_TENSOR_IS_BY_VALUE);
SAME(DN_A_TENSOR_RAGGED, CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC);
SAME(DN_A_PACK_IDS, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
SAME(DN_A_PACK_POINTERS, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
SAME(DN_A_PACK_WORKSPACE, CUDNN_ATTR_VARIANT_PACK_WORKSPACE);
SAME(DN_A_MATMUL_PRECISION, CUDNN_ATTR_MATMUL_COMP_TYPE);
SAME(DN_A_OP_MATMUL, CUDNN_ATTR_OPERATION_MATMUL_DESC);
SAME(DN_A_OP_MATMUL_A, CUDNN_ATTR_OPERATION_MATMUL_ADESC);
SAME(DN_A_OP_MATMUL_B, CUDNN_ATTR_OPERATION_MATMUL_BDESC);
SAME(DN_A_OP_MATMUL_C, CUDNN_ATTR_OPERATION_MATMUL_CDESC);
SAME(DN_A_OP_MATMUL_M, CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC);
SAME(DN_A_OP_MATMUL_N, CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC);
SAME(DN_A_OP_MATMUL_K, CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC);
SAME(DN_A_REDUCTION_MODE, CUDNN_ATTR_REDUCTION_OPERATOR);
SAME(DN_A_REDUCTION_PRECISION, CUDNN_ATTR_REDUCTION_COMP_TYPE);
SAME(DN_A_OP_REDUCTION_X, CUDNN_ATTR_OPERATION_REDUCTION_XDESC);
SAME(DN_A_OP_REDUCTION_Y, CUDNN_ATTR_OPERATION_REDUCTION_YDESC);
SAME(DN_A_OP_REDUCTION, CUDNN_ATTR_OPERATION_REDUCTION_DESC);
SAME(DN_A_OP_RESHAPE_X, CUDNN_ATTR_OPERATION_RESHAPE_XDESC);
SAME(DN_A_OP_RESHAPE_Y, CUDNN_ATTR_OPERATION_RESHAPE_YDESC);
SAME(DN_A_DEVICE_JSON, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION);
#endif

/* cuDNN's words for an H100 (9.0) and an A100 (8.0). */
#define GPU(name, version, l2, shared, sms, memory)                                                                                    \
    "{\"cudaDeviceId\":0,\"deviceName\":\"" name "\",\"deviceVer\":" version ",\"driverVer\":13000,\"isTccDriver\":0,"                 \
    "\"l2CacheSize\":" l2 ",\"maxBlockSize\":[1024,1024,64],\"maxCtasPerSM\":32,\"maxGridSize\":[2147483647,65535,65535],"             \
    "\"maxRegistersPerSM\":65536,\"maxSharedMemoryPerBlock\":49152,\"maxSharedMemoryPerBlockOptin\":" shared ","                       \
    "\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":2048,\"memClockRateKHz\":2619000,\"memoryBusWidth\":5120,"                        \
    "\"multiProcessorCount\":" sms ",\"oversizedSharedMemoryPerBlock\":0,\"pciDeviceId\":0,\"regsPerBlock\":65536,"                    \
    "\"reservedSharedMemoryPerBlock\":1024,\"smClockRateKHz\":1980000,\"smCountOrigin\":0,\"supportCoopLaunch\":1,"                    \
    "\"totalGlobalMem\":" memory ",\"warpSize\":32}"
static const char h100[] = GPU("NVIDIA H100 80GB HBM3", "900", "52428800", "232448", "132", "85017493504");
static const char a100[] = GPU("NVIDIA A100-SXM4-80GB", "800", "41943040", "166912", "108", "85017493504");

static dn_library library;

static bool there(void)
{
    char why[512];
    if (library.GetVersion || dn_open(&library, NULL, why, sizeof why)) return true;
    TEST_SKIP("%s", why);
    CHECK(why[0] && !library.file);     /* and it says so */
    return false;
}

static bool planned(const dn_shape *s, const char *device, dn_plan *p, char *why, size_t size)
{
    bool ok = dn_plan_open(&library, p, s, NULL, device, why, size);
    printf("  %s, %lld x %lld, heads %d of %d, %d channels%s: ", s->back ? "backward" : "forward", (long long)s->spans, (long long)s->longest,
           s->heads, s->kv_heads, s->wide, s->causal ? ", causal" : "");
    if (ok) printf("%d descriptors, workspace %lld\n", p->n_made, (long long)p->workspace);
    else printf("%s\n", why);
    return ok;
}

static void cudnn_plans_our_graphs_for_an_h100(void)
{
    static const dn_shape shapes[] = {
        {.spans = 8, .longest = 1024, .heads = 12, .kv_heads = 12, .wide = 64, .causal = true},
        {.spans = 64, .longest = 128, .heads = 12, .kv_heads = 12, .wide = 64},
        {.spans = 2, .longest = 4096, .heads = 32, .kv_heads = 8, .wide = 128, .causal = true},
        {.spans = 8, .longest = 1024, .heads = 12, .kv_heads = 12, .wide = 64, .causal = true, .back = true},
        {.spans = 64, .longest = 128, .heads = 4, .kv_heads = 2, .wide = 32, .back = true},
        {.spans = 2, .longest = 256, .heads = 9, .kv_heads = 3, .wide = 128, .causal = true, .back = true},
    };
    if (!there()) return;
    printf("  cuDNN %zu\n", library.GetVersion());
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        dn_plan p;
        char why[512] = "";
        bool ok = planned(&shapes[i], h100, &p, why, sizeof why);
        CHECK_MSG(ok, "shape %zu: %s", i, why);
        if (!ok) continue;
        int64_t own = shapes[i].back ? 2 * shapes[i].spans * shapes[i].heads * shapes[i].longest * shapes[i].longest : 0;
        CHECK_MSG(p.workspace >= own && p.workspace < 2 * own + (1 << 20), "shape %zu: workspace %lld", i, (long long)p.workspace);   /* dS in bf16 */
        for (int k = 0; k < DN_PLACES; k++) CHECK(p.has[k] == (k < DN_LOWEST_BAND || (k == DN_LOWEST_BAND ? shapes[i].causal : shapes[i].back)));
        dn_plan_close(&library, &p);
        CHECK(!p.n_made && !p.plan);
    }
}

/* It can say no: on an A100 no engine adds the gradients of packed sequences in a fixed order; four heads are not three groups;
 * that is no device. */
static void cudnn_refuses_what_it_cannot(void)
{
    static const dn_shape shapes[] = {
        {.spans = 8, .longest = 128, .heads = 4, .kv_heads = 4, .wide = 64, .causal = true, .back = true},
        {.spans = 8, .longest = 128, .heads = 4, .kv_heads = 3, .wide = 64},
    };
    if (!there()) return;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        dn_plan p;
        char why[512] = "";
        bool ok = planned(&shapes[i], i ? h100 : a100, &p, why, sizeof why);
        CHECK_MSG(!ok && why[0] && !p.n_made, "shape %zu", i);
        if (ok) dn_plan_close(&library, &p);
    }
    dn_plan p;
    char why[512] = "";
    CHECK(!dn_plan_open(&library, &p, &shapes[0], NULL, "{\"deviceVer\":900}", why, sizeof why) && why[0]);
}

static void a_missing_library_says_so(void)
{
    dn_library l;
    char why[512] = "";
    CHECK(!dn_open(&l, "/nowhere/libcudnn.so.9", why, sizeof why) && strstr(why, "/nowhere"));
}

MX_TESTS(TEST(a_missing_library_says_so), TEST(cudnn_plans_our_graphs_for_an_h100), TEST(cudnn_refuses_what_it_cannot))
