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
 * whether they wait or run.
 *
 * WHO COMES NEXT.  Among newcomers a job of a lower priority number goes first;
 * one in MX_PATIENCE admissions is for a class that was passed over.  Batch jobs
 * leave a quarter of a lane's places free.  Within a class tenants share by weight:
 * each has a virtual time, the rows it was granted / its weight, and the one that
 * is behind goes next (start-time fair queueing: Goyal, Vin, Cheng 1996); one that
 * was idle starts at the time of those who were not.  Replicas of a lane count
 * together.  A tenant's rate is a token bucket of rows, charged at submit with what
 * the job asks for and in its turns with what it takes beyond; submit refuses while
 * it is empty.
 *
 * WHICH LANE.  Lower numbers first, but a lane that has waited MX_LEAST_SHARE times
 * the length of its last turn goes next: so training and batch lanes fill what is
 * left, are never below that share of the device, and cost the others less than the
 * hundredth that a p99 looks at.  A lane whose turns keep a lane before it waiting
 * for more than a fifth of that one's own turn gets fewer rows: half each time, at
 * least max_rows / 64, and a sixteenth of max_rows more after each turn nobody
 * waited for. */
#ifndef MX_SCHEDULER_H
#define MX_SCHEDULER_H

#include "runtime/job.h"
#include "runtime/clock.h"

typedef struct mx_scheduler mx_scheduler;

enum {
    MX_PATIENCE = 16,           /* admissions that pass a class over before it is its turn  */
    MX_LEAST_SHARE = 256,       /* a lane with work has 1 / this of the device's time       */
    MX_MEASURED_JOBS = 32       /* done before a lane's pace refuses deadlines              */
};

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
    /* NULL, or: run() may leave work on the stream that it has not waited for.  Called
     * when the lane's next turn does not come at once: before another lane has the
     * stream, before the worker sleeps, and before the lane goes. */
    void      (*settle)(void *model, mx_stream *s);
    void       *model;
    size_t      scratch_bytes;  /* stream scratch that a turn of max_rows needs */
    bool        express;        /* short turns that must not wait for the device's other lanes:
                                   a worker, threads and stream of its own (mx_device_twin) */
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

/* Take the lanes of this name out: submit says MX_ERR_NOT_FOUND from now on, jobs
 * that were taken run to their end, which is waited for (not from done()).  False:
 * there was none. */
bool      mx_scheduler_lane_close(mx_scheduler *s, const char *name);

/* What the lanes of this name counted so far, and the pace they were seen to have, is forgotten: it was a trial. */
void      mx_scheduler_lane_forget(mx_scheduler *s, const char *name);

/* End the jobs of the lanes of this name between turns, those that wait too, with MX_ERR_UNAVAILABLE, and
 * take no more.  Returns at once; lane_close is still due. */
void      mx_scheduler_lane_cut(mx_scheduler *s, const char *name);

/* A tenant's part; may be said again at any time.  Those nobody spoke of have weight
 * 1 and no limits. */
typedef struct mx_tenant_config {
    double   weight;            /* > 0: its share among the tenants that want rows       */
    double   rows_per_second;   /* 0: no rate                                             */
    double   burst_rows;        /* what may come at once; 0: a second's worth             */
    uint32_t max_waiting;       /* of its jobs in one lane; 0: the lane's queue_limit     */
} mx_tenant_config;
/* Errors: MX_ERR_ARG names the field. */
mx_status mx_scheduler_tenant(mx_scheduler *s, uint8_t tenant, const mx_tenant_config *c, mx_error *err);

typedef struct mx_tenant_stats {
    uint32_t waiting, running;          /* jobs, over all lanes                   */
    uint64_t rows, refused;             /* granted; by its rate or max_waiting    */
} mx_tenant_stats;
void      mx_scheduler_tenant_stats(mx_scheduler *s, uint8_t tenant, mx_tenant_stats *out);

/* Hand a job over.  The caller has set rows, splits, priority, tenant, affinity,
 * deadline_ns, cancelled and done; the rest is reset.  Any thread may call, also
 * from done().  Of replicas it goes to the one with the least backlog, or to where
 * its affinity went last while that backlog is no more than a quarter of its places
 * longer.  MX_ERR_NOT_FOUND: no such lane; MX_ERR_BUSY: queue_limit reached or the
 * tenant's rate is used up, with err->retry_ms a guess from the backlog;
 * MX_ERR_UNAVAILABLE: draining; MX_ERR_DEADLINE: already past, or the lane's measured
 * pace says that it cannot be met; MX_ERR_ARG: no done(), no such priority.  err may be
 * NULL. */
mx_status mx_scheduler_submit(mx_scheduler *s, const char *lane, mx_job *job, mx_error *err);

/* Tell the workers that a job was cancelled (job->cancelled is already true),
 * so that one that waits in a queue is given back at once.  Touches no job. */
void      mx_scheduler_wake(mx_scheduler *s);

typedef struct mx_lane_stats {
    uint32_t waiting, running;          /* jobs                                  */
    uint64_t turns, rows;               /* run() calls, rows granted             */
    uint64_t done, refused;             /* given back for any reason; not taken  */
    uint64_t busy_ns;                   /* time spent in run()                   */
    uint32_t lost;                      /* of the lanes: their device is lost    */
    uint32_t replicas, budget;          /* lanes; rows that a turn of theirs may have now */
    uint64_t last_turn_ns;              /* when the last turn ended (the clock's) */
} mx_lane_stats;
/* Sums over replicas.  False when there is no such lane. */
bool      mx_scheduler_stats(mx_scheduler *s, const char *lane, mx_lane_stats *out);
/* Sums over the lanes that a device has now. */
void      mx_scheduler_device_stats(mx_scheduler *s, int device, mx_lane_stats *out);

/* LOST DEVICES.  When a turn leaves a device lost (device.h), all jobs of its lanes end
 * with MX_ERR_UNAVAILABLE; submit chooses among the other devices, and says the same when
 * there is none.  False when there are lanes whose name ends so and none of them is left. */
bool      mx_scheduler_serves(mx_scheduler *s, const char *ending);

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
