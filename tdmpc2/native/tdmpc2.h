/* The planner of TD-MPC-Opt without Python: a model is opened once, then asked for actions.
 *
 *     tdmpc2_options options = tdmpc2_default_options();
 *     tdmpc2_agent* agent = tdmpc2_open("model.safetensors", &options);
 *     if (!agent) return puts(tdmpc2_error(NULL)), 1;
 *     tdmpc2_plan(agent, observation, NULL, action);       // in the control loop
 *     tdmpc2_close(agent);
 *
 * After tdmpc2_open nothing here allocates memory, throws, or writes to a file. Calls for one agent must not overlap;
 * several agents may be used by several threads at a time. An agent may be used from other threads than the one that
 * opened it, but a thread must not be cancelled (pthread_cancel) inside a call. With threads > 1 others help, which live as long as the process: the library stays loaded after a dlclose
 * (a plug-in that takes in the static one is linked with -z nodelete, which CMake does by itself), and a process that a
 * fork has made starts its own at its first plan.
 *
 * All arrays are contiguous float32. E environments, O observation, A action. The caller pads observations of a task
 * that has fewer than O entries with zeros at the end; the library does so with actions of fewer than A. Actions are in
 * [-1, 1].
 */
#ifndef TDMPC2_H
#define TDMPC2_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define TDMPC2_API
#else
#define TDMPC2_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tdmpc2_agent tdmpc2_agent;

/* What the functions return. */
typedef enum tdmpc2_status {
    TDMPC2_OK = 0,
    TDMPC2_BAD_ARGUMENT = 1, /* an argument that cannot be; nothing was changed */
    TDMPC2_NOT_FINITE = 2    /* an observation, or what follows from it, is infinite or not a number */
} tdmpc2_status;

/* What the products of a model's weights are computed in. */
typedef enum tdmpc2_precision {
    TDMPC2_AS_WRITTEN = 0, /* as the file says */
    TDMPC2_FP32 = 1,
    TDMPC2_BF16 = 2
} tdmpc2_precision;

typedef struct tdmpc2_options {
    size_t size;           /* of this structure, as tdmpc2_default_options sets it */
    int threads;           /* that a call uses, the caller among them; 0: one for each processor. They change no action */
    int environments;      /* E, for which a call plans at once */
    uint64_t seed;         /* of all random numbers: the same seed gives the same actions */
    tdmpc2_precision precision;
    int explore;           /* not 0: actions with exploration noise, as in training */
    int iterations;        /* of MPPI, all of them (Python's key leaves out the two that tasks of 20 actions or more
                              have besides); this and the next four: 0 as the file says */
    int horizon;
    int num_samples;       /* the next two keep their proportion to it where they are 0 */
    int num_elites;
    int num_pi_trajs;
    const char* instructions; /* scalar, avx2, avxvnni, avx512vnni, avx512, amx, neon, dotprod or i8mm; NULL: the fastest
                                 that this processor has */
} tdmpc2_options;

/* One thread, one environment, seed 1, everything else as the file says. */
TDMPC2_API tdmpc2_options tdmpc2_default_options(void);

/* Open a model that `tdmpc2 export --to native` wrote. NULL options: the default ones. Returns NULL if it cannot be
 * used, and tdmpc2_error(NULL) says why. */
TDMPC2_API tdmpc2_agent* tdmpc2_open(const char* path, const tdmpc2_options* options);

/* Release everything; NULL is allowed. */
TDMPC2_API void tdmpc2_close(tdmpc2_agent* agent);

/* Plan one action for each environment: obs [E, O] -> actions [E, A]. task [E] are numbers of tasks; NULL: task 0, which
 * only models of one task allow. The plan of the previous call is where the search begins, so an environment that
 * starts an episode, or changes its task, needs a tdmpc2_reset first. After an error the plans are as before. */
TDMPC2_API tdmpc2_status tdmpc2_plan(tdmpc2_agent* agent, const float* obs, const int* task, float* actions);

/* Act by the policy alone, without a search: the same arguments. It does not touch the plans, and draws random numbers
 * only with `explore`. */
TDMPC2_API tdmpc2_status tdmpc2_policy(tdmpc2_agent* agent, const float* obs, const int* task, float* actions);

/* Begin an episode in one environment, -1: in all. */
TDMPC2_API tdmpc2_status tdmpc2_reset(tdmpc2_agent* agent, int environment);

/* Start the random numbers anew: after it and a tdmpc2_reset, an agent acts as one just opened with this seed. */
TDMPC2_API tdmpc2_status tdmpc2_seed(tdmpc2_agent* agent, uint64_t seed);

/* One line about the last call that failed, empty if none has; NULL: about tdmpc2_open in this thread. It is valid until
 * the agent's next call that fails or tdmpc2_close; of tdmpc2_open, until this thread's next one or its end. */
TDMPC2_API const char* tdmpc2_error(const tdmpc2_agent* agent);

/* What the file says. Numbers of tasks start at 0; for one that does not exist the answer is 0, NULL or, as the number
 * of a name, -1. Strings live as long as the agent. */
TDMPC2_API int tdmpc2_obs_dim(const tdmpc2_agent* agent);
TDMPC2_API int tdmpc2_action_dim(const tdmpc2_agent* agent);
TDMPC2_API int tdmpc2_horizon(const tdmpc2_agent* agent);
TDMPC2_API int tdmpc2_environments(const tdmpc2_agent* agent);
TDMPC2_API int tdmpc2_num_tasks(const tdmpc2_agent* agent);
TDMPC2_API int tdmpc2_task_number(const tdmpc2_agent* agent, const char* name);
TDMPC2_API const char* tdmpc2_task_name(const tdmpc2_agent* agent, int task);
TDMPC2_API int tdmpc2_task_obs_dim(const tdmpc2_agent* agent, int task);
TDMPC2_API int tdmpc2_task_action_dim(const tdmpc2_agent* agent, int task);
TDMPC2_API const char* tdmpc2_card(const tdmpc2_agent* agent);         /* JSON */
TDMPC2_API const char* tdmpc2_instructions(const tdmpc2_agent* agent); /* in use, as in the options */

/* All random numbers of one plan, for comparisons with another implementation. H horizon, P policy trajectories, S
 * samples, K elites, I iterations. */
typedef struct tdmpc2_noise {
    const float* policy;  /* [H, E, P, A] standard normal */
    const float* samples; /* [I, E, H, S - P, A] standard normal */
    const float* value;   /* [I, E, S, A] standard normal */
    const int64_t* heads; /* [I, 2] numbers of Q heads */
    const float* elite;   /* [E, K] Gumbel */
    const float* action;  /* [E, A] standard normal */
} tdmpc2_noise;

/* tdmpc2_plan with random numbers that are given. For tests. */
TDMPC2_API tdmpc2_status tdmpc2_plan_with_noise(tdmpc2_agent* agent, const float* obs, const int* task,
                                                const tdmpc2_noise* noise, float* actions);

#ifdef __cplusplus
}
#endif

#endif
