/* metrics.h - counters, gauges and histograms, and their Prometheus text.
 *
 * A metric is registered once, from any thread (models come while a server runs),
 * and then updated from any thread without a lock.  Names begin with merx_ and follow the manner of
 * vLLM (merx_num_requests_running, merx_time_to_first_token_seconds ...). */
#ifndef MX_METRICS_H
#define MX_METRICS_H

#include "runtime/status.h"

#include <stddef.h>
#include <stdint.h>

typedef struct mx_metrics mx_metrics;      /* the registry                       */
typedef struct mx_metric  mx_metric;       /* one time series, owned by registry */

typedef enum mx_metric_kind { MX_COUNTER, MX_GAUGE, MX_HISTOGRAM } mx_metric_kind;

mx_status mx_metrics_open(mx_metrics **out, mx_error *err);
void      mx_metrics_close(mx_metrics *m);

/* labels: "" or "model=\"smollm2\",lane=\"generate\"" (values escaped by the
 * caller with mx_metrics_label).  The same name may be added with other labels;
 * kind and help must then agree.  Histograms have buckets 10 us .. 600 s in
 * 1-2.5-5 steps, unit seconds.  Returns NULL when memory is out or name, kind
 * or labels are wrong; updates of a NULL metric do nothing. */
mx_metric *mx_metrics_add(mx_metrics *m, mx_metric_kind kind, const char *name, const char *labels, const char *help);
/* The series with these labels are gone, in all families: nobody may hold one any more. */
void       mx_metrics_remove(mx_metrics *m, const char *labels);
void       mx_metrics_label(char *out, size_t size, const char *key, const char *value);   /* key="value", escaped */

void   mx_metric_inc(mx_metric *m, uint64_t n);          /* counter             */
void   mx_metric_set(mx_metric *m, double value);        /* gauge               */
void   mx_metric_add(mx_metric *m, double delta);        /* gauge               */
void   mx_metric_observe(mx_metric *m, double seconds);  /* histogram           */
double mx_metric_value(const mx_metric *m);              /* count for histogram */
double mx_metric_quantile(const mx_metric *m, double q); /* histogram, linear within a bucket; NaN when empty */

/* Prometheus text format 0.0.4; returns malloc'ed text the caller frees, NULL when memory is out. */
char  *mx_metrics_render(const mx_metrics *m, size_t *len);

#endif
