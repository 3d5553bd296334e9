/* The device and its kernels: a launch is checked and counted, and computes nothing. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "state.h"

/* ---- the device: one, with the numbers of an H100 */
int capability = 90;
static __thread int current;
cudaError_t cudaGetDeviceCount(int *n) { *n = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int *d) { *d = current; return cudaSuccess; }
cudaError_t cudaSetDevice(int d) { current = 0; return d ? cudaErrorInvalidDevice : cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *v) { *v = 13020; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *v) { *v = 13020; return cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int *c, int a, int b) { *c = 0; return cudaSuccess; }
SUCCEEDS(cudaDeviceEnablePeerAccess, int d, unsigned f)
cudaError_t cudaDeviceGetStreamPriorityRange(int *l, int *h) { *l = 0; *h = -5; return cudaSuccess; }
cudaError_t cudaDeviceGetPCIBusId(char *b, int n, int d) { snprintf(b, n, "0000:01:00.0"); return cudaSuccess; }
void nullgpu_set_capability(int c) { capability = c; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
    *p = (struct cudaDeviceProp){
        .name = "Null H100", .totalGlobalMem = total_bytes, .totalConstMem = 65536, .warpSize = 32, .memPitch = 2147483647,
        .sharedMemPerBlock = 49152, .sharedMemPerBlockOptin = 232448, .sharedMemPerMultiprocessor = 233472,
        .regsPerBlock = 65536, .regsPerMultiprocessor = 65536, .maxThreadsPerBlock = 1024,
        .maxThreadsPerMultiProcessor = 2048, .maxBlocksPerMultiProcessor = 32, .multiProcessorCount = 132,
        .maxThreadsDim = {1024, 1024, 64}, .maxGridSize = {2147483647, 65535, 65535},
        .major = capability / 10, .minor = capability % 10, .textureAlignment = 512, .l2CacheSize = 50 << 20,
        .unifiedAddressing = 1, .concurrentKernels = 1,
    };
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d) {
    switch (a) {
        case cudaDevAttrMaxThreadsPerBlock: *v = 1024; break;
        case cudaDevAttrMultiProcessorCount: *v = 132; break;
        case cudaDevAttrComputeCapabilityMajor: *v = capability / 10; break;
        case cudaDevAttrComputeCapabilityMinor: *v = capability % 10; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = 232448; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *v = 49152; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *v = 233472; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *v = 2048; break;
        case cudaDevAttrWarpSize: *v = 32; break;
        case cudaDevAttrMaxGridDimX: *v = 2147483647; break;
        case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *v = 65535; break;
        case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY: *v = 1024; break;
        case cudaDevAttrMaxBlockDimZ: *v = 64; break;
        case cudaDevAttrL2CacheSize: *v = 50 << 20; break;
        case cudaDevAttrMaxRegistersPerBlock: case cudaDevAttrMaxRegistersPerMultiprocessor: *v = 65536; break;
        default: *v = 1;
    }
    return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char *s, void **f, unsigned v, unsigned long long fl,
    enum cudaDriverEntryPointQueryResult *status) {
    *f = NULL;
    if (status) *status = cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
SUCCEEDS(cudaProfilerStart, void)
SUCCEEDS(cudaProfilerStop, void)

/* ---- launches */
typedef struct { dim3 grid, block; size_t shared; void *stream; } Launch;
static __thread Launch pushed[64];
static __thread int depth;
unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t m, struct CUstream_st *s) {
    pushed[depth++ & 63] = (Launch){g, b, m, s};
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *g, dim3 *b, size_t *m, void *s) {
    Launch last = pushed[--depth & 63];
    *g = last.grid, *b = last.block, *m = last.shared, *(void **)s = last.stream;
    return cudaSuccess;
}
static cudaError_t launch(cudaStream_t s, dim3 g, dim3 b) {
    int none = !g.x || !g.y || !g.z || !b.x || !b.y || !b.z;
    if (none || (long)b.x * b.y * b.z > 1024 || g.y > 65535 || g.z > 65535) return cudaErrorInvalidConfiguration;
    COUNT(launch);
    if (stream_state(s)->capturing) {
        COUNT(captured);
        stream_state(s)->launches++;
    }
    work_arrives();
    return device_error();
}
void nullgpu_driver_launch(void *s) { dim3 one = {1, 1, 1}; launch((cudaStream_t)s, one, one); }
cudaError_t __cudaGetKernel(cudaKernel_t *k, const void *f) { *k = (cudaKernel_t)f; return cudaSuccess; }
cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) { return launch(s, g, b); }
cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) { return launch(s, g, b); }
cudaError_t cudaLaunchCooperativeKernel(const void *f, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) { return launch(s, g, b); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) { return launch(c->stream, c->gridDim, c->blockDim); }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
    *a = (struct cudaFuncAttributes){
        .maxThreadsPerBlock = 1024, .numRegs = 32, .binaryVersion = capability, .ptxVersion = capability,
        .maxDynamicSharedSizeBytes = 232448,
    };
    return cudaSuccess;
}
SUCCEEDS(cudaFuncSetAttribute, const void *f, enum cudaFuncAttribute a, int v)
SUCCEEDS(cudaKernelSetAttributeForDevice, cudaKernel_t k, enum cudaFuncAttribute a, int v, int d)
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int b, size_t m) { *n = 2; return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t m, unsigned fl) { *n = 2; return cudaSuccess; }
cudaError_t cudaLibraryLoadData(cudaLibrary_t *l, const void *c, enum cudaJitOption *a, void **b, unsigned n,
    enum cudaLibraryOption *d, void **e, unsigned m) {
    *l = calloc(1, 8);
    return cudaSuccess;
}
cudaError_t cudaLibraryGetKernel(cudaKernel_t *k, cudaLibrary_t l, const char *n) { *k = calloc(1, 8); return cudaSuccess; }
SUCCEEDS(cudaLibraryUnload, cudaLibrary_t l)

/* PyTorch finds parts of cuDNN and cuBLAS by name, in libraries of its own: here it finds ours. */
void *dlsym(void *handle, const char *name) {
    static void *(*real)(void *, const char *);
    if (!real) real = dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.34");
    if (!real) real = dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.2.5");
    int ours = !strncmp(name, "cudnn", 5) || !strncmp(name, "cublas", 6);
    void *found = ours ? real(RTLD_DEFAULT, name) : NULL;
    return found ? found : real(handle, name);
}
