/*
 * The CUDA driver library over host memory: two devices. It refuses what the driver refuses, and a few things that it would take and that
 * are mistakes all the same (copies between what belongs to another context, freeing what is being copied, ranges that are not
 * whole pages). Numbers and signatures: cuda.h of CUDA 13.0.
 */
#define _GNU_SOURCE
#include "stub.h"
#include <stdio.h>
#include <sys/mman.h>

typedef int CUresult;
typedef int CUdevice;
typedef uint64_t CUdeviceptr;
typedef struct context *CUcontext;

_Static_assert(sizeof(CUdeviceptr) == sizeof(void *), "device pointers are addresses");
_Static_assert(sizeof(size_t) == 8, "lengths have 64 bits");

enum {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  INVALID_DEVICE = 101,
  INVALID_CONTEXT = 201,
  ILLEGAL_ADDRESS = 700,
  CONTEXT_IS_DESTROYED = 709,
  ALREADY_REGISTERED = 712,
  NOT_REGISTERED = 713
};

static const struct {
  CUresult code;
  const char *name;
  const char *words;
} errors[] = {
  {0, "CUDA_SUCCESS", "no error"},
  {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
  {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
  {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
  {4, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
  {34, "CUDA_ERROR_STUB_LIBRARY", "CUDA driver is a stub library"},
  {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable"},
  {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
  {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
  {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
  {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
  {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
  {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
  {712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "part or all of the requested memory range is already mapped"},
  {713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "pointer does not correspond to a registered memory region"},
  {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
  {800, "CUDA_ERROR_NOT_PERMITTED", "operation not permitted"},
  {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
  {802, "CUDA_ERROR_SYSTEM_NOT_READY", "system not yet initialized"},
  {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"},
  {999, "CUDA_ERROR_UNKNOWN", "unknown error"}
};

#define DEVICES 2
#define DEVICE_BYTES (1ull << 30)
#define PAGE 4096

/* Never freed: a handle that has become stale is known for what it is. */
struct context {
  struct context *next;
  CUdevice device;
  int retained;
};

/* Device memory (`device` ≥ 0) or registered host memory (−1). */
typedef struct range {
  struct range *next;
  CUcontext context;
  uint64_t start;
  size_t length;
  int registered;
  int in_flight;
  /* Whether copies that begin or end here are over when their call returns (SYNC_MEMOPS). */
  int synchronous;
} range;

static int initialised;
static CUcontext contexts;
static CUcontext primary[DEVICES];
static range *ranges;
static int refusals;
static __thread CUcontext current;

static CUresult refuse(CUresult code) {
  refusals += 1;
  return code;
}

/* With the mutex held, as everything below that is not exported. */
static CUresult usable(void) {
  if (!initialised) return refuse(NOT_INITIALIZED);
  if (current == NULL) return refuse(INVALID_CONTEXT);
  return current->retained == 0 ? refuse(CONTEXT_IS_DESTROYED) : SUCCESS;
}

static CUresult known_device(CUdevice device) {
  if (!initialised) return refuse(NOT_INITIALIZED);
  return device < 0 || device >= DEVICES ? refuse(INVALID_DEVICE) : SUCCESS;
}

/* The range of that kind that holds some byte from `start` on. */
static range *overlapping(int registered, uint64_t start, size_t length) {
  for (range *each = ranges; each != NULL; each = each->next)
    if (each->registered == registered && start < each->start + each->length && each->start < start + length) return each;
  return NULL;
}

static range **starting(int registered, uint64_t start) {
  for (range **each = &ranges; *each != NULL; each = &(*each)->next)
    if ((*each)->registered == registered && (*each)->start == start) return each;
  return NULL;
}

static int within(const range *whole, uint64_t start, size_t length) {
  return start >= whole->start && length <= whole->length && start - whole->start <= whole->length - length;
}

static CUresult device_range(CUdeviceptr start, size_t length, range **found) {
  *found = overlapping(0, start, length);
  if (*found == NULL || !within(*found, start, length)) return refuse(INVALID_VALUE);
  return (*found)->context == current ? SUCCESS : refuse(INVALID_CONTEXT);
}

/* Host memory may be registered or not, and not so in part. */
static CUresult host_range(const void *start, size_t length, range **found) {
  *found = overlapping(1, (uint64_t)start, length);
  if (start == NULL || (*found != NULL && !within(*found, (uint64_t)start, length))) return refuse(INVALID_VALUE);
  return SUCCESS;
}

static void add(range added) {
  range *one = malloc(sizeof *one);
  *one = added;
  one->next = ranges;
  ranges = one;
}

static void drop(range **at) {
  range *one = *at;
  *at = one->next;
  free(one);
}

#define ENTER                             \
  stub_plan plan = stub_enter(__func__); \
  stub_sleep(plan.millis);               \
  if (plan.fails) return (CUresult)plan.code
#define LOCKED(code)                    \
  pthread_mutex_lock(&stub_mutex);     \
  CUresult result = (code);            \
  pthread_mutex_unlock(&stub_mutex);   \
  return result

CUresult cuInit(unsigned int flags) {
  ENTER;
  LOCKED(flags != 0 ? refuse(INVALID_VALUE) : (initialised = 1, SUCCESS));
}

CUresult cuDriverGetVersion(int *version) {
  ENTER;
  *version = 13000;
  return SUCCESS;
}

CUresult cuGetErrorName(CUresult code, const char **name) {
  *name = NULL;
  for (size_t at = 0; at < sizeof errors / sizeof *errors; at++)
    if (errors[at].code == code) *name = errors[at].name;
  return *name == NULL ? INVALID_VALUE : SUCCESS;
}

CUresult cuGetErrorString(CUresult code, const char **words) {
  *words = NULL;
  for (size_t at = 0; at < sizeof errors / sizeof *errors; at++)
    if (errors[at].code == code) *words = errors[at].words;
  return *words == NULL ? INVALID_VALUE : SUCCESS;
}

CUresult cuDeviceGetCount(int *count) {
  ENTER;
  *count = DEVICES;
  LOCKED(known_device(0));
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  ENTER;
  *device = ordinal;
  LOCKED(known_device(ordinal));
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
  ENTER;
  snprintf(name, (size_t)length, "Stub device %d", device);
  LOCKED(known_device(device));
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
  ENTER;
  *bytes = DEVICE_BYTES;
  LOCKED(known_device(device));
}

CUresult cuDeviceGetPCIBusId(char *address, int length, CUdevice device) {
  ENTER;
  if (length < 13) return INVALID_VALUE;
  snprintf(address, (size_t)length, "0000:%02X:00.0", 0xa1 + device);
  LOCKED(known_device(device));
}

static CUresult retain(CUcontext *context, CUdevice device) {
  CUresult known = known_device(device);
  if (known != SUCCESS) return known;
  if (primary[device] == NULL) {
    CUcontext made = malloc(sizeof *made);
    *made = (struct context){contexts, device, 0};
    primary[device] = contexts = made;
  }
  primary[device]->retained += 1;
  *context = primary[device];
  return SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  ENTER;
  LOCKED(retain(context, device));
}

/* What is left in the context is lost to everybody, and stays in the count of what is alive. */
static CUresult release(CUdevice device) {
  CUresult known = known_device(device);
  if (known != SUCCESS) return known;
  if (primary[device] == NULL) return refuse(INVALID_CONTEXT);
  primary[device]->retained -= 1;
  if (primary[device]->retained == 0) primary[device] = NULL;
  return SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  ENTER;
  LOCKED(release(device));
}

static CUresult set_current(CUcontext context) {
  if (!initialised) return refuse(NOT_INITIALIZED);
  int known = context == NULL;
  for (CUcontext each = contexts; each != NULL; each = each->next)
    if (each == context) known = each->retained > 0;
  if (!known) return refuse(INVALID_CONTEXT);
  current = context;
  return SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
  ENTER;
  LOCKED(set_current(context));
}

CUresult cuCtxGetCurrent(CUcontext *context) {
  ENTER;
  *context = current;
  LOCKED(initialised ? SUCCESS : refuse(NOT_INITIALIZED));
}

static CUresult allocate(CUdeviceptr *pointer, size_t length) {
  CUresult ready = usable();
  if (ready != SUCCESS) return ready;
  if (length == 0) return refuse(INVALID_VALUE);
  size_t used = 0;
  for (range *each = ranges; each != NULL; each = each->next)
    if (!each->registered && each->context == current) used += each->length;
  if (length > DEVICE_BYTES - used) return OUT_OF_MEMORY;
  void *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return OUT_OF_MEMORY;
  /* It is not cleared: the first page shows that. */
  memset(memory, 0xa5, length < PAGE ? length : PAGE);
  *pointer = (CUdeviceptr)memory;
  add((range){NULL, current, *pointer, length, 0, 0, 0});
  return SUCCESS;
}

CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t length) {
  ENTER;
  LOCKED(allocate(pointer, length));
}

/* Of the attributes only SYNC_MEMOPS. */
static CUresult set_attribute(const void *value, int attribute, CUdeviceptr pointer) {
  CUresult ready = usable();
  if (ready != SUCCESS) return ready;
  range **at = starting(0, pointer);
  if (value == NULL || attribute != 6 || at == NULL) return refuse(INVALID_VALUE);
  (*at)->synchronous = *(const unsigned int *)value != 0;
  return SUCCESS;
}

CUresult cuPointerSetAttribute(const void *value, int attribute, CUdeviceptr pointer) {
  ENTER;
  LOCKED(set_attribute(value, attribute, pointer));
}

static CUresult release_memory(CUdeviceptr pointer) {
  CUresult ready = usable();
  if (ready != SUCCESS) return ready;
  range **at = starting(0, pointer);
  if (at == NULL || (*at)->in_flight > 0) return refuse(INVALID_VALUE);
  if ((*at)->context != current) return refuse(INVALID_CONTEXT);
  /* The addresses are used up, so that a stale one is never another's. */
  mmap((void *)pointer, (*at)->length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  drop(at);
  return SUCCESS;
}

CUresult cuMemFree_v2(CUdeviceptr pointer) {
  ENTER;
  LOCKED(release_memory(pointer));
}

static CUresult register_host(uint64_t start, size_t length, unsigned int flags) {
  CUresult ready = usable();
  if (ready != SUCCESS) return ready;
  if (start == 0 || length == 0 || start % PAGE != 0 || length % PAGE != 0 || flags > 0xf) return refuse(INVALID_VALUE);
  if (overlapping(1, start, length) != NULL) return refuse(ALREADY_REGISTERED);
  add((range){NULL, current, start, length, 1, 0, 0});
  return SUCCESS;
}

CUresult cuMemHostRegister_v2(void *start, size_t length, unsigned int flags) {
  ENTER;
  LOCKED(register_host((uint64_t)start, length, flags));
}

static CUresult unregister_host(uint64_t start) {
  CUresult ready = usable();
  if (ready != SUCCESS) return ready;
  range **at = starting(1, start);
  if (at == NULL) return refuse(NOT_REGISTERED);
  if ((*at)->context != current) return refuse(INVALID_CONTEXT);
  if ((*at)->in_flight > 0) return refuse(INVALID_VALUE);
  drop(at);
  return SUCCESS;
}

CUresult cuMemHostUnregister(void *start) {
  ENTER;
  LOCKED(unregister_host((uint64_t)start));
}

/*
 * "API synchronization behavior" of the manual: a copy on the device, and one from memory that is not registered, may go on after the call
 * has returned, and whoever reads the memory on another way sees what was there before. Nobody here wants that.
 */
static CUresult synchronous(const range *to, const range *from) {
  int late = to != NULL && !to->registered && (from == NULL || !from->registered);
  return late && !to->synchronous ? refuse(INVALID_VALUE) : SUCCESS;
}

/* `to_device` and `from_device` say which of the two are device memory. Both are in flight while a planned delay passes. */
static CUresult copy(const char *name, uint64_t to, int to_device, uint64_t from, int from_device, size_t length) {
  stub_plan plan = stub_enter(name);
  range *used[2] = {NULL, NULL};
  pthread_mutex_lock(&stub_mutex);
  CUresult result = usable();
  if (result == SUCCESS && length > 0)
    result = to_device ? device_range(to, length, &used[0]) : host_range((void *)to, length, &used[0]);
  if (result == SUCCESS && length > 0)
    result = from_device ? device_range(from, length, &used[1]) : host_range((void *)from, length, &used[1]);
  if (result == SUCCESS && length > 0) result = synchronous(used[0], used[1]);
  if (result == SUCCESS)
    for (int each = 0; each < 2; each++)
      if (used[each] != NULL) used[each]->in_flight += 1;
  pthread_mutex_unlock(&stub_mutex);
  if (result != SUCCESS) return result;
  stub_sleep(plan.millis);
  if (!plan.fails) memmove((void *)to, (void *)from, length);
  pthread_mutex_lock(&stub_mutex);
  for (int each = 0; each < 2; each++)
    if (used[each] != NULL) used[each]->in_flight -= 1;
  pthread_mutex_unlock(&stub_mutex);
  return plan.fails ? (CUresult)plan.code : SUCCESS;
}

CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t length) {
  return copy(__func__, to, 1, (uint64_t)from, 0, length);
}

CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t length) {
  return copy(__func__, (uint64_t)to, 0, from, 1, length);
}

CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t length) {
  return copy(__func__, to, 1, from, 1, length);
}

/* ---- for the tests ---- */

void stub_cuda_fail(const char *name, int nth, int code) { stub_schedule(name, nth, 1, code, 0); }

/* The delay of a copy passes while the memory is in use, that of any other call before it is looked at. */
void stub_cuda_delay(const char *name, int nth, int millis) { stub_schedule(name, nth, 0, 0, millis); }

/* 0: allocations · 1: registered host ranges · 2: retained contexts · 3: calls refused as mistakes of the caller · 4: calls in their delay */
int stub_cuda_alive(int what) {
  int counts[5] = {0, 0, 0, 0, 0};
  pthread_mutex_lock(&stub_mutex);
  for (range *each = ranges; each != NULL; each = each->next) counts[each->registered] += 1;
  for (CUcontext each = contexts; each != NULL; each = each->next) counts[2] += each->retained;
  counts[3] = refusals;
  counts[4] = __atomic_load_n(&stub_delayed, __ATOMIC_SEQ_CST);
  pthread_mutex_unlock(&stub_mutex);
  return what < 0 || what > 4 ? -1 : counts[what];
}

/* Forgets everything but contexts that threads may have as their current one; those are destroyed. No thread may be in a call. */
void stub_cuda_reset(void) {
  stub_forget_faults();
  pthread_mutex_lock(&stub_mutex);
  while (ranges != NULL) {
    if (!ranges->registered)
      mmap((void *)ranges->start, ranges->length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    drop(&ranges);
  }
  for (CUcontext each = contexts; each != NULL; each = each->next) each->retained = 0;
  memset(primary, 0, sizeof primary);
  initialised = 0;
  refusals = 0;
  pthread_mutex_unlock(&stub_mutex);
}

/* The device of a live allocation that holds all those bytes, or −1. */
int stub_cuda_find(CUdeviceptr pointer, size_t length) {
  pthread_mutex_lock(&stub_mutex);
  range *found = overlapping(0, pointer, length);
  int device = found != NULL && within(found, pointer, length) ? found->context->device : -1;
  pthread_mutex_unlock(&stub_mutex);
  return device;
}

/*
 * For stubs of libraries that transfer to and from device memory: with `by` 1 it is in flight until the same call with −1, and freeing
 * it meanwhile is refused. Returns as `stub_cuda_find`.
 */
int stub_cuda_hold(CUdeviceptr pointer, size_t length, int by) {
  pthread_mutex_lock(&stub_mutex);
  range *found = overlapping(0, pointer, length);
  int device = found != NULL && within(found, pointer, length) ? found->context->device : -1;
  if (device >= 0) found->in_flight += by;
  pthread_mutex_unlock(&stub_mutex);
  return device;
}
