/* What the parts of the stand-in share. */
#ifndef NULLGPU_STATE
#define NULLGPU_STATE
#include <cuda_runtime_api.h>
#include "counts.h"

/* A function of the runtime that has nothing to do here. */
#define SUCCEEDS(name, ...) \
    cudaError_t name(__VA_ARGS__) { return cudaSuccess; }

typedef enum { PAGEABLE = -1, PINNED = 0, ON_DEVICE = 1 } Kind;
Kind kind_of(const void *at);
void *take(size_t size, Kind kind);

typedef struct { int capturing; long launches; } StreamState;
StreamState *stream_state(cudaStream_t stream);
extern int capturing_anywhere;

/* The device works, or has failed for good: then every call that reaches it says so. */
cudaError_t device_error(void);
void work_arrives(void);
extern size_t total_bytes;
extern int capability;
#endif
