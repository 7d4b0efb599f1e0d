/* What the programs that run under sanitizers share: random numbers, and memory of exactly the size asked for. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static uint64_t state;

static int64_t below(int64_t limit) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (int64_t)((state >> 33) % (uint64_t)limit);
}

static void *room(int64_t count, size_t size) {
    void *found = malloc((size_t)count * size);
    if (!found && count) abort();
    return found;
}

static float *floats(int64_t count) {
    float *found = room(count, sizeof(float));
    for (int64_t i = 0; i < count; i++) found[i] = (float)below(2001) / 1000 - 1;
    return found;
}

static void fail(const char *what, int64_t lanes, int64_t batch, uint64_t seed) {
    printf("%s: lanes %d, batch %d, seed %d\n", what, (int)lanes, (int)batch, (int)seed);
    exit(1);
}
