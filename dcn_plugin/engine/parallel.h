/* What the C files of dcn_plugin.engine share: vectors, and the threads that take pieces of a job one by one. */
#ifndef DCN_PARALLEL_H
#define DCN_PARALLEL_H

#include <stdint.h>

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#define HIDDEN
#else
#define EXPORT __attribute__((visibility("default")))
#define HIDDEN __attribute__((visibility("hidden")))
#endif

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define X86 1
#define AVX512 __attribute__((target("avx512f,avx2,fma")))
#define AVX2 __attribute__((target("avx2,fma")))
#endif

typedef void (*dcn_body)(const void *job, int64_t chunk);

/* Calls `body` once for every chunk, each on some thread. */
HIDDEN void dcn_parallel(dcn_body body, const void *job, int64_t chunks, int64_t threads);

#endif
