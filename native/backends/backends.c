/* backends.c - the backends there are, one a folder. Nothing else names them: the graph asks what a device can do. */
#include "../graph/backend.h"

extern const fb_backend fb_backend_cpu, fb_backend_cuda, fb_backend_metal, fb_backend_sycl, fb_backend_vulkan;

const fb_backend *const fb_backends[] = {&fb_backend_cpu, &fb_backend_cuda, &fb_backend_vulkan, &fb_backend_metal,
                                         &fb_backend_sycl, NULL};
