/*
 * The C API of NIXL over host memory and real files. Signatures and numbers: `src/bindings/rust/wrapper.h` of NIXL; what it refuses follows
 * `wrapper.cpp`, `src/core/nixl_agent.cpp` and `src/plugins/{posix,gds_mt}`. Beyond these it refuses what they would crash on or pass over:
 * handles that are gone, a file without a name, a descriptor that is another file by now, a request that is released in flight.
 *
 * The queues of the backend POSIX behave as those of NIXL 1.0 to 1.4. The queue follows from the parameters, AIO without
 * any. An error stays at the head of io_uring and POSIX AIO; AIO reports none; POSIX AIO alone reports a short transfer.
 */
#define _GNU_SOURCE
#include "stub.h"
#include <stdbool.h>
#include <stddef.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* In the stub of CUDA: the device of live device memory, or -1; and the same while a transfer is at it. */
extern int stub_cuda_find(uint64_t pointer, size_t length);
extern int stub_cuda_hold(uint64_t pointer, size_t length, int by);

typedef enum {
  SUCCESS = 0,
  IN_PROG = 1,
  INVALID_PARAM = -1,
  BACKEND = -2,
  INVALID_STATE = -3
} status_t;

enum { DRAM = 0, VRAM = 1, FILE_KIND = 4 };
enum { READ = 0, WRITE = 1 };

_Static_assert(sizeof(status_t) == 4, "a status is an int");
_Static_assert(sizeof(uintptr_t) == 8 && sizeof(size_t) == 8, "addresses and lengths have 64 bits");

/* What a handle is of. A handle of the wrong kind, or of what is gone, is refused. */
typedef enum { AGENT, BACKEND_HANDLE, PARAMS, STRINGS, OPT_ARGS, REG_LIST, XFER_LIST, REQUEST, KINDS } kind_t;

typedef struct {
  uint64_t address;
  size_t length;
  uint64_t device;
} desc;

typedef enum { LINUX_AIO, URING, POSIX_AIO } queue_kind;

struct object;
struct queue;

/* A piece in the queue of POSIX. */
typedef struct io {
  struct io *next;
  /* All of a queue, for as long as that lives. */
  struct io *other;
  struct queue *of;
  /* NULL once that is gone. */
  struct object *request;
  desc memory, file;
  int operation;
  /* What becomes of it: an error of the kernel, milliseconds, or no end before stub_nixl_end. */
  int error, late, never, shortened;
  enum { QUEUED, RUNNING, DONE } state;
  ssize_t result;
  /* What a ring reads from where the piece ends late. */
  int event;
  uint64_t counter;
} io;

typedef struct {
  io *first, **last;
} ios;

typedef struct queue {
  queue_kind kind;
  /* NIXL 1.0 makes a backend without a queue where it has no io_uring: a transfer is a crash. */
  int absent;
  long pool, used;
  io *all;
  /* Those to submit, and those of AIO that have ended or of POSIX AIO that were submitted, in order. */
  ios waiting, taken;
  int ring;
  char *submissions, *completions;
  struct io_uring_sqe *entries;
  struct io_uring_params ring_params;
  size_t submissions_size, completions_size;
} queue;

typedef struct object {
  struct object *next;
  kind_t kind;
  struct object *agent;
  char name[64];
  /* Of lists. */
  int memory;
  desc *descs;
  size_t count;
  /* Of requests: how far they are, and what they move. */
  int status;
  int released;
  int running;
  int never;
  int error;
  int late;
  int shortened;
  int operation;
  desc *files;
  /* Of parameters: pieces in flight, in all, 64 by default, and places of the kernel's queue. */
  long pool, kernel;
  int use[3];
  /* Of agents, and of requests that go through it. */
  queue *queue;
  long confirmed;
} object;

typedef struct registration {
  struct registration *next;
  object *agent;
  int memory;
  desc at;
  dev_t dev;
  ino_t ino;
} registration;

static object *objects;
static registration *registrations;
static int refusals;
static int looks;
static int threads;
/* Whether a call for a status was made to fail, and how often aio_cancel was asked. */
static int status_failed, cancels;
/* What becomes of the next transfers that are posted: see stub_nixl_transfer. */
static int next_error, next_piece, next_late, next_never, next_short;
/* 1: io_uring cannot be had, 2: it is passed over as by NIXL 1.0. Dry: POSIX moves nothing. */
static int no_uring, dry;
static size_t longest;
/* Whether a second thread has used an agent. */
static pthread_t user;
static int has_user;

static const char *const plugins[] = {"GDS", "GDS_MT", "POSIX"};

static int refuse(int status) {
  refusals++;
  return status;
}

static object *make(kind_t kind, object *agent) {
  object *made = calloc(1, sizeof *made);
  made->kind = kind;
  made->agent = agent;
  made->next = objects;
  objects = made;
  return made;
}

static object *find(kind_t kind, const object *wanted) {
  for (object *each = objects; each != NULL; each = each->next)
    if (each == wanted && each->kind == kind) return each;
  return NULL;
}

static void drop(object *gone) {
  if (gone->kind == REQUEST && gone->queue != NULL)
    for (io *each = gone->queue->all; each != NULL; each = each->other)
      if (each->request == gone) each->request = NULL;
  for (object **at = &objects; *at != NULL; at = &(*at)->next)
    if (*at == gone) {
      *at = gone->next;
      break;
    }
  free(gone->descs);
  free(gone->files);
  free(gone);
}

/* Every entry: the schedule of faults, then the mutex. An agent belongs to one thread. */
#define ENTER(uses_agent) \
  do { \
    stub_plan plan = stub_enter(__func__); \
    stub_sleep(plan.millis); \
    if (plan.fails) { \
      if (strcmp(__func__, "nixl_capi_get_xfer_status") == 0) status_failed = 1; \
      return (int)plan.code; \
    } \
    pthread_mutex_lock(&stub_mutex); \
    if (uses_agent) { \
      if (!has_user) user = pthread_self(); \
      has_user = 1; \
      if (!pthread_equal(user, pthread_self())) { \
        refusals++; \
        pthread_mutex_unlock(&stub_mutex); \
        return INVALID_STATE; \
      } \
    } \
  } while (0)
#define LEAVE(value) \
  do { \
    int left = (value); \
    pthread_mutex_unlock(&stub_mutex); \
    return left; \
  } while (0)
#define CHECK(condition, status) \
  do { \
    if (!(condition)) LEAVE(refuse(status)); \
  } while (0)

int nixl_capi_create_agent(const char *name, object **agent) {
  ENTER(0);
  CHECK(name != NULL && agent != NULL, INVALID_PARAM);
  *agent = make(AGENT, NULL);
  snprintf((*agent)->name, sizeof (*agent)->name, "%s", name);
  user = pthread_self();
  has_user = 1;
  LEAVE(SUCCESS);
}

static int agent_used(const object *agent) {
  for (object *each = objects; each != NULL; each = each->next)
    if (each->agent == agent) return 1;
  return 0;
}

static object *queued_of(const object *agent, int most) {
  for (object *each = objects; each != NULL; each = each->next)
    if (each->kind == REQUEST && each->agent == agent && each->queue != NULL && each->status <= most) return each;
  return NULL;
}

/* After a failure the requests of a queue may be leaked, also those that no poll has seen the end of: the real one survives it. */
static void leak_requests(const object *agent) {
  if (queued_of(agent, -1) == NULL && !status_failed) return;
  for (object *each = queued_of(agent, IN_PROG); each != NULL; each = queued_of(agent, IN_PROG)) drop(each);
}

/* The kernel may have completed what no poll has seen. */
static int is_completed(const queue *of, const io *one) {
  if (of->kind != URING || one->event >= 0) return 0;
  const unsigned *head = (unsigned *)(of->completions + of->ring_params.cq_off.head);
  const unsigned *tail = (unsigned *)(of->completions + of->ring_params.cq_off.tail);
  const unsigned mask = *(unsigned *)(of->completions + of->ring_params.cq_off.ring_mask);
  const struct io_uring_cqe *entries = (struct io_uring_cqe *)(of->completions + of->ring_params.cq_off.cqes);
  const unsigned end = __atomic_load_n(tail, __ATOMIC_ACQUIRE);
  for (unsigned at = *head; at != end; at++)
    if (entries[at & mask].user_data == (uintptr_t)one) return 1;
  return 0;
}

/* Pieces that are under way: all of a queue, or those of a request. */
static int running_in(const queue *of, const object *request) {
  int count = 0;
  for (const io *each = of == NULL ? NULL : of->all; each != NULL; each = each->other)
    count += (request == NULL || each->request == request) && each->state == RUNNING && !is_completed(of, each);
  return count;
}

static void end_queue(queue *of) {
  if (of == NULL) return;
  if (of->ring >= 0) {
    munmap(of->entries, of->ring_params.sq_entries * sizeof *of->entries);
    munmap(of->submissions, of->submissions_size);
    munmap(of->completions, of->completions_size);
    close(of->ring);
  }
  while (of->all != NULL) {
    io *gone = of->all;
    of->all = gone->other;
    if (gone->event >= 0) close(gone->event);
    free(gone);
  }
  free(of);
}

int nixl_capi_destroy_agent(object *agent) {
  ENTER(1);
  CHECK(find(AGENT, agent), INVALID_PARAM);
  /* The end of AIO waits for its I/O. The ring goes on, and POSIX AIO writes to the queue that is freed. */
  while (agent->queue != NULL && agent->queue->kind == LINUX_AIO && running_in(agent->queue, NULL) > 0) {
    pthread_mutex_unlock(&stub_mutex);
    stub_sleep(1);
    pthread_mutex_lock(&stub_mutex);
  }
  CHECK(running_in(agent->queue, NULL) == 0, INVALID_STATE);
  leak_requests(agent);
  /* The real one would leave backends and requests that point into nothing. */
  CHECK(!agent_used(agent), INVALID_STATE);
  end_queue(agent->queue);
  for (registration **at = &registrations; *at != NULL;) {
    registration *each = *at;
    if (each->agent != agent) {
      at = &each->next;
      continue;
    }
    *at = each->next;
    free(each);
  }
  drop(agent);
  has_user = 0;
  LEAVE(SUCCESS);
}

int nixl_capi_get_available_plugins(object *agent, object **list) {
  ENTER(1);
  CHECK(find(AGENT, agent) && list != NULL, INVALID_PARAM);
  *list = make(STRINGS, NULL);
  LEAVE(SUCCESS);
}

int nixl_capi_string_list_size(object *list, size_t *size) {
  ENTER(0);
  CHECK(find(STRINGS, list) && size != NULL, INVALID_PARAM);
  *size = sizeof plugins / sizeof *plugins;
  LEAVE(SUCCESS);
}

int nixl_capi_string_list_get(object *list, size_t index, const char **string) {
  ENTER(0);
  CHECK(find(STRINGS, list) && string != NULL && index < sizeof plugins / sizeof *plugins, INVALID_PARAM);
  *string = plugins[index];
  LEAVE(SUCCESS);
}

int nixl_capi_destroy_string_list(object *list) {
  ENTER(0);
  CHECK(find(STRINGS, list), INVALID_PARAM);
  drop(list);
  LEAVE(SUCCESS);
}

int nixl_capi_create_params(object **params) {
  ENTER(0);
  CHECK(params != NULL, INVALID_PARAM);
  *params = make(PARAMS, NULL);
  LEAVE(SUCCESS);
}

int nixl_capi_params_add(object *params, const char *key, const char *value) {
  ENTER(0);
  CHECK(find(PARAMS, params) && key != NULL && value != NULL, INVALID_PARAM);
  if (strcmp(key, "ios_pool_size") == 0) params->pool = atol(value);
  if (strcmp(key, "kernel_queue_size") == 0) params->kernel = atol(value);
  const char *const names[] = {"use_aio", "use_uring", "use_posix_aio"};
  for (int kind = 0; kind < 3; kind++)
    if (strcmp(key, names[kind]) == 0) params->use[kind] = strcmp(value, "true") == 0 || strcmp(value, "1") == 0;
  /* Kept for the test to see: the last one. */
  snprintf(params->name, sizeof params->name, "%s=%s", key, value);
  LEAVE(SUCCESS);
}

int nixl_capi_destroy_params(object *params) {
  ENTER(0);
  CHECK(find(PARAMS, params), INVALID_PARAM);
  drop(params);
  LEAVE(SUCCESS);
}

static object *backend_of(const object *agent, const char *name) {
  for (object *each = objects; each != NULL; each = each->next)
    if (each->kind == BACKEND_HANDLE && each->agent == agent && strcmp(each->name, name) == 0) return each;
  return NULL;
}

static char last_parameter[64];

static long clamp(long value, long least, long most) { return value < least ? least : value > most ? most : value; }

static int open_ring(queue *of, unsigned size) {
  struct io_uring_params *params = &of->ring_params;
  of->ring = (int)syscall(__NR_io_uring_setup, size, params);
  if (of->ring < 0) return 0;
  of->submissions_size = params->sq_off.array + params->sq_entries * sizeof (unsigned);
  of->completions_size = params->cq_off.cqes + params->cq_entries * sizeof (struct io_uring_cqe);
  const int shared = MAP_SHARED | MAP_POPULATE, both = PROT_READ | PROT_WRITE;
  of->submissions = mmap(NULL, of->submissions_size, both, shared, of->ring, IORING_OFF_SQ_RING);
  of->completions = mmap(NULL, of->completions_size, both, shared, of->ring, IORING_OFF_CQ_RING);
  of->entries = mmap(NULL, params->sq_entries * sizeof *of->entries, both, shared, of->ring, IORING_OFF_SQES);
  return of->submissions != MAP_FAILED && of->completions != MAP_FAILED && of->entries != MAP_FAILED;
}

/* As getIoQueueType chooses; NULL where it cannot be had. */
static queue *make_queue(const object *params) {
  queue *made = calloc(1, sizeof *made);
  made->kind = params->use[0] ? LINUX_AIO : params->use[1] ? URING : params->use[2] ? POSIX_AIO : LINUX_AIO;
  made->pool = clamp(params->pool, 64, 65536);
  made->waiting.last = &made->waiting.first;
  made->taken.last = &made->taken.first;
  made->ring = -1;
  made->absent = made->kind == URING && no_uring == 2;
  if (made->kind != URING || made->absent) return made;
  if (no_uring == 0 && open_ring(made, (unsigned)clamp(params->kernel, 16, 1024))) return made;
  if (made->ring >= 0) close(made->ring);
  free(made);
  return NULL;
}

int nixl_capi_create_backend(object *agent, const char *name, object *params, object **backend) {
  ENTER(1);
  CHECK(find(AGENT, agent) && name != NULL && find(PARAMS, params) && backend != NULL, INVALID_PARAM);
  int known = 0;
  for (size_t index = 0; index < sizeof plugins / sizeof *plugins; index++) known |= strcmp(name, plugins[index]) == 0;
  /* Whatever is wrong, the C API says BACKEND here. GDS and GDS_MT exclude each other. */
  CHECK(known && backend_of(agent, name) == NULL, BACKEND);
  const char *excluded = strcmp(name, "GDS") == 0 ? "GDS_MT" : strcmp(name, "GDS_MT") == 0 ? "GDS" : "";
  CHECK(backend_of(agent, excluded) == NULL, BACKEND);
  snprintf(last_parameter, sizeof last_parameter, "%s", params->name);
  if (strcmp(name, "POSIX") == 0) {
    CHECK(agent->queue == NULL, BACKEND);
    agent->queue = make_queue(params);
    if (agent->queue == NULL) LEAVE(BACKEND);
  }
  *backend = make(BACKEND_HANDLE, agent);
  snprintf((*backend)->name, sizeof (*backend)->name, "%s", name);
  LEAVE(SUCCESS);
}

int nixl_capi_destroy_backend(object *backend) {
  ENTER(0);
  CHECK(find(BACKEND_HANDLE, backend), INVALID_PARAM);
  drop(backend);
  LEAVE(SUCCESS);
}

static int make_list(kind_t kind, int memory, object **list) {
  if (list == NULL || memory < DRAM || memory > FILE_KIND) return refuse(INVALID_PARAM);
  *list = make(kind, NULL);
  (*list)->memory = memory;
  return SUCCESS;
}

static void add(object *list, uint64_t address, size_t length, uint64_t device) {
  list->descs = realloc(list->descs, (list->count + 1) * sizeof *list->descs);
  list->descs[list->count++] = (desc){address, length, device};
}

int nixl_capi_create_reg_dlist(int memory, object **list) {
  ENTER(0);
  LEAVE(make_list(REG_LIST, memory, list));
}

int nixl_capi_reg_dlist_add_desc(
    object *list, uintptr_t address, size_t length, uint64_t device, const void *metadata, size_t metadata_length) {
  ENTER(0);
  CHECK(find(REG_LIST, list) && (metadata == NULL) == (metadata_length == 0), INVALID_PARAM);
  add(list, address, length, device);
  LEAVE(SUCCESS);
}

int nixl_capi_destroy_reg_dlist(object *list) {
  ENTER(0);
  CHECK(find(REG_LIST, list), INVALID_PARAM);
  drop(list);
  LEAVE(SUCCESS);
}

int nixl_capi_create_xfer_dlist(int memory, object **list) {
  ENTER(0);
  LEAVE(make_list(XFER_LIST, memory, list));
}

int nixl_capi_xfer_dlist_add_desc(object *list, uintptr_t address, size_t length, uint64_t device) {
  ENTER(0);
  CHECK(find(XFER_LIST, list), INVALID_PARAM);
  add(list, address, length, device);
  LEAVE(SUCCESS);
}

int nixl_capi_destroy_xfer_dlist(object *list) {
  ENTER(0);
  CHECK(find(XFER_LIST, list), INVALID_PARAM);
  drop(list);
  LEAVE(SUCCESS);
}

/* As its plugins say: POSIX takes host memory and files, those of GDS device memory, too. */
static int supported(const object *agent, int memory) {
  if (memory == VRAM) return backend_of(agent, "GDS") != NULL || backend_of(agent, "GDS_MT") != NULL;
  return (memory == DRAM || memory == FILE_KIND) && agent_used(agent);
}

static registration **registered(const object *agent, int memory, const desc *at) {
  for (registration **each = &registrations; *each != NULL; each = &(*each)->next) {
    const desc *known = &(*each)->at;
    if ((*each)->agent == agent && (*each)->memory == memory && known->address == at->address &&
        known->length == at->length && known->device == at->device)
      return each;
  }
  return NULL;
}

/* Sorted as NIXL sorts: by device, address and length. */
static int before(const desc *one, const desc *other) {
  if (one->device != other->device) return one->device < other->device;
  if (one->address != other->address) return one->address < other->address;
  return one->length < other->length;
}

static int covers(const desc *known, const desc *at) {
  return known->device == at->device && at->address >= known->address && at->length <= known->length &&
         at->address - known->address <= known->length - at->length;
}

/* The first registration that is not sorted before the range, and the last one that is: no other is looked at. */
static const registration *covering(const object *agent, int memory, const desc *at) {
  const registration *next = NULL, *previous = NULL;
  for (const registration *each = registrations; each != NULL; each = each->next) {
    if (each->agent != agent || each->memory != memory) continue;
    if (before(&each->at, at)) {
      if (previous == NULL || before(&previous->at, &each->at)) previous = each;
    } else if (next == NULL || before(&each->at, &next->at)) {
      next = each;
    }
  }
  if (next != NULL && covers(&next->at, at)) return next;
  return previous != NULL && covers(&previous->at, at) ? previous : NULL;
}

int nixl_capi_register_mem(object *agent, object *list, object *options) {
  ENTER(1);
  CHECK(find(AGENT, agent) && find(REG_LIST, list), INVALID_PARAM);
  CHECK(options == NULL || find(OPT_ARGS, options), INVALID_PARAM);
  CHECK(supported(agent, list->memory), BACKEND);
  for (size_t index = 0; index < list->count; index++) {
    const desc *at = &list->descs[index];
    registration made = {registrations, agent, list->memory, *at, 0, 0};
    /* POSIX takes the same a second time; cuFile does not. */
    const int alone = backend_of(agent, "GDS") == NULL && backend_of(agent, "GDS_MT") == NULL;
    CHECK(at->length > 0 && (alone || registered(agent, list->memory, at) == NULL), BACKEND);
    if (list->memory == FILE_KIND) {
      struct stat file;
      CHECK(at->address == 0 && fstat((int)at->device, &file) == 0, BACKEND);
      CHECK(S_ISREG(file.st_mode) && file.st_nlink > 0, BACKEND);
      made.dev = file.st_dev;
      made.ino = file.st_ino;
    } else if (list->memory == VRAM) {
      CHECK(stub_cuda_find(at->address, at->length) == (int)at->device, BACKEND);
    } else {
      CHECK(at->address != 0 && at->device == 0, BACKEND);
    }
    registrations = malloc(sizeof made);
    *registrations = made;
  }
  LEAVE(SUCCESS);
}

static int in_flight(const object *request) { return request->running + running_in(request->queue, request); }

int nixl_capi_deregister_mem(object *agent, object *list, object *options) {
  ENTER(1);
  CHECK(find(AGENT, agent) && find(REG_LIST, list), INVALID_PARAM);
  CHECK(options == NULL || find(OPT_ARGS, options), INVALID_PARAM);
  for (size_t index = 0; index < list->count; index++) {
    const desc *at = &list->descs[index];
    registration **found = registered(agent, list->memory, at);
    CHECK(found != NULL, BACKEND);
    for (const object *each = objects; each != NULL; each = each->next)
      for (size_t piece = 0; each->kind == REQUEST && in_flight(each) && piece < each->count; piece++) {
        const desc *used = list->memory == FILE_KIND ? &each->files[piece] : &each->descs[piece];
        /* The registration of what a transfer is at. */
        if ((list->memory == FILE_KIND || list->memory == each->memory) && used->device == at->device)
          CHECK(used->address + used->length <= at->address || at->address + at->length <= used->address, INVALID_STATE);
      }
    if (list->memory == FILE_KIND) {
      struct stat file;
      const registration *known = *found;
      /* The number is to stay what it was until here. */
      CHECK(fstat((int)at->device, &file) == 0 && file.st_dev == known->dev && file.st_ino == known->ino, BACKEND);
    }
    registration *gone = *found;
    *found = gone->next;
    free(gone);
  }
  LEAVE(SUCCESS);
}

int nixl_capi_create_xfer_req(
    object *agent, int operation, object *local, object *remote, const char *remote_agent, object **request, object *options) {
  ENTER(1);
  CHECK(find(AGENT, agent) && find(XFER_LIST, local) && find(XFER_LIST, remote), INVALID_PARAM);
  CHECK(remote_agent != NULL && request != NULL, INVALID_PARAM);
  CHECK(options == NULL || find(OPT_ARGS, options), INVALID_PARAM);
  /* From here on the C API says BACKEND, whatever it is. */
  CHECK(operation == READ || operation == WRITE, BACKEND);
  CHECK(strcmp(remote_agent, agent->name) == 0, BACKEND);
  CHECK((local->memory == DRAM || local->memory == VRAM) && remote->memory == FILE_KIND, BACKEND);
  CHECK(local->count > 0 && local->count == remote->count, BACKEND);
  for (size_t index = 0; index < local->count; index++) {
    CHECK(local->descs[index].length > 0 && local->descs[index].length == remote->descs[index].length, BACKEND);
    CHECK(covering(agent, local->memory, &local->descs[index]), BACKEND);
    const registration *known = covering(agent, FILE_KIND, &remote->descs[index]);
    CHECK(known != NULL, BACKEND);
    struct stat file;
    CHECK(fstat((int)known->at.device, &file) == 0 && file.st_dev == known->dev && file.st_ino == known->ino, BACKEND);
  }
  object *made = make(REQUEST, agent);
  made->operation = operation;
  made->memory = local->memory;
  made->count = local->count;
  /* Not posted is an error to the real one, too. */
  made->status = BACKEND;
  made->queue = local->memory == DRAM && backend_of(agent, "POSIX") != NULL ? agent->queue : NULL;
  made->descs = malloc(local->count * sizeof *made->descs);
  made->files = malloc(local->count * sizeof *made->files);
  memcpy(made->descs, local->descs, local->count * sizeof *made->descs);
  memcpy(made->files, remote->descs, local->count * sizeof *made->files);
  *request = made;
  LEAVE(SUCCESS);
}

static void hold_devices(const object *request, int by) {
  for (size_t index = 0; request->memory == VRAM && index < request->count; index++)
    stub_cuda_hold(request->descs[index].address, request->descs[index].length, by);
}

static void *transfer(void *argument) {
  object *request = argument;
  int status = SUCCESS;
  stub_sleep(request->late > 0 ? request->late : 1);
  for (size_t index = 0; index < request->count && request->error == 0; index++) {
    const desc *memory = &request->descs[index];
    const desc *file = &request->files[index];
    size_t length = memory->length;
    if (request->shortened) length /= 2;
    void *bytes = (void *)memory->address;
    ssize_t moved = request->operation == READ ? pread((int)file->device, bytes, length, (off_t)file->address)
                                               : pwrite((int)file->device, bytes, length, (off_t)file->address);
    if (moved < 0 || (size_t)moved != memory->length) status = BACKEND;
  }
  hold_devices(request, -1);
  pthread_mutex_lock(&stub_mutex);
  request->status = request->error != 0 ? request->error : status;
  request->running = 0;
  threads--;
  pthread_mutex_unlock(&stub_mutex);
  return NULL;
}

static void append(ios *list, io *one) {
  one->next = NULL;
  *list->last = one;
  list->last = &one->next;
}

static io *take(ios *list) {
  io *one = list->first;
  list->first = one->next;
  if (one->next == NULL) list->last = &list->first;
  return one;
}

/* What Linux does of a piece; with the mutex or without. */
static ssize_t move(const io *one) {
  size_t length = one->shortened ? one->file.length / 2 : one->file.length;
  const size_t most = 0x7ffff000;
  if (one->error != 0) return -EIO;
  if (dry) return (ssize_t)(length < most ? length : most);
  void *bytes = (void *)one->memory.address;
  const int fd = (int)one->file.device;
  const off_t at = (off_t)one->file.address;
  const ssize_t moved = one->operation == READ ? pread(fd, bytes, length, at) : pwrite(fd, bytes, length, at);
  return moved < 0 ? -errno : moved;
}

/* With the mutex held. */
static void finish(io *one, ssize_t result) {
  queue *of = one->of;
  one->result = result;
  one->state = DONE;
  const uint64_t once = 1;
  if (of->kind == LINUX_AIO) append(&of->taken, one);
  if (one->event >= 0 && write(one->event, &once, sizeof once) != sizeof once) refusals++;
}

static void *move_late(void *argument) {
  io *one = argument;
  stub_sleep(one->late);
  const ssize_t result = move(one);
  pthread_mutex_lock(&stub_mutex);
  finish(one, result);
  threads--;
  pthread_mutex_unlock(&stub_mutex);
  return NULL;
}

/* One entry of the ring: the piece itself, or a read from what is written to when the piece ends. */
static void submit_to_ring(queue *of, io *one) {
  char *at = of->submissions;
  unsigned *tail = (unsigned *)(at + of->ring_params.sq_off.tail);
  const unsigned index = *tail & *(unsigned *)(at + of->ring_params.sq_off.ring_mask);
  struct io_uring_sqe *entry = &of->entries[index];
  memset(entry, 0, sizeof *entry);
  if (one->late > 0 || one->never || one->error != 0 || dry) {
    one->event = eventfd(0, EFD_CLOEXEC);
    entry->opcode = IORING_OP_READ;
    entry->fd = one->event;
    entry->addr = (uintptr_t)&one->counter;
    entry->len = sizeof one->counter;
  } else {
    entry->opcode = one->operation == READ ? IORING_OP_READ : IORING_OP_WRITE;
    entry->fd = (int)one->file.device;
    entry->addr = one->memory.address;
    entry->len = (unsigned)(one->shortened ? one->file.length / 2 : one->file.length);
    entry->off = one->file.address;
  }
  entry->user_data = (uintptr_t)one;
  ((unsigned *)(at + of->ring_params.sq_off.array))[index] = index;
  __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
  if (syscall(__NR_io_uring_enter, of->ring, 1, 0, 0, NULL, 0) != 1) refusals++;
}

/* At most 64 of those that wait. */
static void submit(queue *of) {
  for (int count = 0; count < 64 && of->waiting.first != NULL; count++) {
    io *one = take(&of->waiting);
    one->state = RUNNING;
    if (of->kind == URING) submit_to_ring(of, one);
    if (of->kind == POSIX_AIO) append(&of->taken, one);
    pthread_t thread;
    if (one->never) continue;
    if (one->late > 0) {
      threads++;
      pthread_create(&thread, NULL, move_late, one);
      pthread_detach(thread);
    } else if (of->kind != URING || one->event >= 0) {
      finish(one, move(one));
    }
  }
}

/* The backend calls back into the request, which it does not know to be released. */
static void confirm(const io *one) {
  if (one->request == NULL) refusals++;
  else one->request->confirmed++;
}

static int reap_ring(queue *of) {
  unsigned *head = (unsigned *)(of->completions + of->ring_params.cq_off.head);
  const unsigned tail = __atomic_load_n((unsigned *)(of->completions + of->ring_params.cq_off.tail), __ATOMIC_ACQUIRE);
  const unsigned mask = *(unsigned *)(of->completions + of->ring_params.cq_off.ring_mask);
  const struct io_uring_cqe *entries = (struct io_uring_cqe *)(of->completions + of->ring_params.cq_off.cqes);
  unsigned count = 0;
  while (count < 64 && *head + count != tail) {
    const struct io_uring_cqe *entry = &entries[(*head + count) & mask];
    io *one = (io *)(uintptr_t)entry->user_data;
    const ssize_t result = one->event >= 0 ? one->result : entry->res;
    one->state = DONE;
    confirm(one);
    of->used--;
    /* Those before it in this round are not consumed either. */
    if (result < 0) return BACKEND;
    count++;
  }
  __atomic_store_n(head, *head + count, __ATOMIC_RELEASE);
  return IN_PROG;
}

static int poll(queue *of) {
  submit(of);
  if (of->kind == URING) return reap_ring(of);
  for (int count = 0; count < 64 && of->taken.first != NULL; count++) {
    const io *one = of->taken.first;
    if (of->kind == POSIX_AIO) {
      if (one->state != DONE) return IN_PROG;
      if (one->result != (ssize_t)one->file.length) return BACKEND;
    }
    confirm(take(&of->taken));
    of->used--;
  }
  return IN_PROG;
}

/* `never` and `late` are for all pieces but the one that fails. */
static int post_to_queue(object *request) {
  queue *of = request->queue;
  /* A crash of the real one. */
  if (of->absent) return refuse(BACKEND);
  request->confirmed = 0;
  for (size_t index = 0; index < request->count; index++) {
    /* What is in the queue by then stays there. */
    if (of->used >= of->pool) return BACKEND;
    io *one = calloc(1, sizeof *one);
    const int fails = request->error != 0 && (size_t)next_piece == index;
    *one = (io){.other = of->all, .of = of, .request = request, .memory = request->descs[index], .file = request->files[index],
                .operation = request->operation, .error = fails, .late = fails ? 0 : request->late,
                .never = !fails && request->never, .shortened = request->shortened, .event = -1};
    of->all = one;
    of->used++;
    if (one->file.length > longest) longest = one->file.length;
    append(&of->waiting, one);
  }
  submit(of);
  return IN_PROG;
}

static int check(object *request) {
  if (request->queue == NULL || request->status != IN_PROG) return request->status;
  return request->status = request->confirmed == (long)request->count ? SUCCESS : poll(request->queue);
}

int nixl_capi_post_xfer_req(object *agent, object *request, object *options) {
  ENTER(1);
  CHECK(find(AGENT, agent) && find(REQUEST, request) && request->agent == agent, INVALID_PARAM);
  CHECK(options == NULL || find(OPT_ARGS, options), INVALID_PARAM);
  CHECK(!request->released && !request->running, BACKEND);
  request->error = next_error;
  request->late = next_late;
  request->never = next_never;
  request->shortened = next_short;
  if (request->queue != NULL) {
    request->status = post_to_queue(request);
    next_error = next_piece = next_late = next_never = next_short = 0;
    LEAVE(request->status);
  }
  next_error = next_piece = next_late = next_never = next_short = 0;
  request->status = IN_PROG;
  request->running = 1;
  hold_devices(request, 1);
  pthread_t thread;
  if (!request->never) {
    threads++;
    if (pthread_create(&thread, NULL, transfer, request) != 0) {
      threads--;
      hold_devices(request, -1);
      request->running = 0;
      LEAVE(request->status = BACKEND);
    }
    pthread_detach(thread);
  }
  LEAVE(IN_PROG);
}

int nixl_capi_get_xfer_status(object *agent, object *request) {
  ENTER(1);
  CHECK(find(AGENT, agent) && find(REQUEST, request) && !request->released, INVALID_PARAM);
  looks++;
  LEAVE(check(request));
}

int nixl_capi_release_xfer_req(object *agent, object *request) {
  ENTER(1);
  CHECK(find(AGENT, agent) && find(REQUEST, request) && !request->released, INVALID_PARAM);
  check(request);
  /* The real ones free what the kernel still writes to, or wait for it on the thread that calls. */
  CHECK(in_flight(request) == 0, BACKEND);
  request->released = 1;
  LEAVE(SUCCESS);
}

int nixl_capi_destroy_xfer_req(object *request) {
  ENTER(0);
  CHECK(find(REQUEST, request), INVALID_PARAM);
  CHECK(request->released, INVALID_STATE);
  drop(request);
  LEAVE(SUCCESS);
}

/* From here on for tests. The `nth` call of `name` from now on, from 1, returns `status` and does nothing; with 0 each does. */
void stub_nixl_fail(const char *name, int nth, int status) { stub_schedule(name, nth, 1, status, 0); }

/* It answers so much later. */
void stub_nixl_delay(const char *name, int nth, int millis) { stub_schedule(name, nth, 0, 0, millis); }

/* The next request that is posted ends with `error`, or `late` milliseconds later, or never, or half of it is moved.
   Through POSIX it is the piece with the index `piece` that fails, at once, and the others are late or never end. */
void stub_nixl_transfer(int error, int late, int never, int shortened, int piece) {
  pthread_mutex_lock(&stub_mutex);
  next_error = error;
  next_late = late;
  next_never = never;
  next_short = shortened;
  next_piece = piece;
  pthread_mutex_unlock(&stub_mutex);
}

/* What was never to end ends now, with `status`, and without anything moved. */
void stub_nixl_end(int status) {
  pthread_mutex_lock(&stub_mutex);
  for (object *each = objects; each != NULL; each = each->next) {
    if (each->kind == REQUEST && each->never && each->running) {
      hold_devices(each, -1);
      each->running = 0;
      each->status = status;
    }
    if (each->kind == AGENT && each->queue != NULL)
      for (io *one = each->queue->all; one != NULL; one = one->other)
        if (one->never && one->state == RUNNING) finish(one, status == SUCCESS ? (ssize_t)one->file.length : -EIO);
  }
  pthread_mutex_unlock(&stub_mutex);
}

/* io_uring: 0 as the kernel has it, 1 the backend refuses it, 2 the backend is made without a queue. */
void stub_nixl_no_uring(int how) { no_uring = how; }

/* Whether POSIX moves nothing, and the longest piece that it was given. */
void stub_nixl_dry(int on) { dry = on; }
double stub_nixl_longest(void) { return (double)longest; }

/* That of libc, for the pieces of POSIX AIO here: 1 where one is under way, else 2, all are done. */
int aio_cancel(int fd, void *request);
int aio_cancel(int fd, void *request) {
  int answer = 2;
  pthread_mutex_lock(&stub_mutex);
  cancels++;
  for (const object *each = objects; each != NULL && request == NULL; each = each->next)
    for (const io *one = each->kind == AGENT && each->queue != NULL ? each->queue->all : NULL; one != NULL; one = one->other)
      if (each->queue->kind == POSIX_AIO && (int)one->file.device == fd && one->state == RUNNING) answer = 1;
  pthread_mutex_unlock(&stub_mutex);
  return answer;
}

/* How many are alive: 0 agents, 1 backends, 2 parameters, strings and lists, 3 requests, 4 registrations of files, 5 of memory; 6 calls
   that were refused, 7 calls for a status, 8 transfers that run, 9 calls of aio_cancel. */
int stub_nixl_alive(int what) {
  pthread_mutex_lock(&stub_mutex);
  int count = what == 6 ? refusals : what == 7 ? looks : what == 8 ? threads : what == 9 ? cancels : 0;
  for (const object *each = objects; each != NULL; each = each->next)
    count += (what == 0 && each->kind == AGENT) || (what == 1 && each->kind == BACKEND_HANDLE) ||
             (what == 3 && each->kind == REQUEST) ||
             (what == 2 && each->kind != AGENT && each->kind != BACKEND_HANDLE && each->kind != REQUEST);
  for (const registration *each = registrations; each != NULL; each = each->next)
    count += what == (each->memory == FILE_KIND ? 4 : 5);
  pthread_mutex_unlock(&stub_mutex);
  return count;
}

/* The descriptor that a file is registered by, −1 when none is. */
int stub_nixl_registered_fd(void) {
  int fd = -1;
  pthread_mutex_lock(&stub_mutex);
  for (const registration *each = registrations; each != NULL; each = each->next)
    if (each->memory == FILE_KIND) fd = (int)each->at.device;
  pthread_mutex_unlock(&stub_mutex);
  return fd;
}

/* "key=value", the last parameter of the last backend that was made. */
const char *stub_nixl_parameter(void) { return last_parameter; }

/* Forgets faults, counts and what is left alive, which must not be in use by then. */
void stub_nixl_reset(void) {
  stub_forget_faults();
  pthread_mutex_lock(&stub_mutex);
  for (object *each = objects; each != NULL; each = each->next) {
    if (each->kind == AGENT) end_queue(each->queue);
    /* Those of requests are the agents'. */
    each->queue = NULL;
  }
  while (objects != NULL) drop(objects);
  while (registrations != NULL) {
    registration *gone = registrations;
    registrations = gone->next;
    free(gone);
  }
  refusals = looks = has_user = status_failed = cancels = 0;
  next_error = next_piece = next_late = next_never = next_short = 0;
  no_uring = dry = 0;
  longest = 0;
  last_parameter[0] = 0;
  pthread_mutex_unlock(&stub_mutex);
}
