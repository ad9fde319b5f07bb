/* nocheck.c - stands for check.c in the builds without the checker. */
#include "internal.h"

int cudasim_is_checker(void) { return 0; }
