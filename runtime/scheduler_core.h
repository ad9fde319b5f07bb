/* scheduler_core.h - inside of the scheduler: scheduler.c (threads, lanes, submit),
 * scheduler_turn.c (what a worker does next), scheduler_share.c (whose job comes next).
 * Nobody else includes this.
 *
 * One mutex guards everything and is never held while run() or done() works. */
#ifndef MX_SCHEDULER_CORE_H
#define MX_SCHEDULER_CORE_H

#include "runtime/scheduler.h"

#include <pthread.h>

#define MX_NEVER UINT64_MAX

enum { MX_AFFINITIES = 1024, MX_WORDS = MX_TENANTS / 64 };

typedef struct mx_queue {
    mx_job  *head, *last;
    uint32_t n;
} mx_queue;

/* Jobs that have had no turn yet, by class and tenant; bit t of set[p]: q[p][t] is not empty. */
typedef struct mx_waiting {
    mx_queue q[MX_PRIORITIES][MX_TENANTS];
    uint64_t set[MX_PRIORITIES][MX_WORDS];
    uint32_t n, of[MX_PRIORITIES];
    uint64_t rows;
} mx_waiting;

typedef struct mx_lane   mx_lane;
typedef struct mx_worker mx_worker;

/* What the lanes of one name share. */
typedef struct mx_lane_group {
    struct mx_lane_group *next;
    uint32_t replicas;
    double   vtime[MX_TENANTS];      /* rows granted / weight                               */
    uint32_t jobs[MX_TENANTS];       /* waiting and running                                 */
    uint64_t active[MX_WORDS];       /* bit t: jobs[t] > 0                                  */
    struct { uint64_t key; mx_lane *where; } near[MX_AFFINITIES];
} mx_lane_group;

struct mx_lane {
    mx_lane       *next;             /* of the same worker                                  */
    mx_worker     *worker;
    mx_lane_group *group;
    mx_lane_config c;
    mx_waiting     waiting;
    mx_queue       running;          /* in order of admission                               */
    uint32_t       running_of[MX_TENANTS], running_batch;
    uint32_t       passed[MX_PRIORITIES];   /* admissions while this class waited           */
    uint64_t       next_deadline;    /* no waiting job has an earlier one                   */
    uint64_t       served;           /* number of the worker's turn that it had last        */
    uint64_t       ready_ns;         /* since when it has work that no turn was given       */
    uint32_t       budget;           /* rows of its next turn, at most                      */
    bool           closing, cut;     /* cut: its jobs must leave                            */
    mx_job       **turn;             /* max_jobs entries, the worker's                      */
    uint64_t       turns, rows, done, refused, busy_ns, last_turn_ns;
    uint64_t       spent_ns;         /* in run() since a job was last done                  */
    uint64_t       job_ns;           /* moving average of the above for each job done       */
    uint64_t       turn_ns;          /* moving average of a turn                            */
};

struct mx_worker {
    mx_scheduler  *s;
    mx_device     *dev;
    mx_device      twin;             /* of an express worker: what dev points to            */
    mx_lane       *lanes;
    mx_lane       *last;             /* whose turn was the last; NULL: gone, or none yet    */
    uint64_t       last_end_ns;
    mx_stream      stream;
    mx_buffer      bigger;           /* scratch for a new lane, put in place before a turn  */
    size_t         scratch;          /* bytes of the larger of the two                      */
    uint64_t       turns;
    pthread_t      thread;
    pthread_cond_t wake;
    bool           open, started, asleep;
    bool           lost;             /* its device is: jobs hear so, and no more come       */
    bool           giving;           /* done() of some job runs                                */
    mx_lane       *unsettled;        /* had the last turn, and may have left work on the stream */
    bool           sweep;            /* look at every waiting job: somebody was cancelled   */
};

typedef struct mx_tenant {
    mx_tenant_config c;
    double   level;                  /* rows the bucket holds; below 0 it owes              */
    uint64_t filled_ns;
    uint64_t rows, refused;
} mx_tenant;

struct mx_scheduler {
    pthread_mutex_t lock;
    pthread_mutex_t opening;         /* one lane comes or goes at a time; taken before lock  */
    pthread_cond_t  empty;           /* live fell to 0, or a closing lane emptied           */
    mx_clock        clock;
    bool            real_clock, threads;
    bool            draining, cancel_all, stop;
    bool            shares;          /* a tenant was spoken of                              */
    uint32_t        closers;         /* threads that wait in mx_scheduler_lane_close()         */
    uint64_t        live;            /* jobs taken and not yet given back                   */
    int             n_devices, n_workers;      /* workers [n_devices, 2 n_devices): express */
    mx_worker      *workers;
    mx_lane_group  *groups;
    mx_tenant       tenant[MX_TENANTS];
};

static inline uint32_t mx_rows_of(const mx_job *j)
{
    return j->rows ? j->rows : 1;
}

/* ---- scheduler_share.c; all with the lock held ---------------------------------------- */

void    mx_queue_push(mx_queue *q, mx_job *j);
mx_job *mx_queue_take_after(mx_queue *q, mx_job *before);       /* NULL: the first */

void    mx_waiting_push(mx_waiting *w, mx_job *j);
mx_job *mx_waiting_take(mx_waiting *w, int priority, int tenant);      /* its first */
/* The next non-empty queue from (*priority, *tenant) on; begin with 0, 0.  False: no more. */
bool    mx_waiting_next(const mx_waiting *w, int *priority, int *tenant);
uint64_t mx_waiting_oldest(const mx_waiting *w);                /* queued_ns; MX_NEVER: none */

/* Whose first waiting job comes next; false: none may. */
bool    mx_share_next(const mx_lane *l, int *priority, int *tenant);
void    mx_share_admitted(mx_lane *l, const mx_job *j);         /* it left the waiting for a turn */
void    mx_share_enter(mx_lane *l, const mx_job *j);            /* taken by submit               */
void    mx_share_leave(mx_lane *l, const mx_job *j);            /* given back                    */
void    mx_share_charge(mx_lane *l, mx_job *j);                 /* j->granted rows               */
/* The tenant's limits at submit.  MX_ERR_BUSY with err->retry_ms. */
mx_status mx_share_admit(mx_scheduler *s, const mx_lane *l, mx_job *j, uint64_t now, mx_error *err);

/* ---- scheduler_turn.c: called and left with the lock held ------------------------------- */

/* One decision; false: nothing to do before *next_ns. */
bool    mx_worker_advance(mx_worker *w, uint64_t *next_ns);

#endif
