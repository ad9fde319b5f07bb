/* job.h - one thing a client or the trainer wants done.
 *
 * A job is advanced in TURNS.  In one turn a lane takes the jobs that can
 * share a batch, runs them together once, and each job answers MX_DONE or
 * MX_AGAIN.  A price needs one turn; a generated text one turn per token; a
 * training run one turn per step.  So continuous batching, streaming,
 * cancellation and training beside serving are all the same rule: decide
 * again between turns.
 *
 * OWNERSHIP: when mx_scheduler_submit() returns MX_OK the scheduler owns the
 * job until it calls job->done(), exactly once, from a worker thread.  When
 * submit returns anything else the caller still owns it and done() is not
 * called.  Embed mx_job first in your own struct; it is never copied. */
#ifndef MX_JOB_H
#define MX_JOB_H

#include "runtime/device.h"

#include <stdatomic.h>

typedef enum mx_verdict { MX_DONE, MX_AGAIN } mx_verdict;

/* Who waits longest before whom, within a lane: 0 is an interactive request, the
 * last is batch work, which fills what the others leave. */
enum { MX_PRIORITY_INTERACTIVE = 0, MX_PRIORITY_NORMAL = 1, MX_PRIORITY_LOW = 2, MX_PRIORITY_BATCH = 3, MX_PRIORITIES = 4 };
enum { MX_TENANTS = 256 };      /* tenant numbers are below; 0 is whoever has none */

typedef struct mx_job mx_job;
struct mx_job {
    mx_job      *next;          /* intrusive link, private to the scheduler    */
    uint64_t     deadline_ns;   /* 0: none; checked before every turn          */
    uint32_t     rows;          /* rows this job would like in its next turn, 0
                                   counts as 1; after submit only run() changes
                                   rows and splits                             */
    uint32_t     granted;       /* rows it got: fewer only if it splits        */
    bool         splits;        /* a long prompt may come in over many turns   */
    uint8_t      priority;      /* MX_PRIORITY_*; the caller's, before submit  */
    uint8_t      tenant;        /* the caller's, before submit: whose share its rows count to */
    bool         running;       /* private to the scheduler: has had a turn    */
    uint32_t     missed;        /* private: turns of its lane without rows     */
    uint32_t     prepaid;       /* private: rows its tenant's rate was charged for at submit */
    uint64_t     affinity;      /* the caller's: equal numbers go to the same replica where its
                                   backlog allows (a shared prompt's KV is there); 0: none */
    mx_verdict   verdict;       /* set by lane->run; MX_DONE before it         */
    mx_error     error;         /* set by lane->run when this job alone failed:
                                   the job is then done, whatever its verdict  */
    atomic_bool  cancelled;     /* set by anyone, read between turns           */
    void       (*done)(mx_job *job);
    uint64_t     queued_ns, started_ns, done_ns;   /* submit, first turn (0: none), done; the scheduler's clock */
};

#endif
