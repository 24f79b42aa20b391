/*
 * sorl-fast: sample actions from a trained policy, an any-step shortcut policy or one of another form, from C.
 *
 * Two handles. A sorl_policy is a policy file in memory: immutable, shared by any number of threads.
 * A sorl_session samples from it: it owns scratch memory, the last good action and, where asked for,
 * a worker thread; one thread at a time may use it. Sessions keep what they need of their policy
 * alive, so the two may be freed in any order.
 *
 * Errors. Functions that can fail return an int32_t: SORL_OK or more is success, negative is one of
 * SORL_ERROR_*. No C++ exception and no signal leaves the library. What went wrong is written, as a
 * sentence that names value, bound and remedy, into the `error` buffer where a function has one.
 *
 * Real time. Only the functions marked "real-time safe" may be called from a control loop: they do
 * not allocate, lock, read files or call the system, once the session was called once (warm-up) and
 * the process has locked its memory (mlockall). Everything else belongs before the loop. In a child of
 * fork() the first call of a session with threads > 1 starts its workers anew: it is a warm-up again.
 *
 * Chunks. A policy may return the actions of h ticks at once, sorl_policy_chunk(): A is then the floats of all of
 * them, one action after another. sorl_replay() gives them one a tick and makes a call where none is left.
 *
 * Shape letters: O observation, A action, B rows (observations) of a call, N candidates, M steps of an
 * action, S normal numbers that a candidate takes for each component of its action. Arrays are dense, row-major, float unless said, and belong to the caller.
 *
 * The library makes no claim of physical safety: actions are finite and within the policy's bounds,
 * which says nothing of what they do to a machine.
 */
#ifndef SORL_FAST_SORL_H_
#define SORL_FAST_SORL_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(SORL_STATIC)
#define SORL_API
#elif defined(__GNUC__)
#define SORL_API __attribute__((visibility("default")))
#else
#define SORL_API
#endif

#ifdef __cplusplus
#define SORL_NOEXCEPT noexcept
extern "C" {
#else
#define SORL_NOEXCEPT
#endif

/* Version of this interface; compare with sorl_abi_version() when the library is loaded at run time.
 * It changes when an existing declaration does; additions leave it. */
#define SORL_ABI_VERSION 1

/* Results: zero or more is success. */
#define SORL_OK 0
#define SORL_ERROR_ARGUMENT (-1)  /* a value of the caller is out of bounds, or a pointer is null */
#define SORL_ERROR_READ (-2)      /* the file is not there or cannot be read */
#define SORL_ERROR_POLICY (-3)    /* the file is damaged, incomplete or no policy */
#define SORL_ERROR_ISA (-4)       /* the instruction set is unknown, not on this machine or not of this precision */
#define SORL_ERROR_MEMORY (-5)    /* memory or threads are short */
#define SORL_ERROR_STEPS (-6)     /* M is none of the policy's step counts, sorl_policy_steps(), nor a number of
                                     sorl_session_prepare(), or that was given sizes which the policy does not take */
#define SORL_ERROR_TOO_LARGE (-7) /* more rows or candidates than the session was made for */
#define SORL_ERROR_INTERNAL (-8)  /* a fault of the library; please report it */

/* Status bits of a row. Zero: the action is the policy's own, untouched. */
#define SORL_STATUS_NONFINITE_OBS 1       /* the observation has a NaN or an infinity */
#define SORL_STATUS_NONFINITE_RESULT 2    /* no candidate had a finite action and, where a rule read it, a finite Q */
#define SORL_STATUS_HELD 4                /* the action is the session's last good one, not a new one */
#define SORL_STATUS_CLIPPED 8             /* the action was clipped to the policy's bounds */
#define SORL_STATUS_CANDIDATE_REJECTED 16 /* one with a non-finite action or, where a rule read it, Q was left out */
#define SORL_STATUS_CUT_SHORT 32          /* sorl_act_deadline(): the time ran out before its plan was done */
#define SORL_STATUS_OUT_OF_DISTRIBUTION 64 /* the observation is unlike those of the training; says nothing else */
#define SORL_STATUS_REPLAYED 128          /* sorl_replay() made no call: the action is the next of the last chunk */

/* Precision of the networks; z and Q are float32 in all. */
#define SORL_PRECISION_FP32 0
#define SORL_PRECISION_BF16 1 /* bfloat16 weights, of narrow last layers also float32; on "avx512_bf16" and
                                 "amx" bfloat16 activations too; float32 sums, LayerNorm */
#define SORL_PRECISION_INT8 2 /* 8-bit integers in hidden layers, a critic's LayerNorm gains
                                 folded into the weights; first and last layers as in bfloat16. What
                                 they read has one scale for each 32 values of a row, on "amx" one
                                 for all of a row */

/* Rules of choosing one of N > 1 candidates; what is not finite is never chosen and moves nothing. Distances are
 * in units of half the bounds' width; by Q means the highest first; of equals the first is taken. The parameter
 * is a part, above 0 and at most 1, of the candidates (rounded up), or tau, above 0. */
#define SORL_RULE_POLICY 0  /* the policy's own, sorl_policy_default_rule() */
#define SORL_RULE_ARGMAX 1  /* the highest Q */
#define SORL_RULE_MEDOID 2  /* of the part best by Q (1/2) the one nearest to the others of it, by the sum of distances */
#define SORL_RULE_NEAREST 3 /* of the part nearest to the candidates' mean (1/4) the one of the highest Q */
#define SORL_RULE_BETTER 4  /* one of the part best by Q (1/2), at random */
#define SORL_RULE_SOFT 5    /* one at random, with probabilities in proportion to exp(Q / (tau s)), tau (1), s the
                               standard deviation of the candidates' Q */
#define SORL_RULE_CENTRE 6  /* the one nearest to all others: no Q is read, and no critic needed */

typedef struct sorl_policy sorl_policy;
typedef struct sorl_session sorl_session;

/* How a session is made. Fill it with sorl_options_init(), then change what you need. Later versions add
 * fields at the end, whose default is zero; a caller compiled with another version's header than the library
 * goes on as it was. */
typedef struct sorl_options {
  uint32_t struct_size;   /* sizeof(sorl_options) of the caller's header: set by sorl_options_init */
  int32_t precision;      /* SORL_PRECISION_FP32 (default), SORL_PRECISION_BF16 or _INT8 */
  int32_t threads;        /* 1 (default) to 64, the caller's own thread included */
  int32_t max_rows;       /* most rows B of a call, at least 1 (default 1) */
  int32_t max_candidates; /* most candidates N of a call, at least 1 (default 1: there is room for the policy's own
                             N too, sorl_policy_default_candidates()); max_rows * N is at most 2^30 / A */
  const char *isa;        /* NULL (default): the environment's SORL_CPU_ISA, or the fastest that this
                             machine and build have; else one by name. Which precisions each has:
                               "scalar", "avx2"            all three
                               "avx512", "neon"            fp32, bf16
                               "avx512_bf16"               bf16
                               "amx"                       bf16, int8
                               "avx_vnni", "avx512_vnni",
                               "neon_dotprod"              int8 */
} sorl_options;

/* A way to act, for sorl_session_prepare_deadline(). */
typedef struct sorl_way {
  int32_t steps;      /* as of sorl_act(); 0: the policy's own */
  int32_t candidates; /* N; 0: the policy's own */
  int32_t rule;       /* SORL_RULE_* */
  double parameter;   /* of the rule, as of sorl_session_set_rule() */
} sorl_way;

/* What a call of sorl_act_deadline() did. Later versions add fields at the end. */
typedef struct sorl_done {
  uint32_t struct_size; /* sizeof(sorl_done) of the caller's header, to be set before the call: no more is written */
  int32_t way;          /* index of the way that it chose, sorl_session_way() */
  int32_t steps;        /* of that */
  int32_t evaluations;  /* of the actor that became part of the action: fewer than steps where it was cut short */
  int32_t candidates;   /* N of the way */
  int32_t scored;       /* of which so many have a Q; 0 where the way reads none */
  int32_t candidate;    /* index of the winner, -1 where the action is held */
  float q;              /* its Q, a NaN where it has none */
  uint32_t status;      /* SORL_STATUS_* bits */
  double elapsed_us;    /* from the call to its return */
} sorl_done;

/* ---- the library ---------------------------------------------------------------------------- */

/* SORL_ABI_VERSION of the library that is loaded. Any thread; real-time safe. */
SORL_API uint32_t sorl_abi_version(void) SORL_NOEXCEPT;

/* A few words for an error code, such as "memory or threads are short"; never NULL, never to be freed; for any
 * code of zero or more "ok". Any thread; real-time safe. */
SORL_API const char *sorl_error_name(int32_t code) SORL_NOEXCEPT;

/* ---- policies ------------------------------------------------------------------------------- */

/* Reads the policy file at `path` (UTF-8, zero-terminated) and checks all of it.
 *
 * On success *policy is a new handle, to be given to sorl_policy_free(). On failure *policy is NULL
 * and `error`, a buffer of `error_size` bytes (NULL and 0 if not wanted), holds a zero-terminated
 * text, cut off where it does not fit. At most twice the file's size is held at any moment.
 *
 * Returns SORL_OK, SORL_ERROR_ARGUMENT, SORL_ERROR_READ, SORL_ERROR_POLICY, SORL_ERROR_MEMORY or
 * SORL_ERROR_INTERNAL.
 * Any thread; not real-time safe. */
SORL_API int32_t sorl_policy_load(const char *path, sorl_policy **policy, char *error,
                                  size_t error_size) SORL_NOEXCEPT;

/* The same from `size` bytes in memory, which are copied: the caller may free them. */
SORL_API int32_t sorl_policy_load_memory(const void *bytes, size_t size, sorl_policy **policy,
                                         char *error, size_t error_size) SORL_NOEXCEPT;

/* Frees a policy; NULL is allowed. Its sessions live on. The handle must not be in use on another
 * thread. Not real-time safe. */
SORL_API void sorl_policy_free(sorl_policy *policy) SORL_NOEXCEPT;

/* Facts of a policy. `policy` must be a live handle. Any thread; real-time safe. */

/* O: floats of an observation. */
SORL_API int32_t sorl_policy_obs_dim(const sorl_policy *policy) SORL_NOEXCEPT;
/* A: floats that sorl_act() writes for an observation, those of a whole chunk. */
SORL_API int32_t sorl_policy_act_dim(const sorl_policy *policy) SORL_NOEXCEPT;
/* h: actions of a call, of A / h floats each, for h ticks one after another; 1 where the file has no chunks. */
SORL_API int32_t sorl_policy_chunk(const sorl_policy *policy) SORL_NOEXCEPT;
/* Width of the hidden layers. */
SORL_API int32_t sorl_policy_hidden(const sorl_policy *policy) SORL_NOEXCEPT;
/* Number of hidden layers. */
SORL_API int32_t sorl_policy_depth(const sorl_policy *policy) SORL_NOEXCEPT;
/* Number of critics; 0: there is no Q, and N is 1 or the rule SORL_RULE_CENTRE. */
SORL_API int32_t sorl_policy_ensemble(const sorl_policy *policy) SORL_NOEXCEPT;
/* How the networks become an action:
 *   "shortcut"   M Euler steps of a shortcut actor, M = 1, 2, 4, ...
 *   "euler"      M Euler steps of a flow, M one of the file's own counts
 *   "direct"     one evaluation f(x, z), z the noise; or f(x, 0) + clip(temperature * scale * noise)
 *   "tanh"       the same of tanh(f)
 *   "diffusion"  M steps z <- clip(a z + b v + temperature * s * noise), M the file's own number
 * Never NULL, never to be freed. */
SORL_API const char *sorl_policy_form(const sorl_policy *policy) SORL_NOEXCEPT;
/* The step counts M that the policy acts with, ascending: that of an index from 0 on; 0 behind the last. */
SORL_API int32_t sorl_policy_steps(const sorl_policy *policy, int32_t index) SORL_NOEXCEPT;
/* The largest of them. */
SORL_API int32_t sorl_policy_max_steps(const sorl_policy *policy) SORL_NOEXCEPT;
/* M of the policy's own way to act, which `steps` = 0 stands for: the smallest of them, unless the file says
 * otherwise; 0 where its steps are not equal. */
SORL_API int32_t sorl_policy_default_steps(const sorl_policy *policy) SORL_NOEXCEPT;
/* N of the policy's own way to act, which `candidates` = 0 stands for: 1, unless the file says otherwise. */
SORL_API int32_t sorl_policy_default_candidates(const sorl_policy *policy) SORL_NOEXCEPT;
/* The rule of the policy's own way to act, which SORL_RULE_POLICY stands for: SORL_RULE_ARGMAX, unless the file says
 * otherwise. Its parameter, 0 where it has none, is written to *parameter where that is not NULL: what
 * sorl_session_set_rule() takes. */
SORL_API int32_t sorl_policy_default_rule(const sorl_policy *policy, double *parameter) SORL_NOEXCEPT;
/* S: 1, but for a diffusion with noise in its steps, whose last noisy step i makes it i + 2. */
SORL_API int32_t sorl_policy_draws(const sorl_policy *policy) SORL_NOEXCEPT;
/* What multiplies the noise that the form adds, unless a session is told otherwise; 0 where it adds none. */
SORL_API float sorl_policy_temperature(const sorl_policy *policy) SORL_NOEXCEPT;
/* Bounds of the actions that sorl_act() writes, A floats each, in the same units: those of the file's action_map
 * where it has one (format 4), else the networks' own; valid while the handle lives. */
SORL_API const float *sorl_policy_action_low(const sorl_policy *policy) SORL_NOEXCEPT;
SORL_API const float *sorl_policy_action_high(const sorl_policy *policy) SORL_NOEXCEPT;
/* Name of the environment that the policy was trained for; valid while the handle lives. */
SORL_API const char *sorl_policy_env(const sorl_policy *policy) SORL_NOEXCEPT;
/* The file's digest, 64 hexadecimal digits: which policy is this? Valid while the handle lives. */
SORL_API const char *sorl_policy_sha256(const sorl_policy *policy) SORL_NOEXCEPT;

/* ---- sessions ------------------------------------------------------------------------------- */

/* Fills in the defaults. `options` must not be NULL. Any thread; real-time safe.
 *
 * A macro, so that the size of the struct is that of the caller's header, not of the library. The function of
 * the same name, for who loads the library at run time, writes no more than the fields above; to set later
 * ones, zero the struct first and set struct_size after the call. */
SORL_API void sorl_options_init(sorl_options *options) SORL_NOEXCEPT;
static inline void sorl_options_init_here(sorl_options *options) SORL_NOEXCEPT {
  memset(options, 0, sizeof *options);
  sorl_options_init(options);
  options->struct_size = (uint32_t)sizeof *options;
}
#define sorl_options_init(options) sorl_options_init_here(options)

/* Makes a session: chooses the instruction set, packs the weights for it (sessions of one policy,
 * precision and instruction set share them), allocates and touches all memory that sorl_act() will
 * need, and starts the worker threads. `options` may be NULL for the defaults.
 *
 * On success *session is a new handle, to be given to sorl_session_free(); on failure it is NULL and
 * `error` tells why, as for sorl_policy_load().
 *
 * Returns SORL_OK, SORL_ERROR_ARGUMENT, SORL_ERROR_ISA, SORL_ERROR_MEMORY or SORL_ERROR_INTERNAL.
 * Any thread, also while others use the policy; not real-time safe. */
SORL_API int32_t sorl_session_create(const sorl_policy *policy, const sorl_options *options,
                                     sorl_session **session, char *error,
                                     size_t error_size) SORL_NOEXCEPT;

/* Frees a session; NULL is allowed. No other thread may be using it. Not real-time safe. */
SORL_API void sorl_session_free(sorl_session *session) SORL_NOEXCEPT;

/* Samples an action for each of `rows` observations.
 *
 * obs         [B, O] in the environment's own units (the policy's normaliser is applied inside)
 * rows        B, 0 to max_rows
 * steps       M, one of the policy's step counts, sorl_policy_steps(); or what sorl_session_prepare()
 *             returned; or 0, the policy's own, sorl_policy_default_steps()
 * candidates  N actions drawn for each observation, 1 to max_candidates, of which one is chosen and
 *             returned: that of the highest Q, the first of equals, or see sorl_session_set_rule(). 0 is the
 *             policy's own N, sorl_policy_default_candidates(), for which a session of max_candidates = 1 has
 *             room, too; one that was made for fewer answers SORL_ERROR_TOO_LARGE. The critic does not run
 *             where N = 1 or by SORL_RULE_CENTRE, unless `q` asks for it; a policy without critics takes no
 *             other N and no other rule
 * seed, call  the noise, and what a rule draws by, is a pure function of (seed, call, row_offset + row,
 *             candidate): give a control loop one seed and count its calls
 * row_offset  number of the first row, so that a batch may be split over calls or sessions
 * noise       [B, N, S, A] standard normals, in no units, to use instead, S = sorl_policy_draws(), or NULL: z_0, then
 *             those of the steps 0, 1, ...; what a step multiplies by 0 is not read.
 *             A rule that draws does so by seed and call all the same
 * actions     [B, A], written: always finite, always within sorl_policy_action_low() and _high() and in their
 *             units, those of the robot where the file has an action_map
 * candidate   [B] index of the winner, -1 where the row is held; or NULL
 * q           [B] the winner's Q, a NaN where the row is held or the policy has no critic; or NULL
 * status      [B] SORL_STATUS_* bits, or NULL
 *
 * A row with a non-finite observation or result gets the session's last good action as it was before
 * this call (before the first: 0 clipped to the bounds). This is no error: its status says so. Of a chunk the last
 * good action is its last one, and a row without a good chunk gets it h times.
 *
 * Of a policy whose file knows the training's observations, SORL_STATUS_OUT_OF_DISTRIBUTION marks a row that is unlike
 * them; the action is what it would be.
 *
 * Equal file, observations, noise or seed, and instruction set give equal bits, on any number of
 * threads. With other numbers of rows or candidates in the call the same row and candidate agree to 1e-5
 * in float32; in the other precisions as closely as each does with float32.
 * The caller's floating-point state is put back before the return.
 *
 * Returns the union of all rows' status bits (0: all is well), or, with no output touched,
 * SORL_ERROR_ARGUMENT, SORL_ERROR_STEPS or SORL_ERROR_TOO_LARGE.
 * One thread at a time for each session. Real-time safe. With threads > 1 it also wakes each of its
 * workers at most once, and waits for them: it spins, and if they take longer than some 20,000 polls it
 * yields its core between polls (sched_yield) until they are done, however long that is. After the
 * calling thread has moved to another core it makes two system calls for each worker, to keep it off
 * that core. So take the scheduling class (SCHED_FIFO) before the session is made, for workers inherit
 * their maker's, and pin the calling thread afterwards, for they inherit its cores, too. */
SORL_API int32_t sorl_act(sorl_session *session, const float *obs, int32_t rows, int32_t steps,
                          int32_t candidates, uint64_t seed, uint32_t call, uint32_t row_offset,
                          const float *noise, float *actions, int32_t *candidate, float *q,
                          uint32_t *status) SORL_NOEXCEPT;

/* One tick of a loop: the next action of the last call's chunk or, where none is left, the first one of a new call.
 *
 * obs                [O], read by a call only
 * steps, candidates, seed, call
 *                    as of sorl_act(), read by a call only: a loop may count its ticks in `call`
 * action             [A / h], written: one action
 *
 * Every h-th tick is a call; of a policy without chunks each is. sorl_session_reset() drops what is left of a chunk.
 * Where a call holds the last good action, as sorl_act() says, that is this tick's, and the next tick calls again.
 *
 * Returns SORL_STATUS_REPLAYED where it made no call, else what sorl_act() returned; after an error of that nothing is
 * written, and the next tick calls again. SORL_ERROR_ARGUMENT also where `action` is NULL.
 * Same thread as sorl_act(); real-time safe. */
SORL_API int32_t sorl_replay(sorl_session *session, const float *obs, int32_t steps, int32_t candidates, uint64_t seed,
                             uint32_t call, float *action) SORL_NOEXCEPT;

/* Makes a schedule of Euler steps of any sizes ready for a session: its constants are folded, once.
 *
 * sizes  h_0, h_1, ..., each above 0, in the order of the steps; their sum is 1, within 1e-6
 * count  of them, 1 to 2 * sorl_policy_max_steps()
 *
 * A step of size h from z at time t, the sum of the sizes before, is z + h v(x, z, t, log2(1/h)), 1/h taken as
 * sorl_policy_max_steps() where it is more. The critic reads M, likewise bounded. Equal sizes are M equal steps,
 * which may also be others than the policy's step counts, such as 3.
 *
 * Returns what to give to sorl_act() as `steps`, the same for the same sizes: M where the steps are equal, a
 * number beyond all step counts elsewhere. Or, with the reason in `error` as for sorl_policy_load(),
 * SORL_ERROR_ARGUMENT (a null pointer, or a count out of bounds), SORL_ERROR_STEPS (the sizes are wrong, the
 * policy does not take them, or the session has 1024 schedules already), SORL_ERROR_MEMORY or
 * SORL_ERROR_INTERNAL. A policy of another form than "shortcut" takes its own step counts only.
 * Same thread as sorl_act(); not real-time safe: call it before the loop. */
SORL_API int32_t sorl_session_prepare(sorl_session *session, const double *sizes, int32_t count, char *error,
                                      size_t error_size) SORL_NOEXCEPT;

/* Sets how one of N > 1 candidates is chosen, from the session's next sorl_act() on, in place of SORL_RULE_POLICY.
 *
 * parameter  the part or tau of SORL_RULE_MEDOID, _NEAREST, _BETTER and _SOFT: a fraction of integers of at
 *            most 32768, as the double nearest to it (0.1, 1.0 / 3); 0: the one in brackets there. 0 for the
 *            others
 *
 * Returns SORL_OK, or SORL_ERROR_ARGUMENT, with nothing changed, where there is no such rule or it does not take
 * this parameter.
 * Same thread as sorl_act(); real-time safe. */
SORL_API int32_t sorl_session_set_rule(sorl_session *session, int32_t rule, double parameter) SORL_NOEXCEPT;

/* Makes ready what sorl_act_deadline() chooses from, and measures it: each way by at least 25 calls on this session,
 * on whichever core the thread is and with whatever else runs there. Takes up to some seconds.
 *
 * ways   [count] the best first, as an evaluation has it; each of at most the session's max_candidates. NULL where
 *        count is 0: the policy's own way and the cheaper ones, by its own rule: more steps come before more
 *        candidates. Where its file has no way of its own, all its step counts, of 4, 2 and 1 candidates
 * count  of them, 0 to 1024
 *
 * Returns how many ways there are, or, with the reason in `error` as for sorl_policy_load(), SORL_ERROR_ARGUMENT (a
 * way is none of the policy's, or its form is "diffusion", which cannot be cut short), SORL_ERROR_MEMORY or
 * SORL_ERROR_INTERNAL; what was prepared before is then kept.
 * Same thread as sorl_act(); not real-time safe: call it before the loop. */
SORL_API int32_t sorl_session_prepare_deadline(sorl_session *session, const sorl_way *ways, int32_t count,
                                               char *error, size_t error_size) SORL_NOEXCEPT;

/* A way that was prepared, and the microseconds that three of four of its calls took no longer than; either may be
 * NULL. Returns SORL_OK, or SORL_ERROR_ARGUMENT where there is none of that index. Same thread as sorl_act();
 * real-time safe. */
SORL_API int32_t sorl_session_way(const sorl_session *session, int32_t index, sorl_way *way, double *cost_us)
    SORL_NOEXCEPT;

/* Samples one action [A] for one observation [O], within `deadline_us` microseconds of the call: by the first of the
 * session's ways that takes no longer, as calls of late have gone, else by the cheapest. A call that is not cut short
 * gives the bits that sorl_act() gives by that way with the same seed, call and row_offset. If the time runs out in the
 * middle, SORL_STATUS_CUT_SHORT says so, and which action is returned depends on the clock, not on the arguments alone:
 *
 * - Before a step, where there is time for one more evaluation of the actor but not for two, this one is taken to the
 *   end of the flow. Where there is none, or the time runs out during an evaluation, the rest is done with the last
 *   step's velocity. During the first evaluation there is none: the action is held, SORL_STATUS_HELD.
 * - Candidates that the critics have not seen are left out; if they have seen none, the first good one is taken.
 * - The clock is read after every layer, without a system call where the clock source allows it (tsc, kvm-clock,
 *   AArch64's): a layer is begun only if it is expected to end in time.
 *
 * `done` is written with what was done, or NULL. Returns as sorl_act() the status bits, or, with no output touched,
 * SORL_ERROR_ARGUMENT where a pointer is null, deadline_us is negative or no number, or no deadline was prepared.
 * Same thread as sorl_act(); real-time safe as that is. With more threads than one its candidates are shared out
 * only where they are few, and it waits for its workers past the deadline. */
SORL_API int32_t sorl_act_deadline(sorl_session *session, const float *obs, double deadline_us, uint64_t seed,
                                   uint32_t call, uint32_t row_offset, float *action, sorl_done *done) SORL_NOEXCEPT;

/* Sets what multiplies the noise that the policy's form adds, from the session's next sorl_act() on, in place
 * of sorl_policy_temperature(). At 0 no noise is added.
 *
 * Returns SORL_OK, or SORL_ERROR_ARGUMENT, with nothing changed, where `temperature` is negative or not finite,
 * or where the form adds no noise: "shortcut", "euler", and "direct" or "tanh" that read theirs as z.
 * Same thread as sorl_act(); real-time safe. */
SORL_API int32_t sorl_session_set_temperature(sorl_session *session, float temperature) SORL_NOEXCEPT;

/* What the session's last sorl_act() or sorl_replay() returned; SORL_OK before the first. Same thread as sorl_act();
 * real-time safe. */
SORL_API int32_t sorl_last_status(const sorl_session *session) SORL_NOEXCEPT;

/* Forgets the last good action, as at the start of an episode, and what sorl_replay() has left of a chunk. Same thread as sorl_act(); real-time
 * safe. */
SORL_API void sorl_session_reset(sorl_session *session) SORL_NOEXCEPT;

/* The instruction set that the session runs on, such as "avx512"; never to be freed. Any thread;
 * real-time safe. */
SORL_API const char *sorl_isa_name(const sorl_session *session) SORL_NOEXCEPT;

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* SORL_FAST_SORL_H_ */
