/* Linear layers in int8: levels go in, and sums of whole numbers come out. */
#ifndef SENSEVOICE_LINEAR_INT8_H
#define SENSEVOICE_LINEAR_INT8_H

#include <math.h>

#include "call.h"

enum { MOST_STEPS = ALL_STEPS, STEP_VALUES = INT8_STEP, STEP_BYTES = TILE_BYTES };

static inline void product_linear(Operands in, Sum *out) { product_int8(in, out, PANEL_COLUMNS); }

/* Levels: value = scale * (level - zero), with both of each row's own. */
INLINE uint8_t level_of(float value, float per_unit, float zero) {
    const float level = value * per_unit + zero + 0.5f, highest = HIGHEST_LEVEL;
    return (uint8_t)(int)(level > highest ? highest : level);
}

typedef struct {
    float low, high;
} Range;

/* Of zero and `n` values, an even number; both halves at once, since each step of either waits for
 * the one before. */
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

/* `n` values; those behind them up to a whole step stand for zero. */
static void put_row(const float *restrict values, int n, Input out, int row) {
    const Range range = range_of(values, n);
    const float width = range.high - range.low;
    const float scale = width > 0.0f ? width / HIGHEST_LEVEL : 1.0f;
    const float zero = floorf(0.5f - range.low / scale), per_unit = 1.0f / scale;
    out.scales[row] = scale;
    out.zeros[row] = zero;
    uint8_t *restrict levels = (uint8_t *)out.tiles +
                               (size_t)(row / TILE_ROWS) * TILE_ROWS * padded(n, STEP_VALUES) +
                               row % TILE_ROWS * LINE_BYTES;
    const int n_whole = n / STEP_VALUES * STEP_VALUES;
    for (int at = 0; at < n_whole; at += STEP_VALUES, levels += TILE_BYTES)
        for (int i = 0; i < STEP_VALUES; i++)
            levels[i] = level_of(values[at + i], per_unit, zero);
    if (n_whole == n) return;
    for (int i = 0; i < STEP_VALUES; i++)
        levels[i] = level_of(n_whole + i < n ? values[n_whole + i] : 0.0f, per_unit, zero);
}

/* What a row's sums in one panel stand for. */
INLINE void read_sums(const Sum *restrict sums, const Linear *layer, int column, Input input,
                      int row, float *restrict out) {
    const float *restrict weight_sums = layer->weight_sums + column;
    const float *restrict scales = layer->scales + column, *restrict bias = layer->bias + column;
    const float scale = input.scales[row], zero = input.zeros[row];
    call_later_sums(sums);
    for (int i = 0; i < PANEL_COLUMNS; i++)
        out[i] = ((float)sums[i] - zero * weight_sums[i]) * (scale * scales[i]) + bias[i];
}

#endif
