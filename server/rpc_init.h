/* rpc_init.h - grpc_init() with what a server and a client both want; grpc_shutdown() for each, as ever. */
#ifndef MX_RPC_INIT_H
#define MX_RPC_INIT_H

void mx_rpc_init(void);

#endif
