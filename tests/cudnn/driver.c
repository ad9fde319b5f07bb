/* driver.c - libcuda.so.1 for tests/cudnn: no devices, but a kernel that is loaded is said to be
 * there.  That is all that cuDNN wants of a driver while it makes a plan; whatever else it asks
 * for fails.  It is found by the loader's path of that one test and never installed. */
#include <dlfcn.h>
#include <stddef.h>

enum { FINE = 0, STUB = 34 };           /* CUDA_SUCCESS, CUDA_ERROR_STUB_LIBRARY */

static int refuse(void) { return STUB; }

#define REFUSED(name) \
    int name(void);   \
    int name(void) { return STUB; }
REFUSED(cuCtxGetCurrent) REFUSED(cuCtxGetLimit) REFUSED(cuCtxPopCurrent) REFUSED(cuCtxPushCurrent) REFUSED(cuStreamGetCtx)
REFUSED(cuDriverGetVersion) REFUSED(cuLinkCreate) REFUSED(cuLinkAddData) REFUSED(cuLinkComplete) REFUSED(cuLinkDestroy)
REFUSED(cuLaunchKernel) REFUSED(cuLaunchCooperativeKernel) REFUSED(cuLaunchKernelEx) REFUSED(cuDeviceGetCount) REFUSED(cuDeviceGet)
REFUSED(cuLibraryLoadFromFile) REFUSED(cuKernelGetAttribute) REFUSED(cuOccupancyMaxPotentialClusterSize) REFUSED(cuModuleGetFunction)
REFUSED(cuModuleLoadData) REFUSED(cuModuleUnload) REFUSED(cuTensorMapEncodeIm2col) REFUSED(cuTensorMapEncodeTiled)

#define GIVEN(name)                 \
    int name(void **out);           \
    int name(void **out)            \
    {                               \
        *out = out;                 \
        return FINE;                \
    }
GIVEN(cuLibraryLoadData) GIVEN(cuLibraryGetKernel) GIVEN(cuKernelGetFunction)

#define FINE_TOO(name) \
    int name(void);    \
    int name(void) { return FINE; }
FINE_TOO(cuLibraryUnload) FINE_TOO(cuKernelSetAttribute) FINE_TOO(cuFuncSetAttribute)

#define TOLD(name)                            \
    int name(int error, const char **text);   \
    int name(int error, const char **text)    \
    {                                         \
        (void)error;                          \
        *text = "no driver here";             \
        return FINE;                          \
    }
TOLD(cuGetErrorName) TOLD(cuGetErrorString)

int cuGetProcAddress_v2(const char *name, void **at, int version, unsigned long flags, int *status);
int cuGetProcAddress_v2(const char *name, void **at, int version, unsigned long flags, int *status)
{
    (void)version, (void)flags;
    void *self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    *at = self ? dlsym(self, name) : NULL;
    if (!*at) *(int (**)(void))at = refuse;
    if (self) dlclose(self);
    if (status) *status = 0;
    return FINE;
}

int cuGetProcAddress(const char *name, void **at, int version, unsigned long flags);
int cuGetProcAddress(const char *name, void **at, int version, unsigned long flags)
{
    return cuGetProcAddress_v2(name, at, version, flags, NULL);
}
