/* ops.c - shape checks and dispatch; no math. */
#include "kernels/ops.h"
