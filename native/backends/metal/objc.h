/* objc.h - the part of the Objective-C runtime and of Metal that this backend uses, declared here so that a build needs no
 * Apple SDK: functions, which are found by name at run time, and methods, which are messages to objects.
 *
 * A message is objc_msgSend called as the very function that the method is:
 *     SEND(set_bytes, encoder, words, size, 10);
 * Objects that a selector beginning in "new" returns are the caller's; others belong to the autorelease pool. */
#ifndef MTL_OBJC_H
#define MTL_OBJC_H
#include <stddef.h>
#include <stdint.h>

typedef struct objc_object *mtl_id; /* id and Class */
typedef struct objc_selector *mtl_sel;
typedef unsigned long mtl_uint; /* NSUInteger, which is 64 bits wide wherever Metal is */
typedef long mtl_int;           /* NSInteger and enumerations of it */
typedef void *mtl_block; /* NULL here */
typedef signed char mtl_bool;   /* BOOL: B where it is bool (arm64), c where it is a signed char; 0 or 1 in both */
typedef struct mtl_size {       /* MTLSize, a struct without a tag: ? in encodings */
    mtl_uint width, height, depth;
} mtl_size;

/* X(name, selector, returned type, parameters, type encoding, page below developer.apple.com/documentation)
 * Checked row by row on 29 November 2026 against those pages and the headers of the iOS 17.4 SDK (for MTLDevice's name, links to its page). */
#define MTL_METHODS(X) \
    X(create, "new", mtl_id, (mtl_id, mtl_sel), "@@:", "objectivec/nsobject-swift.class/new") \
    X(retain, "retain", mtl_id, (mtl_id, mtl_sel), "@@:", "objectivec/nsobject-c.protocol/retain") \
    X(release, "release", void, (mtl_id, mtl_sel), "Vv@:", "objectivec/nsobject-c.protocol/release") \
    X(string, "stringWithUTF8String:", mtl_id, (mtl_id, mtl_sel, const char *), "@@:r*", \
      "foundation/nsstring/init(utf8string:)-321f6") \
    X(utf8, "UTF8String", const char *, (mtl_id, mtl_sel), "r*@:", "foundation/nsstring/utf8string") \
    X(count, "count", mtl_uint, (mtl_id, mtl_sel), "Q@:", "foundation/nsarray/count") \
    X(object_at, "objectAtIndex:", mtl_id, (mtl_id, mtl_sel, mtl_uint), "@@:Q", "foundation/nsarray/object(at:)") \
    X(code, "code", mtl_int, (mtl_id, mtl_sel), "q@:", "foundation/nserror/code") \
    X(description, "localizedDescription", mtl_id, (mtl_id, mtl_sel), "@@:", \
      "foundation/nserror/localizeddescription") \
    X(name, "name", mtl_id, (mtl_id, mtl_sel), "@@:", "metal/mtldevice/name") \
    X(is_unified, "hasUnifiedMemory", mtl_bool, (mtl_id, mtl_sel), "B@:", "metal/mtldevice/hasunifiedmemory") \
    X(is_of_family, "supportsFamily:", mtl_bool, (mtl_id, mtl_sel, mtl_int), "B@:q", \
      "metal/mtldevice/supportsfamily(_:)") \
    X(working_set, "recommendedMaxWorkingSetSize", uint64_t, (mtl_id, mtl_sel), "Q@:", \
      "metal/mtldevice/recommendedmaxworkingsetsize") \
    X(longest_buffer, "maxBufferLength", mtl_uint, (mtl_id, mtl_sel), "Q@:", "metal/mtldevice/maxbufferlength") \
    X(group_memory, "maxThreadgroupMemoryLength", mtl_uint, (mtl_id, mtl_sel), "Q@:", \
      "metal/mtldevice/maxthreadgroupmemorylength") \
    X(new_queue, "newCommandQueue", mtl_id, (mtl_id, mtl_sel), "@@:", "metal/mtldevice/makecommandqueue()") \
    X(new_buffer, "newBufferWithLength:options:", mtl_id, (mtl_id, mtl_sel, mtl_uint, mtl_uint), "@@:QQ", \
      "metal/mtldevice/makebuffer(length:options:)") \
    X(new_copy, "newBufferWithBytes:length:options:", mtl_id, (mtl_id, mtl_sel, const void *, mtl_uint, mtl_uint), "@@:r^vQQ", \
      "metal/mtldevice/makebuffer(bytes:length:options:)") \
    X(new_view, "newBufferWithBytesNoCopy:length:options:deallocator:", mtl_id, (mtl_id, mtl_sel, void *, mtl_uint, mtl_uint, mtl_block), "@@:^vQQ@?", \
      "metal/mtldevice/makebuffer(bytesnocopy:length:options:deallocator:)") \
    X(contents, "contents", void *, (mtl_id, mtl_sel), "^v@:", "metal/mtlbuffer/contents()") \
    X(set_fast_math, "setFastMathEnabled:", void, (mtl_id, mtl_sel, mtl_bool), "v@:B", \
      "metal/mtlcompileoptions/fastmathenabled") \
    X(new_library, "newLibraryWithSource:options:error:", mtl_id, (mtl_id, mtl_sel, mtl_id, mtl_id, mtl_id *), "@@:@@^@", \
      "metal/mtldevice/makelibrary(source:options:)") \
    X(set_constant, "setConstantValue:type:atIndex:", void, (mtl_id, mtl_sel, const void *, mtl_uint, mtl_uint), "v@:r^vQQ", \
      "metal/mtlfunctionconstantvalues/setconstantvalue(_:type:index:)") \
    X(new_function, "newFunctionWithName:constantValues:error:", mtl_id, (mtl_id, mtl_sel, mtl_id, mtl_id, mtl_id *), "@@:@@^@", \
      "metal/mtllibrary/makefunction(name:constantvalues:)") \
    X(new_pipeline, "newComputePipelineStateWithFunction:error:", mtl_id, (mtl_id, mtl_sel, mtl_id, mtl_id *), "@@:@^@", \
      "metal/mtldevice/makecomputepipelinestate(function:)") \
    X(most_threads, "maxTotalThreadsPerThreadgroup", mtl_uint, (mtl_id, mtl_sel), "Q@:", \
      "metal/mtlcomputepipelinestate/maxtotalthreadsperthreadgroup") \
    X(command_buffer, "commandBuffer", mtl_id, (mtl_id, mtl_sel), "@@:", \
      "metal/mtlcommandqueue/makecommandbuffer()") \
    X(compute, "computeCommandEncoder", mtl_id, (mtl_id, mtl_sel), "@@:", \
      "metal/mtlcommandbuffer/makecomputecommandencoder()") \
    X(blit, "blitCommandEncoder", mtl_id, (mtl_id, mtl_sel), "@@:", \
      "metal/mtlcommandbuffer/makeblitcommandencoder()") \
    X(commit, "commit", void, (mtl_id, mtl_sel), "v@:", "metal/mtlcommandbuffer/commit()") \
    X(wait, "waitUntilCompleted", void, (mtl_id, mtl_sel), "v@:", "metal/mtlcommandbuffer/waituntilcompleted()") \
    X(status, "status", mtl_uint, (mtl_id, mtl_sel), "Q@:", "metal/mtlcommandbuffer/status") \
    X(error, "error", mtl_id, (mtl_id, mtl_sel), "@@:", "metal/mtlcommandbuffer/error") \
    X(began, "GPUStartTime", double, (mtl_id, mtl_sel), "d@:", "metal/mtlcommandbuffer/gpustarttime") \
    X(ended, "GPUEndTime", double, (mtl_id, mtl_sel), "d@:", "metal/mtlcommandbuffer/gpuendtime") \
    X(end, "endEncoding", void, (mtl_id, mtl_sel), "v@:", "metal/mtlcommandencoder/endencoding()") \
    X(set_pipeline, "setComputePipelineState:", void, (mtl_id, mtl_sel, mtl_id), "v@:@", \
      "metal/mtlcomputecommandencoder/setcomputepipelinestate(_:)") \
    X(set_buffer, "setBuffer:offset:atIndex:", void, (mtl_id, mtl_sel, mtl_id, mtl_uint, mtl_uint), "v@:@QQ", \
      "metal/mtlcomputecommandencoder/setbuffer(_:offset:index:)") \
    X(set_bytes, "setBytes:length:atIndex:", void, (mtl_id, mtl_sel, const void *, mtl_uint, mtl_uint), "v@:r^vQQ", \
      "metal/mtlcomputecommandencoder/setbytes(_:length:index:)") \
    X(dispatch, "dispatchThreadgroups:threadsPerThreadgroup:", void, (mtl_id, mtl_sel, mtl_size, mtl_size), "v@:{?=QQQ}{?=QQQ}", \
      "metal/mtlcomputecommandencoder/dispatchthreadgroups(_:threadsperthreadgroup:)") \
    X(copy, "copyFromBuffer:sourceOffset:toBuffer:destinationOffset:size:", void, (mtl_id, mtl_sel, mtl_id, mtl_uint, mtl_id, mtl_uint, mtl_uint), "v@:@Q@QQ", \
      "metal/mtlblitcommandencoder/copy(from:sourceoffset:to:destinationoffset:size:)")

/* X(name, returned type, parameters, page): functions of the runtime and of Metal. Those of autorelease pools are described in
 * clang.llvm.org/docs/AutomaticReferenceCounting.html. */
#define MTL_RUNTIME(X) \
    X(objc_getClass, mtl_id, (const char *), "objectivec/objc_getclass(_:)") \
    X(sel_registerName, mtl_sel, (const char *), "objectivec/sel_registername(_:)") \
    X(objc_msgSend, void, (void), "objectivec/objc_msgsend") \
    X(objc_autoreleasePoolPush, void *, (void), "") \
    X(objc_autoreleasePoolPop, void, (void *), "")
#define MTL_FRAMEWORK(X) \
    X(MTLCreateSystemDefaultDevice, mtl_id, (void), "metal/mtlcreatesystemdefaultdevice()") \
    X(MTLCopyAllDevices, mtl_id, (void), "metal/mtlcopyalldevices()") /* may be absent: not on older iOS */

/* Numbers of Metal's enumerations, by their own names. */
enum {
    MTLGPUFamilyApple4 = 1004,
    MTLGPUFamilyApple7 = 1007,
    MTLGPUFamilyMac2 = 2002,
    MTLResourceStorageModeShared = 0,
    MTLDataTypeUInt = 33,
    MTLCommandBufferStatusError = 5,
    MTLCommandBufferErrorTimeout = 2,
    MTLCommandBufferErrorAccessRevoked = 4,
    MTLCommandBufferErrorNotPermitted = 7,
    MTLCommandBufferErrorOutOfMemory = 8,
    MTLCommandBufferErrorDeviceRemoved = 11,
};

#define MTL_METHOD(name, selector, type, parameters, encoding, page) mtl_has_##name,
#define MTL_TYPE(name, selector, type, parameters, encoding, page) typedef type(*mtl_as_##name) parameters;
#define MTL_POINTER(name, type, parameters, page) type(*name) parameters;
enum { MTL_METHODS(MTL_METHOD) MTL_METHOD_COUNT };
MTL_METHODS(MTL_TYPE)

typedef struct mtl_runtime {
    void *objc, *metal; /* libraries */
    MTL_RUNTIME(MTL_POINTER)
    MTL_FRAMEWORK(MTL_POINTER)
    mtl_sel selectors[MTL_METHOD_COUNT];
} mtl_runtime;
extern mtl_runtime mtl; /* stays open once it was */

#define SEND(method, object, ...) \
    (((mtl_as_##method)mtl.objc_msgSend)((object), mtl.selectors[mtl_has_##method], ##__VA_ARGS__))
#endif
