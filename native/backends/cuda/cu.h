/* cu.h - the part of NVIDIA's driver interface, of its run-time compiler and of NCCL that this backend uses, declared here so
 * that a build needs no CUDA toolkit. Names, numbers and layouts are those of cuda.h, nvrtc.h and nccl.h. */
#ifndef FB_CU_H
#define FB_CU_H
#include <stddef.h>
#include <stdint.h>

#ifdef _WIN32
#define CUCALL __stdcall
#else
#define CUCALL
#endif

typedef int CUresult, CUdevice, nvrtcResult, ncclResult_t;
typedef uint64_t CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;
typedef struct CUgraphNode_st *CUgraphNode;
typedef struct CUkernelNode { /* CUDA_KERNEL_NODE_PARAMS_v2 */
    CUfunction function;
    unsigned groups[3], threads[3], shared_bytes;
    void **arguments, **extra;
    void *kernel;
    CUcontext context;
} CUkernelNode;
typedef struct nvrtcProgram_st *nvrtcProgram;
typedef struct ncclComm *ncclComm_t;
typedef struct CUuuid { unsigned char bytes[16]; } CUuuid;
typedef struct ncclUniqueId { char internal[128]; } ncclUniqueId;
typedef struct ncclConfig_t { /* as NCCL 2.14 had it: it takes the beginning for what the others know */
    size_t size;
    unsigned magic, version;
    int blocking;
} ncclConfig_t;

enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_NOT_READY = 600,
    CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 1,
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
    CU_DEVICE_ATTRIBUTE_INTEGRATED = 18,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
    CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,
    CU_STREAM_NON_BLOCKING = 1,
    CU_EVENT_DEFAULT = 0,
    CU_EVENT_DISABLE_TIMING = 2,
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
    CU_TENSOR_MAP_DATA_TYPE_FLOAT32 = 7,
    CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9,
    CU_TENSOR_MAP_SWIZZLE_128B = 3,
    CU_TENSOR_MAP_L2_PROMOTION_L2_256B = 3,
    ncclSuccess = 0,
    ncclInProgress = 7,
    ncclSum = 0,
    ncclAvg = 4,
    ncclFloat32 = 7,
};

/* X(name, arguments): every function of the driver; all of them are there from CUDA 12.0 on. */
#define CU_FUNCTIONS(X)                                                                                            \
    X(cuInit, (unsigned))                                                                                          \
    X(cuDriverGetVersion, (int *))                                                                                 \
    X(cuGetErrorName, (CUresult, const char **))                                                                   \
    X(cuDeviceGetCount, (int *))                                                                                   \
    X(cuDeviceGet, (CUdevice *, int))                                                                              \
    X(cuDeviceGetName, (char *, int, CUdevice))                                                                    \
    X(cuDeviceGetAttribute, (int *, int, CUdevice))                                                                \
    X(cuDeviceTotalMem_v2, (size_t *, CUdevice))                                                                   \
    X(cuDeviceGetUuid_v2, (CUuuid *, CUdevice))                                                                    \
    X(cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice))                                                           \
    X(cuDevicePrimaryCtxRelease_v2, (CUdevice))                                                                    \
    X(cuCtxSetCurrent, (CUcontext))                                                                                \
    X(cuMemAlloc_v2, (CUdeviceptr *, size_t))                                                                      \
    X(cuMemFree_v2, (CUdeviceptr))                                                                                 \
    X(cuMemHostAlloc, (void **, size_t, unsigned))                                                                 \
    X(cuMemFreeHost, (void *))                                                                                     \
    X(cuMemsetD8Async, (CUdeviceptr, unsigned char, size_t, CUstream))                                             \
    X(cuMemsetD32Async, (CUdeviceptr, unsigned, size_t, CUstream))                                                 \
    X(cuMemcpyHtoDAsync_v2, (CUdeviceptr, const void *, size_t, CUstream))                                         \
    X(cuMemcpyDtoHAsync_v2, (void *, CUdeviceptr, size_t, CUstream))                                               \
    X(cuStreamCreate, (CUstream *, unsigned))                                                                      \
    X(cuStreamDestroy_v2, (CUstream))                                                                              \
    X(cuStreamSynchronize, (CUstream))                                                                             \
    X(cuStreamWaitEvent, (CUstream, CUevent, unsigned))                                                            \
    X(cuGraphCreate, (CUgraph *, unsigned))                                                                        \
    X(cuGraphAddKernelNode_v2, (CUgraphNode *, CUgraph, const CUgraphNode *, size_t, const CUkernelNode *))        \
    X(cuGraphInstantiateWithFlags, (CUgraphExec *, CUgraph, unsigned long long))                                   \
    X(cuGraphLaunch, (CUgraphExec, CUstream))                                                                      \
    X(cuGraphDestroy, (CUgraph))                                                                                   \
    X(cuGraphExecDestroy, (CUgraphExec))                                                                           \
    X(cuEventCreate, (CUevent *, unsigned))                                                                        \
    X(cuEventDestroy_v2, (CUevent))                                                                                \
    X(cuEventRecord, (CUevent, CUstream))                                                                          \
    X(cuEventQuery, (CUevent))                                                                                     \
    X(cuEventSynchronize, (CUevent))                                                                               \
    X(cuEventElapsedTime, (float *, CUevent, CUevent))                                                             \
    X(cuModuleLoadData, (CUmodule *, const void *))                                                                \
    X(cuModuleUnload, (CUmodule))                                                                                  \
    X(cuModuleGetFunction, (CUfunction *, CUmodule, const char *))                                                 \
    X(cuFuncSetAttribute, (CUfunction, int, int))                                                                  \
    X(cuLaunchKernel, (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, \
                       void **, void **))                                                                          \
    X(cuTensorMapEncodeTiled, (void *, int, uint32_t, void *, const uint64_t *, const uint64_t *, const uint32_t *, \
                               const uint32_t *, int, int, int, int))

#define NVRTC_FUNCTIONS(X)                                                                                         \
    X(nvrtcVersion, (int *, int *))                                                                                \
    X(nvrtcCreateProgram, (nvrtcProgram *, const char *, const char *, int, const char *const *, const char *const *)) \
    X(nvrtcDestroyProgram, (nvrtcProgram *))                                                                       \
    X(nvrtcCompileProgram, (nvrtcProgram, int, const char *const *))                                               \
    X(nvrtcGetCUBINSize, (nvrtcProgram, size_t *))                                                                 \
    X(nvrtcGetCUBIN, (nvrtcProgram, char *))                                                                       \
    X(nvrtcGetProgramLogSize, (nvrtcProgram, size_t *))                                                            \
    X(nvrtcGetProgramLog, (nvrtcProgram, char *))

#define NCCL_FUNCTIONS(X)                                                                                          \
    X(ncclGetVersion, (int *))                                                                                     \
    X(ncclGetUniqueId, (ncclUniqueId *))                                                                           \
    X(ncclCommInitRankConfig, (ncclComm_t *, int, ncclUniqueId, int, ncclConfig_t *))                              \
    X(ncclCommGetAsyncError, (ncclComm_t, ncclResult_t *))                                                         \
    X(ncclCommAbort, (ncclComm_t))                                                                                 \
    X(ncclGroupStart, (void))                                                                                      \
    X(ncclAllReduce, (const void *, void *, size_t, int, int, ncclComm_t, CUstream))                               \
    X(ncclGroupEnd, (void))

#define CU_POINTER(name, arguments) CUresult(CUCALL *name) arguments;
#define NVRTC_POINTER(name, arguments) nvrtcResult (*name) arguments;

#define NCCL_POINTER(name, arguments) ncclResult_t (*name) arguments;

typedef struct cu_driver {
    void *library;
    int version; /* 12040: CUDA 12.4 */
    CU_FUNCTIONS(CU_POINTER)
} cu_driver;

typedef struct nvrtc {
    void *library;
    int major, minor;
    NVRTC_FUNCTIONS(NVRTC_POINTER)
} nvrtc;

typedef struct nccl {
    void *library;
    const char *(*ncclGetLastError)(ncclComm_t);
    NCCL_FUNCTIONS(NCCL_POINTER)
} nccl;
#endif
