/* fuzz_safetensors.c - any bytes as a safetensors file. */
#include "tests/fuzz/touch_checkpoint.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mx_checkpoint *c;
    mx_error err = {0};
    if (mx_checkpoint_open_memory(&c, data, size, "input", &err)) return 0;
    touch_checkpoint(c);
    mx_checkpoint_close(c);
    return 0;
}
