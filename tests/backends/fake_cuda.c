/* A stand-in for the CUDA driver, for tests: real memory of this process, and no GPU anywhere.
 *
 * What the real one does to careless callers, it does too. Device addresses lie where the host cannot read. Nothing
 * that is queued happens before its stream is synchronised. A wrong address, size or handle is an error, and what is
 * not freed is counted.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NOT_READY = 600, ILLEGAL_ADDRESS = 700, MOST = 4096 };
static const uint64_t FAR = 1ull << 62; /* device addresses are moved there */

typedef struct { double ms; int passed; } Event;
typedef struct { int kind; void *to; const void *from; size_t size; Event *event; void (*work)(void); } Op;
typedef struct { Op ops[MOST]; int count, capturing; } Queue;
typedef struct { uint64_t address; size_t size; int pinned; } Block;

static Block blocks[MOST];
static int outstanding;

static int failing(const char *name) {
  const char *asked = getenv("FAKE_CUDA_FAIL"); /* "cuMemAlloc_v2:2": that call gives that code */
  char expected[96];
  snprintf(expected, sizeof expected, "%s:", name);
  if (asked && !strncmp(asked, expected, strlen(expected))) return atoi(asked + strlen(expected));
  return OK;
}
#define FAIL(name) do { int code = failing(name); if (code) return code; } while (0)

static Block *block_at(uint64_t address, size_t size) {
  for (int at = 0; at < MOST; at++)
    if (blocks[at].address && address >= blocks[at].address && address + size <= blocks[at].address + blocks[at].size)
      return &blocks[at];
  return NULL;
}
static int take(uint64_t *out, size_t size, int pinned) {
  if (!size) return INVALID;
  void *memory = malloc(size);
  if (!memory) return NO_MEMORY;
  memset(memory, 0xA5, size);
  for (int at = 0; at < MOST; at++)
    if (!blocks[at].address) {
      blocks[at] = (Block){(uint64_t)memory + (pinned ? 0 : FAR), size, pinned};
      *out = blocks[at].address;
      outstanding++;
      return OK;
    }
  return NO_MEMORY;
}
static int give(uint64_t address, int pinned) {
  for (int at = 0; at < MOST; at++)
    if (blocks[at].address == address && blocks[at].pinned == pinned) {
      free((void *)(address - (pinned ? 0 : FAR)));
      blocks[at].address = 0;
      outstanding--;
      return OK;
    }
  return INVALID;
}
static int push(Queue *queue, Op op) {
  if (!queue || queue->count >= MOST) return INVALID;
  queue->ops[queue->count++] = op;
  return OK;
}
static double now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}
static void perform(Op op) {
  if (op.kind == 0) memcpy(op.to, op.from, op.size);
  else if (op.kind == 1) { op.event->ms = now_ms(); op.event->passed = 1; }
  else op.work();
}

int cuInit(unsigned flags) { FAIL("cuInit"); return flags ? INVALID : OK; }
int cuDriverGetVersion(int *out) { *out = 13000; return OK; }
int cuDeviceGet(int *out, int ordinal) { FAIL("cuDeviceGet"); *out = 0; return ordinal ? 101 : OK; }
int cuDeviceGetName(char *out, int size, int device) { snprintf(out, size, "Fake GPU"); return device; }
int cuDeviceGetAttribute(int *out, int which, int device) {
  *out = which == 75 ? 8 : which == 76 ? 7 : which == 18 ? getenv("FAKE_CUDA_INTEGRATED") != NULL : -1;
  return device;
}
int cuDeviceTotalMem_v2(size_t *out, int device) { *out = 4ull << 30; return device; }
int cuDevicePrimaryCtxSetFlags_v2(int device, unsigned flags) { return device || flags > 7 ? INVALID : OK; }
int cuDevicePrimaryCtxRetain(void **out, int device) { *out = &outstanding; outstanding++; return device; }
int cuDevicePrimaryCtxRelease_v2(int device) { outstanding--; return device; }
int cuCtxSetCurrent(void *context) { return context == &outstanding ? OK : INVALID; }
int cuMemAlloc_v2(uint64_t *out, size_t size) { FAIL("cuMemAlloc_v2"); return take(out, size, 0); }
int cuMemFree_v2(uint64_t address) { return give(address, 0); }
int cuMemHostAlloc(void **out, size_t size, unsigned flags) {
  FAIL("cuMemHostAlloc");
  return flags > 7 ? INVALID : take((uint64_t *)out, size, 1);
}
int cuMemFreeHost(void *address) { return give((uint64_t)address, 1); }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, Queue *queue) {
  Block *device = block_at(to, size), *host = block_at((uint64_t)from, size);
  if (!device || device->pinned || !host || !host->pinned) return ILLEGAL_ADDRESS;
  return push(queue, (Op){0, (void *)(to - FAR), from, size, NULL, NULL});
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, Queue *queue) {
  Block *device = block_at(from, size), *host = block_at((uint64_t)to, size);
  if (!device || device->pinned || !host || !host->pinned) return ILLEGAL_ADDRESS;
  return push(queue, (Op){0, to, (void *)(from - FAR), size, NULL, NULL});
}
int cuStreamCreate(Queue **out, unsigned flags) {
  if (flags > 1) return INVALID;
  *out = calloc(1, sizeof(Queue));
  outstanding++;
  return OK;
}
int cuStreamDestroy_v2(Queue *queue) { free(queue); outstanding--; return OK; }
int cuStreamSynchronize(Queue *queue) {
  FAIL("cuStreamSynchronize");
  if (queue->capturing) return 900; /* CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED */
  for (int at = 0; at < queue->count; at++) perform(queue->ops[at]);
  queue->count = 0;
  return OK;
}
int cuStreamBeginCapture_v2(Queue *queue, int mode) {
  if (mode < 0 || mode > 2 || queue->capturing || queue->count) return INVALID;
  queue->capturing = 1;
  return OK;
}
int cuStreamEndCapture(Queue *queue, Queue **out) {
  if (!queue->capturing) return INVALID;
  *out = malloc(sizeof(Queue));
  **out = *queue;
  outstanding++;
  queue->capturing = queue->count = 0;
  FAIL("cuStreamEndCapture");
  return OK;
}
int cuGraphInstantiateWithFlags(Queue **out, Queue *graph, unsigned long long flags) {
  *out = malloc(sizeof(Queue));
  **out = *graph;
  outstanding++;
  return flags ? INVALID : OK;
}
int cuGraphLaunch(Queue *graph, Queue *queue) {
  for (int at = 0; at < graph->count; at++)
    if (push(queue, graph->ops[at])) return INVALID;
  return OK;
}
int cuGraphExecDestroy(Queue *graph) { free(graph); outstanding--; return OK; }
int cuGraphDestroy(Queue *graph) { free(graph); outstanding--; return OK; }
int cuEventCreate(Event **out, unsigned flags) {
  *out = calloc(1, sizeof(Event));
  outstanding++;
  return flags ? INVALID : OK;
}
int cuEventRecord(Event *event, Queue *queue) {
  event->passed = 0;
  return push(queue, (Op){1, NULL, NULL, 0, event, NULL});
}
int cuEventElapsedTime(float *out, Event *start, Event *end) {
  if (!start->passed || !end->passed) return NOT_READY;
  *out = (float)(end->ms - start->ms);
  return OK;
}
int cuEventDestroy_v2(Event *event) { free(event); outstanding--; return OK; }
int cuGetErrorName(int code, const char **out) {
  *out = code == NO_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_OF_THE_FAKE";
  return OK;
}
int cuGetErrorString(int code, const char **out) { *out = code == NO_MEMORY ? "out of memory" : "it was asked to"; return OK; }

/* For the fake TensorRT and for tests. */
void *fakeReal(uint64_t address, size_t size) {
  Block *block = block_at(address, size);
  return block && !block->pinned ? (void *)(address - FAR) : NULL;
}
int fakeEnqueue(Queue *queue, void (*work)(void)) { return push(queue, (Op){2, NULL, NULL, 0, NULL, work}); }
int fakeOutstanding(void) { return outstanding; }
