/*
 * The C API of NIXL over host memory and real files. Signatures and numbers: `src/bindings/rust/wrapper.h` of NIXL; what it refuses follows
 * `wrapper.cpp`, `src/core/nixl_agent.cpp` and `src/plugins/{posix,gds_mt}`. Beyond these it refuses what they would crash on or pass over:
 * handles that are gone, a file without a name, a descriptor that is another file by now, a request that is released in flight.
 */
#define _GNU_SOURCE
#include "stub.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

/* In the stub of CUDA: the device of live device memory, or -1; and the same while a transfer is at it. */
extern int stub_cuda_find(uint64_t pointer, size_t length);
extern int stub_cuda_hold(uint64_t pointer, size_t length, int by);

typedef enum {
  SUCCESS = 0,
  IN_PROG = 1,
  INVALID_PARAM = -1,
  BACKEND = -2,
  INVALID_STATE = -3,
  NOT_FOUND = -6
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
  /* Of parameters and of the backend POSIX: pieces of a request, in all. Its queue has 64 places where it is not told. */
  long pool;
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
/* What becomes of the next transfers that are posted: see stub_nixl_transfer. */
static int next_error, next_late, next_never, next_short;
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
    if (plan.fails) return (int)plan.code; \
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

int nixl_capi_destroy_agent(object *agent) {
  ENTER(1);
  CHECK(find(AGENT, agent), INVALID_PARAM);
  /* The real one would leave backends and requests that point into nothing. */
  CHECK(!agent_used(agent), INVALID_STATE);
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
  *backend = make(BACKEND_HANDLE, agent);
  snprintf((*backend)->name, sizeof (*backend)->name, "%s", name);
  (*backend)->pool = params->pool > 64 ? params->pool : 64;
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

static const registration *covering(const object *agent, int memory, const desc *at) {
  for (const registration *each = registrations; each != NULL; each = each->next)
    if (each->agent == agent && each->memory == memory && each->at.device == at->device &&
        at->address >= each->at.address && at->length <= each->at.length &&
        at->address - each->at.address <= each->at.length - at->length)
      return each;
  return NULL;
}

int nixl_capi_register_mem(object *agent, object *list, object *options) {
  ENTER(1);
  CHECK(find(AGENT, agent) && find(REG_LIST, list), INVALID_PARAM);
  CHECK(options == NULL || find(OPT_ARGS, options), INVALID_PARAM);
  CHECK(supported(agent, list->memory), NOT_FOUND);
  for (size_t index = 0; index < list->count; index++) {
    const desc *at = &list->descs[index];
    registration made = {registrations, agent, list->memory, *at, 0, 0};
    CHECK(at->length > 0 && registered(agent, list->memory, at) == NULL, BACKEND);
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

int nixl_capi_deregister_mem(object *agent, object *list, object *options) {
  ENTER(1);
  CHECK(find(AGENT, agent) && find(REG_LIST, list), INVALID_PARAM);
  CHECK(options == NULL || find(OPT_ARGS, options), INVALID_PARAM);
  for (size_t index = 0; index < list->count; index++) {
    const desc *at = &list->descs[index];
    registration **found = registered(agent, list->memory, at);
    CHECK(found != NULL, NOT_FOUND);
    for (const object *each = objects; each != NULL; each = each->next)
      for (size_t piece = 0; each->kind == REQUEST && each->running && piece < each->count; piece++) {
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

int nixl_capi_post_xfer_req(object *agent, object *request, object *options) {
  ENTER(1);
  CHECK(find(AGENT, agent) && find(REQUEST, request) && request->agent == agent, INVALID_PARAM);
  CHECK(options == NULL || find(OPT_ARGS, options), INVALID_PARAM);
  CHECK(!request->released && !request->running, BACKEND);
  const object *posix = backend_of(agent, "POSIX");
  CHECK(request->memory != DRAM || posix == NULL || (long)request->count <= posix->pool, BACKEND);
  request->status = IN_PROG;
  request->running = 1;
  request->error = next_error;
  request->late = next_late;
  request->never = next_never;
  request->shortened = next_short;
  next_error = next_late = next_never = next_short = 0;
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
  LEAVE(request->status);
}

int nixl_capi_release_xfer_req(object *agent, object *request) {
  ENTER(1);
  CHECK(find(AGENT, agent) && find(REQUEST, request) && !request->released, INVALID_PARAM);
  /* The real ones free what the kernel still writes to, or wait for it on the thread that calls. */
  CHECK(!request->running, BACKEND);
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

/* The next request that is posted ends with `error`, or `late` milliseconds later, or never, or half of it is moved. */
void stub_nixl_transfer(int error, int late, int never, int shortened) {
  pthread_mutex_lock(&stub_mutex);
  next_error = error;
  next_late = late;
  next_never = never;
  next_short = shortened;
  pthread_mutex_unlock(&stub_mutex);
}

/* What was never to end ends now, with `status`, and without anything moved. */
void stub_nixl_end(int status) {
  pthread_mutex_lock(&stub_mutex);
  for (object *each = objects; each != NULL; each = each->next)
    if (each->kind == REQUEST && each->never && each->running) {
      hold_devices(each, -1);
      each->running = 0;
      each->status = status;
    }
  pthread_mutex_unlock(&stub_mutex);
}

/* How many are alive: 0 agents, 1 backends, 2 parameters, strings and lists, 3 requests, 4 registrations of files, 5 of memory; 6 calls
   that were refused, 7 calls for a status, 8 transfers that run. */
int stub_nixl_alive(int what) {
  pthread_mutex_lock(&stub_mutex);
  int count = what == 6 ? refusals : what == 7 ? looks : what == 8 ? threads : 0;
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
  while (objects != NULL) drop(objects);
  while (registrations != NULL) {
    registration *gone = registrations;
    registrations = gone->next;
    free(gone);
  }
  refusals = looks = has_user = 0;
  next_error = next_late = next_never = next_short = 0;
  last_parameter[0] = 0;
  pthread_mutex_unlock(&stub_mutex);
}
