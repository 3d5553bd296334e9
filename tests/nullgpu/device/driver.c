/* libcuda: what has to answer more than "success". `build.py` adds the rest. */
#include <stddef.h>
#include <stdlib.h>

enum { SUCCESS = 0, NO_DEVICE = 100 };
extern void nullgpu_driver_launch(void *stream) __attribute__((weak));
static int launch(void *stream) { if (nullgpu_driver_launch) nullgpu_driver_launch(stream); return SUCCESS; }
static int context;

int cuInit(unsigned flags) { return SUCCESS; }
int cuDeviceGetCount(int *count) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (visible && !*visible) return NO_DEVICE;
    *count = 1;
    return SUCCESS;
}
int cuDeviceGet(int *device, int index) { *device = index; return SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) { /* CUdevice_attribute of cuda.h */
        case 1: *value = 1024; break;                /* threads per block */
        case 8: *value = 49152; break;               /* shared memory per block */
        case 10: *value = 32; break;                 /* warp size */
        case 12: case 82: *value = 65536; break;     /* registers */
        case 13: *value = 1980000; break;            /* kHz */
        case 16: *value = 132; break;                /* multiprocessors */
        case 36: *value = 2619000; break;            /* kHz of the memory */
        case 37: *value = 5120; break;               /* bits of its bus */
        case 38: *value = 50 << 20; break;           /* L2 cache */
        case 39: *value = 2048; break;               /* threads per multiprocessor */
        case 75: *value = 9; break;                  /* compute capability */
        case 76: *value = 0; break;
        case 81: *value = 233472; break;             /* shared memory per multiprocessor */
        case 97: *value = 232448; break;             /* shared memory per block, opted in */
        default: *value = 1;
    }
    return SUCCESS;
}
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return SUCCESS; }
int cuDevicePrimaryCtxRetain(void **made, int device) { *made = &context; return SUCCESS; }
int cuCtxGetCurrent(void **made) { *made = &context; return SUCCESS; }
int cuCtxGetDevice(int *device) { *device = 0; return SUCCESS; }
int cuDriverGetVersion(int *version) { *version = 13020; return SUCCESS; }
int cuGetErrorString(int error, const char **text) { *text = "null driver"; return SUCCESS; }
int cuGetErrorName(int error, const char **text) { *text = "null driver"; return SUCCESS; }
int cuPointerGetAttribute(void *value, int attribute, void *pointer) { *(void **)value = pointer; return SUCCESS; }

/* ---- modules and launches, as Triton and NVRTC ask for them */
int cuModuleLoad(void **made, const char *file) { *made = calloc(1, 64); return SUCCESS; }
int cuModuleLoadData(void **made, const void *data) { *made = calloc(1, 64); return SUCCESS; }
int cuModuleLoadDataEx(void **made, const void *data, unsigned n, void *o, void *v) { *made = calloc(1, 64); return SUCCESS; }
int cuModuleGetFunction(void **made, void *module, const char *name) { *made = calloc(1, 64); return SUCCESS; }
int cuFuncGetAttribute(int *value, int attribute, void *function) {
    *value = attribute == 0 ? 1024 : attribute == 4 ? 32 : 0; /* threads per block; registers */
    return SUCCESS;
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, void *f, int b, size_t m) { *n = 2; return SUCCESS; }
int cuOccupancyMaxActiveClusters(int *n, void *f, void *c) { *n = 66; return SUCCESS; }
int cuLinkCreate_v2(unsigned n, void *o, void *v, void **made) { *made = calloc(1, 64); return SUCCESS; }
int cuLinkComplete(void *state, void **code, size_t *size) { static char none[64]; *code = none; *size = 64; return SUCCESS; }
int cuLaunchKernel(void *f, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned g, unsigned m, void *s,
    void **p, void **x) {
    return launch(s);
}
int cuLaunchCooperativeKernel(void *f, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned g, unsigned m,
    void *s, void **p) {
    return launch(s);
}
typedef struct { unsigned grid[3], block[3], shared; void *stream; } LaunchConfig;
int cuLaunchKernelEx(LaunchConfig *c, void *f, void **p, void **x) { return launch(c->stream); }
