/* scheduler.h - who runs next, where, with whom.
 *
 * One worker thread per device, bound by topology.h to the cores nearest that
 * device.  A lane is a queue of jobs that may share a batch: one operation of
 * one model on one device; lanes of one name on several devices are replicas:
 * the first submit picks the shortest backlog, later turns stay there.  The
 * scheduler knows nothing of models: tests give it a fake run() and a fake
 * clock.
 *
 * THE TURN RULE.  A worker takes the runnable lane with the lowest priority
 * number (equal: least recently served), and fills a turn with AGAIN jobs
 * first, oldest first, then newcomers in order of arrival until max_jobs or
 * max_rows; a job that `splits` gets the rows that are left (job->granted), one
 * that does not split and does not fit waits (a turn is never empty: the first
 * job always goes, with granted = min(rows, max_rows) if it splits).  AGAIN
 * jobs that did not fit go first in the next turn, so none starves: no running
 * job is without rows for max_jobs turns of its lane.  Among AGAIN jobs that had
 * rows in the last turn those that split come last, so a long prompt does not
 * stop the texts that are being written.  Between turns: cancelled and
 * past-deadline jobs are given back with MX_ERR_CANCELLED or MX_ERR_DEADLINE,
 * whether they wait or run. */
#ifndef MX_SCHEDULER_H
#define MX_SCHEDULER_H

#include "runtime/job.h"
#include "runtime/clock.h"

typedef struct mx_scheduler mx_scheduler;

typedef struct mx_lane_config {
    const char *name;           /* "gpt2.generate"; equal names are replicas    */
    int         device;         /* index into the devices given to open         */
    int         priority;       /* lower goes first: price 0, profile 1, ...    */
    uint32_t    max_jobs;       /* running at once, so also the most per turn   */
    uint32_t    max_rows;       /* per turn: bounds latency and scratch memory  */
    uint32_t    max_wait_us;    /* how long the first job waits for company     */
    uint32_t    queue_limit;    /* beyond it submit says MX_ERR_BUSY            */
    /* Advance jobs[0..n) by one turn: set verdict (and error) of each.  The
     * stream's scratch is rewound before; an error that is left on the stream
     * fails every job of the turn. */
    void      (*run)(void *model, mx_stream *s, mx_job **jobs, int n);
    void       *model;
    size_t      scratch_bytes;  /* stream scratch that a turn of max_rows needs */
} mx_lane_config;

/* clock: NULL for the real one; it is read with a lock held.  With any other
 * clock a worker never sleeps for a time: it reads the clock again after
 * submit and mx_scheduler_wake().  The scheduler keeps neither devs nor names
 * alive: they must outlive it.  One worker thread and one stream per device.
 * Errors: MX_ERR_ARG, MX_ERR_NO_MEMORY. */
mx_status mx_scheduler_open(mx_scheduler **out, mx_device *devs, int n_devs,
                            const mx_clock *clock, mx_error *err);

/* Add a lane; may be called while others run.  scratch_bytes of the config
 * grows the device's stream.  Errors: MX_ERR_ARG names the field. */
mx_status mx_scheduler_lane(mx_scheduler *s, const mx_lane_config *c, mx_error *err);

/* Hand a job over.  The caller has set rows, splits, deadline_ns, cancelled and
 * done; the rest is reset.  Any thread may call, also from done().
 * MX_ERR_NOT_FOUND: no such lane; MX_ERR_BUSY: queue_limit reached, with
 * err->retry_ms a guess from the backlog; MX_ERR_UNAVAILABLE: draining;
 * MX_ERR_DEADLINE: already past; MX_ERR_ARG: no done().  err may be NULL. */
mx_status mx_scheduler_submit(mx_scheduler *s, const char *lane, mx_job *job, mx_error *err);

/* Tell the workers that a job was cancelled (job->cancelled is already true),
 * so that one that waits in a queue is given back at once.  Touches no job. */
void      mx_scheduler_wake(mx_scheduler *s);

typedef struct mx_lane_stats {
    uint32_t waiting, running;          /* jobs                                  */
    uint64_t turns, rows;               /* run() calls, rows granted             */
    uint64_t done, refused;             /* given back for any reason; not taken  */
    uint64_t busy_ns;                   /* time spent in run()                   */
    uint64_t last_turn_ns;              /* when the last turn ended (the clock's) */
} mx_lane_stats;
/* Sums over replicas.  False when there is no such lane. */
bool      mx_scheduler_stats(mx_scheduler *s, const char *lane, mx_lane_stats *out);

/* Stop taking jobs (submit says MX_ERR_UNAVAILABLE) and return at once. */
void      mx_scheduler_drain(mx_scheduler *s);
/* Drain, let accepted jobs finish for up to grace_ms (of real time), cancel the
 * rest, give every job back, stop the workers and free everything.  A turn that
 * has begun is waited for.  No other thread may be in a call or begin one. */
void      mx_scheduler_close(mx_scheduler *s, uint32_t grace_ms);

/* ---- for tests and simulations ---------------------------------------------- */

/* As mx_scheduler_open(), but without threads: nothing moves between steps, and
 * the same submits and steps give the same turns. */
mx_status mx_scheduler_open_stepped(mx_scheduler **out, mx_device *devs, int n_devs,
                                    const mx_clock *clock, mx_error *err);
/* What the worker of `device` would do now, in the calling thread: give back
 * cancelled and late jobs or run one turn.  False when there is nothing to do
 * before *next_ns (UINT64_MAX: before a submit or wake); may be NULL. */
bool      mx_scheduler_step(mx_scheduler *s, int device, uint64_t *next_ns);

#endif
