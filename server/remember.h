/* remember.h - models that come and go while the server runs, kept over a restart.
 *
 * One document a name in a database of server/store.h: the Models.Load that was answered last, or that the name was
 * unloaded.  From open on app->load and app->unload go through here: what they acknowledge is on disk. */
#ifndef MX_REMEMBER_H
#define MX_REMEMBER_H

#include "server/app.h"

typedef struct mx_remember mx_remember;

/* Before models are loaded; closed with the app.  Errors: MX_ERR_IO, MX_ERR_FORMAT (a file that is not ours), MX_ERR_NO_MEMORY. */
mx_status mx_remember_open(mx_app *app, const char *file, mx_error *err);
void      mx_remember_close(mx_remember *r);
/* As mx_app_load(), of a model that is given at the start: from where it was loaded last, if that can be served, and not at all
 * when it was unloaded.  Without a memory it is mx_app_load(). */
mx_status mx_remember_load(mx_app *app, const char *spec, const mx_generator_options *opt, mx_error *err);
/* All the others, before the app serves.  What cannot be served any more is told in the log, and stays remembered. */
void      mx_remember_restore(mx_app *app);

#endif
