/* Runs the kernel on random lists in memory of exactly the size that it may touch, and compares with plain loops. */
#include "kernel.c"

#include "sanitized.h"

/* Groups of 0 to 9 reads, or of more than the first cache holds, and 0 to 14 writes; every row is written once. */
static void gemm(uint64_t seed, int64_t lanes, int64_t batch, int with_residual, int relu, int64_t threads) {
    state = seed;
    const int64_t groups = below(12), rows = 20, added = 7;
    int64_t *read_start = room(groups + 1, 8), *write_start = room(groups + 1, 8);
    read_start[0] = write_start[0] = 0;
    for (int64_t g = 0; g < groups; g++) {
        read_start[g + 1] = read_start[g] + (below(12) ? below(10) * (below(4) > 0) : 600 + below(600));
        write_start[g + 1] = write_start[g] + below(15) * (below(4) > 0);
    }
    const int64_t n_reads = read_start[groups], n_writes = write_start[groups], outputs = 5;
    int32_t *reads = room(2 * n_reads, 4), *writes = room(2 * n_writes, 4), *residual_rows = room(n_writes, 4);
    for (int64_t i = 0; i < n_reads; i++) {
        reads[2 * i] = (int32_t)below(rows);
        reads[2 * i + 1] = (int32_t)(below(9) * outputs);
    }
    for (int64_t i = 0; i < n_writes; i++) {
        writes[2 * i] = (int32_t)(n_writes - 1 - i);
        writes[2 * i + 1] = (int32_t)below(outputs);
        residual_rows[i] = (int32_t)below(added + 1) - 1;
    }
    const int64_t pieces = groups ? 1 + below(groups) : 0;
    int64_t *chunks = room(pieces + 1, 8);
    for (int64_t i = 0; i <= pieces; i++) chunks[i] = pieces ? groups * i / pieces : 0;
    float *x = floats(rows * batch), *weights = floats(9 * outputs), *bias = floats(n_writes);
    float *residual = floats(added * batch), *out = floats(n_writes * batch);
    const dcn_gemm job = {
        .x = x, .weights = weights, .bias = bias, .residual = with_residual ? residual : NULL, .out = out,
        .reads = reads, .writes = writes, .residual_rows = with_residual ? residual_rows : NULL,
        .read_start = read_start, .write_start = write_start, .chunks = chunks,
        .chunk_count = pieces, .batch = batch, .relu = relu,
    };
    dcn_run_gemm(&job, lanes, threads);
    for (int64_t g = 0; g < groups; g++)
        for (int64_t i = write_start[g]; i < write_start[g + 1]; i++)
            for (int64_t b = 0; b < batch; b++) {
                double sum = bias[i], size = 2;
                for (int64_t k = read_start[g]; k < read_start[g + 1]; k++) {
                    const double term = (double)weights[reads[2 * k + 1] + writes[2 * i + 1]] * x[reads[2 * k] * batch + b];
                    sum += term, size += fabs(term);
                }
                if (with_residual && residual_rows[i] >= 0) sum += residual[residual_rows[i] * batch + b];
                if (relu && sum < 0) sum = 0;
                /* A row left out or read twice changes about 1 / n of the size, far more than this. */
                if (!(fabs(sum - out[writes[2 * i] * batch + b]) < 5e-6 * size)) fail("gemm", lanes, batch, seed);
            }
    free(read_start), free(write_start), free(reads), free(writes), free(residual_rows), free(chunks);
    free(x), free(weights), free(bias), free(residual), free(out);
}

static void move(uint64_t seed, int64_t batch, int64_t threads) {
    state = seed;
    const int64_t cells = below(100);
    int64_t rows = 0;
    int32_t *row_of_cell = room(cells, 4);
    for (int64_t i = 0; i < cells; i++) row_of_cell[i] = below(3) ? (int32_t)rows++ : -1;
    float *dense = floats(batch * cells), *out = floats(rows * batch), *back = floats(batch * cells);
    dcn_move job = {row_of_cell, dense, out, cells, batch, 1};
    dcn_run_move(&job, threads);
    job.dense = back, job.to_rows = 0;
    dcn_run_move(&job, threads);
    for (int64_t i = 0; i < cells; i++)
        for (int64_t b = 0; b < batch; b++) {
            const float value = dense[b * cells + i];
            if (row_of_cell[i] >= 0 && out[row_of_cell[i] * batch + b] != value) fail("to rows", 0, batch, seed);
            if (back[b * cells + i] != (row_of_cell[i] < 0 ? 0 : value)) fail("to dense", 0, batch, seed);
        }
    free(row_of_cell), free(dense), free(out), free(back);
}

int main(void) {
    int64_t widths = 0, runs = 0;
    for (int64_t lanes = 1; lanes <= dcn_lanes(); lanes = lanes == 1 ? 4 : 2 * lanes, widths++)
        for (int64_t batch = lanes; batch <= 70; batch += batch < 40 ? 1 : 15)
            for (uint64_t seed = 0; seed < 8; seed++, runs++)
                gemm(seed * 97 + (uint64_t)batch, lanes, batch, seed & 1, (seed >> 1) & 1, 1 + (int64_t)(seed >> 2) * 2);
    for (int64_t batch = 1; batch <= 40; batch++)
        for (uint64_t seed = 0; seed < 8; seed++, runs++) move(seed * 89 + (uint64_t)batch, batch, 1 + (int64_t)(seed & 1) * 2);
    printf("%d runs, %d widths\n", (int)runs, (int)widths);
    return 0;
}
