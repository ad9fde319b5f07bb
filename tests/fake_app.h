/* fake_app.h - an app with two fake models: "fake" (chats) and "plain". */
#ifndef MX_FAKE_APP_H
#define MX_FAKE_APP_H

#include "server/app.h"
#include "tests/fake_generator.h"

typedef struct mx_fake_app {
    mx_app app;
    mx_generator *models[2];
} mx_fake_app;

mx_status mx_fake_app_open(mx_fake_app *f, const mx_fake_options *o, mx_error *err);
void      mx_fake_app_close(mx_fake_app *f);

#endif
