/* fake_generator.h - models/generate.h without a model: letters by arithmetic, real
 * jobs on a real scheduler.  What stands above it (server/) is tested with this. */
#ifndef MX_FAKE_GENERATOR_H
#define MX_FAKE_GENERATOR_H

#include "models/generate.h"

typedef struct mx_fake_options {
    uint32_t turn_us;             /* how long a turn of the lane takes  */
    uint32_t max_jobs, queue_limit;
    int32_t  max_model_len;
    bool     chat;                /* the model has a chat template      */
} mx_fake_options;

/* A prompt of "!device" fails in its first turn with MX_ERR_DEVICE. */
mx_status mx_fake_open(mx_generator **out, const char *name, mx_scheduler *s, const mx_fake_options *o, mx_error *err);
void      mx_fake_set_turn_us(mx_generator *g, uint32_t turn_us);
int       mx_fake_open_generations(const mx_generator *g);      /* opened, not yet closed */

mx_tokenizer *mx_fake_tokenizer(bool chat);

#endif
