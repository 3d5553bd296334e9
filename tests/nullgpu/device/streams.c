/* Streams, events and captured graphs of the stand-in. All work is done when it is given, so waiting only counts. */
#include <stdlib.h>
#include "state.h"

typedef struct { long launches; } Graph;
static StreamState default_stream;
int capturing_anywhere;
StreamState *stream_state(cudaStream_t s) { return (size_t)s <= 2 ? &default_stream : (StreamState *)s; }

static cudaError_t wait_for(int capturing) {
    if (!capturing) return device_error();
    COUNT(sync_in_capture);
    return cudaErrorStreamCaptureUnsupported;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) {
    *s = calloc(1, sizeof(StreamState));
    return device_error();
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) { return cudaStreamCreateWithPriority(s, f, 0); }
cudaError_t cudaStreamCreate(cudaStream_t *s) { return cudaStreamCreateWithPriority(s, 0, 0); }
SUCCEEDS(cudaStreamDestroy, cudaStream_t s)
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *p) { *p = 0; return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t s) { return wait_for(stream_state(s)->capturing); }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { COUNT(stream_sync); return wait_for(stream_state(s)->capturing); }
cudaError_t cudaDeviceSynchronize(void) { COUNT(device_sync); return wait_for(capturing_anywhere); }
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned f) { COUNT(stream_wait); return device_error(); }
cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t c, void *d, unsigned f) {
    c(s, cudaSuccess, d);
    return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *d) { f(d); return cudaSuccess; }

/* ---- events */
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { *e = calloc(1, 8); return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { free(e); return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t e) { return device_error(); }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { COUNT(event_record); return device_error(); }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned f) { return cudaEventRecord(e, s); }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { COUNT(event_sync); return device_error(); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = 0.01f; return cudaSuccess; }

/* ---- capture: a graph knows only how many kernels it holds */
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
    *status = stream_state(s)->capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id,
    cudaGraph_t *g, const cudaGraphNode_t **d, const cudaGraphEdgeData **e, size_t *n) {
    cudaStreamIsCapturing(s, status);
    if (id) *id = (unsigned long long)(size_t)stream_state(s);
    if (g) *g = (cudaGraph_t)stream_state(s);
    if (d) *d = NULL;
    if (e) *e = NULL;
    if (n) *n = 0;
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode m) {
    if ((size_t)s <= 2) return cudaErrorStreamCaptureUnsupported; /* the default stream */
    *stream_state(s) = (StreamState){.capturing = 1};
    capturing_anywhere++;
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t s, cudaGraph_t g, const cudaGraphNode_t *d,
    const cudaGraphEdgeData *e, size_t n, enum cudaStreamCaptureMode m) {
    return cudaStreamBeginCapture(s, m);
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) {
    Graph *made = calloc(1, sizeof *made);
    made->launches = stream_state(s)->launches;
    stream_state(s)->capturing = 0;
    capturing_anywhere--;
    *g = (cudaGraph_t)made;
    return cudaSuccess;
}
SUCCEEDS(cudaStreamUpdateCaptureDependencies, cudaStream_t s, cudaGraphNode_t *d, const cudaGraphEdgeData *e, size_t n, unsigned f)
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *m) {
    static __thread enum cudaStreamCaptureMode now;
    enum cudaStreamCaptureMode before = now;
    now = *m;
    *m = before;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long f) { *x = (cudaGraphExec_t)g; return cudaSuccess; }
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long f) { return cudaGraphInstantiate(x, g, f); }
cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s) { COUNT(graph_launch); return device_error(); }
SUCCEEDS(cudaGraphDestroy, cudaGraph_t g)
SUCCEEDS(cudaGraphExecDestroy, cudaGraphExec_t g)
cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *n, size_t *count) { *count = (size_t)((Graph *)g)->launches; return cudaSuccess; }
SUCCEEDS(cudaGraphRetainUserObject, cudaGraph_t g, cudaUserObject_t o, unsigned c, unsigned f)
cudaError_t cudaUserObjectCreate(cudaUserObject_t *o, void *p, cudaHostFn_t d, unsigned c, unsigned f) { *o = calloc(1, 8); return cudaSuccess; }
SUCCEEDS(cudaUserObjectRelease, cudaUserObject_t o, unsigned c)
