/* settings.h - the table of every setting (settings.c); see runtime/config.h. */
#ifndef MX_SETTINGS_H
#define MX_SETTINGS_H

#include "runtime/config.h"

/* A setting's `commands`: who takes it, under which heading --help shows it, and
 * whether the words of a text depend on it (a batch cannot go on with another). */
typedef enum mx_command {
    MX_CMD_SERVE = 1, MX_CMD_GENERATE = 2, MX_CMD_CLIENT = 4, MX_CMD_INFO = 8,
    MX_CMD_TRAIN = 16, MX_CMD_TOKENIZE = 32, MX_CMD_MERGE = 64, MX_CMD_PLOT = 128, MX_CMD_EMBED = 256, MX_CMD_EVALUATE = 512, MX_CMD_LOAD = 1024,
    MX_CMD_TOKEN = 2048, MX_CMD_BENCH = 4096, MX_CMD_TOP = 8192, MX_CMD_PROFILE = 16384, MX_CMD_MODELS = 32768,
    MX_CMD_DATA = MX_CMD_TRAIN | MX_CMD_TOKENIZE,
    MX_CMD_MODEL = MX_CMD_SERVE | MX_CMD_GENERATE | MX_CMD_INFO,
    MX_CMD_SAMPLE = MX_CMD_GENERATE | MX_CMD_CLIENT,
    MX_CMD_ALL = MX_CMD_MODEL | MX_CMD_CLIENT | MX_CMD_DATA | MX_CMD_MERGE | MX_CMD_EMBED | MX_CMD_EVALUATE,
    MX_CMD_CALL = MX_CMD_CLIENT | MX_CMD_BENCH | MX_CMD_PROFILE | MX_CMD_MODELS,
    MX_CMD_ANY = MX_CMD_ALL | MX_CMD_PLOT | MX_CMD_LOAD | MX_CMD_PROFILE,

    MX_GROUP_MODEL = 1 << 16, MX_GROUP_BATCH = 1 << 17, MX_GROUP_SERVER = 1 << 18, MX_GROUP_PROMPT = 1 << 19,
    MX_GROUP_LENGTH = 1 << 20, MX_GROUP_SAMPLE = 1 << 21, MX_GROUP_OUTPUT = 1 << 22,
    MX_GROUP_DATA = 1 << 23, MX_GROUP_RUN = 1 << 24, MX_GROUP_LEARN = 1 << 25, MX_GROUP_ADAPTER = 1 << 26, MX_GROUP_PLOT = 1 << 27, MX_GROUP_VECTOR = 1 << 28, MX_GROUP_ACT = 1 << 29, MX_GROUP_GRAPH = 1 << 30
} mx_command;
#define MX_DECIDES_TEXT (UINT64_C(1) << 31)
#define MX_GROUP_LOAD   (UINT64_C(1) << 32)      /* further ones go on from here; commands have the first 16 bits */

/* Bit i of `commands` is mx_command_names[i]; NULL ends both lists. */
extern const char *const mx_command_names[];
typedef struct mx_setting_group { uint64_t bit; const char *title; } mx_setting_group;
extern const mx_setting_group mx_setting_groups[];

extern const mx_setting mx_settings[];
extern const int        mx_settings_count;

#endif
