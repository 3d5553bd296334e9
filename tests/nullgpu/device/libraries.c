/* cuBLAS and cuDNN: what has to answer more than "success". `build.py` adds the rest, and WORKSPACE_SIZE. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "counts.h"

/* ---- cuBLAS */
static int math_mode;
int cublasCreate_v2(void **handle) { *handle = calloc(1, 64); return 0; }
int cublasDestroy_v2(void *handle) { return 0; }
int cublasGetMathMode(void *handle, int *mode) { *mode = math_mode; return 0; }
int cublasSetMathMode(void *handle, int mode) { math_mode = mode; return 0; }
int cublasGetPointerMode_v2(void *handle, int *mode) { *mode = 0; return 0; }
size_t cublasLtGetVersion(void) { return 130401; }
int cublasLtMatmulDescCreate(void **made) { *made = calloc(1, 256); return 0; }
int cublasLtMatrixLayoutCreate(void **made) { *made = calloc(1, 256); return 0; }
int cublasLtMatmulPreferenceCreate(void **made) { *made = calloc(1, 256); return 0; }
int cublasLtMatmulDescDestroy(void *made) { free(made); return 0; }
int cublasLtMatrixLayoutDestroy(void *made) { free(made); return 0; }
int cublasLtMatmulPreferenceDestroy(void *made) { free(made); return 0; }
typedef struct { uint64_t data[8]; size_t workspace; int state; float waves; int reserved[4]; } Heuristic;
int cublasLtMatmulAlgoGetHeuristic(void *l, void *o, void *a, void *b, void *c, void *d, void *p, int asked,
    Heuristic *results, int *got) {
    memset(results, 0, sizeof *results);
    *got = asked > 0;
    return 0;
}
int cublasLtMatmul() { COUNT(blas); return 0; }

/* ---- cuDNN: its graphs are descriptors whose attributes nobody reads but the counts and sizes asked for here */
enum { TYPE_INT64 = 3, TYPE_BACKEND_DESCRIPTOR = 15 }; /* cudnnBackendAttributeType_t of cudnn_graph.h */
int cudnnCreate(void **handle) { *handle = calloc(1, 64); return 0; }
const char *cudnnGetErrorString(int status) { return "CUDNN_STATUS_SUCCESS"; }
void cudnnGetLastErrorString(char *text, size_t size) { if (size) *text = 0; }
int cudnnBackendCreateDescriptor(int type, void **made) { *(int *)(*made = calloc(1, 256)) = type; return 0; }
int cudnnBackendDestroyDescriptor(void *made) { free(made); return 0; }
int cudnnBackendFinalize(void *made) { return 0; }
int cudnnBackendSetAttribute() { return 0; }
int cudnnBackendGetAttribute(void *of, int name, int type, int64_t asked, int64_t *got, void *values) {
    int numbers = type == TYPE_INT64;
    if (got) *got = numbers || type == TYPE_BACKEND_DESCRIPTOR;
    if (numbers && values && asked) {
        memset(values, 0, 8 * asked);
        if (name != WORKSPACE_SIZE) *(int64_t *)values = 1;
    }
    return 0;
}
int cudnnBackendExecute() { COUNT(dnn); return 0; }
int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void *h, int m, int o, void *a, void *x, size_t *n) { *n = 64; return 0; }
int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(void *h, int m, int o, void *x, void *z, void *y, void *b,
    void *a, size_t *n) {
    *n = 64;
    return 0;
}
int cudnnGetBatchNormalizationBackwardExWorkspaceSize(void *h, int m, int o, void *x, void *y, void *dy, void *dz,
    void *dx, void *b, void *a, size_t *n) {
    *n = 64;
    return 0;
}
