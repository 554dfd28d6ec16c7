/* What the stub libraries share: faults by schedule. Each library has its own, for each includes this once. */
#ifndef STUB_H
#define STUB_H

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Guards everything that a stub knows. Never held over a delay or a copy. */
static pthread_mutex_t stub_mutex = PTHREAD_MUTEX_INITIALIZER;

/*
 * `nth` counts the calls of `name` from when the fault was scheduled, from 1; 0 is each of them. One that is not 0 is used up when its
 * call has come.
 */
typedef struct stub_fault {
  struct stub_fault *next;
  char *name;
  /* Calls that it lets pass first; −1 when it is for each of them. */
  int passes;
  int fails;
  int64_t code;
  int millis;
} stub_fault;

typedef struct {
  int fails;
  int64_t code;
  int millis;
} stub_plan;

static stub_fault *stub_faults;
/* Calls that are in their delay. */
static int stub_delayed;

static inline void stub_schedule(const char *name, int nth, int fails, int64_t code, int millis) {
  stub_fault *fault = malloc(sizeof *fault);
  pthread_mutex_lock(&stub_mutex);
  *fault = (stub_fault){stub_faults, strdup(name), nth - 1, fails, code, millis};
  stub_faults = fault;
  pthread_mutex_unlock(&stub_mutex);
}

/* With the mutex held. */
static inline void stub_forget(stub_fault **at) {
  stub_fault *fault = *at;
  *at = fault->next;
  free(fault->name);
  free(fault);
}

static inline void stub_forget_faults(void) {
  pthread_mutex_lock(&stub_mutex);
  while (stub_faults != NULL) stub_forget(&stub_faults);
  pthread_mutex_unlock(&stub_mutex);
}

/* What is planned for this call. The caller sleeps and fails, where in the call that is to happen. */
static inline stub_plan stub_enter(const char *name) {
  stub_plan plan = {0, 0, 0};
  pthread_mutex_lock(&stub_mutex);
  for (stub_fault **at = &stub_faults; *at != NULL;) {
    stub_fault *fault = *at;
    if (strcmp(fault->name, name) != 0 || (fault->passes > 0 && fault->passes--)) {
      at = &fault->next;
      continue;
    }
    if (fault->fails) {
      plan.fails = 1;
      plan.code = fault->code;
    }
    plan.millis += fault->millis;
    if (fault->passes == 0) stub_forget(at);
    else at = &fault->next;
  }
  pthread_mutex_unlock(&stub_mutex);
  return plan;
}

static inline void stub_sleep(int millis) {
  if (millis <= 0) return;
  struct timespec rest = {millis / 1000, (millis % 1000) * 1000000L};
  __atomic_add_fetch(&stub_delayed, 1, __ATOMIC_SEQ_CST);
  while (nanosleep(&rest, &rest) != 0) {
  }
  __atomic_sub_fetch(&stub_delayed, 1, __ATOMIC_SEQ_CST);
}

#endif
