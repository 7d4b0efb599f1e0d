/* The sparse convolution of dcn_plugin.engine on CPUs. It knows nothing of Python or PyTorch: plain pointers in, plain
 * pointers out, and is loaded through ctypes.
 *
 * Activations are rows: one row for each neuron that exists, with the `batch` values of that neuron side by side. A
 * convolution is then, for each output position ("group"), a small dense matrix (live outputs x live inputs of the
 * window) times the live input rows. Lists that were made beforehand say which rows those are, and where in the weights,
 * which all positions share, the matrix stands.
 * The innermost loop runs along the batch: it multiplies a broadcast weight with contiguous values.
 *
 * This file includes itself once for each vector width; `dcn_lanes` says which of them the machine can run, and the
 * caller never asks for more lanes than the batch has.
 */
#ifndef LANES

#include "parallel.h"

#include <math.h>
#include <stdatomic.h>
#include <stddef.h>

#ifndef _WIN32
#include <pthread.h>
#endif

/* Outputs that share one pass over the input rows, so that their sums stay in registers. */
#define BLOCK 6
/* Bytes of input rows that all outputs of a group read before the next ones; a part of the second cache. */
#define CACHE 131072
/* Reads from the fetch of an input row to its use: about as long as the third cache takes. */
#define AHEAD 32
#if defined(__GNUC__) || defined(__clang__)
#define FETCH(address) __builtin_prefetch(address)
#define FETCH_TO_WRITE(address) __builtin_prefetch(address, 1)
#else
#define FETCH(address) ((void)0)
#define FETCH_TO_WRITE(address) ((void)0)
#endif
#define MAX_THREADS 256

/* One sparse convolution; the layout of the lists is in packing.py. Without a residual, `residual_rows` is NULL. */
typedef struct {
    const float *x;
    const float *weights;
    const float *bias;
    const float *residual;
    float *out;
    const int32_t *reads;  /* pairs: row of the input, where its weights begin */
    const int32_t *writes; /* pairs: row of the output, its place among those weights */
    const int32_t *residual_rows;
    const int64_t *read_start;
    const int64_t *write_start;
    const int64_t *chunks; /* group numbers that split the work evenly, chunk_count + 1 of them */
    int64_t chunk_count;
    int64_t batch;
    int64_t relu;
} dcn_gemm;

/* Rows to dense and back; `rows` of cell i (position, then channel) is -1 where the neuron does not exist. */
typedef struct {
    const int32_t *row_of_cell;
    float *dense; /* batch x cells */
    float *rows;  /* rows x batch */
    int64_t cells;
    int64_t batch;
    int64_t to_rows;
} dcn_move;

/* Max-pool: row r of the output is the largest of its reads, and of 0 where a dead neuron lies in its window. */
typedef struct {
    const float *x;
    float *out;
    const int32_t *reads;
    const int64_t *read_start;
    const uint8_t *with_zero;
    int64_t rows;
    int64_t batch;
} dcn_maxima;

typedef struct {
    dcn_body body;
    const void *job;
    int64_t chunks;
    _Atomic int64_t next;
} dcn_pool;

static void *work(void *argument) {
    dcn_pool *pool = argument;
    for (;;) {
        int64_t chunk = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (chunk >= pool->chunks) return NULL;
        pool->body(pool->job, chunk);
    }
}

static void work_openmp(void *argument) { work(argument); }

/* GOMP_parallel of the OpenMP runtime that PyTorch has loaded, or NULL. Its threads are already there, and a second pool
 * would compete with them for the cores. */
typedef void (*dcn_openmp)(void (*)(void *), void *, unsigned, unsigned);
static dcn_openmp openmp = NULL;

EXPORT void dcn_use_openmp(void *gomp_parallel) {
    openmp = (dcn_openmp)(uintptr_t)gomp_parallel;
}

void dcn_parallel(dcn_body body, const void *job, int64_t chunks, int64_t threads) {
    dcn_pool pool = {body, job, chunks, 0};
    if (threads > chunks) threads = chunks;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads <= 1) {
        work(&pool);
    } else if (openmp) {
        openmp(work_openmp, &pool, (unsigned)threads, 0);
    } else {
#ifdef _WIN32
        work(&pool);
#else
        pthread_t helpers[MAX_THREADS];
        int64_t started = 0;
        while (started < threads - 1 && !pthread_create(&helpers[started], NULL, work, &pool)) started++;
        work(&pool);
        for (int64_t i = 0; i < started; i++) pthread_join(helpers[i], NULL);
#endif
    }
}

#ifdef X86
#define LANES 16
#define WIDTHS 4
#define TARGET AVX512
#include "kernel.c"
#define LANES 8
#define WIDTHS 2
#define TARGET AVX2
#include "kernel.c"
#endif
#define LANES 4
#define WIDTHS 2
#define TARGET
#include "kernel.c"
#define LANES 1
#define WIDTHS 1
#define TARGET
#include "kernel.c"

/* Most values that one instruction of this machine can take, of those that were compiled. */
EXPORT int64_t dcn_lanes(void) {
#ifdef X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) return 16;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 8;
#endif
    return 4;
}

/* `lanes`: 1, 4, 8 or 16, at most dcn_lanes() and at most the batch. */
EXPORT void dcn_run_gemm(const dcn_gemm *job, int64_t lanes, int64_t threads) {
    dcn_body body = gemm_1;
    if (lanes == 4) body = gemm_4;
#ifdef X86
    if (lanes == 8) body = gemm_8;
    if (lanes == 16) body = gemm_16;
#endif
    dcn_parallel(body, job, job->chunk_count, threads);
}

/* So many cells and images stay in the first cache while they are turned. */
#define CELLS 32
#define IMAGES 16

static void move_chunk(const void *argument, int64_t chunk) {
    const dcn_move *job = argument;
    static const float zeros[IMAGES];
    const int64_t first = chunk * CELLS, left = job->cells - first, count = left < CELLS ? left : CELLS;
    float ignored[IMAGES];
    for (int64_t at = 0; at < job->batch; at += IMAGES) {
        const int64_t images = job->batch - at < IMAGES ? job->batch - at : IMAGES;
        float *dense = job->dense + at * job->cells + first;
        if (job->to_rows) {
            float *line[CELLS];
            for (int64_t cell = 0; cell < count; cell++) {
                const int64_t row = job->row_of_cell[first + cell];
                line[cell] = row < 0 ? ignored : job->rows + row * job->batch + at;
            }
            for (int64_t b = 0; b < images; b++)
                for (int64_t cell = 0; cell < count; cell++) line[cell][b] = dense[b * job->cells + cell];
        } else {
            const float *line[CELLS];
            for (int64_t cell = 0; cell < count; cell++) {
                const int64_t row = job->row_of_cell[first + cell];
                line[cell] = row < 0 ? zeros : job->rows + row * job->batch + at;
            }
            for (int64_t b = 0; b < images; b++)
                for (int64_t cell = 0; cell < count; cell++) dense[b * job->cells + cell] = line[cell][b];
        }
    }
}

EXPORT void dcn_run_move(const dcn_move *job, int64_t threads) {
    dcn_parallel(move_chunk, job, (job->cells + CELLS - 1) / CELLS, threads);
}

/* Rows that a thread takes at a time. */
#define ROWS 256

static void maxima_chunk(const void *argument, int64_t chunk) {
    const dcn_maxima *job = argument;
    const int64_t batch = job->batch, last = (chunk + 1) * ROWS < job->rows ? (chunk + 1) * ROWS : job->rows;
    for (int64_t row = chunk * ROWS; row < last; row++) {
        float *out = job->out + row * batch;
        for (int64_t b = 0; b < batch; b++) out[b] = job->with_zero[row] ? 0.0f : -INFINITY;
        for (int64_t k = job->read_start[row]; k < job->read_start[row + 1]; k++) {
            const float *x = job->x + job->reads[k] * batch;
            /* NaN goes on, as in PyTorch. */
            for (int64_t b = 0; b < batch; b++) out[b] = x[b] > out[b] || x[b] != x[b] ? x[b] : out[b];
        }
    }
}

EXPORT void dcn_run_maxima(const dcn_maxima *job, int64_t threads) {
    dcn_parallel(maxima_chunk, job, (job->rows + ROWS - 1) / ROWS, threads);
}

#else /* one vector width */

#if LANES == 1
typedef float JOIN(vec_, LANES);
#else
typedef float JOIN(vec_, LANES) __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t JOIN(bits_, LANES) __attribute__((vector_size(LANES * 4), aligned(4)));
#define BITS JOIN(bits_, LANES)
#endif
#define VEC JOIN(vec_, LANES)

/* `outs` x `width` vectors of sums, over the input rows from `start` to `end`; the first part begins with the bias, the
 * last one of the `n` ends with residual and ReLU, between them the sums rest in the output. `outs` and `width` are
 * constants wherever it is inlined, so that the sums are registers; so is `fetch`: rows up to `there`, which are to be read
 * later, are fetched into the caches. `at`: first image of the tile. */
static inline __attribute__((always_inline)) TARGET void JOIN(tile_, LANES)(
    const dcn_gemm *job, const int outs, const int width, const int fetch, int64_t n, int64_t there, int64_t start,
    int64_t end, const int32_t *reads, int64_t first, int64_t at) {
    /* With one vector an output there are registers for two turns of sums, and an addition need not wait for the last. */
    const int turns = width == 1 ? 2 : 1;
    VEC sum[2][BLOCK][WIDTHS];
    const float *weights[BLOCK];
    const int64_t batch = job->batch;
    const float *x = job->x + at;
    const int32_t *writes = job->writes + 2 * first;
    for (int o = 0; o < outs; o++) {
        weights[o] = job->weights + writes[2 * o + 1];
        for (int v = 0; v < width; v++) sum[1][o][v] = (VEC){0};
        if (start == 0) {
            const VEC bias = (VEC){0} + job->bias[first + o];
            for (int v = 0; v < width; v++) sum[0][o][v] = bias;
        } else {
            const float *out = job->out + writes[2 * o] * batch + at;
            for (int v = 0; v < width; v++) sum[0][o][v] = *(const VEC *)(out + v * LANES);
        }
    }
    int64_t k = start;
#define READ(turn)                                                                            \
    {                                                                                         \
        const float *row = x + reads[2 * (k + turn)] * batch;                                 \
        const int64_t tap = reads[2 * (k + turn) + 1];                                        \
        if (fetch && k + turn + AHEAD < there) {                                              \
            const float *later = x + reads[2 * (k + turn + AHEAD)] * batch;                   \
            for (int v = 0; v < width; v++) FETCH(later + v * LANES);                         \
        }                                                                                     \
        VEC value[WIDTHS];                                                                    \
        for (int v = 0; v < width; v++) value[v] = *(const VEC *)(row + v * LANES);           \
        for (int o = 0; o < outs; o++)                                                        \
            for (int v = 0; v < width; v++) sum[turn][o][v] += weights[o][tap] * value[v];    \
    }
    if (turns == 2) {
        for (; k + 1 < end; k += 2) {
            READ(0)
            READ(1)
        }
        for (int o = 0; o < outs; o++) sum[0][o][0] += sum[1][o][0];
    }
    for (; k < end; k++) READ(0)
#undef READ
    for (int o = 0; o < outs; o++) {
        float *out = job->out + writes[2 * o] * batch + at;
        const int32_t from = job->residual_rows && end == n ? job->residual_rows[first + o] : -1;
        const float *residual = from < 0 ? NULL : job->residual + from * batch + at;
        for (int v = 0; v < width; v++) {
            VEC y = sum[0][o][v];
            if (from >= 0) y += *(const VEC *)(residual + v * LANES);
#if LANES == 1
            if (job->relu && end == n) y = y < 0.0f ? 0.0f : y;
#else
            if (job->relu && end == n)
                y = (VEC)(~(BITS)(y < (VEC){0}) & (BITS)y); /* NaN stays NaN, as in PyTorch */
#endif
            *(VEC *)(out + v * LANES) = y;
        }
    }
}

/* All outputs of a group read the same rows: the first ones fetch. */
#define CASE(N)                                                                           \
    case N:                                                                               \
        if (first == job->write_start[group])                                             \
            JOIN(tile_, LANES)(job, N, width, 1, n, there, start, end, reads, first, at); \
        else                                                                              \
            JOIN(tile_, LANES)(job, N, width, 0, n, there, start, end, reads, first, at); \
        break;
/* A tile of the batch, for all outputs of a group. */
static inline __attribute__((always_inline)) TARGET void JOIN(group_, LANES)(
    const dcn_gemm *job, int64_t group, const int width, int64_t at) {
    const int64_t n = job->read_start[group + 1] - job->read_start[group];
    const int64_t there = job->read_start[job->chunks[job->chunk_count]] - job->read_start[group];
    const int32_t *reads = job->reads + 2 * job->read_start[group];
    /* A line that is written has to be there first; these come while the sums are made. */
    for (int64_t o = job->write_start[group]; o < job->write_start[group + 1]; o++) {
        const int32_t from = job->residual_rows ? job->residual_rows[o] : -1;
        for (int v = 0; v < width; v++) {
            FETCH_TO_WRITE(job->out + job->writes[2 * o] * job->batch + at + v * LANES);
            if (from >= 0) FETCH(job->residual + from * job->batch + at + v * LANES);
        }
    }
    /* As even as possible: 7 outputs are 4 and 3, not 6 and 1; and so many reads as CACHE holds. */
    const int64_t most = CACHE / (width * LANES * (int64_t)sizeof(float));
    const int64_t parts = n > most ? (n + most - 1) / most : 1, part = (n + parts - 1) / parts;
    int64_t start = 0;
    do {
        const int64_t end = start + part < n ? start + part : n;
        int64_t first = job->write_start[group];
        while (first < job->write_start[group + 1]) {
            const int64_t left = job->write_start[group + 1] - first, blocks = (left + BLOCK - 1) / BLOCK;
            const int outs = (int)((left + blocks - 1) / blocks);
            switch (outs) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
            first += outs;
        }
        start = end;
    } while (start < n);
}
#undef CASE

static TARGET void JOIN(gemm_, LANES)(const void *argument, int64_t chunk) {
    const dcn_gemm *job = argument;
    const int64_t batch = job->batch;
    for (int64_t group = job->chunks[chunk]; group < job->chunks[chunk + 1]; group++) {
        int64_t at = 0;
        for (; at + WIDTHS * LANES <= batch; at += WIDTHS * LANES) JOIN(group_, LANES)(job, group, WIDTHS, at);
#if WIDTHS > 2
        for (; at + 2 * LANES <= batch; at += 2 * LANES) JOIN(group_, LANES)(job, group, 2, at);
#endif
#if WIDTHS > 1
        for (; at + LANES <= batch; at += LANES) JOIN(group_, LANES)(job, group, 1, at);
#endif
        /* The last images: the vector that ends with the batch. Some of it is computed twice, from the start. */
        if (at < batch) JOIN(group_, LANES)(job, group, 1, batch - LANES);
    }
}

#undef VEC
#undef BITS
#undef LANES
#undef WIDTHS
#undef TARGET
#endif
