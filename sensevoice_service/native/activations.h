/* Rows of activations in vectors, and their norm. */
#ifndef SENSEVOICE_ACTIVATIONS_H
#define SENSEVOICE_ACTIVATIONS_H

#include <math.h>

#include "encoder.h"
#include "lanes.h"
#include "tiles.h"

/* A register of the vectors. Several sums at once, since each addition waits for the one before. */
typedef float Lanes __attribute__((vector_size(VECTOR_BYTES), aligned(4)));
enum { LANES = sizeof(Lanes) / sizeof(float), CHAINS = 4 };

#define ZEROS ((Lanes){0})
#define LANES_AT(values, at) (*(const Lanes *)((values) + (at)))

INLINE float sum_of(const Lanes *chains) {
    const Lanes all = (chains[0] + chains[1]) + (chains[2] + chains[3]);
    float sum = 0.0f;
    for (int i = 0; i < LANES; i++) sum += all[i];
    return sum;
}

static void norm_row(const float *restrict x, Norm norm, float *restrict out) {
    const float *restrict scale = norm.scale, *restrict shift = norm.shift;
    const int n = norm.size;
    Lanes sums[CHAINS] = {ZEROS}, squares[CHAINS] = {ZEROS};
    for (int at = 0; at < n; at += LANES) sums[at / LANES % CHAINS] += LANES_AT(x, at);
    const float mean = sum_of(sums) / (float)n;
    for (int at = 0; at < n; at += LANES) {
        const Lanes from_mean = LANES_AT(x, at) - mean;
        squares[at / LANES % CHAINS] += from_mean * from_mean;
    }
    const float per_deviation = 1.0f / sqrtf(sum_of(squares) / (float)n + 1e-5f);
    for (int i = 0; i < n; i++)
        out[i] = (x[i] - mean) * per_deviation * scale[i] + shift[i];
}

#endif
