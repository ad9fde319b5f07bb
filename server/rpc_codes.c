/* rpc_codes.c - our statuses as gRPC's codes, and their names. */
#include "server/rpc.h"

int mx_rpc_code_of(mx_status st)
{
    static const uint8_t codes[MX_STATUS_COUNT] = {
        [MX_OK] = MX_RPC_OK,
        [MX_ERR_ARG] = MX_RPC_INVALID_ARGUMENT,
        [MX_ERR_NOT_FOUND] = MX_RPC_NOT_FOUND,
        [MX_ERR_NO_MEMORY] = MX_RPC_RESOURCE_EXHAUSTED,
        [MX_ERR_BUSY] = MX_RPC_RESOURCE_EXHAUSTED,
        [MX_ERR_DEADLINE] = MX_RPC_DEADLINE_EXCEEDED,
        [MX_ERR_CANCELLED] = MX_RPC_CANCELLED,
        [MX_ERR_UNAVAILABLE] = MX_RPC_UNAVAILABLE,
        [MX_ERR_STATE] = MX_RPC_FAILED_PRECONDITION,
        [MX_ERR_IO] = MX_RPC_INTERNAL,
        [MX_ERR_FORMAT] = MX_RPC_INVALID_ARGUMENT,
        [MX_ERR_DEVICE] = MX_RPC_INTERNAL,
        [MX_ERR_INTERNAL] = MX_RPC_INTERNAL,
        [MX_ERR_UNKNOWN_CALLER] = MX_RPC_UNAUTHENTICATED,
        [MX_ERR_DENIED] = MX_RPC_PERMISSION_DENIED,
    };
    return (unsigned)st < MX_STATUS_COUNT ? codes[st] : MX_RPC_INTERNAL;
}

const char *mx_rpc_code_name(int code)
{
    static const char *const names[MX_RPC_CODE_COUNT] = {
        "OK",        "CANCELLED",       "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
        "NOT_FOUND", "ALREADY_EXISTS",  "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
        "ABORTED",   "OUT_OF_RANGE",    "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
        "DATA_LOSS", "UNAUTHENTICATED",
    };
    return (unsigned)code < MX_RPC_CODE_COUNT ? names[code] : "a code that gRPC does not have";
}
