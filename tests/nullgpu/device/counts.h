/* What the stand-in counts. `nullgpu.py` reads the names from the library, so this list is the only one. */
#ifndef NULLGPU_COUNTS
#define NULLGPU_COUNTS
#define COUNTERS(X)                                                                                                  \
    X(launch) X(blas) X(dnn) X(memset) X(d2d)               /* work given to the device */                           \
    X(h2d_pinned) X(h2d_pageable) X(d2h_pinned) X(d2h_pageable) X(h2d_bytes)                                         \
    X(stream_sync) X(device_sync) X(event_sync) X(sync_copy) /* the host waits */                                    \
    X(event_record) X(stream_wait) X(malloc) X(host_alloc)                                                           \
    X(graph_launch) X(captured) X(sync_in_capture)
#define NUMBER(name) COUNT_##name,
enum { COUNTERS(NUMBER) COUNT_LAST };
#undef NUMBER
void nullgpu_add(int which, long by);
#define COUNT(name) nullgpu_add(COUNT_##name, 1)
#endif
