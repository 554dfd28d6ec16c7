/*
 * libcufile.so.0 over host memory: the calls of cufile.h (CUDA 13), with the layouts of the real library and its refusals, on the
 * memory and the contexts of cuda.c. What is registered and opened is counted; faults come by schedule, and misuse that the real
 * library need not notice is counted too.
 */
#define _GNU_SOURCE
#include "stub.h"
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

/* Of cuda.c. */
int stub_cuda_find(uint64_t pointer, size_t length);
int stub_cuda_hold(uint64_t pointer, size_t length, int by);
int cuCtxGetCurrent(void **context);

typedef struct { int32_t err; int32_t cu_err; } CUfileError_t;
typedef void *CUfileHandle_t;
typedef void *CUfileBatchHandle_t;
typedef struct { int type; union { int fd; void *handle; } handle; const void *fs_ops; } CUfileDescr_t;
typedef struct {
  struct {
    unsigned major_version, minor_version;
    size_t poll_thresh_size, max_direct_io_size;
    unsigned dstatusflags, dcontrolflags;
  } nvfs;
  unsigned fflags, max_device_cache_size, per_buffer_cache_size, max_device_pinned_mem_size, max_batch_io_size, max_batch_io_timeout_msecs;
} CUfileDrvProps_t;
typedef struct {
  int mode;
  union { struct { void *devPtr_base; off_t file_offset; off_t devPtr_offset; size_t size; } batch; } u;
  CUfileHandle_t fh;
  int opcode;
  void *cookie;
} CUfileIOParams_t;
typedef struct { void *cookie; int status; size_t ret; } CUfileIOEvents_t;

_Static_assert(sizeof(CUfileError_t) == 8, "returned in one register");
_Static_assert(sizeof(CUfileDescr_t) == 24, "CUfileDescr_t");
_Static_assert(offsetof(CUfileDescr_t, handle) == 8 && offsetof(CUfileDescr_t, fs_ops) == 16, "CUfileDescr_t");
_Static_assert(sizeof(CUfileDrvProps_t) == 56, "CUfileDrvProps_t");
_Static_assert(offsetof(CUfileDrvProps_t, nvfs.poll_thresh_size) == 8, "poll_thresh_size");
_Static_assert(offsetof(CUfileDrvProps_t, nvfs.max_direct_io_size) == 16, "max_direct_io_size");
_Static_assert(offsetof(CUfileDrvProps_t, nvfs.dstatusflags) == 24, "dstatusflags");
_Static_assert(offsetof(CUfileDrvProps_t, nvfs.dcontrolflags) == 28, "dcontrolflags");
_Static_assert(offsetof(CUfileDrvProps_t, fflags) == 32, "fflags");
_Static_assert(offsetof(CUfileDrvProps_t, max_device_cache_size) == 36, "max_device_cache_size");
_Static_assert(offsetof(CUfileDrvProps_t, per_buffer_cache_size) == 40, "per_buffer_cache_size");
_Static_assert(offsetof(CUfileDrvProps_t, max_device_pinned_mem_size) == 44, "max_device_pinned_mem_size");
_Static_assert(offsetof(CUfileDrvProps_t, max_batch_io_size) == 48, "max_batch_io_size");
_Static_assert(offsetof(CUfileDrvProps_t, max_batch_io_timeout_msecs) == 52, "max_batch_io_timeout_msecs");
_Static_assert(sizeof(CUfileIOParams_t) == 64, "CUfileIOParams_t");
_Static_assert(offsetof(CUfileIOParams_t, u.batch.devPtr_base) == 8, "devPtr_base");
_Static_assert(offsetof(CUfileIOParams_t, u.batch.file_offset) == 16, "file_offset");
_Static_assert(offsetof(CUfileIOParams_t, u.batch.devPtr_offset) == 24, "devPtr_offset");
_Static_assert(offsetof(CUfileIOParams_t, u.batch.size) == 32, "size");
_Static_assert(offsetof(CUfileIOParams_t, fh) == 40, "fh");
_Static_assert(offsetof(CUfileIOParams_t, opcode) == 48, "opcode");
_Static_assert(offsetof(CUfileIOParams_t, cookie) == 56, "cookie");
_Static_assert(sizeof(CUfileIOEvents_t) == 24, "CUfileIOEvents_t");
_Static_assert(offsetof(CUfileIOEvents_t, status) == 8 && offsetof(CUfileIOEvents_t, ret) == 16, "CUfileIOEvents_t");

enum {
  DRIVER_NOT_INITIALIZED = 5001, IO_NOT_SUPPORTED = 5008, CUDA_DRIVER_ERROR = 5011, CUDA_POINTER_INVALID = 5012,
  CUDA_POINTER_RANGE_ERROR = 5014, CUDA_CONTEXT_MISMATCH = 5015, INVALID_FILE_TYPE = 5018, INVALID_FILE_OPEN_FLAG = 5019,
  DIO_NOT_SET = 5020, INVALID_VALUE = 5022, MEMORY_ALREADY_REGISTERED = 5023, MEMORY_NOT_REGISTERED = 5024,
  HANDLE_NOT_REGISTERED = 5027, HANDLE_ALREADY_REGISTERED = 5028, INTERNAL_ERROR = 5030, BATCH_FULL = 5037,
  CUDA_ERROR_INVALID_CONTEXT = 201, COMPLETE = 16, FAILED = 64, ALLOW_COMPAT_MODE = 1 << 1
};

#define MAX_HANDLES 4096
#define MAX_BUFFERS 256
#define MAX_BATCHES 64
#define MAX_LOG 512

struct handle { int fd; dev_t dev; ino_t ino; int alive; int in_flight; };
struct buffer { uint64_t base; size_t length; int in_flight; };
struct batch { int alive; unsigned capacity; unsigned count; unsigned reported; CUfileIOEvents_t *events; };
#define lock stub_mutex

static int opens, compat;
/* Handles are places of this table and are never used again, as a freed pointer might be. */
static struct handle handles[MAX_HANDLES];
static int handle_count;
static struct buffer buffers[MAX_BUFFERS];
static int buffer_count;
static struct batch batches[MAX_BATCHES];
static int batch_count;
static char calls[MAX_LOG][40];
static int call_count;
static int misuses;
static char misuse[128];
static CUfileDrvProps_t props;
static int version = 1150;
static int parameters[12];

static void misused(const char *what) {
  misuses++;
  snprintf(misuse, sizeof misuse, "%s", what);
}

static CUfileError_t status(int err) {
  return (CUfileError_t){err, err == CUDA_DRIVER_ERROR ? CUDA_ERROR_INVALID_CONTEXT : 0};
}

/* Records the call and takes what is planned for it. */
static stub_plan planned(const char *call, const char *note) {
  pthread_mutex_lock(&lock);
  snprintf(calls[call_count++ % MAX_LOG], sizeof calls[0], "%s%s", call, note);
  pthread_mutex_unlock(&lock);
  return stub_enter(call);
}

static stub_plan begin(const char *call, const char *note) {
  stub_plan plan = planned(call, note);
  stub_sleep(plan.millis);
  return plan;
}

/* A code of cuFile, or one of CUDA, which comes with CU_FILE_CUDA_DRIVER_ERROR. */
static int failing(stub_plan plan, CUfileError_t *error) {
  *error = plan.code > 5000 || plan.code < 0 ? (CUfileError_t){(int32_t)plan.code, 0} : (CUfileError_t){CUDA_DRIVER_ERROR, (int32_t)plan.code};
  return plan.fails;
}

/* At most so many, where that is planned. */
static size_t shortened(const char *call, size_t count) {
  char name[64];
  snprintf(name, sizeof name, "%s short", call);
  stub_plan plan = stub_enter(name);
  return plan.fails && (size_t)plan.code < count ? (size_t)plan.code : count;
}

static int no_context(void) {
  void *context = NULL;
  return cuCtxGetCurrent(&context) != 0 || context == NULL;
}

/* ---- the control of the tests ---- */

void stub_cufile_reset(void) {
  stub_forget_faults();
  pthread_mutex_lock(&lock);
  opens = compat = buffer_count = call_count = misuses = 0;
  for (int i = 0; i < handle_count; i++) handles[i].alive = 0;
  for (int i = 0; i < batch_count; i++) batches[i].alive = 0;
  misuse[0] = 0;
  version = 1150;
  memset(parameters, 0, sizeof parameters);
  props = (CUfileDrvProps_t){.nvfs = {2, 20, 4, 16384, 1 << 4, 0}, .fflags = 1 | 2, .max_device_cache_size = 131072,
    .per_buffer_cache_size = 1024, .max_device_pinned_mem_size = 33554432, .max_batch_io_size = 128, .max_batch_io_timeout_msecs = 0};
  pthread_mutex_unlock(&lock);
}

/* Allows files without O_DIRECT, as old releases do in compatibility mode. */
void stub_cufile_compat(int on) {
  pthread_mutex_lock(&lock);
  compat = on;
  if (on) props.nvfs.dcontrolflags |= ALLOW_COMPAT_MODE;
  else props.nvfs.dcontrolflags &= ~(unsigned)ALLOW_COMPAT_MODE;
  pthread_mutex_unlock(&lock);
}

void stub_cufile_props(unsigned nvfs_major, unsigned dstatusflags, unsigned dcontrolflags, unsigned fflags, unsigned batch) {
  pthread_mutex_lock(&lock);
  props.nvfs.major_version = nvfs_major;
  if (nvfs_major == 0) props.nvfs.minor_version = 0;
  props.nvfs.dstatusflags = dstatusflags;
  props.nvfs.dcontrolflags = dcontrolflags;
  props.fflags = fflags;
  props.max_batch_io_size = batch;
  pthread_mutex_unlock(&lock);
}

void stub_cufile_parameter(int parameter, int value) { parameters[parameter] = value; }

/* The `nth` call from now on, from 1, or each with 0, fails with `code`: 5001 and above of cuFile, below of CUDA; of a transfer, −errno. */
void stub_cufile_fail(const char *call, int nth, int code) { stub_schedule(call, nth, 1, code, 0); }

void stub_cufile_delay(const char *call, int nth, int millis) { stub_schedule(call, nth, 0, 0, millis); }

/* Moves only so many bytes; of GetStatus, tells only of so many. */
void stub_cufile_short(const char *call, int nth, int count) {
  char name[64];
  snprintf(name, sizeof name, "%s short", call);
  stub_schedule(name, nth, 1, count, 0);
}

/* 0 driver opens · 1 handles · 2 buffers · 3 batches · 4 transfers in flight · 5 misuses */
int stub_cufile_alive(int what) {
  int count = 0;
  pthread_mutex_lock(&lock);
  switch (what) {
    case 0: count = opens; break;
    case 1: for (int i = 0; i < handle_count; i++) count += handles[i].alive; break;
    case 2: count = buffer_count; break;
    case 3: for (int i = 0; i < batch_count; i++) count += batches[i].alive; break;
    case 4: for (int i = 0; i < handle_count; i++) count += handles[i].in_flight; break;
    case 5: count = misuses; break;
  }
  pthread_mutex_unlock(&lock);
  return count;
}

const char *stub_cufile_misuse(void) { return misuse; }

/* The calls so far, the `index`-th of them; NULL where there is none. */
const char *stub_cufile_call(int index) { return index < call_count && index < MAX_LOG ? calls[index] : NULL; }

/* Returns at once: what it costs to call at all. */
int64_t stub_cufile_nothing(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e) { return (int64_t)(a + b + c + d + e); }

/* ---- the library ---- */

CUfileError_t cuFileDriverOpen(void) {
  CUfileError_t error;
  if (failing(begin("cuFileDriverOpen", ""), &error)) return error;
  pthread_mutex_lock(&lock);
  opens++;
  pthread_mutex_unlock(&lock);
  return status(0);
}

CUfileError_t cuFileDriverClose_v2(void) {
  CUfileError_t error;
  if (failing(begin("cuFileDriverClose_v2", ""), &error)) return error;
  pthread_mutex_lock(&lock);
  int err = opens == 0 ? DRIVER_NOT_INITIALIZED : 0;
  if (err) misused("the driver is closed and was not open");
  else {
    opens--;
    for (int i = 0; opens == 0 && i < handle_count; i++)
      if (handles[i].alive) misused("the driver is closed with handles registered");
    if (opens == 0 && buffer_count > 0) misused("the driver is closed with buffers registered");
  }
  pthread_mutex_unlock(&lock);
  return status(err);
}

long cuFileUseCount(void) { return opens; }

CUfileError_t cuFileGetVersion(int *out) {
  CUfileError_t error;
  if (failing(begin("cuFileGetVersion", ""), &error)) return error;
  if (out == NULL) return status(INVALID_VALUE);
  *out = version;
  return status(0);
}

CUfileError_t cuFileDriverGetProperties(CUfileDrvProps_t *out) {
  CUfileError_t error;
  if (failing(begin("cuFileDriverGetProperties", ""), &error)) return error;
  if (opens == 0) return status(DRIVER_NOT_INITIALIZED);
  if (out == NULL) return status(INVALID_VALUE);
  *out = props;
  return status(0);
}

CUfileError_t cuFileGetParameterBool(int parameter, unsigned char *value) {
  CUfileError_t error;
  if (failing(begin("cuFileGetParameterBool", ""), &error)) return error;
  if (value == NULL || parameter < 0 || parameter >= 12) return status(INVALID_VALUE);
  *value = parameters[parameter] != 0;
  return status(0);
}

CUfileError_t cuFileHandleRegister(CUfileHandle_t *out, CUfileDescr_t *descr) {
  CUfileError_t error;
  if (failing(begin("cuFileHandleRegister", ""), &error)) return error;
  if (opens == 0) return status(DRIVER_NOT_INITIALIZED);
  if (out == NULL || descr == NULL || descr->type != 1 || descr->fs_ops != NULL) return status(INVALID_VALUE);
  /* Padding and the upper half of the union: zero only where the whole descriptor was zeroed first. */
  const unsigned char *bytes = (const unsigned char *)descr;
  for (int i = 4; i < 16; i++)
    if ((i < 8 || i >= 12) && bytes[i] != 0) return status(INVALID_VALUE);
  int fd = descr->handle.fd;
  struct stat st;
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fstat(fd, &st) != 0) return status(INVALID_VALUE);
  if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) return status(INVALID_FILE_TYPE);
  if (flags & (O_APPEND | O_NOATIME | O_NOFOLLOW | O_NONBLOCK | (O_TMPFILE & ~O_DIRECTORY))) return status(INVALID_FILE_OPEN_FLAG);
  if (st.st_nlink == 0) return status(INTERNAL_ERROR);
  if (!(flags & O_DIRECT) && !compat) return status(DIO_NOT_SET);
  pthread_mutex_lock(&lock);
  for (int i = 0; i < handle_count; i++) {
    if (handles[i].alive && handles[i].fd == fd) {
      pthread_mutex_unlock(&lock);
      return status(HANDLE_ALREADY_REGISTERED);
    }
  }
  struct handle *handle = &handles[handle_count++];
  *handle = (struct handle){fd, st.st_dev, st.st_ino, 1, 0};
  pthread_mutex_unlock(&lock);
  *out = handle;
  return status(0);
}

static struct handle *known(CUfileHandle_t fh) {
  struct handle *handle = fh;
  size_t at = (size_t)((char *)fh - (char *)handles);
  return handle >= handles && handle < handles + handle_count && at % sizeof *handle == 0 && handle->alive ? handle : NULL;
}

void cuFileHandleDeregister(CUfileHandle_t fh) {
  struct stat st;
  pthread_mutex_lock(&lock);
  struct handle *handle = known(fh);
  int there = handle != NULL && fstat(handle->fd, &st) == 0 && st.st_ino == handle->ino && st.st_dev == handle->dev;
  pthread_mutex_unlock(&lock);
  begin("cuFileHandleDeregister", !there ? " closed" : st.st_nlink == 0 ? " unlinked" : " linked");
  pthread_mutex_lock(&lock);
  if (handle == NULL) misused("a handle is deregistered that is not registered");
  else {
    if (opens == 0) misused("a handle is deregistered after the driver was closed");
    if (handle->in_flight > 0) misused("a handle is deregistered with transfers in flight");
    if (!there) misused("a handle is deregistered after its file was closed");
    handle->alive = 0;
  }
  pthread_mutex_unlock(&lock);
}

CUfileError_t cuFileBufRegister(const void *base, size_t length, int flags) {
  CUfileError_t error;
  if (failing(begin("cuFileBufRegister", ""), &error)) return error;
  if (opens == 0) return status(DRIVER_NOT_INITIALIZED);
  if (base == NULL || length == 0 || flags != 0) return status(INVALID_VALUE);
  if (no_context()) return status(CUDA_DRIVER_ERROR);
  if (stub_cuda_find((uint64_t)base, length) < 0)
    return status(stub_cuda_find((uint64_t)base, 1) >= 0 ? CUDA_POINTER_RANGE_ERROR : CUDA_POINTER_INVALID);
  pthread_mutex_lock(&lock);
  int err = 0;
  for (int i = 0; i < buffer_count; i++)
    if (buffers[i].base == (uint64_t)base) err = MEMORY_ALREADY_REGISTERED;
  if (err == 0) buffers[buffer_count++] = (struct buffer){(uint64_t)base, length, 0};
  pthread_mutex_unlock(&lock);
  return status(err);
}

CUfileError_t cuFileBufDeregister(const void *base) {
  CUfileError_t error;
  if (failing(begin("cuFileBufDeregister", ""), &error)) return error;
  if (opens == 0) return status(DRIVER_NOT_INITIALIZED);
  if (no_context()) return status(CUDA_DRIVER_ERROR);
  int err = MEMORY_NOT_REGISTERED, freed = stub_cuda_find((uint64_t)base, 1) < 0;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < buffer_count; i++) {
    if (buffers[i].base != (uint64_t)base) continue;
    if (buffers[i].in_flight > 0) misused("a buffer is deregistered with transfers in flight");
    buffers[i] = buffers[--buffer_count];
    if (freed) misused("a buffer is deregistered after it was freed");
    err = 0;
    break;
  }
  if (err) misused("a buffer is deregistered that is not registered");
  pthread_mutex_unlock(&lock);
  return status(err);
}

/* Whole pages through aligned memory, since the file may be O_DIRECT; a write of less than a page reads it first. */
static ssize_t move(int fd, int writing, char *memory, size_t size, off_t offset) {
  off_t first = offset & ~(off_t)4095, last = (offset + (off_t)size + 4095) & ~(off_t)4095;
  char *pages = NULL;
  if (posix_memalign((void **)&pages, 4096, (size_t)(last - first)) != 0) {
    errno = ENOMEM;
    return -1;
  }
  memset(pages, 0, (size_t)(last - first));
  ssize_t done = 0;
  if (!writing || first != offset || last != offset + (off_t)size) done = pread(fd, pages, (size_t)(last - first), first);
  if (done >= 0 && writing) {
    memcpy(pages + (offset - first), memory, size);
    done = pwrite(fd, pages, (size_t)(last - first), first);
  }
  ssize_t moved = done < 0 ? -1 : done - (offset - first);
  if (moved > (ssize_t)size) moved = (ssize_t)size;
  if (moved < 0 && done >= 0) moved = 0;
  if (moved > 0 && !writing) memcpy(memory, pages + (offset - first), (size_t)moved);
  int saved = errno;
  free(pages);
  errno = saved;
  return moved;
}

static struct buffer *registered(uint64_t base) {
  for (int i = 0; i < buffer_count; i++)
    if (buffers[i].base == base) return &buffers[i];
  return NULL;
}

static ssize_t transfer(const char *call, CUfileHandle_t fh, uint64_t base, size_t size, off_t offset, off_t base_offset, int writing) {
  pthread_mutex_lock(&lock);
  struct handle *handle = known(fh);
  /* From here on the transfer is in flight, also while it is late. */
  if (handle != NULL) handle->in_flight++;
  struct buffer *buffer = registered(base);
  if (buffer != NULL) buffer->in_flight++;
  size_t length = buffer == NULL ? SIZE_MAX : buffer->length;
  pthread_mutex_unlock(&lock);
  stub_plan plan = planned(call, "");
  int held = size > 0 && base_offset >= 0 ? stub_cuda_hold(base, (size_t)base_offset + size, 1) : -1;
  stub_sleep(plan.millis);
  ssize_t result;
  struct stat st;
  if (opens == 0) result = -DRIVER_NOT_INITIALIZED;
  else if (handle == NULL) result = -HANDLE_NOT_REGISTERED;
  else if (plan.fails && plan.code > 0) result = -plan.code;
  else if (plan.fails) { errno = (int)-plan.code; result = -1; }
  else if (size == 0 || offset < 0 || base_offset < 0) result = -INVALID_VALUE;
  else if (no_context()) result = -CUDA_CONTEXT_MISMATCH;
  else if (fstat(handle->fd, &st) != 0 || st.st_dev != handle->dev || st.st_ino != handle->ino) { errno = EBADF; result = -1; }
  else if (stub_cuda_find(base, 1) < 0) result = -CUDA_POINTER_INVALID;
  else if (held < 0 || (size_t)base_offset + size > length) result = -CUDA_POINTER_RANGE_ERROR;
  else {
    size_t most = shortened(call, size);
    result = most == 0 ? 0 : move(handle->fd, writing, (char *)base + base_offset, most, offset);
  }
  int saved = errno;
  if (held >= 0) stub_cuda_hold(base, (size_t)base_offset + size, -1);
  pthread_mutex_lock(&lock);
  if (handle != NULL) {
    handle->in_flight--;
    if (!handle->alive) misused("a transfer outlived its handle");
  }
  buffer = length == SIZE_MAX ? NULL : registered(base);
  if (buffer != NULL) buffer->in_flight--;
  else if (length != SIZE_MAX) misused("a transfer outlived the registration of its buffer");
  pthread_mutex_unlock(&lock);
  errno = saved;
  return result;
}

ssize_t cuFileRead(CUfileHandle_t fh, void *base, size_t size, off_t offset, off_t base_offset) {
  return transfer("cuFileRead", fh, (uint64_t)base, size, offset, base_offset, 0);
}

ssize_t cuFileWrite(CUfileHandle_t fh, const void *base, size_t size, off_t offset, off_t base_offset) {
  return transfer("cuFileWrite", fh, (uint64_t)base, size, offset, base_offset, 1);
}

CUfileError_t cuFileBatchIOSetUp(CUfileBatchHandle_t *out, unsigned nr) {
  CUfileError_t error;
  if (failing(begin("cuFileBatchIOSetUp", ""), &error)) return error;
  if (opens == 0) return status(DRIVER_NOT_INITIALIZED);
  if (out == NULL || nr == 0 || nr > props.max_batch_io_size) return status(INVALID_VALUE);
  pthread_mutex_lock(&lock);
  struct batch *batch = NULL;
  for (int i = 0; i < batch_count && batch == NULL; i++)
    if (!batches[i].alive) batch = &batches[i];
  if (batch == NULL && batch_count < MAX_BATCHES) batch = &batches[batch_count++];
  if (batch != NULL) *batch = (struct batch){1, nr, 0, 0, calloc(nr, sizeof(CUfileIOEvents_t))};
  pthread_mutex_unlock(&lock);
  if (batch == NULL) return status(BATCH_FULL);
  *out = batch;
  return status(0);
}

static struct batch *known_batch(CUfileBatchHandle_t id) {
  struct batch *batch = id;
  return batch >= batches && batch < batches + batch_count && batch->alive ? batch : NULL;
}

/* The transfers happen here; that they have ended is told by GetStatus. */
CUfileError_t cuFileBatchIOSubmit(CUfileBatchHandle_t id, unsigned nr, CUfileIOParams_t *params, unsigned flags) {
  CUfileError_t error;
  if (failing(begin("cuFileBatchIOSubmit", ""), &error)) return error;
  struct batch *batch = known_batch(id);
  if (batch == NULL || nr == 0 || nr > batch->capacity || params == NULL || flags != 0) return status(INVALID_VALUE);
  for (unsigned i = 0; i < nr; i++)
    if (params[i].mode != 1 || (params[i].opcode != 0 && params[i].opcode != 1)) return status(INVALID_VALUE);
  for (unsigned i = 0; i < nr; i++) {
    CUfileIOParams_t *p = &params[i];
    ssize_t result = transfer("cuFileBatchIOSubmit transfer", p->fh, (uint64_t)p->u.batch.devPtr_base, p->u.batch.size, p->u.batch.file_offset,
      p->u.batch.devPtr_offset, p->opcode);
    if (result == -1) result = -errno;
    batch->events[i] = (CUfileIOEvents_t){p->cookie, result < 0 ? FAILED : COMPLETE, (size_t)result};
  }
  batch->count = nr;
  return status(0);
}

/* In an order of its own: the last first. */
CUfileError_t cuFileBatchIOGetStatus(CUfileBatchHandle_t id, unsigned min_nr, unsigned *nr, CUfileIOEvents_t *events, struct timespec *timeout) {
  CUfileError_t error;
  if (failing(begin("cuFileBatchIOGetStatus", ""), &error)) return error;
  struct batch *batch = known_batch(id);
  if (batch == NULL || nr == NULL || events == NULL || min_nr > *nr || *nr > batch->capacity) return status(INVALID_VALUE);
  (void)timeout;
  unsigned most = (unsigned)shortened("cuFileBatchIOGetStatus", *nr);
  unsigned count = 0;
  while (count < most && batch->reported < batch->count) events[count++] = batch->events[batch->count - 1 - batch->reported++];
  *nr = count;
  return status(0);
}

CUfileError_t cuFileBatchIOCancel(CUfileBatchHandle_t id) {
  CUfileError_t error;
  if (failing(begin("cuFileBatchIOCancel", ""), &error)) return error;
  return status(known_batch(id) == NULL ? INVALID_VALUE : 0);
}

void cuFileBatchIODestroy(CUfileBatchHandle_t id) {
  begin("cuFileBatchIODestroy", "");
  pthread_mutex_lock(&lock);
  struct batch *batch = known_batch(id);
  if (batch == NULL) misused("a batch is destroyed that is not there");
  else {
    batch->alive = 0;
    free(batch->events);
  }
  pthread_mutex_unlock(&lock);
}
