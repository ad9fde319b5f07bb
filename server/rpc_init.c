/* rpc_init.c - how gRPC begins in this process. */
#include "server/rpc_init.h"

#include <dlfcn.h>
#include <grpc/grpc.h>
#include <stdlib.h>
#include <string.h>

/* Debian builds Abseil without NDEBUG, and so every lock of gRPC is entered into one graph, under one spinlock, that looks
 * for deadlocks: 5 % of a quote's time on two threads.  Where Abseil has another name, all stays as it is. */
static void look_for_no_deadlocks(void)
{
    void (*set)(int mode);
    void *symbol = dlsym(RTLD_DEFAULT, "_ZN4absl7debian329SetMutexDeadlockDetectionModeENS0_15OnDeadlockCycleE");
    memcpy(&set, &symbol, sizeof set);        /* ISO C has no cast for it */
    if (symbol) set(0);
}

void mx_rpc_init(void)
{
    setenv("GRPC_VERBOSITY", "NONE", 0);      /* errors are told by status; who wants gRPC's lines on stderr says so in the environment */
    look_for_no_deadlocks();
    grpc_init();
}
