/* Memory of the stand-in: the device's is the host's, so copies copy. Counters and planned failures are here, too. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "state.h"

/* ---- counters, read by nullgpu.py */
static long counts[COUNT_LAST];
static const char *names[] = {
#define NAME(name) #name,
    COUNTERS(NAME)
#undef NAME
};
const char *nullgpu_name(int which) { return which < COUNT_LAST ? names[which] : NULL; }
long nullgpu_count(int which) { return __atomic_load_n(&counts[which], __ATOMIC_RELAXED); }
void nullgpu_add(int which, long by) { __atomic_fetch_add(&counts[which], by, __ATOMIC_RELAXED); }

/* ---- planned failures: -1 is never, n > 0 after so many more */
static long work_left = -1, allocations_left = -1;
static int failed;
void nullgpu_fail_after_launches(long launches) { work_left = launches; failed = 0; }
void nullgpu_refuse_after_allocations(long allocations) { allocations_left = allocations; }
cudaError_t device_error(void) { return failed ? cudaErrorLaunchFailure : cudaSuccess; }
void work_arrives(void) { if (work_left > 0 && --work_left == 0) failed = 1; }
cudaError_t cudaGetLastError(void) { return device_error(); }
cudaError_t cudaPeekAtLastError(void) { return device_error(); }

/* ---- allocations */
typedef struct { char *at; size_t size; Kind kind; } Range;
static Range *ranges;
static size_t used, room, taken;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
size_t total_bytes = (size_t)80 << 30;
void nullgpu_set_memory(size_t bytes) { total_bytes = bytes; }

void *take(size_t size, Kind kind) {
    void *at = NULL;
    if (posix_memalign(&at, 512, size ? size : 1)) return NULL;
    memset(at, 0, size);
    pthread_mutex_lock(&lock);
    if (used == room) ranges = realloc(ranges, (room = room ? 2 * room : 1024) * sizeof(Range));
    ranges[used++] = (Range){at, size, kind};
    if (kind == ON_DEVICE) taken += size;
    pthread_mutex_unlock(&lock);
    return at;
}

static void leave(void *at) {
    pthread_mutex_lock(&lock);
    for (size_t i = used; i-- > 0;)
        if (ranges[i].at == (char *)at) {
            if (ranges[i].kind == ON_DEVICE) taken -= ranges[i].size;
            ranges[i] = ranges[--used];
            break;
        }
    pthread_mutex_unlock(&lock);
    free(at);
}

Kind kind_of(const void *at) {
    Kind found = PAGEABLE;
    pthread_mutex_lock(&lock);
    for (size_t i = used; i-- > 0;)
        if ((char *)at >= ranges[i].at && (char *)at < ranges[i].at + ranges[i].size) {
            found = ranges[i].kind;
            break;
        }
    pthread_mutex_unlock(&lock);
    return found;
}

cudaError_t cudaMalloc(void **p, size_t n) {
    COUNT(malloc);
    *p = NULL;
    if (device_error()) return device_error();
    if (allocations_left == 0 || taken + n > total_bytes) return cudaErrorMemoryAllocation;
    if (allocations_left > 0) allocations_left--;
    return (*p = take(n, ON_DEVICE)) ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaMallocAsync(void **p, size_t n, cudaStream_t s) { return cudaMalloc(p, n); }
cudaError_t cudaMallocManaged(void **p, size_t n, unsigned f) { return cudaMalloc(p, n); }
cudaError_t cudaMallocFromPoolAsync(void **p, size_t n, cudaMemPool_t q, cudaStream_t s) { return cudaMalloc(p, n); }
cudaError_t cudaFree(void *p) { if (p) leave(p); return cudaSuccess; }
cudaError_t cudaFreeAsync(void *p, cudaStream_t s) { return cudaFree(p); }
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned f) {
    COUNT(host_alloc);
    return (*p = take(n, PINNED)) ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaMallocHost(void **p, size_t n) { return cudaHostAlloc(p, n, 0); }
cudaError_t cudaFreeHost(void *p) { leave(p); return cudaSuccess; }
SUCCEEDS(cudaHostRegister, void *p, size_t n, unsigned f)
SUCCEEDS(cudaHostUnregister, void *p)
cudaError_t cudaMemGetInfo(size_t *f, size_t *t) { *f = total_bytes - taken; *t = total_bytes; return cudaSuccess; }
cudaError_t cudaGetSymbolAddress(void **p, const void *s) { *p = take(1 << 16, ON_DEVICE); return cudaSuccess; }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
    Kind kind = kind_of(p);
    memset(a, 0, sizeof *a);
    a->type = kind == ON_DEVICE ? cudaMemoryTypeDevice : kind == PINNED ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
    a->device = kind == PAGEABLE ? -2 : 0;
    if (kind != PAGEABLE) a->devicePointer = (void *)p;
    if (kind == PINNED) a->hostPointer = (void *)p;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *p, int d) { *p = calloc(1, 8); return cudaSuccess; }
cudaError_t cudaMemPoolCreate(cudaMemPool_t *p, const struct cudaMemPoolProps *q) { *p = calloc(1, 8); return cudaSuccess; }
SUCCEEDS(cudaMemPoolDestroy, cudaMemPool_t p)
SUCCEEDS(cudaMemPoolSetAttribute, cudaMemPool_t p, enum cudaMemPoolAttr a, void *v)
SUCCEEDS(cudaMemPoolGetAttribute, cudaMemPool_t p, enum cudaMemPoolAttr a, void *v)
SUCCEEDS(cudaMemPoolTrimTo, cudaMemPool_t p, size_t n)

/* ---- copies */
static cudaError_t copy(void *to, const void *from, size_t n, cudaStream_t s, int waits) {
    Kind there = kind_of(to), here = kind_of(from);
    if (there == ON_DEVICE && here == ON_DEVICE) {
        COUNT(d2d);
    } else if (there == ON_DEVICE) {
        nullgpu_add(here == PINNED ? COUNT_h2d_pinned : COUNT_h2d_pageable, 1);
        nullgpu_add(COUNT_h2d_bytes, (long)n);
    } else if (here == ON_DEVICE) {
        nullgpu_add(there == PINNED ? COUNT_d2h_pinned : COUNT_d2h_pageable, 1);
    }
    if (waits) {
        COUNT(sync_copy);
        if (capturing_anywhere) return cudaErrorStreamCaptureUnsupported;
    }
    if (stream_state(s)->capturing && here == ON_DEVICE && there == PAGEABLE) {
        COUNT(sync_in_capture);
        return cudaErrorStreamCaptureUnsupported;
    }
    if (device_error()) return device_error();
    memcpy(to, from, n);
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind k) { return copy(to, from, n, 0, 1); }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind k, cudaStream_t s) {
    return copy(to, from, n, s, 0);
}
cudaError_t cudaMemcpyPeerAsync(void *to, int d, const void *from, int f, size_t n, cudaStream_t s) {
    return copy(to, from, n, s, 0);
}
SUCCEEDS(cudaMemcpyToSymbol, const void *to, const void *from, size_t n, size_t o, enum cudaMemcpyKind k)
cudaError_t cudaMemset(void *p, int v, size_t n) {
    COUNT(memset);
    memset(p, v, n);
    return device_error();
}
cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t s) { return cudaMemset(p, v, n); }
