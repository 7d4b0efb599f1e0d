/* Runs the kernel of training on random lists in memory of exactly the size that it may touch, and compares with plain
 * loops. It is linked with kernel.c, which has the threads. */
#include "training.c"

#include "sanitized.h"

int64_t dcn_lanes(void);

#define TAPS 9

/* Lists as training/lists.py makes them: items of `groups` groups, each with reads of its own group's weights. */
typedef struct {
    int64_t batch, groups, outputs, width, rows, items, chunk_count, behind, added;
    int64_t *read_start, *write_start, *chunks;
    int32_t *reads, *places, *grad_rows, *of_rows;
} lists;

static lists make_lists(int64_t batch) {
    lists l = {.batch = batch, .groups = 1 + below(2), .outputs = 1 + below(below(4) ? 9 : 40), .rows = 20};
    l.width = (l.outputs + 15) / 16 * 16, l.items = l.groups * below(8), l.behind = below(150);
    l.added = l.behind + below(7);
    l.read_start = room(l.items + 1, 8), l.write_start = room(l.items + 1, 8);
    l.read_start[0] = l.write_start[0] = 0;
    l.places = room(l.items * l.outputs, 4);
    for (int64_t i = 0; i < l.items; i++) {
        l.read_start[i + 1] = l.read_start[i] + (below(12) ? below(15) * (below(4) > 0) : 300 + below(300));
        int64_t row = l.write_start[i];
        const int64_t share = below(4); /* 0: every output; 3: none */
        for (int64_t o = 0; o < l.outputs; o++)
            if (share == 0 || (share < 3 && below(2))) l.places[row++] = (int32_t)o;
        l.write_start[i + 1] = row;
    }
    const int64_t n_reads = l.read_start[l.items], n_rows = l.write_start[l.items];
    l.reads = room(2 * n_reads, 4), l.grad_rows = room(n_rows, 4), l.of_rows = room(3 * l.behind, 4);
    for (int64_t i = 0; i < l.items; i++)
        for (int64_t k = l.read_start[i]; k < l.read_start[i + 1]; k++) {
            l.reads[2 * k] = (int32_t)below(l.rows);
            l.reads[2 * k + 1] = (int32_t)((i % l.groups * TAPS + below(TAPS)) * l.width);
        }
    for (int64_t i = 0; i < n_rows; i++) l.grad_rows[i] = (int32_t)below(l.behind + 1) - 1;
    for (int64_t i = 0; i < l.behind; i++) {
        l.of_rows[3 * i] = (int32_t)below(n_rows + 1) - 1;
        l.of_rows[3 * i + 1] = (int32_t)below(l.groups * l.outputs);
        /* Each row of the residual is added once at most, and some are not. */
        l.of_rows[3 * i + 2] = below(4) ? (int32_t)(l.added - 1 - i) : -1;
    }
    l.chunk_count = l.items ? 1 + below(l.items) : 0, l.chunks = room(l.chunk_count + 1, 8);
    for (int64_t i = 0; i <= l.chunk_count; i++) l.chunks[i] = l.chunk_count ? l.items * i / l.chunk_count : 0;
    return l;
}

static void free_lists(lists l) {
    free(l.read_start), free(l.write_start), free(l.chunks), free(l.reads);
    free(l.places), free(l.grad_rows), free(l.of_rows);
}

static float *zeros(int64_t count) {
    float *values = room(count, sizeof(float));
    for (int64_t i = 0; i < count; i++) values[i] = 0;
    return values;
}

static void forward(uint64_t seed, int64_t lanes, int64_t batch, int64_t threads) {
    state = seed;
    const lists l = make_lists(batch);
    const int64_t channels = l.groups * l.outputs, cells = l.chunk_count * channels;
    const int with_sums = below(4) > 0;
    float *x = floats(l.rows * batch), *weights = floats(l.groups * TAPS * l.width);
    float *y = room(l.write_start[l.items] * batch, 4), *shift = room(cells, 4);
    double *sums = room(cells * 2 * STRIDE, sizeof(double));
    for (int64_t i = 0; i < cells * 2 * STRIDE; i++) sums[i] = 0;
    for (int64_t i = 0; i < cells; i++) shift[i] = NAN;
    const dcn_train_forward job = {
        .x = x, .weights = weights, .y = y, .sums = with_sums ? sums : NULL, .shift = shift, .reads = l.reads,
        .places = l.places, .read_start = l.read_start, .write_start = l.write_start, .chunks = l.chunks,
        .chunk_count = l.chunk_count, .batch = batch, .channels = channels, .groups = l.groups,
    };
    dcn_run_train_forward(&job, lanes, threads);
    for (int64_t i = 0; i < l.items; i++)
        for (int64_t row = l.write_start[i]; row < l.write_start[i + 1]; row++)
            for (int64_t b = 0; b < batch; b++) {
                double sum = 0, size = 2;
                for (int64_t k = l.read_start[i]; k < l.read_start[i + 1]; k++) {
                    const double term = (double)weights[l.reads[2 * k + 1] + l.places[row]] * x[l.reads[2 * k] * batch + b];
                    sum += term, size += fabs(term);
                }
                /* A row left out or read twice changes about 1 / n of the size, far more than this. */
                if (!(fabs(sum - y[row * batch + b]) < 5e-6 * size)) fail("forward", lanes, batch, seed);
            }
    for (int64_t chunk = 0; chunk < l.chunk_count && with_sums; chunk++)
        for (int64_t channel = 0; channel < channels; channel++) {
            const int64_t cell = chunk * channels + channel;
            double sum = 0, square = 0, size = 2, found = 0, found_square = 0;
            int64_t count = 0;
            for (int64_t i = l.chunks[chunk]; i < l.chunks[chunk + 1]; i++)
                for (int64_t row = l.write_start[i]; row < l.write_start[i + 1]; row++)
                    if (i % l.groups * l.outputs + l.places[row] == channel)
                        for (int64_t b = 0; b < batch; b++, count++) {
                            const double value = (double)y[row * batch + b] - shift[cell];
                            sum += value, square += value * value, size += fabs(value) + value * value;
                        }
            for (int lane = 0; lane < STRIDE; lane++) {
                found += sums[2 * STRIDE * cell + lane];
                found_square += sums[2 * STRIDE * cell + STRIDE + lane];
            }
            if ((count == 0) != (shift[cell] != shift[cell])) fail("shift", lanes, batch, seed);
            if (!(fabs(sum - found) < 2e-6 * size && fabs(square - found_square) < 2e-6 * size))
                if (count) fail("sums", lanes, batch, seed);
        }
    free(x), free(weights), free(y), free(sums), free(shift);
    free_lists(l);
}

static void backward(uint64_t seed, int64_t lanes, int64_t batch, int64_t threads) {
    state = seed;
    const lists l = make_lists(batch);
    const int64_t channels = l.groups * l.outputs, n_rows = l.write_start[l.items], count = l.groups * TAPS * l.width;
    const int64_t tile = 16 * (1 + below(4)), tiles = (batch + tile - 1) / tile, slots = threads < tiles ? threads : tiles;
    const int64_t size = l.width * (2 * tile + BLOCK);
    const int with_y = (int)below(2), relu = (int)below(2), towards_x = below(4) > 0, towards_weights = !towards_x || below(4) > 0;
    float *x = floats(l.rows * batch), *weights = floats(count), *y = floats(n_rows * batch);
    float *grad = floats(l.behind * batch), *out = floats(l.behind * batch);
    float *scale = floats(3 * channels), *scratch = room(slots * size, 4);
    float *x_grad = zeros(l.rows * batch), *weight_grad = zeros(slots * count);
    const dcn_train_backward job = {
        .x = x, .weights = weights, .y = with_y ? y : NULL, .grad = grad, .out = relu ? out : NULL,
        .scale = scale, .x_grad = towards_x ? x_grad : NULL, .weight_grad = towards_weights ? weight_grad : NULL, .scratch = scratch,
        .reads = l.reads, .places = l.places, .grad_rows = l.grad_rows, .read_start = l.read_start,
        .write_start = l.write_start, .items = l.items, .batch = batch, .channels = channels, .groups = l.groups,
        .width = l.width, .tile = tile, .slots = slots, .weight_count = count, .scratch_size = size,
    };
    dcn_run_train_backward(&job, lanes, threads);
    double *of_x = room(2 * l.rows * batch, 8), *of_weights = room(2 * count, 8);
    for (int64_t i = 0; i < 2 * l.rows * batch; i++) of_x[i] = 0;
    for (int64_t i = 0; i < 2 * count; i++) of_weights[i] = 0;
    for (int64_t i = 0; i < l.items; i++)
        for (int64_t row = l.write_start[i]; row < l.write_start[i + 1]; row++)
            for (int64_t b = 0; b < batch; b++) {
                const int64_t channel = i % l.groups * l.outputs + l.places[row];
                double g = scale[2 * channels + channel];
                if (with_y) g += (double)scale[channels + channel] * y[row * batch + b];
                const int64_t behind = l.grad_rows[row] * batch + b;
                if (l.grad_rows[row] >= 0 && !(relu && out[behind] <= 0)) g += (double)scale[channel] * grad[behind];
                for (int64_t k = l.read_start[i]; k < l.read_start[i + 1]; k++) {
                    const int64_t place = l.reads[2 * k] * batch + b, weight = l.reads[2 * k + 1] + l.places[row];
                    of_x[2 * place] += g * weights[weight], of_x[2 * place + 1] += fabs(g * weights[weight]);
                    of_weights[2 * weight] += g * x[place], of_weights[2 * weight + 1] += fabs(g * x[place]);
                }
            }
    for (int64_t i = 0; i < l.rows * batch && towards_x; i++)
        if (!(fabs(of_x[2 * i] - x_grad[i]) < 5e-6 * (2 + of_x[2 * i + 1]))) fail("towards x", lanes, batch, seed);
    for (int64_t i = 0; i < count && towards_weights; i++) {
        double sum = 0;
        for (int64_t slot = 0; slot < slots; slot++) sum += weight_grad[slot * count + i];
        if (!(fabs(of_weights[2 * i] - sum) < 5e-6 * (2 + of_weights[2 * i + 1]))) fail("towards weights", lanes, batch, seed);
    }
    free(x), free(weights), free(y), free(grad), free(out), free(scale), free(scratch), free(x_grad), free(weight_grad);
    free(of_x), free(of_weights);
    free_lists(l);
}

static void passes_over_rows(uint64_t seed, int64_t lanes, int64_t batch, int64_t threads) {
    state = seed;
    const lists l = make_lists(batch);
    const int64_t channels = l.groups * l.outputs, values = l.behind * batch;
    const int relu = (int)below(2), with_residual = (int)below(2), with_y = (int)below(2);
    float *y = floats(l.write_start[l.items] * batch), *residual = floats(l.added * batch), *out = room(values, 4);
    float *scale = floats(2 * channels), *mean = floats(channels), *grad = floats(values);
    float *residual_grad = zeros(l.added * batch);
    float *sums = room(2 * l.behind, 4);
    for (int64_t i = 0; i < l.behind && !with_residual; i++) l.of_rows[3 * i + 2] = -1;
    const dcn_train_finish finish = {
        .y = y, .residual = with_residual ? residual : NULL, .out = out, .rows = l.of_rows, .scale = scale,
        .count = l.behind, .batch = batch, .channels = channels, .relu = relu,
    };
    dcn_run_train_finish(&finish, lanes, threads);
    const dcn_train_prepare prepare = {
        .grad = grad, .out = relu ? out : NULL, .y = with_y ? y : NULL,
        .residual_grad = with_residual ? residual_grad : NULL, .sums = sums, .rows = l.of_rows, .mean = mean, .count = l.behind, .batch = batch,
    };
    dcn_run_train_prepare(&prepare, lanes, threads);
    for (int64_t row = 0; row < l.behind; row++) {
        const int64_t from = l.of_rows[3 * row], channel = l.of_rows[3 * row + 1], other = l.of_rows[3 * row + 2];
        double total = 0, products = 0, size = 2;
        for (int64_t b = 0; b < batch; b++) {
            double value = from < 0 ? 0 : (double)scale[channel] * y[from * batch + b] + scale[channels + channel];
            if (other >= 0) value += residual[other * batch + b];
            if (relu && value < 0) value = 0;
            const float actual = out[row * batch + b], g = relu && actual <= 0 ? 0 : grad[row * batch + b];
            if (!(fabs(value - actual) < 1e-6)) fail("finish", lanes, batch, seed);
            if (other >= 0 && residual_grad[other * batch + b] != g) fail("residual", lanes, batch, seed);
            if (from < 0) continue;
            const double product = with_y ? (double)g * ((double)y[from * batch + b] - mean[channel]) : 0;
            total += g, products += product, size += fabs(g) + fabs(product);
        }
        if (!(fabs(total - sums[2 * row]) < 5e-6 * size && fabs(products - sums[2 * row + 1]) < 5e-6 * size))
            fail("prepare", lanes, batch, seed);
    }
    free(y), free(residual), free(out), free(scale), free(mean), free(grad), free(residual_grad), free(sums);
    free_lists(l);
}

int main(void) {
    int64_t widths = 0, runs = 0;
    for (int64_t lanes = 1; lanes <= dcn_lanes(); lanes = lanes == 1 ? 4 : 2 * lanes, widths++)
        for (int64_t batch = lanes; batch <= 135; batch += batch < 35 ? 1 : batch < 66 ? 5 : 23)
            for (uint64_t seed = 0; seed < 6; seed++, runs++) {
                const int64_t threads = 1 + (int64_t)(seed % 3);
                forward(seed * 97 + (uint64_t)batch, lanes, batch, threads);
                backward(seed * 89 + (uint64_t)batch, lanes, batch, threads);
                passes_over_rows(seed * 83 + (uint64_t)batch, lanes, batch, threads);
            }
    printf("%d runs, %d widths\n", (int)runs, (int)widths);
    return 0;
}
