/* fuzz_gguf.c - any bytes behind GGUF's magic, as a file and as a decoder's
 * description. */
#include "models/decoder_config.h"
#include "tests/fuzz/touch_checkpoint.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mx_checkpoint *c;
    mx_decoder_config config;
    mx_error err = {0};
    if (size < 4 || memcmp(data, "GGUF", 4) != 0) return 0;
    if (mx_checkpoint_open_memory(&c, data, size, "input", &err)) return 0;
    touch_checkpoint(c);
    mx_decoder_config_gguf(&config, c, &err);
    mx_checkpoint_close(c);
    return 0;
}
