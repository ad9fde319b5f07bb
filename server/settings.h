/* settings.h - the table of every setting (settings.c); see runtime/config.h. */
#ifndef MX_SETTINGS_H
#define MX_SETTINGS_H

#include "runtime/config.h"

typedef enum mx_command {
    MX_CMD_SERVE = 1, MX_CMD_GENERATE = 2, MX_CMD_CLIENT = 4, MX_CMD_INFO = 8,
    MX_CMD_MODEL = MX_CMD_SERVE | MX_CMD_GENERATE | MX_CMD_INFO,
    MX_CMD_SAMPLE = MX_CMD_GENERATE | MX_CMD_CLIENT,
    MX_CMD_ALL = MX_CMD_MODEL | MX_CMD_CLIENT
} mx_command;

extern const mx_setting mx_settings[];
extern const int        mx_settings_count;

#endif
