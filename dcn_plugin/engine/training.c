/* Training on the neurons that exist: a convolution, the norm behind it, its mask, and all their gradients, on CPUs.
 *
 * Activations are rows, as in kernel.c: one row for each neuron, with the `batch` values of that neuron side by side. At
 * each output position ("item"; with a grouped convolution, one for each group) the live inputs of the window and the
 * outputs that are wanted form a small dense matrix:
 *
 *   forward          y[o] = sum over inputs k: weight[k][o] * x[k]
 *   towards weights  weight_grad[k][o] += sum over images n: x[k][n] * g[n][o]
 *   towards inputs   x_grad[k] += sum over outputs o: weight[k][o] * g[o]
 *
 * g, the gradient of y, exists only for the item at hand: it is made from the gradient of the rows behind norm and mask,
 * and, through the batch's statistics, from y itself. All three run 6 rows x 4 vectors of sums in registers.
 *
 * Weights are [input of a window][output], outputs padded to `width`, a multiple of 16. This file includes itself once
 * for each vector width; no caller asks for more lanes than the batch has.
 */
#ifndef LANES

#include "parallel.h"

#include <stddef.h>

/* Rows of sums in registers. */
#define BLOCK 6
/* Bytes of input rows that all outputs of an item read before the next ones: a part of the first cache. */
#define CACHE 16384
/* Rows that a thread takes at a time in a pass over rows. */
#define ROWS 64
/* Doubles between two vectors of statistics. */
#define STRIDE 16

/* The layout of the lists is in training/lists.py. */
typedef struct {
    const float *x;
    const float *weights;
    float *y;
    double *sums;          /* chunks x channels x 2 vectors: of y - shift, and of its square; NULL: not wanted */
    float *shift;          /* chunks x channels: some value of y; NaN before there is one */
    const int32_t *reads;  /* pairs: row of x, where its weights begin */
    const int32_t *places; /* of each row of y: its output within the group */
    const int64_t *read_start;
    const int64_t *write_start;
    const int64_t *chunks; /* item numbers that split the work evenly, chunk_count + 1 of them */
    int64_t chunk_count;
    int64_t batch;
    int64_t channels;
    int64_t groups; /* of the convolution; item i belongs to group i % groups */
} dcn_train_forward;

typedef struct {
    const float *x;
    const float *weights;
    const float *y;     /* NULL: the gradient does not depend on it */
    const float *grad;  /* of the rows behind norm, mask and ReLU */
    const float *out;   /* these rows; NULL: there was no ReLU */
    const float *scale; /* 3 x channels: g = scale[0] * grad (0 where the ReLU cut) + scale[1] * y + scale[2] */
    float *x_grad;      /* zeros before; NULL: not wanted */
    float *weight_grad; /* zeros before, one copy for each slot; NULL: not wanted */
    float *scratch;     /* scratch_size floats for each slot */
    const int32_t *reads;
    const int32_t *places;
    const int32_t *grad_rows; /* of each row of y: its row of grad, or -1 */
    const int64_t *read_start;
    const int64_t *write_start;
    int64_t items;
    int64_t batch;
    int64_t channels;
    int64_t groups;
    int64_t width;
    int64_t tile;  /* images that a slot takes at a time, a multiple of 16 */
    int64_t slots; /* slot s takes the tiles s, s + slots, ...: sums do not depend on which thread is faster */
    int64_t weight_count;
    int64_t scratch_size;
} dcn_train_backward;

/* Rows behind norm, mask, sum and ReLU: out = relu(scale[0] * y + scale[1] + residual). */
typedef struct {
    const float *y;
    const float *residual;
    float *out;
    const int32_t *rows; /* of each row of out: row of y or -1, its channel, row of residual or -1 */
    const float *scale;  /* 2 x channels */
    int64_t count;
    int64_t batch;
    int64_t channels;
    int64_t relu;
} dcn_train_finish;

/* The first pass of the gradient: the sums that the norm needs of the gradient in front of the ReLU, and what goes to the
 * residual of it. */
typedef struct {
    const float *grad;
    const float *out;     /* NULL: there was no ReLU */
    const float *y;       /* NULL: its sum is not wanted */
    float *residual_grad; /* zeros before where no row is added; NULL: not wanted */
    float *sums;          /* count x 2: of that gradient, and of its products with y - mean */
    const int32_t *rows;
    const float *mean; /* channels */
    int64_t count;
    int64_t batch;
} dcn_train_prepare;

#ifdef X86
#define LANES 16
#define WIDTHS 4
#define TARGET AVX512
#include "training.c"
#define LANES 8
#define WIDTHS 2
#define TARGET AVX2
#include "training.c"
#endif
#define LANES 4
#define WIDTHS 2
#define TARGET
#include "training.c"
#define LANES 1
#define WIDTHS 1
#define TARGET
#include "training.c"

#ifdef X86
#define BODY(name, lanes) (lanes == 16 ? name##_16 : lanes == 8 ? name##_8 : lanes == 4 ? name##_4 : name##_1)
#else
#define BODY(name, lanes) (lanes == 4 ? name##_4 : name##_1)
#endif
#define PIECES(count) (((count) + ROWS - 1) / ROWS)

/* `lanes`: 1, 4, 8 or 16, at most dcn_lanes() and at most the batch. */
EXPORT void dcn_run_train_forward(const dcn_train_forward *job, int64_t lanes, int64_t threads) {
    dcn_parallel(BODY(forward, lanes), job, job->chunk_count, threads);
}

EXPORT void dcn_run_train_backward(const dcn_train_backward *job, int64_t lanes, int64_t threads) {
    dcn_parallel(BODY(backward, lanes), job, job->slots, threads);
}

EXPORT void dcn_run_train_finish(const dcn_train_finish *job, int64_t lanes, int64_t threads) {
    dcn_parallel(BODY(finish, lanes), job, PIECES(job->count), threads);
}

EXPORT void dcn_run_train_prepare(const dcn_train_prepare *job, int64_t lanes, int64_t threads) {
    dcn_parallel(BODY(prepare, lanes), job, PIECES(job->count), threads);
}

#else /* one vector width */

#if LANES == 1
typedef float JOIN(vec_, LANES);
typedef double JOIN(doubles_, LANES);
#define TO_DOUBLES(value) ((double)(value))
#else
typedef double JOIN(doubles_, LANES) __attribute__((vector_size(LANES * 8), aligned(8), may_alias));
#define TO_DOUBLES(value) __builtin_convertvector(value, JOIN(doubles_, LANES))
typedef float JOIN(vec_, LANES) __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t JOIN(bits_, LANES) __attribute__((vector_size(LANES * 4)));
#endif
#define VEC JOIN(vec_, LANES)
#define INLINE static inline __attribute__((always_inline)) TARGET
#define LOAD(address) (*(const VEC *)(address))
#define STORE(address, value) (*(VEC *)(address) = (value))

/* `outs` x `width` vectors of sums over the reads from `start` to `end`; between two parts they rest in y. `outs` and `width`
 * are constants wherever it is inlined. `at`: first image of the tile. */
INLINE void JOIN(sums_, LANES)(
    const dcn_train_forward *job, const int outs, const int width, int64_t start, int64_t end, const int32_t *reads,
    int64_t first, int64_t at) {
    VEC sum[BLOCK][WIDTHS];
    const float *weights[BLOCK];
    const int64_t batch = job->batch;
    const float *x = job->x + at;
    for (int o = 0; o < outs; o++) {
        weights[o] = job->weights + job->places[first + o];
        const float *y = job->y + (first + o) * batch + at;
        for (int v = 0; v < width; v++) sum[o][v] = start == 0 ? (VEC){0} : LOAD(y + v * LANES);
    }
    for (int64_t k = start; k < end; k++) {
        const float *row = x + reads[2 * k] * batch;
        const int64_t tap = reads[2 * k + 1];
        VEC value[WIDTHS];
        for (int v = 0; v < width; v++) value[v] = LOAD(row + v * LANES);
        for (int o = 0; o < outs; o++)
            for (int v = 0; v < width; v++) sum[o][v] += weights[o][tap] * value[v];
    }
    for (int o = 0; o < outs; o++) {
        float *y = job->y + (first + o) * batch + at;
        for (int v = 0; v < width; v++) STORE(y + v * LANES, sum[o][v]);
    }
}

/* Adds the values that an item has just written to its channels' statistics; the last `fresh` of a tile's lanes count. */
INLINE void JOIN(count_, LANES)(
    const dcn_train_forward *job, int64_t chunk, int64_t item, const int width, int64_t at, int64_t fresh) {
    const int64_t base = chunk * job->channels + item % job->groups * (job->channels / job->groups);
    VEC valid = (VEC){0} + 1.0f;
    for (int lane = 0; lane < LANES - fresh; lane++) ((float *)&valid)[lane] = 0.0f;
    for (int64_t row = job->write_start[item]; row < job->write_start[item + 1]; row++) {
        const float *y = job->y + row * job->batch + at;
        float *shift = job->shift + base + job->places[row];
        double *sums = job->sums + 2 * STRIDE * (base + job->places[row]);
        if (*shift != *shift) *shift = *y;
        VEC sum = {0}, square = {0};
        for (int v = 0; v < width; v++) {
            VEC value = LOAD(y + v * LANES) - *shift;
            if (fresh < LANES) value *= valid;
            sum += value;
            square += value * value;
        }
        /* A few floats make a sum; thousands of them, with few lanes, would cost the variance its last digits. */
        *(JOIN(doubles_, LANES) *)sums += TO_DOUBLES(sum);
        *(JOIN(doubles_, LANES) *)(sums + STRIDE) += TO_DOUBLES(square);
    }
}

/* A tile of the batch, for all outputs of an item. */
INLINE void JOIN(item_, LANES)(
    const dcn_train_forward *job, int64_t chunk, int64_t item, const int width, int64_t at, int64_t fresh) {
    const int64_t n = job->read_start[item + 1] - job->read_start[item];
    const int32_t *reads = job->reads + 2 * job->read_start[item];
    const int64_t most = CACHE / (width * LANES * (int64_t)sizeof(float));
    const int64_t parts = n > most ? (n + most - 1) / most : 1, part = (n + parts - 1) / parts;
    int64_t start = 0;
    do {
        const int64_t end = start + part < n ? start + part : n;
        int64_t first = job->write_start[item];
        while (first < job->write_start[item + 1]) {
            /* As even as possible: 7 outputs are 4 and 3, not 6 and 1. */
            const int64_t left = job->write_start[item + 1] - first, blocks = (left + BLOCK - 1) / BLOCK;
            const int outs = (int)((left + blocks - 1) / blocks);
#define CASE(N)                                                             \
    case N:                                                                 \
        JOIN(sums_, LANES)(job, N, width, start, end, reads, first, at);    \
        break;
            switch (outs) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
#undef CASE
            first += outs;
        }
        start = end;
    } while (start < n);
    if (job->sums) JOIN(count_, LANES)(job, chunk, item, width, at, fresh);
}

static TARGET void JOIN(forward_, LANES)(const void *argument, int64_t chunk) {
    const dcn_train_forward *job = argument;
    const int64_t batch = job->batch;
    for (int64_t item = job->chunks[chunk]; item < job->chunks[chunk + 1]; item++) {
        int64_t at = 0;
        for (; at + WIDTHS * LANES <= batch; at += WIDTHS * LANES)
            JOIN(item_, LANES)(job, chunk, item, WIDTHS, at, LANES);
#if WIDTHS > 2
        for (; at + 2 * LANES <= batch; at += 2 * LANES) JOIN(item_, LANES)(job, chunk, item, 2, at, LANES);
#endif
#if WIDTHS > 1
        for (; at + LANES <= batch; at += LANES) JOIN(item_, LANES)(job, chunk, item, 1, at, LANES);
#endif
        /* The last images: the vector that ends with the batch. Some of it is computed twice, and counted once. */
        if (at < batch) JOIN(item_, LANES)(job, chunk, item, 1, batch - LANES, batch - at);
    }
}

/* out[i] += sum over n: left[i][at(n)] * right[n], `vecs` vectors of it, of which `valid` values lie within the output. */
INLINE void JOIN(product_, LANES)(
    const int rows, const int vecs, const float *const *left, const int32_t *at, int64_t count, const float *right,
    int64_t stride, float *const *out, int64_t offset, int64_t valid) {
    VEC sum[BLOCK][WIDTHS];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vecs; v++) sum[i][v] = (VEC){0};
    for (int64_t n = 0; n < count; n++) {
        const int64_t from = at ? at[n] : n;
        VEC value[WIDTHS];
        for (int v = 0; v < vecs; v++) value[v] = LOAD(right + n * stride + offset + v * LANES);
        for (int i = 0; i < rows; i++)
            for (int v = 0; v < vecs; v++) sum[i][v] += left[i][from] * value[v];
    }
    for (int i = 0; i < rows; i++) {
        float *to = out[i] + offset;
        if (offset + vecs * LANES <= valid)
            for (int v = 0; v < vecs; v++) STORE(to + v * LANES, LOAD(to + v * LANES) + sum[i][v]);
        else
            for (int64_t j = 0; j < valid - offset; j++) to[j] += ((const float *)sum[i])[j];
    }
}

/* The same for `length` values, a multiple of LANES. */
INLINE void JOIN(products_, LANES)(
    const int rows, const float *const *left, const int32_t *at, int64_t count, const float *right, int64_t stride,
    float *const *out, int64_t length, int64_t valid) {
    int64_t done = 0;
    for (; done + WIDTHS * LANES <= length; done += WIDTHS * LANES)
        JOIN(product_, LANES)(rows, WIDTHS, left, at, count, right, stride, out, done, valid);
#if WIDTHS > 2
    for (; done + 2 * LANES <= length; done += 2 * LANES)
        JOIN(product_, LANES)(rows, 2, left, at, count, right, stride, out, done, valid);
#endif
#if WIDTHS > 1
    for (; done + LANES <= length; done += LANES)
        JOIN(product_, LANES)(rows, 1, left, at, count, right, stride, out, done, valid);
#endif
}

#if LANES == 16
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#elif LANES == 4
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#endif
#if defined(__clang__)
#define PICKED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICKED(a, b, ...) __builtin_shuffle(a, b, (JOIN(bits_, LANES)){__VA_ARGS__})
#endif

/* LANES x LANES values, turned: as many times as LANES has bits, each line is interleaved with that half a height below. */
INLINE void JOIN(turn_, LANES)(const float *from, int64_t from_stride, float *to, int64_t to_stride) {
#if LANES == 1
    (void)from_stride, (void)to_stride;
    *to = *from;
#else
    VEC line[LANES], next[LANES];
    for (int i = 0; i < LANES; i++) line[i] = LOAD(from + i * from_stride);
    for (int bits = LANES; bits > 1; bits /= 2) {
        for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] = PICKED(line[i], line[i + LANES / 2], LOW);
            next[2 * i + 1] = PICKED(line[i], line[i + LANES / 2], HIGH);
        }
        for (int i = 0; i < LANES; i++) line[i] = next[i];
    }
    for (int i = 0; i < LANES; i++) STORE(to + i * to_stride, line[i]);
#endif
}

/* A gradient behind a ReLU in front of it; where the output is NaN it goes through, as in PyTorch. */
#if LANES == 1
#define THROUGH(grad, out) ((out) <= 0.0f ? 0.0f : (grad))
#else
#define THROUGH(grad, out) ((VEC)((JOIN(bits_, LANES))(grad) & ~(JOIN(bits_, LANES))((out) <= (VEC){0})))
#endif

/* The gradient of y at an item, for `count` images from `at` on: g[output][image], zeros up to full vectors. */
INLINE void JOIN(gradient_, LANES)(const dcn_train_backward *job, int64_t item, int64_t at, int64_t count, float *g) {
    const int64_t base = item % job->groups * (job->channels / job->groups), full = count - count % LANES;
    for (int64_t row = job->write_start[item]; row < job->write_start[item + 1]; row++, g += job->tile) {
        const int64_t channel = base + job->places[row], behind = job->grad_rows[row];
        const float of_grad = job->scale[channel], of_y = job->scale[job->channels + channel];
        const float constant = job->scale[2 * job->channels + channel];
        const float *grad = behind < 0 ? NULL : job->grad + behind * job->batch + at;
        const float *out = grad && job->out ? job->out + behind * job->batch + at : NULL;
        const float *y = job->y ? job->y + row * job->batch + at : NULL;
        for (int64_t n = 0; n < full; n += LANES) {
            VEC value = (VEC){0} + constant;
            if (y) value += of_y * LOAD(y + n);
            if (grad) value += of_grad * (out ? THROUGH(LOAD(grad + n), LOAD(out + n)) : LOAD(grad + n));
            STORE(g + n, value);
        }
        for (int64_t n = full; n < count; n++) {
            const float through = !grad || (out && out[n] <= 0.0f) ? 0.0f : grad[n];
            g[n] = constant + (y ? of_y * y[n] : 0.0f) + of_grad * through;
        }
        for (int64_t n = count; n % LANES; n++) g[n] = 0.0f;
    }
}

/* Both gradients of an item, for `rows` of its reads. `g`: [output][image]; `turned`: [image][output], `padded` of them. */
INLINE void JOIN(gradients_, LANES)(
    const dcn_train_backward *job, const int rows, const int dense, const int32_t *reads, const int32_t *places,
    int64_t outs, int64_t padded, int64_t at, int64_t count, const float *g, const float *turned, float *spread,
    float *weight_grad) {
    const float *x[BLOCK], *weights[BLOCK];
    float *towards_x[BLOCK], *towards_weights[BLOCK];
    for (int i = 0; i < rows; i++) {
        const int64_t row = reads[2 * i] * job->batch + at, tap = reads[2 * i + 1];
        x[i] = job->x + row;
        weights[i] = job->weights + tap;
        towards_x[i] = job->x_grad ? job->x_grad + row : NULL;
        towards_weights[i] = dense ? weight_grad + tap : spread + i * padded;
    }
    if (weight_grad) {
        if (!dense)
            for (int64_t j = 0; j < rows * padded; j++) spread[j] = 0.0f;
        JOIN(products_, LANES)(rows, x, NULL, count, turned, padded, towards_weights, padded, padded);
        if (!dense)
            for (int i = 0; i < rows; i++)
                for (int64_t o = 0; o < outs; o++) weight_grad[reads[2 * i + 1] + places[o]] += spread[i * padded + o];
    }
    if (job->x_grad) {
        const int64_t length = (count + LANES - 1) / LANES * LANES;
        JOIN(products_, LANES)
        (rows, weights, dense ? NULL : places, outs, g, job->tile, towards_x, length, count);
    }
}

static TARGET void JOIN(backward_, LANES)(const void *argument, int64_t slot) {
    const dcn_train_backward *job = argument;
    float *g = job->scratch + slot * job->scratch_size, *turned = g + job->width * job->tile;
    float *spread = turned + job->width * job->tile;
    float *weight_grad = job->weight_grad ? job->weight_grad + slot * job->weight_count : NULL;
    for (int64_t at = slot * job->tile; at < job->batch; at += job->slots * job->tile) {
        const int64_t count = job->batch - at < job->tile ? job->batch - at : job->tile;
        for (int64_t item = 0; item < job->items; item++) {
            const int64_t outs = job->write_start[item + 1] - job->write_start[item];
            const int64_t n = job->read_start[item + 1] - job->read_start[item];
            if (!outs || !n) continue;
            const int64_t padded = (outs + LANES - 1) / LANES * LANES;
            const int32_t *reads = job->reads + 2 * job->read_start[item];
            const int32_t *places = job->places + job->write_start[item];
            const int dense = outs == job->channels / job->groups;
            JOIN(gradient_, LANES)(job, item, at, count, g);
            for (int64_t o = outs; o < padded; o++)
                for (int64_t j = 0; j < job->tile; j++) g[o * job->tile + j] = 0.0f;
            if (weight_grad)
                for (int64_t o = 0; o < padded; o += LANES)
                    for (int64_t j = 0; j < count; j += LANES)
                        JOIN(turn_, LANES)(g + o * job->tile + j, job->tile, turned + j * padded + o, padded);
            for (int64_t k = 0; k < n;) {
                const int64_t left = n - k, blocks = (left + BLOCK - 1) / BLOCK;
                const int rows = (int)((left + blocks - 1) / blocks);
#define GRADIENTS(N, dense)                                                                                     \
    JOIN(gradients_, LANES)                                                                                     \
    (job, N, dense, reads + 2 * k, places, outs, padded, at, count, g, turned, spread, weight_grad)
#define CASE(N)                     \
    case N:                         \
        if (dense)                  \
            GRADIENTS(N, 1);        \
        else                        \
            GRADIENTS(N, 0);        \
        break;
                switch (rows) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
#undef CASE
#undef GRADIENTS
                k += rows;
            }
        }
    }
}

static TARGET void JOIN(finish_, LANES)(const void *argument, int64_t piece) {
    const dcn_train_finish *job = argument;
    const int64_t batch = job->batch, last = (piece + 1) * ROWS < job->count ? (piece + 1) * ROWS : job->count;
    for (int64_t row = piece * ROWS; row < last; row++) {
        const int64_t from = job->rows[3 * row], channel = job->rows[3 * row + 1], other = job->rows[3 * row + 2];
        const float scale = job->scale[channel], shift = job->scale[job->channels + channel];
        const float *y = from < 0 ? NULL : job->y + from * batch;
        const float *residual = other < 0 ? NULL : job->residual + other * batch;
        float *out = job->out + row * batch;
        for (int64_t n = 0; n < batch; n++) {
            float value = y ? scale * y[n] + shift : 0.0f;
            if (residual) value += residual[n];
            out[n] = job->relu && value <= 0.0f ? 0.0f : value; /* NaN stays NaN, as in PyTorch */
        }
    }
}

static TARGET void JOIN(prepare_, LANES)(const void *argument, int64_t piece) {
    const dcn_train_prepare *job = argument;
    const int64_t batch = job->batch, last = (piece + 1) * ROWS < job->count ? (piece + 1) * ROWS : job->count;
    for (int64_t row = piece * ROWS; row < last; row++) {
        const int64_t from = job->rows[3 * row], full = batch - batch % LANES;
        const float mean = job->mean[job->rows[3 * row + 1]];
        const int64_t to = job->rows[3 * row + 2];
        const float *grad = job->grad + row * batch, *out = job->out ? job->out + row * batch : NULL;
        float *residual = to < 0 || !job->residual_grad ? NULL : job->residual_grad + to * batch;
        VEC sum = (VEC){0}, product = (VEC){0};
        const float *y = from < 0 || !job->y ? NULL : job->y + from * batch;
        for (int64_t n = 0; n < full; n += LANES) {
            const VEC value = out ? THROUGH(LOAD(grad + n), LOAD(out + n)) : LOAD(grad + n);
            if (residual) STORE(residual + n, value);
            sum += value;
            if (y) product += value * (LOAD(y + n) - mean);
        }
        float total = 0.0f, products = 0.0f;
        for (int lane = 0; lane < LANES; lane++) {
            total += ((const float *)&sum)[lane];
            products += ((const float *)&product)[lane];
        }
        for (int64_t n = full; n < batch; n++) {
            const float value = out && out[n] <= 0.0f ? 0.0f : grad[n];
            if (residual) residual[n] = value;
            total += value;
            if (y) products += value * (y[n] - mean);
        }
        job->sums[2 * row] = from < 0 ? 0.0f : total;
        job->sums[2 * row + 1] = products;
    }
}

#undef THROUGH
#undef LOW
#undef HIGH
#undef PICKED
#undef VEC
#undef TO_DOUBLES
#undef INLINE
#undef LOAD
#undef STORE
#undef LANES
#undef WIDTHS
#undef TARGET
#endif
