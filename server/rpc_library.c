/* rpc_library.c - what gRPC is told once, before anything of it is used. */
#include <grpc/grpc.h>

#include "server/rpc_core.h"

#include <dlfcn.h>
#include <stdlib.h>

/* Distributions build abseil without NDEBUG: each of its mutexes then takes part in a search for cycles of locks,
 * behind one lock of the process, that costs 4 % of a server's time and aborts where it sees one.  0: OnDeadlockCycle::kIgnore.
 * The name is that of Debian 12's and Ubuntu 24.04's abseil; where it is another there is nothing to do. */
static void stop_lock_checks(void)
{
    void (*mode)(int) = NULL;
    *(void **)(void *)&mode = dlsym(RTLD_DEFAULT, "_ZN4absl7debian329SetMutexDeadlockDetectionModeENS0_15OnDeadlockCycleE");
    if (mode) mode(0);
}

void mx_rpc_library_open(void)
{
    /* gRPC logs every failed handshake on stderr; who wants that says so in the environment. */
    setenv("GRPC_VERBOSITY", "NONE", 0);
    stop_lock_checks();
    grpc_init();
}
