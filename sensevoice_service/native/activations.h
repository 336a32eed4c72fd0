/* Rows of activations: norms, levels for int8 products, and values from what these come to. */
#ifndef SENSEVOICE_ACTIVATIONS_H
#define SENSEVOICE_ACTIVATIONS_H

#include <math.h>

#include "call.h"
#include "halves.h"
#include "lanes.h"

INLINE uint8_t level_of(float value, float per_unit, float zero) {
    const float level = value * per_unit + zero + 0.5f, highest = HIGHEST_LEVEL;
    return (uint8_t)(int)(level > highest ? highest : level);
}

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

typedef struct {
    float low, high;
} Range;

/* Of zero and `n` values, an even number; both halves at once for the reason above. */
static Range range_of(const float *values, int n) {
    const float *others = values + n / 2;
    float low = 0.0f, low2 = 0.0f, high = 0.0f, high2 = 0.0f;
    for (int i = 0; i < n / 2; i++) {
        low = values[i] < low ? values[i] : low;
        high = values[i] > high ? values[i] : high;
        low2 = others[i] < low2 ? others[i] : low2;
        high2 = others[i] > high2 ? others[i] : high2;
    }
    return (Range){low < low2 ? low : low2, high > high2 ? high : high2};
}

/* Levels of `n` values; those behind them up to a whole step stand for zero. */
static void quantize_row(const float *values, int n, Quantized out, int row) {
    const Range range = range_of(values, n);
    const float width = range.high - range.low;
    const float scale = width > 0.0f ? width / HIGHEST_LEVEL : 1.0f;
    const float zero = floorf(0.5f - range.low / scale), per_unit = 1.0f / scale;
    out.scales[row] = scale;
    out.zeros[row] = zero;
    uint8_t *levels = out.levels +
                      (size_t)(row / TILE_ROWS) * TILE_ROWS * padded(n, INT8_STEP) +
                      row % TILE_ROWS * INT8_STEP;
    const int n_whole = n / INT8_STEP * INT8_STEP;
    for (int at = 0; at < n_whole; at += INT8_STEP, levels += TILE_BYTES)
        for (int i = 0; i < INT8_STEP; i++) levels[i] = level_of(values[at + i], per_unit, zero);
    if (n_whole == n) return;
    for (int i = 0; i < INT8_STEP; i++)
        levels[i] = level_of(n_whole + i < n ? values[n_whole + i] : 0.0f, per_unit, zero);
}

static void norm_row(const float *x, Norm norm, float *out) {
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
        out[i] = (x[i] - mean) * per_deviation * norm.scale[i] + norm.shift[i];
}

/* What a row's sums in one panel stand for. */
INLINE void read_sums(const int32_t *sums, const Linear *layer, int column, float scale,
                      float zero, float *out) {
    const int32_t *later = sums + 2 * PANEL_COLUMNS; /* the same of a row that is read soon */
    __builtin_prefetch(later);
    __builtin_prefetch(later + 16);
    for (int i = 0; i < PANEL_COLUMNS; i++)
        out[i] = ((float)sums[i] - zero * layer->weight_sums[column + i]) *
                     (scale * layer->scales[column + i]) +
                 layer->bias[column + i];
}

#endif
